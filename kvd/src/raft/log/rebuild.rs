//! Makes the files of a log anew: for a stopped node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::files::FileJournal;
use super::format::{self, Identity, OpenError};
use super::journal::{Journal, JournalState};
use super::record::Body;
use super::store::CHUNKS;
use crate::data_dir::sync_dir;
use crate::raft::types::LogId;

/// What a new log holds.
pub struct Contents<'a> {
    /// What it remembers beside its entries; `last` follows from them.
    pub state: JournalState,
    /// Its entries in order, the first behind the purged one.
    pub entries: &'a mut dyn Iterator<Item = (LogId, Body)>,
}

/// Replaces the log in `dir`, which may be absent, by one with `contents`. What was there is in
/// the folder that is returned.
///
/// Each step is durable before the next: a crash in the middle leaves the old log in `dir`, the
/// new one, or none.
///
/// # Errors
///
/// A file could not be written or moved.
pub fn rebuild(
    dir: &Path,
    identity: Identity,
    contents: Contents<'_>,
) -> Result<Option<PathBuf>, OpenError> {
    let io_error = |source| OpenError::Io {
        dir: dir.to_owned(),
        source,
    };
    let new = dir.with_extension("new");
    remove(&new).map_err(io_error)?;
    fs::create_dir(&new).map_err(io_error)?;
    format::check(&new, identity)?;
    write(&new.join(CHUNKS), contents).map_err(io_error)?;
    sync_dir(&new).map_err(io_error)?;
    let replaced = replace(dir, &new).map_err(io_error)?;
    Ok(replaced)
}

fn write(chunks: &Path, contents: Contents<'_>) -> io::Result<()> {
    fs::create_dir(chunks)?;
    let mut journal = FileJournal::open(chunks)?;
    let JournalState {
        vote,
        committed,
        purged,
        ..
    } = contents.state;
    if let Some(purged) = purged {
        journal.purge(purged)?;
    }
    if let Some(vote) = vote {
        journal.save_vote(vote)?;
    }
    for (id, body) in contents.entries {
        journal.append(id, body)?;
    }
    if let Some(committed) = committed {
        journal.save_committed(committed)?;
    }
    let (done, wait) = mpsc::channel();
    journal.flush(Box::new(move |result| drop(done.send(result))))?;
    wait.recv().map_err(io::Error::other)??;
    sync_dir(chunks)
}

/// Puts `new` in the place of `dir`.
fn replace(dir: &Path, new: &Path) -> io::Result<Option<PathBuf>> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let old = (1..)
        .map(|n| dir.with_extension(format!("old{n}")))
        .find(|old| !old.exists())
        .filter(|_| dir.exists());
    if let Some(old) = &old {
        fs::rename(dir, old)?;
    }
    fs::rename(new, dir)?;
    sync_dir(parent)?;
    Ok(old)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
