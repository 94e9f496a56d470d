//! Taking members in and out. Only the leader does it, one change at a time; other nodes pass the
//! request on.
//!
//! The intent to take a node in is replicated before anything else happens, so that the next
//! leader finishes what this one began.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::core::{AskError, Core, Leadership};
use super::peer::{Request, Response};
use super::types::{JoinRequest, ReadLevel};
use crate::keyspace::View;
use crate::outcome;
use crate::raft::entry::GroupBuilder;
use crate::raft::executor::{META_DELETE, META_SET};
use crate::raft::{Member, NodeId, TypeConfig};
use crate::resp::Reply;

/// How long one membership change may take, the new member's catching up included.
pub(super) const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A learner is level when it lacks at most this many entries of the leader's log.
pub(super) const LEVEL_ENTRIES: u64 = 1024;

/// How long a leader that hands over waits for a member that is level.
const LEVEL_PATIENCE: Duration = Duration::from_secs(1);

/// Names of intents among the cluster's bookkeeping.
/// What the cluster means to do about its members is kept under these names.
pub const JOIN_INTENTS: &str = "join:";

/// What the intent to take in a member without a vote ends with.
const NONVOTER: &str = " NONVOTER";

/// The value of an intent.
fn intended(raft_addr: &str, voter: bool) -> String {
    let suffix = if voter { "" } else { NONVOTER };
    format!("{raft_addr}{suffix}")
}

const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Why a node is not taken in with what it holds.
pub(super) fn taken_out(name: &str) -> Reply {
    Reply::error(format!(
        "ERR '{name}' was removed from its cluster; start it on an empty data directory"
    ))
}

/// Why a membership change did not come to its end here.
pub(super) enum Undone {
    /// This node does not lead, or does not any more: whoever does goes on with it. Changes name
    /// what shall be, so one that was half done, or done, can be asked for again.
    NotLeader,
    /// It cannot be done.
    Refused(Reply),
}

impl Undone {
    fn because(reason: impl std::fmt::Display) -> Self {
        Undone::Refused(Reply::error(format!("ERR {reason}")))
    }
}

impl From<RaftError<TypeConfig, ClientWriteError<TypeConfig>>> for Undone {
    fn from(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Undone::NotLeader,
            other => Undone::because(format_args!("the membership could not be changed: {other}")),
        }
    }
}

/// A change of the membership that was asked for.
enum Change {
    Join(JoinRequest),
    /// Bound to the member that had the name when this began: another one that comes in under the
    /// name while the outcome is open stays.
    Leave {
        id: NodeId,
        name: String,
    },
}

impl Change {
    /// The same, as another node is asked for it.
    fn request(&self) -> Request {
        match self {
            Change::Join(request) => Request::Join(request.clone()),
            Change::Leave { id, name } => Request::Leave {
                id: *id,
                name: name.clone(),
            },
        }
    }

    fn late(&self) -> Reply {
        match self {
            Change::Join(_) => outcome::join_goes_on(),
            Change::Leave { .. } => outcome::leave_goes_on(),
        }
    }
}

impl Core {
    /// JOIN, on any node.
    pub(super) async fn join(self: &Arc<Self>, request: JoinRequest) -> Reply {
        self.carry_out(Change::Join(request)).await
    }

    /// LEAVE, on any node.
    pub(super) async fn leave(self: &Arc<Self>, name: String) -> Reply {
        let meant = self.find(&name);
        // This node may not have heard of a change that was answered.
        if let Err(down) = self.read(ReadLevel::Linearizable, 0).await {
            return down;
        }
        match (meant, self.find(&name)) {
            (Some((meant, _)), Some((now, _))) if meant != now => Reply::error(format!(
                "ERR '{name}' is another member by now; nothing was done"
            )),
            (_, Some((id, _))) => self.leave_as(id, name).await,
            (_, None) => Reply::error(format!("ERR no member is called '{name}'")),
        }
    }

    /// Takes out the member `id`, on any node.
    pub(super) async fn leave_as(self: &Arc<Self>, id: NodeId, name: String) -> Reply {
        self.carry_out(Change::Leave { id, name }).await
    }

