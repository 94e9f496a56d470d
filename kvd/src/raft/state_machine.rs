//! The state machine as openraft sees it: everything that may block is done by workers.
//!
//! openraft's task hands over groups of committed entries and goes on with its own work; the apply
//! worker carries them out, makes them visible, and gives the replies out itself. The engine gets
//! them later, by another worker.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::digests::Digests;
use super::executor::{Executor, Stop};
use super::log::{Hold, LogStore};
use super::position::Position;
use super::snapshot::{self, SnapshotDir, meta_of};
use super::spool::{SnapshotData, SnapshotMeta, SnapshotSource, Spool};
use super::storing::Storing;
use super::types::{LogId, NodeId, StoredMembership, TypeConfig};
use crate::doors::{BoxFuture, Doors, Worker};
use crate::exit;
use crate::resp::Reply;
use crate::storage::{Caps, ReadView, Store};

/// Most entries that are carried out as one batch.
pub const ENTRIES_PER_BATCH_MAX: usize = 1024;

/// A batch is not grown beyond this many bytes of entries; a single entry may be larger.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// A batch of at most so many bytes may be carried out by the thread that hands it over.
const IN_PLACE_BYTES_MAX: usize = 16 << 10;

/// How far the state machine has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Index of the last applied entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Replicated time.
    pub time_ms: u64,
    /// Where the last snapshot ended that was installed since the start; 0 for none. What came
    /// with it was not carried out here entry by entry.
    pub installed: u64,
    /// The last entry that carried a time; 0 while none was applied since the start.
    pub stamped: u64,
    /// When it was applied here.
    pub at: Instant,
    /// Keys that are due were left for the next entry.
    pub due_left: bool,
}

/// What the state machine tells the node.
pub trait Observer: Send + Sync {
    /// A group that came from `origin` was carried out.
    fn applied(&self, origin: u64, sequence: u64, index: u64, replies: &[Reply]);

    /// The state machine has stopped for good; with the exit code that says how.
    fn stopped(&self, code: i32, reason: &str);
}

