//! Snapshots as files: spooled before they are sent, and before anything is replaced.
//!
//! ```text
//! snapshots/out-N.tmp               being sent; dropped when it was
//! snapshots/in-N.tmp                being received; worthless after a crash
//! snapshots/INDEX-TERM.snap         complete, verified and synced
//! ```
//!
//! A complete file that came from a leader stays until the log has moved past it: until then it is
//! the only proof that a state beyond the log is legitimate. With an engine that keeps nothing the
//! newest complete file is what a restart begins from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::position::Position;
use super::spool::{SnapshotMeta, SnapshotSink, Spool, SpoolWriter};
use super::types::LogId;
use crate::data_dir::sync_dir;
use crate::keyspace::stream;
use crate::storage::{Mark, ReadView, Store};

/// The meta of a position.
pub fn meta_of(position: &Position) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: position.log_id,
        last_membership: position.membership.clone(),
    }
}

/// A node's directory of snapshot files.
#[derive(Debug)]
pub struct SnapshotDir {
    path: PathBuf,
    next: AtomicU64,
}

impl SnapshotDir {
    /// Opens the directory and drops what a crash left half-done.
    ///
    /// # Errors
    ///
    /// It could not be read, or a file could not be removed.
    pub fn open(path: &Path) -> io::Result<Self> {
        for file in fs::read_dir(path)? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(file)?;
            }
        }
        Ok(SnapshotDir {
            path: path.to_owned(),
            next: AtomicU64::new(0),
        })
    }

    /// The complete files, oldest first, with the indices they end at.
    ///
    /// # Errors
    ///
    /// The directory could not be read.
    pub fn complete(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let file = file?.path();
            let index = file
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".snap"))
                .and_then(|name| name.split('-').next())
                .and_then(|index| index.parse().ok());
            if let Some(index) = index {
                found.push((index, file));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes what `view` sees to a temporary file.
    ///
    /// # Errors
    ///
    /// The engine could not be read or the file not written.
    pub fn spool_out(&self, view: ReadView) -> io::Result<(Position, Spool)> {
        write(view, &self.temporary("out"))
    }

    /// Makes a temporary file of a state durable under its final name, and drops older ones.
    ///
    /// # Errors
    ///
    /// Syncing or renaming failed.
    pub fn keep(&self, position: &Position, spool: Spool) -> io::Result<()> {
        let kept = self.finish(position, spool)?;
        crash_point!("keep_before_pruning");
        for (index, path) in self.complete()? {
            if index < position.index() && path != kept.path {
                fs::remove_file(path)?;
                crash_point!("keep_pruned");
            }
        }
        Ok(())
    }

    /// Verifies a file on the same file system and makes it one of this directory's complete ones.
    ///
    /// # Errors
    ///
    /// The file is damaged, or syncing or renaming failed.
    pub fn take_in(&self, spool: Spool) -> io::Result<Spool> {
        let mark = verify(&spool.path)?;
        let position = Position::from_mark(&mark).map_err(io::Error::other)?;
        self.finish(&position, spool)
    }

    fn finish(&self, position: &Position, mut spool: Spool) -> io::Result<Spool> {
        crash_point!("spool_sync_before");
        File::open(&spool.path)?.sync_all()?;
        crash_point!("spool_sync_after");
        let term = position.log_id.map_or(0, |id| id.leader_id.term);
        let path = self
            .path
            .join(format!("{:020}-{term}.snap", position.index()));
        fs::rename(&spool.path, &path)?;
        crash_point!("spool_renamed");
        sync_dir(&self.path)?;
        crash_point!("spool_finished");
        spool.keep = true;
        Ok(Spool::kept(path, spool.bytes))
    }

    fn temporary(&self, kind: &str) -> PathBuf {
        self.path.join(format!(
            "{kind}-{}.tmp",
            self.next.fetch_add(1, Ordering::Relaxed)
        ))
    }
}

fn create(path: &Path) -> io::Result<io::BufWriter<File>> {
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    Ok(io::BufWriter::with_capacity(256 * 1024, file))
}

