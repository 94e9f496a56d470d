//! Looking at the state of a stopped node, and saving it.

use std::io;
use std::path::{Path, PathBuf};

use super::migrate::Summed;
use super::{Error, State, engine_failed, fits, scan_log, undamaged};
use crate::keyspace::{Limits, View, stream};
use crate::node::OpenEngine;
use crate::raft::log::Scan;
use crate::raft::snapshot;
use crate::storage::Store;

/// What was found of a stopped node's data.
#[derive(Debug, Clone)]
pub struct DataReport {
    /// The engine's name and version.
    pub backend: String,
    /// The last entry that the state holds.
    pub applied: u64,
    /// The number of keys.
    pub keys: u64,
    /// The digest of the contents, as `DEBUG DIGEST` of a node that has applied as much.
    pub digest: String,
    /// The snapshot files, all whole.
    pub snapshots: Vec<PathBuf>,
    /// The log.
    pub log: Scan,
}

/// Reads everything that a stopped node has, and checks whatever can be checked: the log's records
/// and their order, the engine's own checks, that contents and counters fit, snapshot files, and
/// that log and state fit together.
///
/// # Errors
///
/// What is wrong, or could not be read.
pub fn verify_data(
    path: &Path,
    open_engine: &OpenEngine,
    limits: Limits,
) -> Result<DataReport, Error> {
    let (dir, log) = scan_log(path, &mut |_| {})?;
    undamaged(&log)?;
    let state = State::open(&dir, open_engine, limits)?;
    let engine = state.store.engine().clone();
    match engine.verify() {
        Err(error) if error.kind() != crate::storage::ErrorKind::Unsupported => {
            return Err(error.into());
        }
        _ => {}
    }
    let (keys, _) = verify_contents(&state.store)?;
    let mut snapshots = Vec::new();
    let complete = state.snapshots.complete()?;
    for (_, file) in &complete {
        snapshot::verify(file)?;
        snapshots.push(file.clone());
    }
    fits(&dir, &log, &state)?;
    let position = state.position();
    let read = state.store.read()?;
    let digest = View::new(&read, position.time_ms, position.time_ms)
        .and_then(|view| view.digest())
        .map_err(engine_failed)?;
    drop(read);
    let report = DataReport {
        backend: format!("{} {}", engine.name(), engine.version()),
        applied: position.index(),
        keys,
        digest: crate::hex::text(&digest),
        snapshots,
        log,
    };
    state.close()?;
    Ok(report)
}

/// Reads the whole keyspace as a snapshot would, and checks it as a receiver would. Returns the
/// number of keys and the checksum of the stream, which is the same for the same contents and
/// position on any engine.
pub(super) fn verify_contents(store: &Store) -> Result<(u64, [u8; 32]), Error> {
    let (mut receiver, sender) = io::pipe()?;
    let read = store.read().map_err(io::Error::other)?;
    let keys = crate::keyspace::State::read(&read)
        .map_err(io::Error::other)?
        .keys;
    let sum = std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut out = Summed::over(sender);
            stream::write(&read, &read.mark().clone(), &mut out).map(|_| out.sum())
        });
        let verified = stream::verify(&mut receiver);
        // A receiver that has given up must not leave the sender waiting.
        drop(receiver);
        let sent = sent.join().expect("it does not panic");
        verified
            .map_err(|error| Error::Refused(format!("contents: {error}")))
            .and(sent.map_err(|error| Error::Refused(format!("contents: {error}"))))
    })?;
    Ok((keys, sum))
}

/// A snapshot that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// The last entry that it holds.
    pub index: u64,
    /// Entries behind it that are in the node's log, and of which it does not know whether they
    /// are committed.
    pub behind: u64,
}

/// Writes the state of a stopped node, with all entries that it knows to be committed, to a new
/// snapshot file.
///
/// # Errors
///
/// The file exists, the log is damaged, or something could not be read or written.
pub fn save_snapshot(
    path: &Path,
    to: &Path,
    open_engine: &OpenEngine,
    limits: Limits,
) -> Result<Saved, Error> {
    let (dir, log) = scan_log(path, &mut |_| {})?;
    undamaged(&log)?;
    let mut state = State::open(&dir, open_engine, limits)?;
    fits(&dir, &log, &state)?;
    state.catch_up(&log, log.state.committed.map_or(0, |id| id.index))?;
    let index = snapshot::export(&state.store, to)?.index();
    state.close()?;
    Ok(Saved {
        index,
        behind: log.entries.range(index + 1..).count() as u64,
    })
}
