//! The read barrier: what makes a read linearizable on any node.
//!
//! A round asks the leader to confirm its leadership with a majority; the leader does it for
//! itself, a follower by one request. A read joins only a round that has not started yet, so
//! whatever was acknowledged before the read began is covered by the round's index. Rounds follow
//! one another, so that one is for many readers, unless it takes long.
//!
//! The leader of a term takes the last entry that it knows to be committed, which must be one of its
//! own, and then hears from a majority of the voters that they have voted for no later term (Raft's
//! ReadIndex; Ongaro's thesis, 6.4). Whoever was elected later needs one of these votes after that,
//! so it had acknowledged nothing when the read began. Members answer this from what they note
//! before they vote, without Raft's thread; a follower that asks says it of itself in the question,
//! so that with three members it is the majority already. Asked are no more than are needed, unless
//! they are late. What cannot be found out so, Raft itself is asked for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openraft::raft::ReadPolicy;
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::core::{Core, Leadership};
use super::peer::{Request, Response};
use super::types::{ReadLevel, Reading};
use crate::doors;
use crate::outcome;
use crate::raft::entry::GroupBuilder;
use crate::raft::position::Position;
use crate::raft::state_machine::Progress;
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// Rounds that may be under way at once, where they are long.
const ROUNDS_IN_FLIGHT_MAX: usize = 4;

/// The next round waits for the end of one for so long.
const ROUND_PATIENCE: Duration = Duration::from_millis(2);

/// Members that are not needed for a majority are asked after this, too.
const STAND_SOON: Duration = Duration::from_millis(2);

/// How long a refused round waits before the next try.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// How long members may take to answer before Raft is asked instead.
const STAND_PATIENCE: Duration = Duration::from_millis(500);

/// From which entry on a read is linearizable, and the leader's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadPoint {
    pub(super) index: u64,
    pub(super) time_ms: u64,
}

/// The reads that wait for the next round.
pub(super) struct Barrier {
    waiting: Mutex<Vec<Reader>>,
    wake: Notify,
    rounds: Arc<Semaphore>,
    /// A round has ended.
    ended: Notify,
    /// The member that stood by its leader last.
    stood: AtomicU64,
}

/// Waits for a round.
type Reader = oneshot::Sender<Option<ReadPoint>>;

impl Barrier {
    pub(super) fn new() -> Self {
        Barrier {
            waiting: Mutex::default(),
            wake: Notify::new(),
            rounds: Arc::new(Semaphore::new(ROUNDS_IN_FLIGHT_MAX)),
            ended: Notify::new(),
            stood: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.waiting.lock().expect("no panic while held")
    }

    fn push(&self, reader: Reader) {
        let mut waiting = self.waiting();
        waiting.push(reader);
        // Who begins a round takes all that wait.
        if waiting.len() == 1 {
            self.wake.notify_one();
        }
    }
}

impl Core {
    /// A consistent view that is as fresh as `level` says, and holds entry `after`.
    pub(super) async fn read(&self, level: ReadLevel, after: u64) -> Result<Reading, Reply> {
        match level {
            ReadLevel::Linearizable => self.read_linearizable().await,
            ReadLevel::Local => self.read_local(after).await,
        }
    }

    async fn read_linearizable(&self) -> Result<Reading, Reply> {
        let deadline = Instant::now() + self.settings.hold;
        let down = outcome::cluster_down;
        let point = match self.point_alone() {
            Some(point) => point,
            None => self.wait_for_round(deadline).await.ok_or_else(down)?,
        };
        self.applied(point.index, deadline).await.ok_or_else(down)?;
        self.reading(point.time_ms)
    }

    /// From where a read is linearizable while nobody else can lead or commit anything.
    fn point_alone(&self) -> Option<ReadPoint> {
        let term = self.alone()?;
        // What is committed was flushed here before anyone could know of it.
        let index = self.log.flushed().saturating_sub(1);
        let time_ms = self.leader_time(term);
        Some(ReadPoint { index, time_ms })
    }

    async fn wait_for_round(&self, deadline: Instant) -> Option<ReadPoint> {
        let (done, wait) = oneshot::channel();
        self.barrier.push(done);
        match timeout_at(deadline, wait).await {
            Ok(Ok(point)) => point,
            _ => None,
        }
    }

