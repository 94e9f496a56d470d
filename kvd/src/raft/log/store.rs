//! openraft's log storage over a journal.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use futures_util::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::files::FileJournal;
use super::format::{self, Identity, OpenError};
use super::hold::{Hold, Holds};
use super::journal::{Journal, JournalState};
use super::record::Body;
use super::restart::{RestartError, RestartState, check_restart};
use crate::data_dir::sync_dir;
use crate::raft::codec::Payload;
use crate::raft::phases::Phases;
use crate::raft::standing::Standing;
use crate::raft::types::{Entry, LogId, NodeId, Proposal, TypeConfig, Vote};

/// One read for replication or apply returns entries of about this many bytes, and at least one.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;

/// Where the last sync took longer than this, the next one is left to the log's thread.
const SYNCED_IN_PLACE_WITHIN: Duration = Duration::from_millis(4);

/// The folder with the chunks, beside the `FORMAT` file.
pub(super) const CHUNKS: &str = "chunks";

/// Called once when the log has failed: one line that says what and where.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// The log's handle; cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    journal: RwLock<Box<dyn Journal>>,
    /// Ordered by the records that they wait for; locked only together with the journal, after it.
    waiting: Mutex<Waiting>,
    /// Everything below this index is flushed.
    flushed: watch::Sender<u64>,
    floor: AtomicU64,
    holds: Holds,
    /// Whoever appends may wait for the sync of so many bytes itself.
    in_place_max: AtomicUsize,
    /// The last sync took long.
    slow: AtomicBool,
    failed: OnceLock<String>,
    on_fatal: OnFatal,
    metrics: Metrics,
    phases: Phases,
    standing: Arc<Standing>,
}

#[derive(Default)]
struct Waiting {
    waiters: VecDeque<Waiter>,
    /// To be written with the next flush.
    committed: Option<LogId>,
    flushing: bool,
}

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Done(oneshot::Sender<io::Result<()>>),
    /// Nobody waits, but it must reach the disk.
    Nobody,
}

impl Waiter {
    fn complete(self, result: &Result<(), String>) {
        let result = result
            .as_ref()
            .copied()
            .map_err(|reason| io::Error::other(reason.clone()));
        match self {
            Waiter::Append(flushed) => {
                crash_point!("log_append_after");
                flushed.io_completed(result);
            }
            // Who waited may have gone.
            Waiter::Done(done) => drop(done.send(result)),
            Waiter::Nobody => {
                crash_point!("log_purge_after");
            }
        }
    }
}

#[derive(Default)]
struct Metrics {
    entries: AtomicU64,
    bytes: AtomicU64,
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStats {
    /// The last entry, or the last one purged.
    pub last_index: u64,
    /// The last entry purged.
    pub purged_index: u64,
    /// The last entry known to be committed.
    pub committed_index: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of entries that were appended since the start.
    pub appended_bytes: u64,
}

impl LogStore {
    /// Opens the log of a node in files.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(dir: &Path, identity: Identity, on_fatal: OnFatal) -> Result<Self, OpenError> {
        format::check(dir, identity)?;
        let chunks = dir.join(CHUNKS);
        let io_error = |source| OpenError::Io {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(&chunks).map_err(io_error)?;
        // A synced record is worth nothing in a folder whose own name a loss of power takes away.
        sync_dir(dir).map_err(io_error)?;
        let journal = FileJournal::open(&chunks).map_err(|error| OpenError::of(dir, error))?;
        Ok(Self::over(Box::new(journal), on_fatal))
    }

    /// A log over any journal.
    pub fn over(journal: Box<dyn Journal>, on_fatal: OnFatal) -> Self {
        let state = journal.state();
        LogStore {
            inner: Arc::new(Inner {
                journal: RwLock::new(journal),
                waiting: Mutex::default(),
                flushed: watch::Sender::new(next_index(state.last.max(state.purged))),
                floor: AtomicU64::new(0),
                holds: Holds::default(),
                in_place_max: AtomicUsize::new(0),
                slow: AtomicBool::new(false),
                failed: OnceLock::new(),
                on_fatal,
                metrics: Metrics::default(),
                phases: Phases::default(),
                standing: Arc::new(Standing::new(
                    state.vote.map_or(0, |vote| vote.leader_id.term),
                )),
            }),
        }
    }

