//! Where the log's records go: files, or memory that forgets what was not flushed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_log::RaftLog;
use raft_log::api::raft_log_writer::RaftLogWriter as _;

use super::record::{Body, Callback, Id, LogTypes, StoredVote};
use crate::raft::types::{LogId, Vote};

/// A chunk of the log becomes removable as a whole, so chunks are small against the bound on the
/// log; each one that is open costs a file descriptor, and the newest one its size in memory.
pub(super) const CHUNK_BYTES: usize = 16 << 20;

/// Recent entries stay in memory for replication and apply.
pub(super) const CACHE_BYTES: usize = 64 << 20;

/// Many small entries must not make the cache much larger than its bytes.
pub(super) const CACHE_ENTRIES: usize = 256 * 1024;

/// Read-ahead when a chunk is decoded at start.
pub(super) const READ_BUFFER_BYTES: usize = 1 << 20;

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

/// A journal in files.
pub struct FileJournal {
    /// Absent only while it is being dropped.
    log: Option<RaftLog<LogTypes>>,
}

thread_local! {
    /// This thread is the crate's own, and calls back from a flush.
    static FLUSHING: Cell<bool> = const { Cell::new(false) };
}

impl FileJournal {
    fn log(&self) -> &RaftLog<LogTypes> {
        self.log.as_ref().expect("present until it is dropped")
    }

    fn log_mut(&mut self) -> &mut RaftLog<LogTypes> {
        self.log.as_mut().expect("present until it is dropped")
    }
}

impl Drop for FileJournal {
    fn drop(&mut self) {
        let log = self.log.take();
        if FLUSHING.get() {
            // Closing waits for the crate's thread, which cannot wait for itself.
            let closing = std::thread::Builder::new().name("kvd-log-close".to_owned());
            #[expect(
                clippy::disallowed_methods,
                reason = "it only waits for another thread"
            )]
            if let Err(error) = closing.spawn(move || drop(log)) {
                tracing::warn!(%error, "the log could not be closed in order");
            }
        }
    }
}

impl FileJournal {
    /// Opens the files of a directory; an unfinished record at the very end is cut off.
    ///
    /// # Errors
    ///
    /// Another process has them, they are damaged, or reading failed.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut config = raft_log::Config::new(dir.display());
        config.log_cache_capacity = Some(CACHE_BYTES);
        config.log_cache_max_items = Some(CACHE_ENTRIES);
        config.wal.chunk_max_size = Some(CHUNK_BYTES);
        config.wal.read_buffer_size = Some(READ_BUFFER_BYTES);
        // Waiting for company is done by the store: what comes during a flush shares the next.
        config.wal.flush_batch_wait = Some(Duration::ZERO);
        Ok(FileJournal {
            log: Some(RaftLog::open(Arc::new(config))?),
        })
    }
}

impl Journal for FileJournal {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        #[cfg(feature = "failpoints")]
        let chunks = self.log().stat().closed_chunks.len();
        self.log_mut().append([(Id(id), body)])?;
        #[cfg(feature = "failpoints")]
        if self.log().stat().closed_chunks.len() > chunks {
            crash_point!("log_chunk_closed");
        }
        Ok(())
    }

    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log_mut()
            .truncate(last.map_or(0, |id| id.index + 1))
            .map(drop)
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log_mut().purge(Id(upto)).map(drop)
    }

    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.log_mut().save_vote(StoredVote(vote)).map(drop)
    }

    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.log_mut().commit(Id(committed)).map(drop)
    }

    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        let done = move |result| {
            FLUSHING.set(true);
            done(result);
            FLUSHING.set(false);
        };
        self.log_mut().flush(true, Some(Callback(Box::new(done))))
    }

    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        for entry in self.log().read(from, to) {
            let (id, body) = entry?;
            if visit(id.0, &body).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn state(&self) -> JournalState {
        let state = self.log().log_state();
        JournalState {
            vote: state.vote().map(|vote| vote.0),
            last: state.last().map(|id| id.0),
            committed: state.committed().map(|id| id.0),
            purged: state.purged().map(|id| id.0),
        }
    }

    fn bytes(&self) -> u64 {
        self.log().on_disk_size()
    }
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