    /// Waits until the entry at `index` is applied.
    async fn applied(&self, index: u64, deadline: Instant) -> Option<Progress> {
        let mut progress = self.machine.progress();
        if progress.borrow().index >= index {
            return Some(*progress.borrow());
        }
        let applied = timeout_at(deadline, progress.wait_for(|now| now.index >= index));
        let reached = applied.await.ok()?.ok()?;
        Some(*reached)
    }

    async fn read_local(&self, after: u64) -> Result<Reading, Reply> {
        if self.is_loading() {
            return Err(outcome::loading());
        }
        if self.is_stale() {
            return Err(outcome::stale());
        }
        let deadline = Instant::now() + self.settings.hold;
        let progress = self.applied(after, deadline).await;
        let progress = progress.ok_or_else(outcome::cluster_down)?;
        let now_ms = progress.time_ms + progress.at.elapsed().as_millis() as u64;
        self.reading(now_ms)
    }

    /// Whether a local read could see what is older than allowed.
    fn is_stale(&self) -> bool {
        let Some(limit) = self.settings.staleness_max else {
            return false;
        };
        let fresh_at = *self.fresh_at.lock().expect("no panic while held");
        fresh_at.is_none_or(|at| at.elapsed() > limit)
    }

    /// Keeps the state's age known, where it is limited: what a barrier covers is no older than the
    /// moment at which the barrier began, once it is applied.
    pub(super) async fn run_freshness(self: Arc<Self>) {
        let Some(limit) = self.settings.staleness_max else {
            return;
        };
        loop {
            let began = Instant::now();
            let fresh = async {
                let point = self.round().await;
                let mut progress = self.machine.progress();
                let applied = progress.wait_for(|progress| progress.index >= point.index);
                applied.await.is_ok()
            };
            if let Ok(true) = timeout_at(began + limit, fresh).await {
                *self.fresh_at.lock().expect("no panic while held") = Some(began);
            }
            sleep(limit / 4).await;
        }
    }

    fn reading(&self, now_ms: u64) -> Result<Reading, Reply> {
        let view = self.machine.store().read().map_err(|error| {
            tracing::error!(%error, "engine read failed");
            Reply::error("ERR internal error")
        })?;
        let replicated_ms = Position::time_of(view.mark());
        let now_ms = now_ms.max(replicated_ms);
        Ok(Reading {
            view,
            replicated_ms,
            now_ms,
            seed: self.doors.random.next(),
        })
    }

    /// Brings replicated time to the leader's: keys that are due are gone afterwards.
    pub(super) async fn tick(&self) -> Result<(), Reply> {
        let written = self.propose(GroupBuilder::internal().finish()).await?;
        let mut progress = self.machine.progress();
        let applied = progress.wait_for(|progress| progress.index >= written.index);
        timeout_at(Instant::now() + self.settings.hold, applied)
            .await
            .map_err(|_| outcome::cluster_down())?
            .map_err(|_| outcome::cluster_down())?;
        Ok(())
    }

    /// Serves the barrier until the node stops.
    pub(super) async fn run_barrier(self: Arc<Self>) {
        let barrier = &self.barrier;
        loop {
            barrier.wake.notified().await;
            let permit = barrier.rounds.clone().acquire_owned().await;
            let permit = permit.expect("never closed");
            let ended = barrier.ended.notified();
            if barrier.rounds.available_permits() + 1 < ROUNDS_IN_FLIGHT_MAX {
                // Late or not: then it is one of those that take long.
                drop(timeout(ROUND_PATIENCE, ended).await);
            }
            let readers = std::mem::take(&mut *barrier.waiting());
            let core = self.clone();
            doors::spawn(async move {
                let deadline = Instant::now() + core.settings.hold;
                let point = timeout_at(deadline, core.round()).await.ok();
                drop(permit);
                core.barrier.ended.notify_waiters();
                for reader in readers {
                    let _ = reader.send(point);
                }
            });
        }
    }

