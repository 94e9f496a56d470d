//! How a client's group of commands comes into the log, from whichever node the client spoke to.
//!
//! One queue takes the groups of all connections. Where this node leads, all that waits becomes one
//! entry, up to the limits below; until it is committed, the next gathers, and a little longer where
//! more are about to come (see [`gather`](super::gather)). Where another node leads, all that waits
//! is forwarded to it in one request, together with the term it must still lead. Where nobody leads,
//! groups are held for a bounded time.
//!
//! What became of a group is known in three ways only: the entry that carries it was applied here
//! or answered by the leader (done); it was refused before it was appended (so it may be proposed
//! again); anything else is unknown, and never proposed again.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::vote::leader_id_std::CommittedLeaderId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::core::{Core, Leadership};
use super::disk::grows;
use super::gather::Gathering;
use super::peer::{Request, Response};
use super::types::{Early, Written};
use crate::doors;
use crate::outcome;
use crate::raft::entry::{self, Group, Stamp};
use crate::raft::{Member, NodeId, Proposal, ReplySlot, TypeConfig};
use crate::resp::Reply;

/// Entries that may wait to be committed. What comes while one is synced and replicated gathers
/// for the next: each entry costs several wake-ups of threads on every member, however few its
/// commands are.
const ENTRIES_UNCOMMITTED_MAX: usize = 1;

/// Entries that may be in flight at once, with those that are committed and not carried out yet.
pub(super) const ENTRIES_IN_FLIGHT_MAX: usize = 4;

/// Most commands of one entry.
pub(super) const ENTRY_COMMANDS_MAX: usize = 8192;

/// An entry is not grown beyond this many bytes; a single larger group gets one of its own.
pub(super) const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Replies of an entry with more groups are not shown early: the threads that wait for them are
/// more than this one, and writing to a socket takes some microseconds.
const EARLY_GROUPS_MAX: usize = 2;

/// Requests with forwarded groups that may be on their way at once.
const FORWARDS_IN_FLIGHT_MAX: usize = 4;

/// How long a group that was refused waits before it is tried again without other news.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// What became of a group.
pub(super) enum Outcome {
    /// It was carried out.
    Done(Written),
    /// It was not, and will not be.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// A group that waits for its outcome.
pub(super) struct Job {
    group: Group,
    since: Instant,
    /// Until when it may be held while nobody leads.
    hold_until: Instant,
    /// Set when another node forwarded it: the term that this node must lead, and no holding.
    term: Option<u64>,
    early: Option<Early>,
    done: oneshot::Sender<Outcome>,
}

/// The queue of groups, and what is under way.
pub(super) struct Proposer {
    queue: Mutex<VecDeque<Job>>,
    wake: Notify,
    gathering: Gathering,
    /// Groups in entries whose outcome is not known yet.
    unanswered: Arc<AtomicUsize>,
    entries: Arc<Semaphore>,
    uncommitted: Arc<Semaphore>,
    forwards: Arc<Semaphore>,
    origins: Origins,
    sequence: AtomicU64,
}

/// Groups of one entry, as long as their outcome is not known.
struct Unanswered {
    all: Arc<AtomicUsize>,
    groups: usize,
}

impl Unanswered {
    fn new(all: &Arc<AtomicUsize>, groups: usize) -> Self {
        all.fetch_add(groups, Ordering::Relaxed);
        Unanswered {
            all: all.clone(),
            groups,
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.all.fetch_sub(self.groups, Ordering::Relaxed);
    }
}

/// The right to append an entry.
struct Turn {
    entry: OwnedSemaphorePermit,
    uncommitted: OwnedSemaphorePermit,
}

/// Groups of this node that another one was asked to append.
#[derive(Default)]
pub(super) struct Origins(Mutex<HashMap<u64, oneshot::Sender<Written>>>);

impl Origins {
    /// One of them was carried out here: the origin is itself a replica.
    pub(super) fn applied(&self, sequence: u64, index: u64, replies: &[Reply]) {
        let waiter = self
            .0
            .lock()
            .expect("no panic while held")
            .remove(&sequence);
        if let Some(waiter) = waiter {
            drop(waiter.send(Written {
                replies: replies.to_vec(),
                index,
            }));
        }
    }

    fn register(&self, sequence: u64) -> oneshot::Receiver<Written> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .lock()
            .expect("no panic while held")
            .insert(sequence, sender);
        receiver
    }

