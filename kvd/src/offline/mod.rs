//! What is done to the data directory of a node that does not run: look at it, repair it, copy it
//! to another engine, make a new cluster of it.
//!
//! Each command locks the directory, so it refuses one that a node uses. Printing is the caller's.

mod contents;
mod migrate;
mod rebirth;
mod repair;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use self::contents::{DataReport, Saved, save_snapshot, verify_data};
pub use self::migrate::{Migrated, Place, migrate};
pub use self::rebirth::{Reborn, force_new_cluster, restore_snapshot};
pub use self::repair::{Repaired, drop_from, drop_tail};
use crate::data_dir::{DataDir, DataDirError, Stage};
use crate::keyspace::{Failure, Limits};
use crate::node::OpenEngine;
use crate::raft::Entry;
use crate::raft::executor::{Executor, Stop};
use crate::raft::log;
use crate::raft::position::Position;
use crate::raft::snapshot::SnapshotDir;
use crate::raft::state_machine;
use crate::storage::{self, Caps, Store};

/// Entries that are carried out as one batch.
const ENTRIES_AT_ONCE: usize = 1024;

/// Why a command on a stopped node's directory was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The engine.
    #[error("backend: {0}")]
    Engine(#[from] storage::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// Log and state do not fit together.
    #[error(transparent)]
    Restart(#[from] log::RestartError),
    /// A file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What the directory holds does not allow it.
    #[error("{0}")]
    Refused(String),
}

fn engine_failed(failure: Failure) -> Error {
    match failure {
        Failure::Engine(error) => Error::Engine(error),
        Failure::WrongType | Failure::TooLarge { .. } => Error::Refused(failure.to_string()),
    }
}

/// The opened state of a stopped node.
struct State {
    store: Arc<Store>,
    snapshots: Arc<SnapshotDir>,
    executor: Executor,
}

impl State {
    /// Opens engine and snapshots, and finishes an installation that was cut off.
    fn open(dir: &DataDir, open_engine: &OpenEngine, limits: Limits) -> Result<Self, Error> {
        let engine = open_engine(&dir.engine())?;
        let store = Arc::new(Store::new(engine));
        let snapshots = Arc::new(SnapshotDir::open(&dir.snapshots())?);
        state_machine::recover(&store, &snapshots)?;
        let executor = Executor::new(store.clone(), limits).map_err(io::Error::other)?;
        Ok(State {
            store,
            snapshots,
            executor,
        })
    }

    /// Makes the present state what a restart begins from.
    fn make_durable(&self) -> io::Result<()> {
        if self.store.engine().caps().contains(Caps::DURABLE) {
            self.store.sync().map_err(io::Error::other)?;
            for (_, file) in self.snapshots.complete()? {
                std::fs::remove_file(file)?;
            }
            return Ok(());
        }
        let view = self.store.read().map_err(io::Error::other)?;
        let (position, spool) = self.snapshots.spool_out(view)?;
        self.snapshots.keep(&position, spool)
    }

    /// Carries out the entries of a log up to `end` that the state does not hold yet; returns how
    /// many.
    fn catch_up(&mut self, log: &log::Scan, end: u64) -> Result<u64, Error> {
        let from = self.position().index() + 1;
        let entries = log.entries.range(from..).map(|(_, entry)| entry);
        let entries: Vec<_> = entries.take_while(|(id, _)| id.index <= end).collect();
        for some in entries.chunks(ENTRIES_AT_ONCE) {
            let some = some.iter().map(|(id, body)| {
                body.payload().map(|payload| Entry {
                    log_id: *id,
                    payload,
                })
            });
            let some: Vec<Entry> = some.collect::<Result<_, _>>()?;
            self.carry_out(&some)?;
        }
        Ok(entries.len() as u64)
    }

    fn carry_out(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let applied = self.executor.apply(entries.iter());
        applied.map_err(|stop| match stop {
            Stop::Engine(error) => Error::Engine(error),
            Stop::Entry { .. } => Error::Refused(stop.to_string()),
        })?;
        Ok(self.store.store_all()?)
    }

    fn position(&self) -> &Position {
        self.executor.position()
    }

    fn close(self) -> io::Result<()> {
        self.store.engine().close().map_err(io::Error::other)
    }
}

/// Reads the log of a directory, shows each record to `visit`, and says how it ends.
///
/// # Errors
///
/// The directory is none or in use, or a file could not be read.
pub fn scan_log(
    path: &Path,
    visit: &mut dyn FnMut(&log::Record),
) -> Result<(DataDir, log::Scan), Error> {
    let dir = DataDir::open_stopped(path)?;
    let scan = log::scan(&dir.log(), visit)?;
    Ok((dir, scan))
}

/// Refuses a log with more wrong than an unfinished record at its end.
fn undamaged(log: &log::Scan) -> Result<(), Error> {
    match &log.end {
        log::End::Damaged {
            file,
            offset,
            reason,
        } => Err(Error::Refused(format!(
            "the log is damaged: {}, byte {offset}: {reason}",
            file.display()
        ))),
        log::End::Whole | log::End::Torn { .. } => Ok(()),
    }
}

/// Checks that log and state fit together as at a start.
fn fits(dir: &DataDir, log: &log::Scan, state: &State) -> Result<(), Error> {
    log::check_restart(&log::RestartState {
        applied: state.position().log_id,
        purged: log.state.purged,
        last: log.state.last,
        committed: log.state.committed,
        vote: log.state.vote,
        newest_spool: state.snapshots.complete()?.last().map(|(index, _)| *index),
        member: dir.identity().stage == Stage::Founded,
    })?;
    Ok(())
}
