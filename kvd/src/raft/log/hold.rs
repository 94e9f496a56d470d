//! What of the log must stay for a member that a snapshot is on its way to: everything behind the
//! snapshot. Were it cut meanwhile, the snapshot would be stale on arrival, and so would the next.
//!
//! A hold begins when the sending does. It ends when the sending fails; or, after it has succeeded,
//! when the member is level. It is also bounded in time, and by how long the log has become.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::types::NodeId;

/// The log is held for one member no longer than this: one that goes away right after it got its
/// snapshot must not keep the log of the others long.
pub const HELD_TIME_MAX: Duration = Duration::from_secs(600);

/// While it is held, the log may grow to this many times its usual limit. It is read as a whole at a
/// start, so this is a bound on that too.
pub const HELD_LOGS_MAX: u64 = 16;

struct Held {
    /// Entries behind this one stay.
    from: u64,
    since: Instant,
    /// Tells a later sending to the same member from this one.
    number: u64,
    /// The snapshot has arrived, and the member catches up behind it.
    arrived: bool,
}

#[derive(Default)]
struct Table {
    members: BTreeMap<NodeId, Held>,
    begun: u64,
}

/// Everything that is held, by the member it is held for.
#[derive(Clone, Default)]
pub(super) struct Holds(Arc<Mutex<Table>>);

impl Holds {
    /// Entries behind `from` stay for `member`, to which a snapshot that ends there begins to be sent.
    pub(super) fn begin(&self, member: NodeId, from: u64) -> Hold {
        let mut table = self.0.lock().expect("no panic while held");
        table.begun += 1;
        let number = table.begun;
        let held = Held {
            from,
            since: Instant::now(),
            number,
            arrived: false,
        };
        table.members.insert(member, held);
        Hold {
            of: Some((self.clone(), member, number)),
        }
    }

    /// The last entry that may be cut, where something is held. `matched` says up to which entry a
    /// member is known to have the log, and `level` from which one on it counts as level.
    pub(super) fn limit(&self, matched: &BTreeMap<NodeId, u64>, level: u64) -> Option<u64> {
        let mut table = self.0.lock().expect("no panic while held");
        table.members.retain(|member, held| {
            // One that is no member any more needs nothing.
            let Some(matched) = matched.get(member) else {
                return false;
            };
            held.from = held.from.max(*matched);
            held.since.elapsed() < HELD_TIME_MAX && !(held.arrived && *matched >= level)
        });
        table.members.values().map(|held| held.from).min()
    }

    /// Whoever is still waited for gets another snapshot.
    pub(super) fn give_up(&self) {
        self.0.lock().expect("no panic while held").members.clear();
    }

    fn arrived(&self, member: NodeId, number: u64) {
        let mut table = self.0.lock().expect("no panic while held");
        if let Some(held) = table.members.get_mut(&member)
            && held.number == number
        {
            held.arrived = true;
        }
    }

    fn end(&self, member: NodeId, number: u64) {
        let mut table = self.0.lock().expect("no panic while held");
        if table
            .members
            .get(&member)
            .is_some_and(|held| held.number == number)
        {
            table.members.remove(&member);
        }
    }
}

/// The log behind a snapshot stays while this is there, and longer where the snapshot has arrived.
#[must_use = "what is held is let go when this is dropped"]
pub struct Hold {
    of: Option<(Holds, NodeId, u64)>,
}

impl Hold {
    /// Holds nothing.
    pub fn nothing() -> Self {
        Hold { of: None }
    }

    /// The snapshot has arrived: what is behind it stays until the member has caught up.
    pub fn arrived(mut self) {
        if let Some((holds, member, number)) = self.of.take() {
            holds.arrived(member, number);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((holds, member, number)) = self.of.take() {
            holds.end(member, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: u64 = 1000;

    fn at(members: &[(NodeId, u64)]) -> BTreeMap<NodeId, u64> {
        members.iter().copied().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_held_while_a_snapshot_is_sent_and_until_its_receiver_is_level() {
        let holds = Holds::default();
        assert_eq!(holds.limit(&at(&[(1, 10), (2, 0)]), LEVEL), None);
        let hold = holds.begin(2, 500);
        assert_eq!(holds.limit(&at(&[(1, 2000), (2, 0)]), LEVEL), Some(500));
        hold.arrived();
        assert_eq!(holds.limit(&at(&[(1, 2000), (2, 0)]), LEVEL), Some(500));
        // What it has got is not needed any more.
        assert_eq!(holds.limit(&at(&[(1, 2000), (2, 700)]), LEVEL), Some(700));
        assert_eq!(holds.limit(&at(&[(1, 2000), (2, 1000)]), LEVEL), None);
        assert_eq!(holds.limit(&at(&[(1, 2000), (2, 600)]), LEVEL), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sending_that_failed_holds_nothing_and_the_next_one_its_own() {
        let holds = Holds::default();
        let members = at(&[(2, 0)]);
        let first = holds.begin(2, 500);
        let second = holds.begin(2, 600);
        drop(first);
        assert_eq!(holds.limit(&members, LEVEL), Some(600));
        drop(second);
        assert_eq!(holds.limit(&members, LEVEL), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_has_an_end() {
        let holds = Holds::default();
        let members = at(&[(2, 0), (3, 0)]);
        let (slow, gone) = (holds.begin(2, 500), holds.begin(4, 10));
        assert_eq!(holds.limit(&members, LEVEL), Some(500), "4 is no member");
        tokio::time::advance(HELD_TIME_MAX).await;
        assert_eq!(holds.limit(&members, LEVEL), None);
        let third = holds.begin(3, 500);
        holds.give_up();
        assert_eq!(holds.limit(&members, LEVEL), None);
        drop((slow, gone, third));
    }
}