    /// Checks that log and state fit together; see [`check_restart`].
    ///
    /// # Errors
    ///
    /// They do not.
    pub fn check_restart(
        &self,
        applied: Option<LogId>,
        newest_spool: Option<u64>,
        member: bool,
    ) -> Result<(), RestartError> {
        let JournalState {
            vote,
            last,
            committed,
            purged,
        } = self.state();
        check_restart(&RestartState {
            applied,
            purged,
            last,
            committed,
            vote,
            newest_spool,
            member,
        })
    }

    /// Drops a tail of entries that an installed snapshot, which ends at `applied`, contradicts:
    /// they were never committed. A crash after the snapshot's file was complete, and before Raft
    /// cut its log, leaves both, and Raft would not start from that.
    ///
    /// # Errors
    ///
    /// The log could not be read or written.
    pub async fn drop_contradicted(&self, applied: LogId) -> io::Result<()> {
        let mut own = None;
        self.inner
            .journal
            .read()
            .expect("no panic while held")
            .read(applied.index, applied.index + 1, &mut |id, _| {
                own = Some(id);
                ControlFlow::Break(())
            })?;
        if own.is_none_or(|own| own == applied) {
            return Ok(());
        }
        let state = self.state();
        let keep = state.committed.max(state.purged);
        tracing::warn!(
            behind = keep.map_or(0, |id| id.index),
            snapshot = applied.index,
            "entries that a snapshot replaced were dropped from the log"
        );
        self.change(|journal| journal.truncate_after(keep)).await
    }

    /// Says that a restart can begin from the entry at `index`: the log may be purged up to it.
    pub fn set_purge_floor(&self, index: u64) {
        self.inner.floor.fetch_max(index, Ordering::AcqRel);
    }

    /// A snapshot that ends at the entry `from` begins to be sent to `member`: what is behind it
    /// stays, see [`Hold`].
    pub fn hold(&self, member: NodeId, from: u64) -> Hold {
        self.inner.holds.begin(member, from)
    }

    /// The last entry that a leader may cut because of snapshots on their way, where there are any.
    /// `matched` says up to which entry each other member is known to have the log, and `level`
    /// from which one on a member counts as level.
    pub fn held_from(&self, matched: &BTreeMap<NodeId, u64>, level: u64) -> Option<u64> {
        self.inner.holds.limit(matched, level)
    }

    /// Holds nothing for snapshots on their way any more.
    pub fn give_up_holds(&self) {
        self.inner.holds.give_up();
    }

    /// Says up to how many bytes the thread that appends has nothing better to do until they are
    /// durable: it then syncs by itself, which spares two wake-ups of threads, as long as the disk
    /// is quick.
    pub fn sync_in_place(&self, bytes_max: usize) {
        self.inner.in_place_max.store(bytes_max, Ordering::Relaxed);
    }

    /// The entries below this index are on this node's disk.
    pub fn flushed(&self) -> u64 {
        *self.inner.flushed.borrow()
    }

    /// Waits until the entry at `index` is on this node's disk.
    ///
    /// # Errors
    ///
    /// The log has failed.
    pub async fn wait_flushed(&self, index: u64) -> io::Result<()> {
        if self.flushed() > index {
            return self.inner.check();
        }
        let mut flushed = self.inner.flushed.subscribe();
        let inner = &self.inner;
        let reached = flushed.wait_for(|next| *next > index || inner.failed.get().is_some());
        // The sender lives in the log itself.
        drop(reached.await);
        inner.check()
    }

    /// Where the log stands.
    pub fn stats(&self) -> LogStats {
        let journal = self.inner.journal.read().expect("no panic while held");
        let state = journal.state();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        LogStats {
            last_index: index(state.last.max(state.purged)),
            purged_index: index(state.purged),
            committed_index: index(state.committed),
            bytes: journal.bytes(),
            appended_bytes: self.inner.metrics.bytes.load(Ordering::Relaxed),
        }
    }