    fn forget(&self, sequence: u64) {
        self.0
            .lock()
            .expect("no panic while held")
            .remove(&sequence);
    }
}

impl Proposer {
    /// `incarnation` makes the sequence numbers of this run unlike those of earlier ones.
    pub(super) fn new(incarnation: u64) -> Self {
        Proposer {
            queue: Mutex::default(),
            wake: Notify::new(),
            gathering: Gathering::new(),
            unanswered: Arc::default(),
            entries: Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX)),
            uncommitted: Arc::new(Semaphore::new(ENTRIES_UNCOMMITTED_MAX)),
            forwards: Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT_MAX)),
            origins: Origins::default(),
            sequence: AtomicU64::new(incarnation << 40),
        }
    }

    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Waits until the next entry may be appended.
    async fn turn(&self) -> Turn {
        Turn {
            entry: acquire(&self.entries).await,
            uncommitted: acquire(&self.uncommitted).await,
        }
    }

    fn push(&self, job: Job) {
        let waiting = {
            let mut queue = self.queue.lock().expect("no panic while held");
            queue.push_back(job);
            queue.len()
        };
        self.gathering.pushed(waiting);
        self.wake.notify_one();
    }

    /// Waits for groups that are about to come.
    async fn gather(&self) {
        let waiting = || self.queue.lock().expect("no panic while held").len();
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        self.gathering.wait(waiting, unanswered).await;
    }

    fn push_back_to_front(&self, jobs: Vec<Job>) {
        let mut queue = self.queue.lock().expect("no panic while held");
        for job in jobs.into_iter().rev() {
            queue.push_front(job);
        }
    }

    /// Takes what fits into one entry.
    fn take(&self) -> Vec<Job> {
        let mut queue = self.queue.lock().expect("no panic while held");
        let (mut commands, mut bytes, mut taken) = (0, 0, Vec::new());
        while let Some(job) = queue.front() {
            commands += job.group.len();
            bytes += job.group.bytes();
            if !taken.is_empty() && (commands > ENTRY_COMMANDS_MAX || bytes > ENTRY_BYTES_MAX) {
                break;
            }
            taken.extend(queue.pop_front());
        }
        taken
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().expect("no panic while held").is_empty()
    }

    /// Refuses what has been held long enough; returns when the next will have been.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.queue.lock().expect("no panic while held");
        let mut next: Option<Instant> = None;
        let mut kept = VecDeque::with_capacity(queue.len());
        for job in queue.drain(..) {
            if job.hold_until <= now || job.term.is_some() {
                drop(job.done.send(Outcome::Refused));
            } else {
                next = Some(next.map_or(job.hold_until, |next| next.min(job.hold_until)));
                kept.push_back(job);
            }
        }
        *queue = kept;
        next
    }
}

impl Core {
    /// Proposes a client's group and waits for its outcome, until `deadline` at the longest.
    pub(super) async fn propose(&self, group: Group) -> Result<Written, Reply> {
        self.propose_early(group, None).await
    }

    /// The same; `early` may be shown the replies before.
    pub(super) async fn propose_early(
        &self,
        group: Group,
        early: Option<Early>,
    ) -> Result<Written, Reply> {
        let now = Instant::now();
        let (done, wait) = oneshot::channel();
        let hold_until = now + self.settings.hold;
        self.proposer.push(Job {
            group,
            since: now,
            hold_until,
            term: None,
            early,
            done,
        });
        match timeout_at(hold_until + self.settings.write_timeout, wait).await {
            Ok(Ok(Outcome::Done(written))) => Ok(written),
            Ok(Ok(Outcome::Refused)) => Err(outcome::cluster_down()),
            _ if planted!("wrong_refusal") => Err(outcome::cluster_down()),
            Ok(Ok(Outcome::Unknown) | Err(_)) => Err(outcome::leadership_changed()),
            Err(_) => Err(outcome::no_majority()),
        }
    }

    /// Appends groups that another node forwards, if this node still leads `term`.
    pub(super) async fn append_forwarded(&self, term: u64, groups: Vec<Group>) -> Response {
        let now = Instant::now();
        let waits: Vec<_> = groups
            .into_iter()
            .map(|group| {
                let (done, wait) = oneshot::channel();
                self.proposer.push(Job {
                    group,
                    since: now,
                    hold_until: now,
                    term: Some(term),
                    early: None,
                    done,
                });
                wait
            })
            .collect();
        let mut written = Vec::with_capacity(waits.len());
        let (mut refused, mut unknown) = (false, false);
        for wait in waits {
            match wait.await {
                Ok(Outcome::Done(Written { replies, index })) => written.push((index, replies)),
                Ok(Outcome::Refused) => refused = true,
                Ok(Outcome::Unknown) | Err(_) => unknown = true,
            }
        }
        match (unknown, refused, written.is_empty()) {
            (false, false, _) => Response::Done(written),
            (false, true, true) => Response::Refused,
            // Part of the groups has one fate and part another: the origin, which is a replica,
            // finds out from its own log.
            _ => Response::Unknown,
        }
    }

