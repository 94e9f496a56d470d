//! Carries out entries: one layer of changes with one mark for a whole group of them.
//!
//! Everything that decides a reply comes from the entry and the contents; nothing here asks for
//! time or chance. An engine's failure is this node's and stops it; a command's failure is an
//! answer, the same on every node.

use std::sync::Arc;

use openraft::EntryPayload;

use super::codec::Malformed;
use super::entry::{self, Group, Rule, Stamp};
use super::position::Position;
use super::types::{Applied, Entry, StoredMembership};
use crate::command::{self, Call, Kind, REPLY_BYTES_MAX};
use crate::keyspace::{Failure, Limits, Txn};
use crate::resp::Reply;
use crate::storage::{self, Store};

/// How many due keys one entry removes, so that a wave of expiries cannot make an entry long.
pub const REMOVED_PER_ENTRY_MAX: usize = 256;

/// kvd's own command that sets a value of the cluster's bookkeeping: name, value.
pub const META_SET: &[u8] = b"META.SET";

/// kvd's own command that removes a value of the cluster's bookkeeping: name.
pub const META_DELETE: &[u8] = b"META.DELETE";

/// kvd's own command that asks each node for the digest of its contents behind this entry.
pub const META_DIGEST: &[u8] = b"META.DIGEST";

/// Takes the state as it is behind an entry that asked for it.
pub type OnAsked = Box<dyn FnMut(&Position, &Store) -> storage::Result<()> + Send>;

