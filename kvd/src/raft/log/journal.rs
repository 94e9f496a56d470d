//! What a log needs of the place where its records go, and one in memory that forgets what was not
//! flushed.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::record::Body;
use crate::raft::types::{LogId, Vote};

/// What a log remembers beside its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JournalState {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last entry, or the last one that was purged.
    pub last: Option<LogId>,
    /// The last entry known to be committed.
    pub committed: Option<LogId>,
    /// The last entry that was purged.
    pub purged: Option<LogId>,
}

/// Ends one flush.
pub type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Makes durable what was written before; takes as long as the disk does.
pub type SyncJob = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Visits entries in order until told to stop.
pub type Visit<'a> = &'a mut dyn FnMut(LogId, &Body) -> ControlFlow<()>;

/// A sequence of records. Changes are visible at once, and durable when a later flush has ended.
pub trait Journal: Send + Sync {
    /// Adds an entry behind the last one.
    ///
    /// # Errors
    ///
    /// Writing failed.
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()>;

    /// Drops the entries behind `last`.
    ///
    /// # Errors
    ///
    /// Writing failed, or `last` is not in the log.
    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()>;

    /// Drops the entries up to `upto`; it may be beyond the last one.
    ///
    /// # Errors
    ///
    /// Writing failed.
    fn purge(&mut self, upto: LogId) -> io::Result<()>;

    /// Remembers a vote.
    ///
    /// # Errors
    ///
    /// Writing failed.
    fn save_vote(&mut self, vote: Vote) -> io::Result<()>;

    /// Remembers how far entries are committed.
    ///
    /// # Errors
    ///
    /// Writing failed.
    fn save_committed(&mut self, committed: LogId) -> io::Result<()>;

    /// Begins to make everything so far durable; `done` is called once, from any thread, and not
    /// before this has returned.
    ///
    /// # Errors
    ///
    /// Nothing was begun.
    fn flush(&mut self, done: Flushed) -> io::Result<()>;

    /// Another way to flush, where what has come since the last one is at most `bytes_max` long:
    /// writes it, and leaves the sync to the caller, who must carry it out before the next flush.
    /// None where that cannot be; nothing has been done then.
    ///
    /// # Errors
    ///
    /// Writing failed.
    fn write_out(&mut self, bytes_max: usize) -> io::Result<Option<SyncJob>> {
        let _ = bytes_max;
        Ok(None)
    }

    /// Visits the entries with `from <= index < to`.
    ///
    /// # Errors
    ///
    /// Reading failed.
    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()>;

    /// What the log remembers beside its entries.
    fn state(&self) -> JournalState;

    /// How many bytes the log takes.
    fn bytes(&self) -> u64;
}

/// A journal in memory. Its disk outlives it: a new journal over the same disk finds what had been
/// flushed, and nothing else.
#[derive(Default)]
pub struct MemoryJournal {
    now: Contents,
    disk: MemoryDisk,
}

#[derive(Clone, Default)]
struct Contents {
    state: JournalState,
    entries: BTreeMap<u64, (LogId, Body)>,
}

/// What survives the crash of a node with a [`MemoryJournal`].
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Contents>>);

impl MemoryJournal {
    /// Opens what was flushed to `disk`.
    pub fn open(disk: MemoryDisk) -> Self {
        let now = disk.0.lock().expect("no panic while held").clone();
        MemoryJournal { now, disk }
    }
}

impl Journal for MemoryJournal {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        self.now.entries.insert(id.index, (id, body));
        self.now.state.last = Some(id);
        Ok(())
    }

    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.now
            .entries
            .split_off(&last.map_or(0, |id| id.index + 1));
        self.now.state.last = last.max(self.now.state.purged);
        Ok(())
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.now.entries = self.now.entries.split_off(&(upto.index + 1));
        self.now.state.purged = self.now.state.purged.max(Some(upto));
        self.now.state.last = self.now.state.last.max(Some(upto));
        Ok(())
    }

    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.now.state.vote = Some(vote);
        Ok(())
    }

    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.now.state.committed = Some(committed);
        Ok(())
    }

    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        *self.disk.0.lock().expect("no panic while held") = self.now.clone();
        // Never from within this call, whose caller holds the journal.
        crate::doors::spawn(async move { done(Ok(())) });
        Ok(())
    }

    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        if from < to {
            for (id, body) in self.now.entries.range(from..to).map(|(_, entry)| entry) {
                if visit(*id, body).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn state(&self) -> JournalState {
        self.now.state
    }

    fn bytes(&self) -> u64 {
        self.now
            .entries
            .values()
            .map(|(_, body)| body.0.len() as u64)
            .sum()
    }
}
