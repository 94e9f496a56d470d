//! One membership of a node: its Raft, its log and its state, from the opening of the data
//! directory until the node stops or is taken over by another cluster.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::announce::Moved;
use super::disk::DiskGuard;
use super::leader_time::LeaderTime;
use super::peer::{Request, Response};
use super::propose::Proposer;
use super::read::Barrier;
use super::types::{MemberStatus, Role, Status};
use super::{NodeMetrics, OnFatal, Settings};
use crate::doors::{Doors, NodeScope};
use crate::raft::log::LogStore;
use crate::raft::state_machine::{Observer, StateMachine};
use crate::raft::transport::{CallError, RequestClient};
use crate::raft::{Member, NodeId, Raft, TypeConfig};
use crate::resp::Reply;

/// What a node alone syncs in Raft's thread at most, in bytes: what is longer takes the disk so long
/// that more can be gathered meanwhile.
const ALONE_SYNCED_MAX: usize = 64 << 10;

/// The same for a follower, which has the next entries to read meanwhile: with entries of 25 kB it
/// was slower by a tenth than by the log's own thread.
const FOLLOWER_SYNCED_MAX: usize = 4 << 10;

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leadership {
    /// This node, in this term.
    Mine { term: u64 },
    /// Another member.
    Other {
        term: u64,
        id: NodeId,
        member: Member,
    },
    /// Nobody that this node knows of.
    Nobody,
}

/// Why a request to another node has no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// It was never sent, or was refused unread: nothing came of it.
    NotSent,
    /// It may have been carried out.
    Lost,
}

/// Raft's news of leader and membership.
pub(super) type ServerNews = WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>;

pub(super) struct Core {
    pub(super) id: NodeId,
    pub(super) cluster: u128,
    pub(super) settings: Settings,
    pub(super) doors: Doors,
    pub(super) scope: Arc<NodeScope>,
    /// Where Raft runs.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) raft: Raft,
    pub(super) log: LogStore,
    pub(super) machine: StateMachine,
    pub(super) peers: RequestClient,
    pub(super) proposer: Arc<Proposer>,
    pub(super) barrier: Barrier,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) time: Mutex<Option<(u64, LeaderTime)>>,
    /// Committed when the node started; local reads wait for it.
    pub(super) recover_to: AtomicU64,
    pub(super) recovered: AtomicBool,
    /// One membership change at a time.
    pub(super) change: tokio::sync::Mutex<()>,
    pub(super) leadership: watch::Sender<Leadership>,
    /// What Raft itself says last of its leader and its membership.
    pub(super) news: ServerNews,
    /// The state is no older than of this moment.
    pub(super) fresh_at: Mutex<Option<Instant>>,
    pub(super) disk: Arc<DiskGuard>,
    pub(super) moved: Arc<Moved>,
    /// The last entry of the log when the node started: what it applies up to there is history.
    pub(super) began_behind: u64,
}

/// Passes what the state machine tells on to the waiting proposals.
pub(super) struct Watcher {
    pub(super) id: NodeId,
    pub(super) proposer: Arc<Proposer>,
    pub(super) fatal: OnFatal,
}

impl Observer for Watcher {
    fn applied(&self, origin: u64, sequence: u64, index: u64, replies: &[Reply]) {
        if origin == self.id {
            self.proposer.origins().applied(sequence, index, replies);
        }
    }

    fn stopped(&self, code: i32, reason: &str) {
        (self.fatal)(code, reason);
    }
}

impl Core {
    pub(super) fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    pub(super) fn leadership_changes(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// The term that this node leads as the only voter, if it does.
    ///
    /// Then no other node can be elected or commit anything without it. What Raft says here may be
    /// older than what it has just done, but never by more than one change of the membership: it
    /// says what it knows before it takes on the next message. The change that gives it company,
    /// a joint one, still needs its vote for everything, and so does the membership of two behind
    /// it; one with which others could do without it needs another change again.
    pub(super) fn alone(&self) -> Option<u64> {
        let news = self.news.borrow_watched();
        let leads = news.state == ServerState::Leader && news.current_leader == Some(self.id);
        let configs = news.membership_config.membership().get_joint_config();
        let [voters] = &configs[..] else { return None };
        let alone = voters.len() == 1 && voters.contains(&self.id);
        (leads && alone).then_some(news.vote.leader_id.term)
    }

    /// Follows Raft's own news until it stops.
    pub(super) async fn run_leadership(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            // Without other members Raft's thread waits for this node and nothing else.
            let alone = self.alone().is_some() && {
                let news = metrics.borrow_watched();
                news.membership_config.membership().nodes().count() == 1
            };
            // A leader has entries to send meanwhile; who follows has to answer first of all that
            // it has them.
            let leads = metrics.borrow_watched().state == ServerState::Leader;
            self.log.sync_in_place(match (alone, leads) {
                (true, _) => ALONE_SYNCED_MAX,
                (false, false) => FOLLOWER_SYNCED_MAX,
                (false, true) => 0,
            });
            self.machine.apply_in_place(alone);
            let now = {
                let metrics = metrics.borrow_watched();
                let term = metrics.vote.leader_id.term;
                match metrics.current_leader {
                    Some(id) if id == self.id && metrics.state == ServerState::Leader => {
                        Leadership::Mine { term }
                    }
                    Some(id) if id != self.id => match metrics.membership_config.get_node(&id) {
                        Some(member) => Leadership::Other {
                            term,
                            id,
                            member: member.clone(),
                        },
                        None => Leadership::Nobody,
                    },
                    _ => Leadership::Nobody,
                }
            };
            self.leadership.send_if_modified(|before| {
                let changed = *before != now;
                if changed {
                    log_change(&now);
                    *before = now;
                }
                changed
            });
            if metrics.changed().await.is_err() {
                self.leadership.send_replace(Leadership::Nobody);
                return;
            }
        }
    }

