//! A journal in files, in the format of the crate `raft-log` (docs/log-format.md).
//!
//! Records gather in memory until they are to become durable. Then they go to the file in one
//! write, by whoever asks for it; the sync may be done by the same thread or by one that does
//! nothing else. The crate hands every write to a thread of its own, and on an idle machine the two
//! wake-ups cost more than half of what a sync does.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use codeq::{Decode as _, Encode as _};
use raft_log::RaftWalTypes;
use raft_log::chunked_wal::{ChunkedWal, Config, WalLock};

use super::ahead::Ahead;
use super::chunk::{
    Action, Cache, Chunk, Reader, Record, Slot, check_append, check_commit, check_truncate,
    check_vote, checkpoint_of, damaged, is_begun, purge, refused,
};
use super::journal::{Flushed, Journal, JournalState, SyncJob, Visit};
use super::record::{Body, Id, LogTypes, StoredVote};
use super::scan::chunks;
use crate::data_dir::sync_dir;
use crate::raft::types::{LogId, Vote};

/// A chunk of the log becomes removable as a whole, so chunks are small against the bound on the
/// log; each one costs a file descriptor.
pub(super) const CHUNK_BYTES: u64 = 16 << 20;

/// Room for records that is kept from one flush to the next.
const PENDING_BYTES_KEPT: usize = 1 << 20;

/// A journal in files.
pub struct FileJournal {
    dir: PathBuf,
    state: JournalState,
    /// What is in force, in order of the index and without a gap.
    entries: VecDeque<Slot>,
    cache: Cache,
    /// Chunks that take no more records, oldest first.
    closed: VecDeque<Chunk>,
    open: Chunk,
    /// What stands in its file behind the records.
    ahead: Ahead,
    /// Records at the end of the open chunk that its file does not have yet.
    pending: Vec<u8>,
    /// Files that go once what purged them is durable.
    removable: Vec<PathBuf>,
    disk: Arc<Disk>,
    flusher: Flusher,
    _lock: WalLock,
}

/// What is known of the disk: after one failed sync no other may report success.
#[derive(Default)]
struct Disk {
    failed: Mutex<bool>,
}

