//! On which threads a connection is served.
//!
//! Sockets have threads of their own, so that no client delays Raft. But a client that is alone and
//! waits for each of its writes waits for the wake-up of Raft's thread every time, which takes as
//! long as a third of a sync. So its connection moves to Raft's thread, where it may do nothing but
//! a few short writes at once: before anything else, and as soon as another client has asked for
//! something, it moves back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::runtime::Handle;

/// So many times in a row a client was the only one and asked for nothing but short writes.
const ROUNDS: u32 = 32;

/// Commands that it may send at once.
const COMMANDS_MAX: usize = 16;

/// Bytes of one of them.
const BYTES_MAX: usize = 1024;

/// Commands that are short, whatever the key held before.
const SHORT: [&[u8]; 7] = [
    b"set", b"incr", b"decr", b"incrby", b"decrby", b"del", b"unlink",
];

/// Who asked for something last.
#[derive(Default)]
pub(super) struct Turns(AtomicU64);

/// Where one connection is served.
pub(super) struct Place {
    home: Handle,
    is_away: bool,
    /// It cannot be moved.
    stays: bool,
    /// What waits in its input is not for where it is.
    must_leave: bool,
    /// Nothing but short writes came since input was waited for.
    short: bool,
    rounds: u32,
}

impl Place {
    /// A connection at home, where this is called.
    pub(super) fn home() -> Self {
        Place {
            home: Handle::current(),
            is_away: false,
            stays: false,
            must_leave: false,
            short: true,
            rounds: 0,
        }
    }

    /// Input came from `client`.
    pub(super) fn heard(&mut self, turns: &Turns, client: u64) {
        let is_alone = turns.0.swap(client, Relaxed) == client;
        self.rounds = match is_alone && self.short {
            true => self.rounds.saturating_add(1),
            false => 0,
        };
        self.short = true;
    }

    /// Whether a request may be taken on here that begins with `name`, if that is known, has so
    /// many bytes as far as they came, and so many others before it.
    pub(super) fn admits(&mut self, name: Option<&[u8]>, bytes: usize, before: usize) -> bool {
        // One that is not short is enough.
        if !self.short {
            return true;
        }
        let is_short = name
            .is_some_and(|name| SHORT.iter().any(|short| name.eq_ignore_ascii_case(short)))
            && bytes <= BYTES_MAX
            && before < COMMANDS_MAX;
        if is_short {
            return true;
        }
        self.must_leave = self.is_away && !self.stays;
        self.short = self.must_leave;
        !self.must_leave
    }

    /// Whether what waits in the input is to be taken on elsewhere.
    pub(super) fn must_leave(&self) -> bool {
        self.must_leave
    }

    /// Where the connection goes now that it has answered, unless it stays: `raft` is where Raft
    /// runs, while this node leads.
    pub(super) fn next(&self, raft: impl FnOnce() -> Option<Handle>) -> Option<Handle> {
        if self.stays {
            None
        } else if self.is_away {
            let goes = self.must_leave || self.rounds == 0 || raft().is_none();
            goes.then(|| self.home.clone())
        } else if self.rounds >= ROUNDS {
            raft().filter(|raft| raft.id() != self.home.id())
        } else {
            None
        }
    }

    /// It has moved.
    pub(super) fn moved(&mut self) {
        self.is_away = !self.is_away;
        self.must_leave = false;
        self.rounds = u32::from(self.is_away);
    }

    /// It could not be moved, and never will be.
    pub(super) fn stay(&mut self) {
        self.stays = true;
        self.must_leave = false;
    }
}