    /// Carries a change out on the leader, whoever that is and becomes in the meantime.
    async fn carry_out(self: &Arc<Self>, change: Change) -> Reply {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            if let Some(reply) = self.at_leader(&change.request(), deadline).await {
                return reply;
            }
            let here = async {
                match &change {
                    Change::Join(request) => self.join_here(request.clone()).await,
                    Change::Leave { id, name } => self.leave_here(*id, name).await,
                }
            };
            match timeout_at(deadline, here).await {
                Ok(Ok(())) => return Reply::Ok,
                Ok(Err(Undone::Refused(reply))) => return reply,
                Ok(Err(Undone::NotLeader)) => {}
                Err(_) => return change.late(),
            }
            sleep(RETRY_AFTER).await;
            if Instant::now() >= deadline {
                return change.late();
            }
        }
    }

    /// Passes a request on to the leader and gives its reply; none where that is this node.
    async fn at_leader(&self, request: &Request, deadline: Instant) -> Option<Reply> {
        let hold_until = Instant::now() + self.settings.hold;
        loop {
            match self.leadership() {
                Leadership::Mine { .. } => return None,
                Leadership::Other { id, member, .. } => {
                    match self.ask(id, &member, request, deadline).await {
                        Ok(Response::Reply(reply)) => return Some(reply),
                        Ok(Response::Refused) | Err(AskError::NotSent) => {}
                        Ok(_) | Err(AskError::Lost) => {
                            return Some(outcome::answer_lost());
                        }
                    }
                }
                Leadership::Nobody => {}
            }
            if Instant::now() >= hold_until {
                return Some(outcome::cluster_down());
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Makes sure that this node leads, and that the membership it knows is the cluster's: a leader
    /// that was deposed may not have heard of a change, and one of its own may not be committed.
    async fn settled(&self) -> Result<(), Undone> {
        loop {
            let point = self.confirm(None).await.ok_or(Undone::NotLeader)?;
            let index = {
                let metrics = self.raft.server_metrics();
                let metrics = metrics.borrow_watched();
                let id = metrics.membership_config.log_id();
                id.as_ref().map_or(0, |id| id.index)
            };
            if index <= point.index {
                return Ok(());
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Takes a node in; on the leader.
    pub(super) async fn join_here(self: &Arc<Self>, request: JoinRequest) -> Result<(), Undone> {
        let _one = self.change.lock().await;
        let JoinRequest {
            name,
            raft_addr,
            voter,
        } = request;
        self.settled().await?;
        let known = self.find(&name);
        if let Some((id, member)) = &known {
            if member.raft_addr != raft_addr {
                return Err(Undone::because(format_args!(
                    "'{name}' is a member already, at {}; LEAVE it first",
                    member.raft_addr
                )));
            }
            if (self.is_voter(*id) || *id == self.id) && !voter {
                return Err(Undone::because(format_args!(
                    "'{name}' is a voter already; LEAVE it first"
                )));
            }
            if *id == self.id {
                // It leads, so it has long come; an earlier leader died before the change of voters
                // was at its end.
                self.change_until_uniform(ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true)
                    .await?;
                self.forget_intent(&name).await?;
                return Ok(());
            }
            if self.is_voter(*id) == voter && self.is_itself(*id, &name, &raft_addr).await? {
                // Nothing is changed, so nothing else tells whether it still holds by now.
                self.settled().await?;
                if self.find(&name).is_none_or(|(now, _)| now != *id) {
                    return Err(Undone::NotLeader);
                }
                self.forget_intent(&name).await?;
                return Ok(());
            }
        } else if let Some((_, member)) = self
            .members()
            .into_iter()
            .find(|(_, member)| member.raft_addr == raft_addr)
        {
            return Err(Undone::because(format_args!(
                "{raft_addr} is the member '{}' already",
                member.name
            )));
        }
        // From here on this cluster is not blank, so no other one will take this node over.
        let mut intent = GroupBuilder::internal();
        intent.command(&[
            META_SET,
            format!("{JOIN_INTENTS}{name}").as_bytes(),
            intended(&raft_addr, voter).as_bytes(),
        ]);
        crash_point!("join_before");
        self.bookkeep(intent).await?;
        crash_point!("join_intended");
        let outcome = self.take_in(&name, &raft_addr, voter).await;
        // A refusal is final; where leadership was lost, the next leader finds the intent.
        if !matches!(outcome, Err(Undone::NotLeader)) {
            self.forget_intent(&name).await?;
        }
        crash_point!("join_forgotten");
        outcome
    }

    /// Whether a voter is still the node that was taken in, as far as can be told: one that cannot
    /// be reached is; one that lost its disk is another node at the same address.
    async fn is_itself(&self, id: NodeId, name: &str, raft_addr: &str) -> Result<bool, Undone> {
        match self.adopt(name, raft_addr).await {
            Ok(Response::Adopted { id: now, .. }) => Ok(now == id),
            Ok(Response::Reply(reply @ Reply::Error(_))) => Err(Undone::Refused(reply)),
            Ok(_) | Err(_) => Ok(true),
        }
    }

    async fn adopt(&self, name: &str, raft_addr: &str) -> Result<Response, AskError> {
        let request = Request::Adopt {
            cluster: self.cluster,
            name: name.to_owned(),
        };
        // The node may have to wipe what it founded.
        let patience = CHANGE_TIMEOUT / 2;
        let answer = self
            .peers
            .call(0, raft_addr, request.encode(), patience)
            .await;
        self.understand(answer)
    }

    async fn take_in(
        self: &Arc<Self>,
        name: &str,
        raft_addr: &str,
        voter: bool,
    ) -> Result<(), Undone> {
        let (id, mut member, level, was_member) = match self.adopt(name, raft_addr).await {
            Ok(Response::Adopted {
                id,
                member,
                level,
                was_member,
            }) => (id, member, level, was_member),
            Ok(Response::Reply(reply @ Reply::Error(_))) => return Err(Undone::Refused(reply)),
            Ok(_) | Err(_) => {
                return Err(Undone::because(format_args!(
                    "no kvd node answers at {raft_addr}"
                )));
            }
        };
        crash_point!("join_adopted");
        if id == self.id {
            return Err(Undone::because(format_args!(
                "{raft_addr} is this node itself"
            )));
        }
        if level < crate::raft::entry::FEATURE_LEVEL {
            return Err(Undone::because(format_args!(
                "'{name}' runs an older version than the cluster has agreed on"
            )));
        }
        let is_member = || self.members().iter().any(|(known, _)| *known == id);
        if was_member && !is_member() {
            // It may have been taken in by a later leader.
            self.settled().await?;
            if !is_member() {
                return Err(Undone::Refused(taken_out(name)));
            }
        }
        // The old one goes first: two members of one name and address would be hard to tell apart.
        if let Some((old, _)) = self.find(name)
            && old != id
        {
            tracing::warn!(member = %name, "replaced by a node with an empty data directory");
            self.take_out(old).await?;
            crash_point!("join_replaced");
        }
        (member.name, member.raft_addr) = (name.to_owned(), raft_addr.to_owned());
        let learner = self.raft.add_learner(id, member, false).await?;
        crash_point!("join_learner");
        self.level(id, learner.log_id.index).await?;
        crash_point!("join_level");
        if voter {
            self.change_until_uniform(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
                .await?;
        }
        crash_point!("join_voter");
        tracing::info!(member = %name, address = %raft_addr, voter, "member joined");
        Ok(())
    }

    /// Waits until `id` holds the entry at `index` and nearly all of the log.
    async fn level(&self, id: NodeId, index: u64) -> Result<(), Undone> {
        let mut metrics = self.raft.data_metrics();
        loop {
            {
                let metrics = metrics.borrow_watched();
                let Some(replication) = &metrics.replication else {
                    return Err(Undone::NotLeader);
                };
                let matched = replication
                    .get(&id)
                    .and_then(|id| id.as_ref())
                    .map_or(0, |id| id.index);
                let last = metrics.last_log.as_ref().map_or(0, |id| id.index);
                if matched >= index && matched + LEVEL_ENTRIES >= last {
                    return Ok(());
                }
            }
            metrics
                .changed()
                .await
                .map_err(|_| Undone::because("this node is stopping"))?;
        }
    }

    async fn change_until_uniform(
        &self,
        change: ChangeMembers<NodeId, Member>,
        retain: bool,
    ) -> Result<(), Undone> {
        loop {
            match self.raft.change_membership(change.clone(), retain).await {
                Ok(_) if self.configurations() <= 1 => return Ok(()),
                Ok(_) => {}
                // An earlier leader's change is not committed yet.
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) => {}
                Err(error) => return Err(error.into()),
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Two while a change of the voters is under way.
    fn configurations(&self) -> usize {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_joint_config().len()
    }

    /// Takes a member out; on the leader.
    pub(super) async fn leave_here(self: &Arc<Self>, id: NodeId, name: &str) -> Result<(), Undone> {
        let _one = self.change.lock().await;
        self.settled().await?;
        let mut members = self.members().into_iter();
        let Some((_, member)) = members.find(|(known, _)| *known == id) else {
            // It was a member when this began.
            return Ok(());
        };
        let voters: BTreeSet<NodeId> = self
            .raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .voter_ids()
            .collect();
        if voters == BTreeSet::from([id]) {
            return Err(Undone::because(format_args!(
                "'{name}' is the last member and cannot leave"
            )));
        }
        if id == self.id {
            // The next leader takes this one out: it would not lead itself out of the cluster.
            self.hand_over(None).await.map_err(Undone::because)?;
            return Err(Undone::NotLeader);
        }
        crash_point!("leave_before");
        self.take_out(id).await?;
        crash_point!("leave_taken_out");
        tracing::info!(member = %name, "member left");
        // Raft does not tell a removed node; one that cannot be reached asks when it is back.
        let deadline = Instant::now() + self.settings.hold;
        if self
            .ask(id, &member, &Request::Removed, deadline)
            .await
            .is_err()
        {
            tracing::warn!(member = %name, "the removed member could not be told");
        }
        crash_point!("leave_told");
        Ok(())
    }

    /// Takes a member's vote, then the member itself; one that is not there is out already.
    async fn take_out(&self, id: NodeId) -> Result<(), Undone> {
        let known = |voters_only: bool| {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = &metrics.membership_config;
            match voters_only {
                true => membership.voter_ids().any(|voter| voter == id),
                false => membership.get_node(&id).is_some(),
            }
        };
        let one = BTreeSet::from([id]);
        if known(true) {
            self.change_until_uniform(ChangeMembers::RemoveVoters(one.clone()), false)
                .await?;
            crash_point!("leave_no_voter");
        }
        if known(false) {
            self.change_until_uniform(ChangeMembers::RemoveNodes(one), false)
                .await?;
        }
        Ok(())
    }

    /// Hands leadership to `to`, or to the member that is best placed; on any node.
    pub(super) async fn transfer(&self, to: Option<NodeId>) -> Reply {
        let request = Request::Transfer {
            to: to.unwrap_or(0),
        };
        let deadline = Instant::now() + self.settings.hold;
        match self.at_leader(&request, deadline).await {
            Some(reply) => reply,
            None => self.transfer_here(to).await,
        }
    }

    pub(super) async fn transfer_here(&self, to: Option<NodeId>) -> Reply {
        if let Some(to) = to {
            if to == self.id {
                return Reply::Ok;
            }
            if !self.is_voter(to) {
                return Reply::error("ERR invalid target node id");
            }
        }
        match self.hand_over(to).await {
            Ok(()) => Reply::Ok,
            Err(reason) => Reply::error(format!("ERR {reason}")),
        }
    }

    /// Hands leadership to a member that holds nearly the whole log and was heard lately.
    pub(super) async fn hand_over(&self, to: Option<NodeId>) -> Result<(), String> {
        // A leader of some milliseconds does not know yet how far the others are.
        let deadline = Instant::now() + LEVEL_PATIENCE;
        let next = loop {
            match self.successor(to) {
                Some(next) => break next,
                None if Instant::now() < deadline => sleep(RETRY_AFTER).await,
                None => {
                    return Err(match to {
                        Some(_) => "the member is not level enough to lead".to_owned(),
                        None => "no other member is level enough to lead".to_owned(),
                    });
                }
            }
        };
        crash_point!("transfer_before");
        self.raft
            .trigger()
            .transfer_leader(next)
            .await
            .map_err(|error| error.to_string())?;
        crash_point!("transfer_after");
        let mut changes = self.leadership_changes();
        let moved = changes.wait_for(|now| matches!(now, Leadership::Other { .. }));
        match timeout_at(Instant::now() + self.settings.hold, moved).await {
            Ok(Ok(now)) => match (&*now, to) {
                (Leadership::Other { id, .. }, Some(to)) if *id != to => {
                    Err("different node elected leader".to_owned())
                }
                _ => Ok(()),
            },
            _ => Err("transfer timed out".to_owned()),
        }
    }

    /// The member that is best placed to lead next, or `to` if it could.
    fn successor(&self, to: Option<NodeId>) -> Option<NodeId> {
        let status = self.status();
        let candidates = status
            .members
            .iter()
            .filter(|member| member.voter && member.id != self.id)
            .filter(|member| to.is_none_or(|to| to == member.id))
            .filter(|member| member.heard_ms.is_some_and(|ms| ms < 1000))
            .filter_map(|member| Some((member.matched?, member.id)))
            .filter(|(matched, _)| matched + LEVEL_ENTRIES >= status.last_log);
        candidates.max().map(|(_, id)| id)
    }

    /// Finishes, as a new leader, what an earlier one began.
    pub(super) async fn run_intents(self: Arc<Self>) {
        let mut changes = self.leadership_changes();
        loop {
            if matches!(*changes.borrow_and_update(), Leadership::Mine { .. }) {
                self.finish_change_of_voters().await;
                for request in self.intents().await {
                    let name = request.name.clone();
                    let deadline = Instant::now() + CHANGE_TIMEOUT;
                    match timeout_at(deadline, self.join_here(request)).await {
                        Ok(Ok(())) => {
                            tracing::info!(member = %name, "an interrupted JOIN is finished")
                        }
                        // The next leader goes on.
                        Ok(Err(Undone::NotLeader)) => {}
                        Ok(Err(Undone::Refused(reply))) => {
                            let reason = match &reply {
                                Reply::Error(text) => text,
                                _ => "refused",
                            };
                            tracing::warn!(member = %name, %reason, "an interrupted JOIN was given up");
                        }
                        Err(_) => {
                            tracing::warn!(member = %name, "an interrupted JOIN is still open")
                        }
                    }
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends a change of the voters that an earlier leader left half done: until then majorities of
    /// both the old and the new voters are needed for everything.
    async fn finish_change_of_voters(&self) {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let finish = async {
            let _one = self.change.lock().await;
            self.settled().await?;
            if self.configurations() <= 1 {
                return Ok(());
            }
            // To the voters that were meant; who is none of them any more is no member either.
            let nobody_else = ChangeMembers::AddVoterIds(BTreeSet::new());
            self.change_until_uniform(nobody_else, false).await?;
            tracing::info!("an interrupted change of the voters is finished");
            Ok::<(), Undone>(())
        };
        match timeout_at(deadline, finish).await {
            // Where this node leads no more, the next leader goes on.
            Ok(Ok(()) | Err(Undone::NotLeader)) => {}
            Ok(Err(Undone::Refused(reason))) => {
                tracing::warn!(?reason, "an interrupted change of the voters is still open");
            }
            Err(_) => tracing::warn!("an interrupted change of the voters is still open"),
        }
    }

    async fn intents(&self) -> Vec<JoinRequest> {
        let Ok(reading) = self.read(ReadLevel::Linearizable, 0).await else {
            return Vec::new();
        };
        let found = View::new(&reading.view, reading.replicated_ms, reading.now_ms)
            .and_then(|view| view.systems(JOIN_INTENTS));
        match found {
            Ok(intents) => intents
                .into_iter()
                .map(|(name, intended)| {
                    let intended = String::from_utf8_lossy(&intended).into_owned();
                    let name = name.trim_start_matches(JOIN_INTENTS).to_owned();
                    match intended.strip_suffix(NONVOTER) {
                        Some(addr) => JoinRequest {
                            name,
                            raft_addr: addr.to_owned(),
                            voter: false,
                        },
                        None => JoinRequest {
                            name,
                            raft_addr: intended,
                            voter: true,
                        },
                    }
                })
                .collect(),
            Err(error) => {
                tracing::error!(%error, "the cluster's bookkeeping could not be read");
                Vec::new()
            }
        }
    }

    async fn forget_intent(&self, name: &str) -> Result<(), Undone> {
        let mut group = GroupBuilder::internal();
        group.command(&[META_DELETE, format!("{JOIN_INTENTS}{name}").as_bytes()]);
        self.bookkeep(group).await
    }

    async fn bookkeep(&self, group: GroupBuilder) -> Result<(), Undone> {
        self.propose(group.finish())
            .await
            .map_err(Undone::Refused)?;
        Ok(())
    }

    pub(super) fn members(&self) -> Vec<(NodeId, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .collect()
    }

    fn find(&self, name: &str) -> Option<(NodeId, Member)> {
        self.members()
            .into_iter()
            .find(|(_, member)| member.name == name)
    }

    fn is_voter(&self, id: NodeId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        voters.any(|voter| voter == id) && metrics.membership_config.get_joint_config().len() <= 1
    }
}