enum Job {
    Apply {
        batch: Vec<EntryResponder<TypeConfig>>,
        since: Instant,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// The contents were replaced.
    Reload {
        done: oneshot::Sender<io::Result<()>>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

enum SnapshotJob {
    Send {
        done: oneshot::Sender<io::Result<(SnapshotMeta, Spool)>>,
    },
    Keep {
        done: oneshot::Sender<io::Result<Position>>,
    },
    Digest {
        position: Position,
        view: ReadView,
    },
}

/// The state machine's handle; cheap to clone.
#[derive(Clone)]
pub struct StateMachine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    log: LogStore,
    apply: Worker<Job>,
    storing: Storing,
    snapshots: Worker<SnapshotJob>,
    dir: Arc<SnapshotDir>,
    shared: Arc<Shared>,
    /// Raft's own thread may carry out what is short.
    in_place: AtomicBool,
}

/// What the workers update and everyone reads.
pub(super) struct Shared {
    position: Mutex<Position>,
    /// What a restart can begin from: the purge floor.
    durable: Mutex<Option<Position>>,
    progress: watch::Sender<Progress>,
    digests: Digests,
    /// Snapshots that were installed since the start.
    installations: AtomicU64,
}

impl Shared {
    /// A restart can begin from `position`: it never falls, for the log may be cut up to there.
    pub(super) fn set_durable(&self, position: Position) {
        let mut durable = self.durable.lock().expect("no panic while held");
        let stands = durable.as_ref().and_then(|durable| durable.log_id);
        if position.log_id >= stands {
            *durable = Some(position);
        }
    }

    fn publish(&self, position: &Position, stamped: u64, installed: Option<u64>, due_left: bool) {
        {
            let mut shared = self.position.lock().expect("no panic while held");
            if shared.membership.log_id() != position.membership.log_id() {
                shared.membership = position.membership.clone();
            }
            (shared.log_id, shared.time_ms, shared.level) =
                (position.log_id, position.time_ms, position.level);
        }
        let installed = installed.unwrap_or_else(|| self.progress.borrow().installed);
        self.progress.send_replace(Progress {
            index: position.index(),
            term: position.log_id.map_or(0, |id| id.leader_id.term),
            time_ms: position.time_ms,
            installed,
            stamped,
            at: Instant::now(),
            due_left,
        });
    }
}

impl StateMachine {
    /// Starts the workers over an engine and its snapshot directory, both recovered (see
    /// [`recover`]).
    ///
    /// # Errors
    ///
    /// The engine failed, or was written by a newer version.
    pub fn start(
        doors: &Doors,
        store: Arc<Store>,
        log: LogStore,
        dir: Arc<SnapshotDir>,
        durable: Option<Position>,
        executor: Executor,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let position = executor.position().clone();
        let progress = watch::Sender::new(Progress {
            index: position.index(),
            term: position.log_id.map_or(0, |id| id.leader_id.term),
            time_ms: position.time_ms,
            installed: 0,
            stamped: 0,
            at: Instant::now(),
            due_left: false,
        });
        log.set_purge_floor(durable.as_ref().map_or(0, Position::index));
        let shared = Arc::new(Shared {
            position: Mutex::new(position),
            durable: Mutex::new(durable),
            progress,
            digests: Digests::default(),
            installations: AtomicU64::new(0),
        });
        let (from, files, state) = (store.clone(), dir.clone(), shared.clone());
        let snapshots = Worker::start(&*doors.workers, "kvd-snapshot", move |jobs| {
            for job in jobs {
                spool(job, &from, &files, &state.digests);
            }
            true
        });
        let (state, asked) = (shared.clone(), snapshots.clone());
        let mut executor = executor.with_on_asked(Box::new(move |position, store| {
            if state.digests.begin(position.index()) {
                let (position, view) = (position.clone(), store.read_at_length()?);
                asked.submit(SnapshotJob::Digest { position, view });
            }
            Ok(())
        }));
        let storing = Storing::start(
            doors,
            store.clone(),
            shared.clone(),
            log.clone(),
            observer.clone(),
        );
        let (state, phases, later) = (shared.clone(), log.clone(), storing.clone());
        let apply = Worker::start(&*doors.workers, "kvd-apply", move |jobs| {
            for job in jobs {
                if !run(job, &mut executor, &state, &phases, &later, &*observer) {
                    return false;
                }
            }
            true
        });
        StateMachine {
            inner: Arc::new(Inner {
                store,
                log,
                apply,
                storing,
                snapshots,
                dir,
                shared,
                in_place: AtomicBool::new(false),
            }),
        }
    }

    /// The store, for reads.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Says whether Raft's thread has nothing better to do until a short batch is carried out: it
    /// then does so by itself, which spares the wake-up of another.
    pub fn apply_in_place(&self, allowed: bool) {
        self.inner.in_place.store(allowed, Ordering::Relaxed);
    }

    /// Where a leader's snapshots are received.
    pub fn snapshot_dir(&self) -> &Arc<SnapshotDir> {
        &self.inner.dir
    }

    /// Watches how far it has come.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.inner.shared.progress.subscribe()
    }

    /// Where the state stands.
    pub fn position(&self) -> Position {
        self.inner
            .shared
            .position
            .lock()
            .expect("no panic while held")
            .clone()
    }

    /// What a restart can begin from.
    pub fn durable(&self) -> Option<Position> {
        self.inner
            .shared
            .durable
            .lock()
            .expect("no panic while held")
            .clone()
    }

    /// How many snapshots were installed since the start.
    pub fn installations(&self) -> u64 {
        self.inner.shared.installations.load(Ordering::Relaxed)
    }

    /// Makes the present state durable, and raises the purge floor to it.
    ///
    /// # Errors
    ///
    /// The engine or the disk failed; the node stops then.
    pub async fn make_durable(&self) -> io::Result<Position> {
        if self.inner.store.engine().caps().contains(Caps::DURABLE) {
            return self.inner.storing.sync().await;
        }
        let (done, wait) = oneshot::channel();
        self.inner.snapshots.submit(SnapshotJob::Keep { done });
        let position = wait.await.map_err(|_| ended())??;
        self.inner.log.set_purge_floor(position.index());
        self.inner.shared.set_durable(position.clone());
        Ok(position)
    }

    /// Waits for the digest of the contents behind an entry that asked for it. None means that
    /// this node has none: its state came past the entry as a snapshot, or it is forgotten.
    pub async fn digest_at(&self, index: u64) -> Option<Result<String, String>> {
        let mut progress = self.progress();
        // The sender lives as long as this does.
        drop(progress.wait_for(|progress| progress.index >= index).await);
        self.inner.shared.digests.wait(index).await
    }

    /// Gives the engine all that is applied, and removes a little of what FLUSHALL left behind;
    /// returns whether more of that is left.
    pub async fn store_all(&self) -> bool {
        self.inner.storing.store_all().await
    }

    /// Removes received snapshot files that the log has moved past.
    ///
    /// # Errors
    ///
    /// The directory could not be read, a file not be removed, or the log has failed.
    pub async fn retire_spools(&self) -> io::Result<()> {
        if !self.inner.store.engine().caps().contains(Caps::DURABLE) {
            return Ok(());
        }
        let log = self.inner.log.stats();
        let reached = log.last_index.max(log.purged_index);
        let durable = self.durable().map_or(0, |position| position.index());
        let mut old = self.inner.dir.complete()?;
        old.retain(|(index, _)| *index <= reached && *index <= durable);
        if old.is_empty() {
            return Ok(());
        }
        // Over a loss of power the file alone proves that the state may be ahead of the log.
        self.inner.log.sync().await?;
        for (_, path) in old {
            crash_point!("retire_before");
            std::fs::remove_file(path)?;
            crash_point!("retire_after");
        }
        Ok(())
    }

    /// Drops what waits for the workers, after they have ended: whoever is to be answered may hold
    /// this itself.
    pub fn abandon(&self) {
        self.inner.apply.clear();
        self.inner.storing.clear();
        self.inner.snapshots.clear();
    }

    /// Makes everything durable and lets go of the engine's files; nothing can be applied after.
    ///
    /// # Errors
    ///
    /// The engine failed.
    pub async fn close(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.inner.apply.submit(Job::Close { done });
        wait.await.map_err(|_| ended())?;
        self.inner.storing.close().await
    }

    fn snapshot_of(&self, position: &Position) -> SnapshotOf<TypeConfig, SnapshotData> {
        SnapshotOf::<TypeConfig, SnapshotData> {
            meta: meta_of(position),
            snapshot: SnapshotData::Live(Arc::new(self.clone())),
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the apply worker has ended")
}

/// Opens the state: drops half-done files, and installs a complete snapshot file that is newer
/// than the engine, as after a crash in the middle of an installation.
///
/// Returns what a restart can begin from.
///
/// # Errors
///
/// The engine or the disk failed, or the file is damaged.
pub fn recover(store: &Store, dir: &SnapshotDir) -> io::Result<Option<Position>> {
    let mark = store.mark().map_err(io::Error::other)?;
    if let Some((index, path)) = dir.complete()?.pop()
        && (index > mark.index || mark.data.is_empty())
    {
        tracing::info!(file = %path.display(), "installing a snapshot that is newer than the engine");
        crash_point!("recover_install_before");
        let position = snapshot::install(&path, store)?;
        crash_point!("recover_install_after");
        return Ok(Some(position));
    }
    let durable = store.sync().map_err(io::Error::other)?;
    let position = Position::from_mark(&durable).map_err(io::Error::other)?;
    Ok(position.log_id.is_some().then_some(position))
}

/// Does one job; `false` ends the worker.
fn run(
    job: Job,
    executor: &mut Executor,
    shared: &Shared,
    log: &LogStore,
    storing: &Storing,
    observer: &dyn Observer,
) -> bool {
    let fail = |error: String, done: oneshot::Sender<io::Result<()>>| {
        observer.stopped(exit::IO, &error);
        // The receiver may be gone already, with the Raft task that waited.
        drop(done.send(Err(io::Error::other(error))));
        false
    };
    match job {
        Job::Apply { batch, since, done } => match apply(batch, executor, shared, observer) {
            Ok(()) => {
                log.phases().apply.note(since.elapsed());
                drop(done.send(Ok(())));
                // Now that everyone has their answers.
                storing.applied(executor.take_applied_bytes());
                executor.store().tidy();
                true
            }
            Err(stop) => fail(stop.to_string(), done),
        },
        Job::Reload { done } => match executor.reload() {
            Ok(()) => {
                let position = executor.position();
                let installed = Some(position.index());
                shared.installations.fetch_add(1, Ordering::Relaxed);
                shared.publish(position, executor.stamped(), installed, false);
                crash_point!("install_after");
                drop(done.send(Ok(())));
                true
            }
            Err(error) => fail(format!("snapshot installation: {error}"), done),
        },
        Job::Close { done } => {
            let _ = done.send(());
            false
        }
    }
}

fn apply(
    batch: Vec<EntryResponder<TypeConfig>>,
    executor: &mut Executor,
    shared: &Shared,
    observer: &dyn Observer,
) -> Result<(), Stop> {
    crash_point!("apply_before");
    let outcomes = executor.apply(batch.iter().map(|(entry, _)| entry))?;
    for ((entry, _), outcome) in batch.iter().zip(&outcomes) {
        for ((origin, sequence), replies) in outcome.origins.iter().zip(&outcome.applied.groups) {
            if *origin != 0 {
                observer.applied(*origin, *sequence, entry.log_id.index, replies);
            }
        }
    }
    // First visible, then acknowledged.
    shared.publish(
        executor.position(),
        executor.stamped(),
        None,
        executor.due_left(),
    );
    crash_point!("apply_visible");
    for ((_, responder), outcome) in batch.into_iter().zip(outcomes) {
        if let Some(responder) = responder {
            responder.send(outcome.applied);
        }
    }
    crash_point!("apply_after");
    Ok(())
}

fn spool(job: SnapshotJob, store: &Store, dir: &SnapshotDir, digests: &Digests) {
    match job {
        SnapshotJob::Send { done } => {
            let spooled = store
                .read_at_length()
                .map_err(io::Error::other)
                .and_then(|view| dir.spool_out(view))
                .map(|(position, spool)| (meta_of(&position), spool));
            drop(done.send(spooled));
        }
        SnapshotJob::Keep { done } => {
            let kept = store
                .read()
                .map_err(io::Error::other)
                .and_then(|view| dir.spool_out(view))
                .and_then(|(position, spool)| dir.keep(&position, spool).map(|()| position));
            drop(done.send(kept));
        }
        SnapshotJob::Digest { position, view } => digests.compute(&position, &view),
    }
}

impl SnapshotSource for StateMachine {
    fn spool(&self) -> BoxFuture<'_, io::Result<(SnapshotMeta, Spool)>> {
        Box::pin(async {
            let (done, wait) = oneshot::channel();
            self.inner.snapshots.submit(SnapshotJob::Send { done });
            wait.await.map_err(|_| ended())?
        })
    }

    fn hold_log(&self, member: NodeId, from: u64) -> Hold {
        self.inner.log.hold(member, from)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.position();
        Ok((position.log_id, position.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut more = true;
        while more && let Some(first) = entries.try_next().await? {
            let mut bytes = size(&first);
            let mut batch = vec![first];
            while batch.len() < ENTRIES_PER_BATCH_MAX && bytes < BATCH_BYTES_MAX {
                match entries.next().now_or_never() {
                    Some(Some(next)) => {
                        let next = next?;
                        bytes += size(&next);
                        batch.push(next);
                    }
                    Some(None) => {
                        more = false;
                        break;
                    }
                    None => break,
                }
            }
            // A state must not get ahead of this node's own log: a crash could keep the one and
            // lose the other.
            let last = batch.last().map_or(0, |(entry, _)| entry.log_id.index);
            self.inner.log.wait_flushed(last).await?;
            self.inner.log.phases().committed(last);
            self.inner.storing.room().await?;
            let (done, wait) = oneshot::channel();
            let since = Instant::now();
            let job = Job::Apply { batch, since, done };
            if bytes <= IN_PLACE_BYTES_MAX && self.inner.in_place.load(Ordering::Relaxed) {
                self.inner.apply.run(job);
            } else {
                self.inner.apply.submit(job);
            }
            wait.await.map_err(|_| ended())??;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let spool = match snapshot {
            SnapshotData::Spool(spool) => spool,
            // Another state machine of this process: its state goes through a file as well, so
            // that a crash in the middle finds it whole.
            SnapshotData::Live(source) => self.inner.dir.take_in(source.spool().await?.1)?,
        };
        // A state only goes on: what it holds beyond the snapshot was acknowledged.
        let own = self.position().log_id;
        if !self.inner.storing.install(spool, own).await? {
            tracing::warn!(?own, "a snapshot of an earlier state was not installed");
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        self.inner.apply.submit(Job::Reload { done });
        wait.await.map_err(|_| ended())?
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        Ok(self.durable().map(|position| self.snapshot_of(&position)))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        crash_point!("snapshot_build_before");
        let position = self.make_durable().await?;
        crash_point!("snapshot_build_after");
        Ok(self.snapshot_of(&position))
    }
}

fn size((entry, _): &EntryResponder<TypeConfig>) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => proposal.bytes.len(),
        _ => 0,
    }
}