    /// Serves the queue until the node stops.
    pub(super) async fn run_proposer(self: Arc<Self>) {
        let mut leadership = self.leadership_changes();
        loop {
            if self.proposer.is_empty() {
                self.proposer.wake.notified().await;
                continue;
            }
            match self.leadership() {
                Leadership::Mine { term } => {
                    // An entry that finds no majority must not hold up the others' refusal.
                    let turn = tokio::select! {
                        biased;
                        turn = self.proposer.turn() => turn,
                        _ = leadership.changed() => continue,
                    };
                    // Of a node alone an entry costs little, and clients' turns overlap with it.
                    if self.alone().is_none() {
                        self.proposer.gather().await;
                    }
                    let jobs = self.proposer.take();
                    self.append(term, jobs, turn).await;
                }
                Leadership::Other { term, id, member } => {
                    let permit = acquire(&self.proposer.forwards).await;
                    let jobs = self.proposer.take();
                    let (forwarded, own): (Vec<_>, Vec<_>) =
                        jobs.into_iter().partition(|job| job.term.is_some());
                    refuse(forwarded);
                    if !own.is_empty() {
                        doors::spawn(self.clone().forward(term, id, member, own, permit));
                    }
                }
                Leadership::Nobody => {
                    let Some(next) = self.proposer.expire(Instant::now()) else {
                        continue;
                    };
                    tokio::select! {
                        biased;
                        _ = leadership.changed() => {}
                        () = self.proposer.wake.notified() => {}
                        () = sleep_until(next) => {}
                    }
                }
            }
        }
    }