/// Writes what `view` sees to a new file, which goes when it is dropped.
fn write(view: ReadView, path: &Path) -> io::Result<(Position, Spool)> {
    let mut out = create(path)?;
    // From here on the file goes when anything fails.
    let mut spool = Spool::temporary(path.to_owned(), 0);
    crash_point!("spool_created");
    let position = Position::from_mark(view.mark()).map_err(io::Error::other)?;
    stream::write(&view, view.mark(), &mut out).map_err(io::Error::other)?;
    drop(view);
    out.flush()?;
    spool.bytes = out.get_ref().metadata()?.len();
    crash_point!("spool_written");
    Ok((position, spool))
}

/// Writes the present state of `store` durably to a new file for someone to keep.
///
/// # Errors
///
/// The file exists, the engine could not be read or the file not written.
pub fn export(store: &Store, path: &Path) -> io::Result<Position> {
    let view = store.read().map_err(io::Error::other)?;
    let (position, mut spool) = write(view, path)?;
    File::open(path)?.sync_all()?;
    spool.keep = true;
    Ok(position)
}

/// Verifies a snapshot file and replaces the contents of `store` by it.
///
/// # Errors
///
/// The file is damaged (nothing is replaced then), or the engine failed.
pub fn install(path: &Path, store: &Store) -> io::Result<Position> {
    let mark = verify(path)?;
    replace(path, &mark, store)
}

/// As [`install`], where the snapshot goes further than the state, which ends at `own`; none where
/// it does not.
///
/// # Errors
///
/// As for [`install`]; or the snapshot contradicts the state.
pub fn install_beyond(
    own: Option<LogId>,
    path: &Path,
    store: &Store,
) -> io::Result<Option<Position>> {
    let mark = verify(path)?;
    let offered = Position::from_mark(&mark).map_err(io::Error::other)?.log_id;
    if offered <= own {
        return Ok(None);
    }
    let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
    if own.is_some() && index(offered) <= index(own) {
        return Err(io::Error::other(format!(
            "a snapshot that ends at {offered:?} contradicts the state, which ends at {own:?}"
        )));
    }
    replace(path, &mark, store).map(Some)
}

/// Replaces the contents of `store` by those of a file that was verified.
fn replace(path: &Path, mark: &Mark, store: &Store) -> io::Result<Position> {
    let position = Position::from_mark(mark).map_err(io::Error::other)?;
    let file = BufReader::with_capacity(256 * 1024, File::open(path)?);
    let mut feed = stream::Entries::open(file).map_err(io::Error::other)?;
    store.replace(&mut feed, mark).map_err(io::Error::other)?;
    Ok(position)
}

/// Reads a whole snapshot file and checks everything in it; returns the mark of its state.
///
/// # Errors
///
/// It is damaged, or could not be read.
pub fn verify(path: &Path) -> io::Result<Mark> {
    let mut file = BufReader::with_capacity(256 * 1024, File::open(path)?);
    stream::verify(&mut file)
        .map(|header| header.mark)
        .map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {error}", path.display()),
            )
        })
}

impl SnapshotSink for Arc<SnapshotDir> {
    fn begin(&self, meta: &SnapshotMeta) -> io::Result<Box<dyn SpoolWriter>> {
        let path = self.temporary("in");
        let out = create(&path)?;
        Ok(Box::new(Receiving {
            dir: self.clone(),
            meta: meta.clone(),
            out,
            spool: Spool::temporary(path, 0),
        }))
    }
}

struct Receiving {
    dir: Arc<SnapshotDir>,
    meta: SnapshotMeta,
    out: io::BufWriter<File>,
    spool: Spool,
}

impl SpoolWriter for Receiving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.spool.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn finish(mut self: Box<Self>) -> io::Result<Spool> {
        self.out.flush()?;
        let mark = verify(&self.spool.path)?;
        let position = Position::from_mark(&mark).map_err(io::Error::other)?;
        if position.log_id != self.meta.last_log_id {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "snapshot ends at {:?}, announced {:?}",
                    position.log_id, self.meta.last_log_id
                ),
            ));
        }
        let Receiving { dir, spool, .. } = *self;
        dir.finish(&position, spool)
    }
}