    /// The leader's time in `term`.
    pub(super) fn leader_time(&self, term: u64) -> u64 {
        let (now, wall) = (Instant::now(), self.doors.clock.wall_ms());
        let mut time = self.time.lock().expect("no panic while held");
        match &mut *time {
            Some((of, time)) if *of == term => time.now(now, wall),
            other => {
                let last = *self.machine.progress().borrow();
                let live = last.stamped > self.began_behind;
                let mut started = LeaderTime::start(last.time_ms, last.at, live, now, wall);
                let ms = started.now(now, wall);
                *other = Some((term, started));
                ms
            }
        }
    }

    /// Asks another member.
    pub(super) async fn ask(
        &self,
        id: NodeId,
        member: &Member,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, AskError> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let answer = self
            .peers
            .call(id, &member.raft_addr, request.encode(), patience)
            .await;
        self.understand(answer)
    }

    pub(super) fn understand(
        &self,
        answer: Result<Bytes, CallError>,
    ) -> Result<Response, AskError> {
        match answer {
            Ok(bytes) => Response::decode(bytes).map_err(|error| {
                tracing::warn!(%error, "a peer's answer is not understood");
                AskError::Lost
            }),
            Err(CallError::Lost(_)) => Err(AskError::Lost),
            Err(_) => Err(AskError::NotSent),
        }
    }

    /// Whether entries that were committed before the start are still being carried out.
    pub(super) fn is_loading(&self) -> bool {
        if self.recovered.load(Ordering::Acquire) {
            return false;
        }
        let reached =
            self.machine.progress().borrow().index >= self.recover_to.load(Ordering::Acquire);
        if reached {
            self.recovered.store(true, Ordering::Release);
        }
        !reached
    }

    pub(super) fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let leader = metrics.current_leader;
        let members: Vec<MemberStatus> = membership
            .nodes()
            .map(|(id, member)| MemberStatus {
                id: *id,
                member: member.clone(),
                voter: voters.contains(id),
                leader: leader == Some(*id),
                matched: metrics
                    .replication
                    .as_ref()
                    .and_then(|replication| replication.get(id))
                    .and_then(|matched| matched.as_ref().map(|id| id.index)),
                heard_ms: metrics
                    .heartbeat
                    .as_ref()
                    .and_then(|heartbeat| heartbeat.get(id))
                    .and_then(|heard| heard.as_ref())
                    .map(|heard| heard.elapsed().as_millis() as u64),
                connected_ms: self
                    .peers
                    .connected_for(*id, &member.raft_addr)
                    .map(|time| time.as_millis() as u64),
            })
            .collect();
        let role = match metrics.state {
            ServerState::Leader => Role::Leader,
            _ if !members.iter().any(|member| member.id == self.id) => Role::Outside,
            _ if voters.contains(&self.id) => Role::Follower,
            _ => Role::Learner,
        };
        let member = members
            .iter()
            .find(|member| member.id == self.id)
            .map_or_else(|| self.settings.member(), |member| member.member.clone());
        Status {
            id: self.id,
            cluster: self.cluster,
            member,
            role,
            leader,
            term: metrics.current_term,
            members,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.cluster_committed.as_ref().map_or(0, |id| id.index),
            applied: self.machine.progress().borrow().index,
            snapshot: self
                .machine
                .durable()
                .map_or(0, |position| position.index()),
            purged: metrics.purged.as_ref().map_or(0, |id| id.index),
            loading: self.is_loading(),
        }
    }
}

fn log_change(now: &Leadership) {
    match now {
        Leadership::Mine { term } => tracing::info!(term, "this node leads"),
        Leadership::Other { term, member, .. } => {
            tracing::info!(term, leader = %member.name, "following");
        }
        Leadership::Nobody => tracing::info!("no leader is known"),
    }
}
