//! One sled directory: the tree, the mark in it, and the files to sync.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kvd_plugin_api::{Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Result};
use sled::{Batch, Db, IVec, Mode, Tree};

use crate::digest::Digest;
use crate::error::from_sled;
use crate::flush::{Watched, sync_blobs};

/// The key of the mark. The host's keys carry [`USER`] in front, so none can be this one.
const MARK: &[u8] = &[0];
/// The key of the [`Digest`] over the mark and all of the host's entries.
const DIGEST: &[u8] = &[0, 1];
const USER: u8 = 1;
/// Above every key of the host.
const USER_END: &[u8] = &[USER + 1];

/// sled names no limits: these are the largest sizes that were tried.
pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 64 << 20,
    value_bytes_max: 512 << 20,
    batch_bytes_max: u64::MAX,
};

/// How much of a feed goes into one batch.
const FILL_BYTES: usize = 1 << 20;

/// sled's threads may hold its file for a moment after the database was dropped:
/// opening is tried again this often, with a pause in between, for about five seconds.
const LOCK_TRIES: u32 = 1000;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// How sled is opened.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) cache_bytes: u64,
    pub(crate) mode: Mode,
}

/// An open sled directory.
pub(crate) struct Store {
    db: Db,
    tree: Tree,
    dir: PathBuf,
    /// sled could not write something.
    has_failed: AtomicBool,
}

/// A batch of sled's, and the digest of all entries behind it.
pub(crate) struct Changes {
    changes: Batch,
    digest: Digest,
}

/// The files of a store that `sync` takes care of.
pub(crate) struct Files {
    dir: Watched,
    /// Open from before the first write, so that no failed write-back goes unseen.
    log: File,
}

impl Store {
    /// Opens sled in `dir`, making it where there is none. What it found or made is durable then.
    pub(crate) fn open(dir: &Path, settings: Settings) -> Result<(Store, Files)> {
        remove_half_made(dir)?;
        // Before sled syncs anything by itself.
        fs::create_dir_all(dir)?;
        let watched = Watched::new(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(settings.cache_bytes)
            .mode(settings.mode)
            .flush_every_ms(None);
        let mut tries = 0;
        // The directory above is locked by this process, so another one is not what it waits for.
        let db = loop {
            match config.open().map_err(from_sled) {
                Ok(db) => break db,
                Err(error) if error.kind() == ErrorKind::Locked && tries < LOCK_TRIES => pause(),
                Err(error) => return Err(error),
            }
            tries += 1;
        };
        let files = Files::new(dir, watched)?;
        // sled's default tree: the only one, because a batch is atomic in one tree alone.
        let tree = Tree::clone(&db);
        Ok((
            Store {
                db,
                tree,
                dir: dir.to_owned(),
                has_failed: AtomicBool::new(false),
            },
            files,
        ))
    }

    /// The stored mark.
    pub(crate) fn mark(&self) -> Result<Mark> {
        match self.tree.get(MARK).map_err(from_sled)? {
            Some(bytes) => Mark::from_bytes(&bytes),
            // As earlier versions made a new directory.
            None if self.tree.is_empty() => Ok(Mark::default()),
            None => Err(Error::new(
                ErrorKind::Corruption,
                "sled: the mark is missing",
            )),
        }
    }

    /// The value of a key, without copying it.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<IVec>> {
        // Short keys are put together without allocating.
        let mut short = [0; 128];
        let stored = match short.get_mut(..key.len() + 1) {
            Some(stored) => {
                stored[0] = USER;
                stored[1..].copy_from_slice(key);
                self.tree.get(&*stored)
            }
            None => self.tree.get(user_key(key)),
        };
        stored.map_err(from_sled)
    }

    /// As the backend's; a write in the middle would show.
    pub(crate) fn scan(
        &self,
        range: Range<'_>,
        out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        if range.to.is_some_and(|to| to <= range.from) {
            return Ok(());
        }
        let to = range.to.map_or(USER_END.to_vec(), user_key);
        let mut entries = self.tree.range(user_key(range.from)..to);
        let mut next = || {
            if range.reverse {
                entries.next_back()
            } else {
                entries.next()
            }
        };
        while let Some(entry) = next() {
            let (key, value) = entry.map_err(from_sled)?;
            if out(&key[1..], &value) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    /// The digest of the entries as they are.
    ///
    /// # Errors
    ///
    /// `Corruption` when it is not the one that was written with them; sled's own.
    pub(crate) fn digest(&self, mark: &Mark) -> Result<Digest> {
        let mut digest = Digest::default();
        for entry in self.tree.range(&[USER][..]..USER_END) {
            let (key, value) = entry.map_err(from_sled)?;
            digest.add(&key, &value);
        }
        match self.tree.get(DIGEST).map_err(from_sled)? {
            // Directories of earlier versions have none.
            Some(stored) if *stored != digest.with(mark) => Err(Error::new(
                ErrorKind::Corruption,
                "sled: what is there is not what was written: parts of it are gone",
            )),
            _ => Ok(digest),
        }
    }

    /// What `batch` comes to as one of sled's behind the state of `digest`, with the mark that is
    /// in force then.
    pub(crate) fn prepare(
        &self,
        batch: &[Op<'_>],
        mark: &Mark,
        mut digest: Digest,
    ) -> Result<Changes> {
        for op in batch {
            LIMITS.check(op)?;
        }
        let mut changes = Batch::default();
        for (key, change) in self.expand(batch)? {
            if let Some(old) = self.tree.get(&key).map_err(from_sled)? {
                digest.remove(&key, &old);
            }
            match change {
                Some(value) => {
                    digest.add(&key, value);
                    changes.insert(key, value);
                }
                None => changes.remove(key),
            }
        }
        changes.insert(MARK, mark.to_bytes());
        changes.insert(DIGEST, &digest.with(mark));
        Ok(Changes { changes, digest })
    }

    /// Applies what [`prepare`](Self::prepare) made; nothing may be written in between.
    pub(crate) fn apply(&self, changes: Changes) -> Result<Digest> {
        self.write(changes.changes)?;
        Ok(changes.digest)
    }

    fn write(&self, changes: Batch) -> Result<()> {
        self.tree.apply_batch(changes).map_err(|error| {
            self.has_failed.store(true, Ordering::Relaxed);
            from_sled(error)
        })
    }

    /// What each key that `batch` touches becomes. sled has no removal of a range: the keys that
    /// are there, or were put earlier in the same batch, are removed one by one.
    fn expand<'a>(&self, batch: &[Op<'a>]) -> Result<BTreeMap<Vec<u8>, Option<&'a [u8]>>> {
        let mut changes: BTreeMap<Vec<u8>, Option<&[u8]>> = BTreeMap::new();
        for op in batch {
            match *op {
                Op::Put(key, value) => drop(changes.insert(user_key(key), Some(value))),
                Op::Delete(key) => drop(changes.insert(user_key(key), None)),
                Op::DeleteRange(from, to) if from < to => {
                    let (from, to) = (user_key(from), user_key(to));
                    let range = (Bound::Included(&from), Bound::Excluded(&to));
                    for (_, change) in changes.range_mut::<Vec<u8>, _>(range) {
                        *change = None;
                    }
                    for key in self.tree.range(from..to).keys() {
                        changes.insert(key.map_err(from_sled)?.to_vec(), None);
                    }
                }
                Op::DeleteRange(..) => {}
            }
        }
        Ok(changes)
    }