    /// One round, tried again until a leader confirms.
    async fn round(&self) -> ReadPoint {
        loop {
            match self.leadership() {
                Leadership::Mine { .. } => {
                    if let Some(point) = self.confirm(None).await {
                        return point;
                    }
                }
                Leadership::Other { id, member, .. } => {
                    let deadline = Instant::now() + self.settings.hold;
                    let term = self.log.standing().term();
                    let request = Request::Barrier { term };
                    let answer = self.ask(id, &member, &request, deadline).await;
                    if let Ok(Response::Barrier { index, time_ms }) = answer {
                        return ReadPoint { index, time_ms };
                    }
                }
                Leadership::Nobody => {}
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Confirms this node's leadership with a majority. `asker` is a member that has just said that
    /// it has voted for no term behind this one.
    pub(super) async fn confirm(&self, asker: Option<(NodeId, u64)>) -> Option<ReadPoint> {
        if let Some(point) = self.point_alone() {
            return Some(point);
        }
        if let Some(point) = self.confirm_by_votes(asker).await {
            return Some(point);
        }
        let linearizer = self
            .raft
            .get_read_linearizer(ReadPolicy::ReadIndex)
            .await
            .ok()?;
        let id = *linearizer.read_log_id();
        let time_ms = self.leader_time(id.committed_leader_id().term);
        Some(ReadPoint {
            index: id.index(),
            time_ms,
        })
    }

    async fn confirm_by_votes(&self, asker: Option<(NodeId, u64)>) -> Option<ReadPoint> {
        let Leadership::Mine { term } = self.leadership() else {
            return None;
        };
        let standing = self.log.standing();
        // Before the votes are asked for: what is committed later no read of now needs to see.
        let index = standing.committed_in(term)?.index;
        if asker.is_some() {
            // It reads once it has carried that out.
            standing.want_news();
        }
        if !standing.stands_by(term) {
            return None;
        }
        // Not for a term that is over: the clock of the next one would begin anew.
        let time_ms = self.leader_time(term);
        let point = ReadPoint { index, time_ms };
        let mut stand = BTreeSet::from([self.id]);
        if let Some((asker, voted)) = asker
            && voted <= term
        {
            stand.insert(asker);
        }
        // It may be older than what Raft has just taken on, by one change that is not committed
        // yet: a majority of both has a member in common.
        let membership = self.news.borrow_watched().membership_config.clone();
        let membership = membership.membership();
        let is_majority = |stand: &BTreeSet<NodeId>| {
            membership.get_joint_config().iter().all(|voters| {
                let held = voters.intersection(stand).count();
                held > voters.len() / 2
            })
        };
        if is_majority(&stand) {
            return Some(point);
        }
        let deadline = Instant::now() + STAND_PATIENCE;
        let request = &Request::Stand { term };
        let ask = |(voter, member): (NodeId, Member)| async move {
            (voter, self.ask(voter, &member, request, deadline).await)
        };
        let mut voters: Vec<(NodeId, Member)> = membership
            .voter_ids()
            .filter(|voter| !stand.contains(voter))
            .filter_map(|voter| Some((voter, membership.get_node(&voter)?.clone())))
            .collect();
        // Whoever stood by last time is there, and quick.
        let stood = self.barrier.stood.load(Ordering::Relaxed);
        voters.sort_by_key(|(voter, _)| *voter != stood);
        let needed = match &membership.get_joint_config()[..] {
            [all] => all.len() / 2 + 1 - all.intersection(&stand).count(),
            _ => voters.len(),
        };
        let mut others = voters.split_off(needed.min(voters.len()));
        let mut answers: FuturesUnordered<_> = voters.into_iter().map(ask).collect();
        let mut soon = std::pin::pin!(sleep(STAND_SOON));
        loop {
            tokio::select! {
                biased;
                Some((voter, answer)) = answers.next() => match answer {
                    Ok(Response::Stands) => {
                        self.barrier.stood.store(voter, Ordering::Relaxed);
                        stand.insert(voter);
                        if is_majority(&stand) {
                            return Some(point);
                        }
                    }
                    _ => answers.extend(others.drain(..).map(ask)),
                },
                () = &mut soon, if !others.is_empty() => {
                    answers.extend(others.drain(..).map(ask));
                }
                else => return None,
            }
        }
    }
}