/// Why a node must stop applying.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The engine failed.
    #[error("engine: {0}")]
    Engine(#[from] storage::Error),
    /// An entry is damaged, or from a version that this one does not understand.
    #[error("entry {index}: {reason}")]
    Entry {
        /// The entry's index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// The one who applies to a store.
pub struct Executor {
    store: Arc<Store>,
    position: Position,
    limits: Limits,
    due_left: bool,
    on_asked: OnAsked,
    /// What was applied since this was asked for.
    applied_bytes: usize,
    /// The last entry that carried a time.
    stamped: u64,
}

/// What one entry gave, and the groups it came from.
pub struct Outcome {
    /// One list of replies for each group.
    pub applied: Applied,
    /// Origin and sequence of each group.
    pub origins: Vec<(u64, u64)>,
    /// The state behind this entry was asked for.
    asked: bool,
}

impl Executor {
    /// Goes on from where the engine stands.
    ///
    /// # Errors
    ///
    /// The engine's failure, or a mark of a newer version.
    pub fn new(store: Arc<Store>, limits: Limits) -> Result<Self, Stop> {
        let position = read_position(&store)?;
        Ok(Executor {
            store,
            position,
            limits,
            due_left: false,
            on_asked: Box::new(|_, _| Ok(())),
            applied_bytes: 0,
            stamped: 0,
        })
    }

    /// Shows the state that an entry asks for to `on_asked`, which must not wait for anything to be
    /// applied.
    #[must_use]
    pub fn with_on_asked(self, on_asked: OnAsked) -> Self {
        Executor { on_asked, ..self }
    }

    /// The last entry that carried a time; 0 while none was applied.
    pub fn stamped(&self) -> u64 {
        self.stamped
    }

    /// How many bytes were given to the store since this was asked for last.
    pub fn take_applied_bytes(&mut self) -> usize {
        std::mem::take(&mut self.applied_bytes)
    }

    /// Where the state stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The store, for reads.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether the last group left keys behind that were due.
    pub fn due_left(&self) -> bool {
        self.due_left
    }

    /// Reads the position again, after the whole contents were replaced.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn reload(&mut self) -> Result<(), Stop> {
        self.position = read_position(&self.store)?;
        self.stamped = self.position.index();
        Ok(())
    }

    /// Carries out `entries` in order and makes their changes visible as one layer, or as several
    /// where the state in between is asked for.
    ///
    /// The replies may be given out once this has returned.
    ///
    /// # Errors
    ///
    /// See [`Stop`]; nothing of the last layer is then visible.
    pub fn apply<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> Result<Vec<Outcome>, Stop> {
        let mut entries = entries.peekable();
        let mut outcomes = Vec::new();
        while entries.peek().is_some() {
            self.apply_batch(&mut entries, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn apply_batch<'e>(
        &mut self,
        entries: &mut impl Iterator<Item = &'e Entry>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Stop> {
        let base = self.store.latest();
        let mut position = self.position.clone();
        let mut txn =
            Txn::new(&base, position.index(), position.time_ms, 0, self.limits).map_err(stop)?;
        let mut asked = false;
        for entry in entries {
            let outcome = self::apply(entry, &mut txn, &mut position, &mut self.due_left)?;
            position.log_id = Some(entry.log_id);
            if matches!(entry.payload, EntryPayload::Normal(_)) {
                self.stamped = entry.log_id.index;
            }
            asked = outcome.asked;
            outcomes.push(outcome);
            if asked {
                break;
            }
        }
        let changes = txn.finish();
        self.applied_bytes += self.store.apply(changes.layer, position.to_mark());
        self.position = position;
        if asked {
            (self.on_asked)(&self.position, &self.store)?;
        }
        Ok(())
    }
}

fn read_position(store: &Store) -> Result<Position, Stop> {
    let mark = store.mark()?;
    Position::from_mark(&mark).map_err(|error| Stop::Entry {
        index: mark.index,
        reason: error.to_string(),
    })
}

fn apply(
    entry: &Entry,
    txn: &mut Txn<'_>,
    position: &mut Position,
    due_left: &mut bool,
) -> Result<Outcome, Stop> {
    let index = entry.log_id.index;
    let damaged = |reason: String| Stop::Entry { index, reason };
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(membership) => {
            crash_point!("apply_membership");
            position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
        }
        EntryPayload::Normal(proposal) => {
            let (stamp, groups) = entry::decode(proposal.bytes.clone())
                .map_err(|error| damaged(error.to_string()))?;
            let Stamp {
                level,
                time_ms,
                seed,
            } = stamp;
            // A deposed leader's clock may have been ahead; time never falls.
            position.time_ms = position.time_ms.max(time_ms);
            position.level = position.level.max(level);
            txn.begin_entry(index, position.time_ms, seed);
            let removed = txn.remove_due(REMOVED_PER_ENTRY_MAX).map_err(stop)?;
            *due_left = removed == REMOVED_PER_ENTRY_MAX;
            let mut outcome = Outcome {
                applied: Applied::default(),
                origins: Vec::new(),
                asked: false,
            };
            for (ordinal, group) in groups.iter().enumerate() {
                // Each group has its own random numbers, whatever else shares the entry.
                let seed = seed.wrapping_add((ordinal as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let replies =
                    run_group(group, txn, seed, &mut outcome.asked).map_err(
                        |error| match error {
                            GroupError::Engine(error) => Stop::Engine(error),
                            GroupError::Malformed(reason) => damaged(reason),
                        },
                    )?;
                outcome.applied.groups.push(replies);
                outcome.origins.push((group.origin, group.sequence));
            }
            return Ok(outcome);
        }
    }
    Ok(Outcome {
        applied: Applied::default(),
        origins: Vec::new(),
        asked: false,
    })
}

enum GroupError {
    Engine(storage::Error),
    Malformed(String),
}

impl From<Malformed> for GroupError {
    fn from(error: Malformed) -> Self {
        GroupError::Malformed(error.to_string())
    }
}

impl From<Failure> for GroupError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Engine(error) => GroupError::Engine(error),
            other => GroupError::Malformed(other.to_string()),
        }
    }
}

fn run_group(
    group: &Group,
    txn: &mut Txn<'_>,
    seed: u64,
    asked: &mut bool,
) -> Result<Vec<Reply>, GroupError> {
    let mut holds = Ok(true);
    group.preconditions(|key, modified| {
        if matches!(holds, Ok(true)) {
            holds = txn.view().modified(key).map(|now| now == modified);
        }
    })?;
    if !holds? {
        return Ok(vec![Reply::NullArray]);
    }
    if !group.is_empty() {
        txn.set_used();
    }
    let start = txn.savepoint();
    let mut replies = Vec::with_capacity(group.len());
    let mut commands = group.commands();
    let mut args = Vec::new();
    let (mut ordinal, mut room) = (0u64, REPLY_BYTES_MAX);
    while commands.next_into(&mut args)? {
        let seed = seed ^ ordinal;
        ordinal += 1;
        let reply = if group.is_internal() {
            run_internal(&args, txn, asked)?
        } else {
            let call = Call {
                args: &args,
                seed,
                room,
            };
            run_command(&call, txn)?
        };
        room = room.saturating_sub(reply.bytes());
        let failed = reply.is_error();
        replies.push(reply);
        if failed && group.rule() == Rule::All {
            txn.rollback(start);
            break;
        }
    }
    Ok(replies)
}

fn run_command(call: &Call<'_>, txn: &mut Txn<'_>) -> Result<Reply, GroupError> {
    // The proposer has validated all of this; a node that finds otherwise runs another version,
    // and answers as every node of its kind does.
    let spec = match command::lookup(call.args) {
        Ok(spec) => spec,
        Err(reply) => return Ok(reply),
    };
    match spec.kind {
        Kind::Session(_) => Ok(Reply::error("ERR internal error")),
        Kind::Read(_) | Kind::Write(_) => {
            command::run_write(spec, call, txn).map_err(GroupError::Engine)
        }
    }
}

fn run_internal(args: &[&[u8]], txn: &mut Txn<'_>, asked: &mut bool) -> Result<Reply, GroupError> {
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match args {
        [command, key, value] if *command == META_SET => txn.set_system(&name(key), Some(value)),
        [command, key] if *command == META_DELETE => txn.set_system(&name(key), None),
        [command] if *command == META_DIGEST => *asked = true,
        _ => return Err(GroupError::Malformed("unknown internal command".to_owned())),
    }
    Ok(Reply::Ok)
}

fn stop(failure: Failure) -> Stop {
    match failure {
        Failure::Engine(error) => Stop::Engine(error),
        other => unreachable!("no command is running: {other}"),
    }
}