    async fn append(self: &Arc<Self>, term: u64, jobs: Vec<Job>, turn: Turn) {
        let (stale, jobs): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|job| job.term.is_some_and(|expected| expected != term));
        refuse(stale);
        let (jobs, full): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|job| self.disk.spend(job.group.bytes()) || !grows(&job.group));
        no_room(full);
        if jobs.is_empty() {
            return;
        }
        let groups: Vec<Group> = jobs.iter().map(|job| job.group.clone()).collect();
        let commands: usize = groups.iter().map(Group::len).sum();
        self.metrics.entry(commands as u64);
        let stamp = Stamp {
            level: entry::FEATURE_LEVEL,
            time_ms: self.leader_time(term),
            seed: self.doors.random.next(),
        };
        let now = Instant::now();
        let phases = self.log.phases();
        if let Some(oldest) = jobs.iter().map(|job| job.since).min() {
            phases.queue.note(now.saturating_duration_since(oldest));
        }
        let proposal = Proposal {
            bytes: entry::encode(stamp, &groups),
            since: Some(now),
        };
        drop(groups);
        let core = self.clone();
        let Turn { entry, uncommitted } = turn;
        let unanswered = Unanswered::new(&self.proposer.unanswered, jobs.len());
        let slot = ReplySlot::new(uncommitted, move |result: ClientWriteResult<TypeConfig>| {
            drop((entry, unanswered));
            match result {
                Ok(response) => {
                    let index = response.log_id.index;
                    let few = jobs.len() <= EARLY_GROUPS_MAX;
                    for (mut job, replies) in jobs.into_iter().zip(response.data.groups) {
                        if few && let Some(early) = job.early.take() {
                            early(&replies);
                        }
                        drop(job.done.send(Outcome::Done(Written { replies, index })));
                    }
                }
                Err(ClientWriteError::ForwardToLeader(_)) => core.try_again(jobs),
                Err(_) if planted!("sent_again") => core.try_again(jobs),
                // Dropping the jobs says that their outcome is unknown.
                Err(_) => drop(jobs),
            }
        });
        // An error means that Raft has stopped; the slot is dropped then, or called.
        drop(
            self.raft
                .write(proposal)
                .with_leader(CommittedLeaderId::new(term))
                .responder(slot)
                .await,
        );
    }

    /// Puts back groups that were refused before they were appended.
    fn try_again(self: &Arc<Self>, jobs: Vec<Job>) {
        let (forwarded, own): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.term.is_some());
        refuse(forwarded);
        if own.is_empty() {
            return;
        }
        let now = Instant::now();
        let (held, expired): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|job| job.hold_until > now);
        refuse(expired);
        self.proposer.push_back_to_front(held);
        let core = self.clone();
        // The refusal may be called from a thread without a runtime.
        self.scope.spawn_on(&self.runtime, async move {
            tokio::time::sleep(RETRY_AFTER).await;
            core.proposer.wake.notify_one();
        });
    }

    async fn forward(
        self: Arc<Self>,
        term: u64,
        leader: NodeId,
        member: Member,
        mut jobs: Vec<Job>,
        permit: OwnedSemaphorePermit,
    ) {
        let mut applied = Vec::with_capacity(jobs.len());
        let mut groups = Vec::with_capacity(jobs.len());
        for job in &mut jobs {
            let sequence = self.proposer.sequence.fetch_add(1, Ordering::Relaxed);
            (job.group.origin, job.group.sequence) = (self.id, sequence);
            applied.push(self.proposer.origins.register(sequence));
            groups.push(job.group.clone());
        }
        let deadline = Instant::now() + self.settings.write_timeout;
        let installed = self.machine.progress().borrow().installed;
        let request = Request::Forward { term, groups };
        let answer = self.ask(leader, &member, &request, deadline).await;
        drop(permit);
        match answer {
            Ok(Response::Done(written)) if written.len() == jobs.len() => {
                for (job, (index, replies)) in jobs.into_iter().zip(written) {
                    self.proposer.origins.forget(job.group.sequence);
                    drop(job.done.send(Outcome::Done(Written { replies, index })));
                }
            }
            Ok(Response::Refused) | Err(super::core::AskError::NotSent) => {
                for job in &jobs {
                    self.proposer.origins.forget(job.group.sequence);
                }
                self.proposer_pause().await;
                self.try_again(jobs);
            }
            _ if planted!("sent_again") => self.try_again(jobs),
            _ => {
                for (job, applied) in jobs.into_iter().zip(applied) {
                    doors::spawn(
                        self.clone()
                            .resolve(term, installed, job, applied, deadline),
                    );
                }
            }
        }
    }

    /// Gives a new leader the time to be known before a refused group is sent again.
    async fn proposer_pause(&self) {
        tokio::time::sleep(RETRY_AFTER).await;
    }

    /// Finds out from this node's own log what became of a group whose answer was lost.
    ///
    /// What a snapshot brought was not seen: where one was `installed` since the group was sent, it
    /// may have been in there.
    async fn resolve(
        self: Arc<Self>,
        term: u64,
        installed: u64,
        job: Job,
        applied: oneshot::Receiver<Written>,
        deadline: Instant,
    ) {
        let mut progress = self.machine.progress();
        // Entries of the term all come before entries of a later one, and only that term's leader
        // would have appended the group.
        let later_term = async {
            // The sender lives as long as the state machine, and so does this.
            drop(progress.wait_for(|progress| progress.term > term).await);
        };
        let sequence = job.group.sequence;
        let mut applied = applied;
        tokio::select! {
            biased;
            written = &mut applied => {
                if let Ok(written) = written {
                    drop(job.done.send(Outcome::Done(written)));
                }
            }
            () = later_term => {
                // It may have been applied just before.
                let skipped = self.machine.progress().borrow().installed != installed;
                match applied.try_recv() {
                    Ok(written) => drop(job.done.send(Outcome::Done(written))),
                    Err(_) if skipped => {
                        self.proposer.origins.forget(sequence);
                        drop(job.done.send(Outcome::Unknown));
                    }
                    Err(_) => {
                        self.proposer.origins.forget(sequence);
                        self.try_again(vec![job]);
                    }
                }
            }
            () = sleep_until(deadline) => {
                self.proposer.origins.forget(sequence);
                drop(job.done.send(Outcome::Unknown));
            }
        }
    }
}

/// Answers groups that the leader's disk has no room for: they did not happen.
fn no_room(jobs: Vec<Job>) {
    for job in jobs {
        let written = Written {
            replies: vec![outcome::disk_full(); job.group.len()],
            index: 0,
        };
        drop(job.done.send(Outcome::Done(written)));
    }
}

fn refuse(jobs: Vec<Job>) {
    for job in jobs {
        drop(job.done.send(Outcome::Refused));
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}