    /// What this node has voted for, and what it knows to be committed.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.inner.standing
    }

    /// The last entry known to be committed, if there is any.
    pub fn committed(&self) -> Option<LogId> {
        self.state().committed
    }

    /// The phases of a write on this node.
    pub fn phases(&self) -> &Phases {
        &self.inner.phases
    }

    /// The lines of INFO about the log and about writes.
    pub fn info(&self) -> Vec<(String, String)> {
        let metrics = &self.inner.metrics;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let fsync = &self.inner.phases.fsync;
        let (entries, flushes) = (get(&metrics.entries), fsync.count());
        let per = |of: u64, to: u64| {
            if to == 0 {
                "0.00".to_owned()
            } else {
                format!("{:.2}", of as f64 / to as f64)
            }
        };
        [
            ("raft_log_bytes", self.stats().bytes.to_string()),
            ("raft_log_entries", entries.to_string()),
            ("raft_log_entry_bytes", get(&metrics.bytes).to_string()),
            ("raft_log_syncs", flushes.to_string()),
            ("raft_entries_per_sync", per(entries, flushes)),
            ("raft_log_sync_us_avg", per(fsync.us(), flushes)),
            ("raft_log_sync_us_max", fsync.us_max().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .chain(self.inner.phases.lines())
        .collect()
    }

    /// Waits until everything up to now is durable.
    ///
    /// # Errors
    ///
    /// The log has failed.
    pub async fn sync(&self) -> io::Result<()> {
        self.change(|_| Ok(())).await
    }

    fn state(&self) -> JournalState {
        self.inner
            .journal
            .read()
            .expect("no panic while held")
            .state()
    }

    /// Makes a change and waits until it is durable.
    async fn change(
        &self,
        change: impl FnOnce(&mut dyn Journal) -> io::Result<()>,
    ) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.inner.submit(Waiter::Done(done), change)?;
        wait.await
            .map_err(|_| io::Error::other("the log has ended"))?
    }

    /// The entries with `from <= index < to`, as many as fit in `bytes_max`, but at least one.
    pub(in crate::raft) fn read(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> io::Result<Vec<Entry>> {
        let (mut entries, mut bytes, mut damage) = (Vec::new(), 0, None);
        let journal = self.inner.journal.read().expect("no panic while held");
        journal.read(from, to, &mut |id, body| {
            if !entries.is_empty() && bytes + body.0.len() > bytes_max {
                return ControlFlow::Break(());
            }
            bytes += body.0.len();
            match body.payload() {
                Ok(payload) => {
                    entries.push(Entry {
                        log_id: id,
                        payload,
                    });
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    damage = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match damage {
            None => Ok(entries),
            Some(error) => Err(error),
        }
    }
}

impl Inner {
    fn check(&self) -> io::Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(reason.clone())),
        }
    }

    /// Makes a change, and lets `waiter` wait for the flush that covers it.
    fn submit(
        self: &Arc<Self>,
        waiter: Waiter,
        change: impl FnOnce(&mut dyn Journal) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut journal = self.journal.write().expect("no panic while held");
        self.check()?;
        if let Err(error) = change(&mut **journal) {
            drop(journal);
            self.fail(&error, [waiter]);
            return Err(error);
        }
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.waiters.push_back(waiter);
        if waiting.flushing {
            return Ok(());
        }
        let in_place_max = self.in_place_max.load(Ordering::Relaxed);
        if in_place_max == 0 || self.slow.load(Ordering::Relaxed) {
            self.begin(&mut **journal, &mut waiting);
            return Ok(());
        }
        let Some((covered, waiters)) = self.gather(&mut **journal, &mut waiting) else {
            return Ok(());
        };
        let began = Instant::now();
        let job = match journal.write_out(in_place_max) {
            Ok(Some(job)) => job,
            Ok(None) => {
                self.flush(&mut **journal, covered, waiters);
                return Ok(());
            }
            Err(error) => {
                drop(waiting);
                drop(journal);
                self.fail(&error, waiters);
                return Ok(());
            }
        };
        drop(waiting);
        drop(journal);
        let result = match job() {
            Ok(()) => {
                self.end(covered, began);
                Ok(())
            }
            Err(error) => Err(self.fail(&error, [])),
        };
        for waiter in waiters {
            waiter.complete(&result);
        }
        Ok(())
    }

    /// Begins a flush for everyone who waits.
    fn begin(self: &Arc<Self>, journal: &mut dyn Journal, waiting: &mut Waiting) {
        if let Some((covered, waiters)) = self.gather(journal, waiting) {
            self.flush(journal, covered, waiters);
        }
    }

    /// What a flush that begins now covers, and for whom; none when the log has failed.
    fn gather(
        self: &Arc<Self>,
        journal: &mut dyn Journal,
        waiting: &mut Waiting,
    ) -> Option<(u64, VecDeque<Waiter>)> {
        if let Some(committed) = waiting.committed.take()
            && journal.state().last >= Some(committed)
            && let Err(error) = journal.save_committed(committed)
        {
            self.fail(&error, waiting.waiters.drain(..));
            return None;
        }
        let state = journal.state();
        let covered = next_index(state.last.max(state.purged));
        waiting.flushing = true;
        Some((covered, std::mem::take(&mut waiting.waiters)))
    }

    /// Lets the journal flush in its own time.
    fn flush(self: &Arc<Self>, journal: &mut dyn Journal, covered: u64, waiters: VecDeque<Waiter>) {
        let (inner, began) = (self.clone(), Instant::now());
        // The waiters are shared, so that they can be told when the flush cannot even begin.
        let shared = Arc::new(Mutex::new(Some(waiters)));
        let own = shared.clone();
        let begun = journal.flush(Box::new(move |result| {
            let waiters = own.lock().expect("no panic while held").take();
            let waiters = waiters.unwrap_or_default();
            let result = match result {
                Ok(()) => {
                    inner.end(covered, began);
                    Ok(())
                }
                Err(error) => Err(inner.fail(&error, [])),
            };
            // Whoever is told may drop the last other handle, and open the files again: by then
            // this thread, which cannot close them itself, must not have one.
            drop(inner);
            for waiter in waiters {
                waiter.complete(&result);
            }
        }));
        if let Err(error) = begun {
            let waiters = shared.lock().expect("no panic while held").take();
            self.fail(&error, waiters.unwrap_or_default());
        }
    }

    /// Ends a flush, and begins the next where someone waits.
    fn end(self: &Arc<Self>, covered: u64, began: Instant) {
        let took = began.elapsed();
        self.phases.fsync.note(took);
        self.slow
            .store(took > SYNCED_IN_PLACE_WITHIN, Ordering::Relaxed);
        // The next flush begins before anyone is told of this one: the disk need not wait.
        let mut journal = self.journal.write().expect("no panic while held");
        let mut waiting = self.waiting.lock().expect("no panic while held");
        // A truncation since then has already lowered what counts.
        let state = journal.state();
        let covered = covered.min(next_index(state.last.max(state.purged)));
        self.flushed.send_replace(covered);
        waiting.flushing = false;
        if !waiting.waiters.is_empty() {
            self.begin(&mut **journal, &mut waiting);
        }
    }

    /// Stops the log for good; returns why.
    fn fail(&self, error: &io::Error, waiters: impl IntoIterator<Item = Waiter>) -> String {
        let reason = format!("the Raft log could not be written: {error}");
        if self.failed.set(reason.clone()).is_ok() {
            // Before anyone else is told: whoever finds Raft stopped would give another reason.
            (self.on_fatal)(&reason);
        }
        // Wakes those who wait for a flush; they look at `failed` first.
        self.flushed.send_modify(|_| {});
        for waiter in waiters {
            waiter.complete(&Err(reason.clone()));
        }
        let left = match self.waiting.try_lock() {
            Ok(mut waiting) => std::mem::take(&mut waiting.waiters),
            Err(_) => VecDeque::new(),
        };
        for waiter in left {
            waiter.complete(&Err(reason.clone()));
        }
        reason
    }
}

fn next_index(last: Option<LogId>) -> u64 {
    last.map_or(0, |id| id.index + 1)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        self.read(from, to, READ_BYTES_MAX)
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // A long replay must not hold the whole log in memory.
        let (from, to) = bounds(&range);
        let start = (self.clone(), from, VecDeque::new());
        Box::pin(futures_util::stream::unfold(
            start,
            move |(log, mut next, mut ready)| async move {
                if ready.is_empty() {
                    if next >= to {
                        return None;
                    }
                    match log.read(next, to, READ_BYTES_MAX) {
                        Ok(entries) if entries.is_empty() => return None,
                        Ok(entries) => ready.extend(entries),
                        Err(error) => return Some((Err(error), (log, to, VecDeque::new()))),
                    }
                }
                let entry: Entry = ready.pop_front()?;
                next = entry.log_id.index + 1;
                Some((Ok(entry), (log, next, ready)))
            },
        ))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state().vote)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.state();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last.max(state.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.inner.standing.note_term(vote.leader_id.term);
        crash_point!("log_vote_before");
        self.change(|journal| journal.save_vote(vote)).await?;
        crash_point!("log_vote_after");
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(id) = committed {
            self.inner.standing.note_committed(id);
        }
        // It may be lost: Raft finds it out again. So it rides with the next flush.
        self.inner
            .waiting
            .lock()
            .expect("no panic while held")
            .committed = committed;
        self.inner.check()
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let phases = &self.inner.phases;
        let now = Instant::now();
        let bodies: Vec<(LogId, Body)> = entries
            .into_iter()
            .map(|entry| {
                if let Payload::Normal(Proposal {
                    since: Some(since), ..
                }) = &entry.payload
                {
                    phases.append.note(now.saturating_duration_since(*since));
                }
                (entry.log_id, Body::of(&entry.payload))
            })
            .collect();
        if let Some((last, _)) = bodies.last() {
            phases.appended(last.index);
        }
        let metrics = &self.inner.metrics;
        metrics
            .entries
            .fetch_add(bodies.len() as u64, Ordering::Relaxed);
        let bytes: usize = bodies.iter().map(|(_, body)| body.0.len()).sum();
        metrics.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        crash_point!("log_append_before");
        self.inner.submit(Waiter::Append(callback), |journal| {
            for (id, body) in bodies {
                let state = journal.state();
                let expected = next_index(state.last.max(state.purged));
                // An empty log may begin anywhere: a new member's first entry follows a snapshot.
                if expected != id.index && expected != 0 {
                    return Err(io::Error::other(format!(
                        "entry {} was given to a log that ends at {}",
                        id.index,
                        expected - 1
                    )));
                }
                journal.append(id, body)?;
            }
            crash_point!("log_append_begun");
            Ok(())
        })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let inner = self.inner.clone();
        self.change(move |journal| {
            // A crash may have lost the record of a truncation that Raft then repeats.
            if journal.state().last <= last {
                return Ok(());
            }
            crash_point!("log_truncate_before");
            journal.truncate_after(last)?;
            crash_point!("log_truncate_begun");
            inner
                .flushed
                .send_modify(|flushed| *flushed = (*flushed).min(next_index(last)));
            Ok(())
        })
        .await?;
        crash_point!("log_truncate_after");
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let floor = self.inner.floor.load(Ordering::Acquire);
        if upto.index > floor {
            return Err(io::Error::other(format!(
                "purging the log up to {} would drop what a restart needs from {floor} on",
                upto.index
            )));
        }
        self.inner.submit(Waiter::Nobody, |journal| {
            if journal.state().purged >= Some(upto) {
                return Ok(());
            }
            crash_point!("log_purge_before");
            journal.purge(upto)?;
            crash_point!("log_purge_begun");
            Ok(())
        })
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