    /// Fills a new store from `feed`.
    pub(crate) fn fill(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<Digest> {
        let mut digest = Digest::default();
        let mut more = true;
        while more {
            let mut changes = Batch::default();
            let mut bytes = 0;
            while more && bytes < FILL_BYTES {
                let mut checked = Ok(());
                more = feed.next(&mut |key, value| {
                    bytes += key.len() + value.len();
                    checked = LIMITS.check(&Op::Put(key, value));
                    if checked.is_ok() {
                        let key = user_key(key);
                        digest.add(&key, value);
                        changes.insert(key, value);
                    }
                })?;
                checked?;
            }
            if !more {
                changes.insert(MARK, mark.to_bytes());
                changes.insert(DIGEST, &digest.with(mark));
            }
            self.write(changes)?;
        }
        Ok(digest)
    }

    /// All entries in order, as a feed for another store; nothing may be written meanwhile.
    pub(crate) fn feed(&self) -> impl Feed + use<> {
        StoreFeed(self.tree.range(vec![USER]..USER_END.to_vec()))
    }

    /// Makes all earlier writes durable.
    pub(crate) fn sync(&self, files: &Files) -> Result<()> {
        let db = self.db.clone();
        let flush = move || {
            let flushed = db.flush();
            // Whoever hears of it may remove the directory.
            drop(db);
            flushed
        };
        let flushed = files.dir.unless_failed(flush);
        let synced = match flushed {
            Ok(flushed) => flushed.map_err(from_sled).and_then(|_| files.sync()),
            Err(error) => Err(error.into()),
        };
        if synced.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        synced
    }

    /// The size of all files, in bytes.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        self.db.size_on_disk().map_err(from_sled)
    }

    /// What is below, for tests that damage it.
    #[cfg(test)]
    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !*self.has_failed.get_mut() {
            return;
        }
        // sled flushes when it is dropped, and waits for ever where it could not write a large value:
        // room in its buffer was promised to that, and nobody takes it back. It holds a lock of all
        // of sled's directories meanwhile. So it is left as it is: the process is about to end.
        mem::forget((self.db.clone(), self.tree.clone()));
    }
}

struct StoreFeed(sled::Iter);

impl Feed for StoreFeed {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        match self.0.next() {
            Some(entry) => {
                let (key, value) = entry.map_err(from_sled)?;
                out(&key[1..], &value);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Files {
    /// The files of sled's in `dir`; what is there is made durable, and so are its names.
    fn new(dir: &Path, watched: Watched) -> Result<Self> {
        // First, so that nothing that sled writes from now on is overlooked.
        let files = Files {
            dir: watched,
            log: File::open(dir.join("db"))?,
        };
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        sync_blobs(files.dir.path())?;
        File::open(dir)?.sync_all()?;
        files.check()?;
        Ok(files)
    }

    /// How many files of large values are known to be on the disk.
    #[cfg(test)]
    pub(crate) fn synced_blobs(&self) -> usize {
        self.dir.synced()
    }

    /// Nothing of these files is needed any more.
    pub(crate) fn replaced(&self) {
        self.dir.replaced();
    }

    /// An error where a sync of them failed that nobody heard of.
    pub(crate) fn check(&self) -> Result<()> {
        Ok(self.dir.check()?)
    }

    /// Syncs what sled's flush has written: again where that was a sync, and for the first time
    /// where nothing was put in the place of sled's own.
    fn sync(&self) -> Result<()> {
        // What the log points to comes first.
        sync_blobs(self.dir.path())?;
        self.log.sync_all()?;
        self.check()
    }
}

/// Removes what a crash left of a snapshot of sled's own index: sled would take it for a whole one,
/// and refuse it as damaged.
fn remove_half_made(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .ends_with(b".generating")
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "sled tells nobody when its threads are done"
)]
fn pause() {
    thread::sleep(LOCK_PAUSE);
}

fn user_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(USER);
    stored.extend_from_slice(key);
    stored
}