impl Disk {
    /// Syncs `file`. One at a time: the operating system tells a failure to one caller only, which
    /// may not be the one whose records are lost.
    fn sync(&self, file: &File) -> io::Result<()> {
        let mut failed = self.failed.lock().expect("no panic while held");
        if *failed {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let synced = file.sync_data();
        *failed = synced.is_err();
        synced
    }
}

/// A thread that syncs.
struct Flusher {
    jobs: Option<mpsc::Sender<(SyncJob, Flushed)>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    fn start() -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<(SyncJob, Flushed)>();
        let run = move || {
            for (job, done) in waiting {
                done(job());
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "files are real only where threads are"
        )]
        let thread = std::thread::Builder::new()
            .name("kvd-log-flush".to_owned())
            .spawn(run)?;
        Ok(Flusher {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    fn submit(&self, job: SyncJob, done: Flushed) -> io::Result<()> {
        let jobs = self.jobs.as_ref().expect("present until it is dropped");
        jobs.send((job, done))
            .map_err(|_| io::Error::other("the log's thread has ended"))
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // What it still does must be over before the files are opened again; it cannot wait for
        // itself, and has nothing left to do when it is the one that drops this.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
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
        let config = Config::new(dir.display());
        let lock = ChunkedWal::<RaftWalTypes<LogTypes>>::acquire_lock(&config)?;
        let mut files = chunks(dir)?;
        while let Some((_, path)) = files.last()
            && !is_begun(path)?
        {
            tracing::warn!(file = %path.display(), "a chunk that was not begun yet is removed");
            fs::remove_file(path)?;
            sync_dir(dir)?;
            files.pop();
        }
        let mut read = Reader::default();
        let mut closed = VecDeque::with_capacity(files.len());
        let mut whole = true;
        let newest = files.len();
        for (n, (start, path)) in files.into_iter().enumerate() {
            let (chunk, end) = read.chunk(start, path, n + 1 == newest)?;
            whole = end;
            closed.push_back(chunk);
        }
        let Reader {
            state,
            entries,
            cache,
            ..
        } = read;
        // A chunk that was cut may have lost more than is known: nothing is added to it.
        let (open, fresh) = match closed.pop_back_if(|_| whole) {
            Some(open) => (open, false),
            None => {
                let start = closed.back().map_or(0, |chunk| chunk.end);
                (Chunk::create(dir, start)?, true)
            }
        };
        let ahead = Ahead::new(open.file.metadata()?.len());
        let mut journal = FileJournal {
            dir: dir.to_owned(),
            state,
            entries,
            cache,
            closed,
            open,
            ahead,
            pending: Vec::new(),
            removable: Vec::new(),
            disk: Arc::default(),
            flusher: Flusher::start()?,
            _lock: lock,
        };
        if fresh {
            journal.checkpoint()?;
        } else {
            // What was read may be in the system's memory only, and is going to be carried out.
            journal.disk.sync(&journal.open.file)?;
        }
        journal.retire();
        Ok(journal)
    }

    /// Adds a record to the open chunk; returns where it begins and how long it is.
    fn put(&mut self, record: &Record) -> io::Result<(u64, u32)> {
        let at = self.open.end;
        let before = self.pending.len();
        let len = match record.encode(&mut self.pending) {
            Ok(len) => len,
            Err(error) => {
                self.pending.truncate(before);
                return Err(error);
            }
        };
        self.open.end += len as u64;
        Ok((at, len as u32))
    }

    /// Begins a chunk with all that the log remembers beside its entries.
    fn checkpoint(&mut self) -> io::Result<()> {
        let state = checkpoint_of(&self.state)?;
        self.put(&Record::Checkpoint(state)).map(drop)
    }

    /// Goes on with a new chunk when this one is full.
    fn rotate(&mut self) -> io::Result<()> {
        if self.open.end - self.open.start < CHUNK_BYTES {
            return Ok(());
        }
        // A chunk whose predecessor is not whole would be taken for damage.
        self.write()?;
        self.ahead
            .cut(&self.open.file, self.open.end - self.open.start)?;
        self.disk.sync(&self.open.file)?;
        let next = Chunk::create(&self.dir, self.open.end)?;
        let mut full = std::mem::replace(&mut self.open, next);
        self.ahead.restart();
        full.last = self.state.last;
        self.closed.push_back(full);
        self.checkpoint()?;
        self.retire();
        crash_point!("log_chunk_closed");
        Ok(())
    }

    /// Gives the operating system what it does not have yet.
    fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let at = self.written() - self.open.start;
        self.ahead.write(&self.open.file, &self.pending, at)?;
        self.pending.clear();
        self.pending.shrink_to(PENDING_BYTES_KEPT);
        Ok(())
    }

    /// Up to where the files have the log.
    fn written(&self) -> u64 {
        self.open.end - self.pending.len() as u64
    }

    fn sync_job(&mut self) -> SyncJob {
        let (disk, file) = (self.disk.clone(), self.open.file.clone());
        let (dir, removable) = (self.dir.clone(), std::mem::take(&mut self.removable));
        Box::new(move || {
            disk.sync(&file)?;
            if removable.is_empty() {
                return Ok(());
            }
            for path in removable {
                fs::remove_file(path)?;
            }
            sync_dir(&dir)
        })
    }

    /// Lets go of chunks that hold nothing but what is purged.
    fn retire(&mut self) {
        let purged = self.state.purged;
        while purged.is_some()
            && let Some(chunk) = self.closed.pop_front_if(|chunk| chunk.last <= purged)
        {
            self.removable.push(chunk.path);
        }
    }

    fn position(&self, index: u64) -> usize {
        let first = self.entries.front().map_or(0, |slot| slot.id.index);
        (index.saturating_sub(first) as usize).min(self.entries.len())
    }

    fn load(&self, slot: &Slot) -> io::Result<Body> {
        if let Some(body) = &slot.body {
            return Ok(body.clone());
        }
        let n = self.closed.partition_point(|chunk| chunk.end <= slot.at);
        let chunk = self.closed.get(n).unwrap_or(&self.open);
        let mut bytes = vec![0; slot.len as usize];
        chunk
            .file
            .read_exact_at(&mut bytes, slot.at - chunk.start)?;
        match Record::decode(&bytes[..])? {
            Record::Action(Action::Append(id, body)) if id.0 == slot.id => Ok(body),
            _ => Err(damaged(format!(
                "entry {} is not where it was",
                slot.id.index
            ))),
        }
    }
}

impl Drop for FileJournal {
    fn drop(&mut self) {
        let end = self.written() - self.open.start;
        // Whoever reads the file finds its end either way.
        drop(self.ahead.cut(&self.open.file, end));
    }
}

impl Journal for FileJournal {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        check_append(&self.state, id).map_err(refused)?;
        let record = Record::Action(Action::Append(Id(id), body));
        let (at, len) = self.put(&record)?;
        let Record::Action(Action::Append(_, body)) = record else {
            unreachable!("made above")
        };
        self.state.last = Some(id);
        let written = self.written();
        self.cache.push(
            &mut self.entries,
            Slot {
                id,
                at,
                len,
                body: Some(body),
            },
            written,
        );
        self.rotate()
    }

    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        check_truncate(&self.state, last).map_err(refused)?;
        let kept = last.map_or(0, |last| self.position(last.index + 1));
        let known = match kept.checked_sub(1) {
            Some(n) => Some(self.entries[n].id),
            None => self.state.purged,
        };
        if known != last {
            let index = last.map_or(0, |last| last.index);
            return Err(refused(format!("entry {index} is not in the log")));
        }
        self.put(&Record::Action(Action::TruncateAfter(last.map(Id))))?;
        self.cache.drop_from(&mut self.entries, kept);
        self.state.last = last;
        self.rotate()
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        if self
            .state
            .purged
            .is_some_and(|purged| upto.index <= purged.index)
        {
            return Ok(());
        }
        self.put(&Record::Action(Action::PurgeUpto(Id(upto))))?;
        let gone = self.position(upto.index + 1);
        self.cache.drop_first(&mut self.entries, gone);
        purge(&mut self.state, upto);
        self.retire();
        self.rotate()
    }

    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        check_vote(&self.state, vote).map_err(refused)?;
        self.put(&Record::Action(Action::SaveVote(StoredVote(vote))))?;
        self.state.vote = Some(vote);
        self.rotate()
    }

    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        check_commit(&self.state, committed).map_err(refused)?;
        self.put(&Record::Action(Action::Commit(Id(committed))))?;
        self.state.committed = Some(committed);
        self.rotate()
    }

    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        self.write()?;
        let job = self.sync_job();
        self.flusher.submit(job, done)
    }

    fn write_out(&mut self, bytes_max: usize) -> io::Result<Option<SyncJob>> {
        if self.pending.len() > bytes_max || !self.removable.is_empty() {
            return Ok(None);
        }
        self.write()?;
        Ok(Some(self.sync_job()))
    }

    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        let begin = self.position(from);
        let end = self.position(to).max(begin);
        for slot in self.entries.range(begin..end) {
            if visit(slot.id, &self.load(slot)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn state(&self) -> JournalState {
        self.state
    }

    fn bytes(&self) -> u64 {
        let first = self.closed.front().unwrap_or(&self.open);
        self.open.end - first.start
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
