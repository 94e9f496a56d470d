//! Taking members in and out. Only the leader does it, one change at a time; other nodes pass the
//! request on.
//!
//! The intent to take a node in is replicated before anything else happens, so that the next
//! leader finishes what this one began.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::core::{AskError, Core, Leadership};
use super::peer::{Request, Response};
use super::types::JoinRequest;
use crate::keyspace::View;
use crate::raft::entry::GroupBuilder;
use crate::raft::executor::{META_DELETE, META_SET};
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// How long one membership change may take, the new member's catching up included.
pub(super) const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A learner is level when it lacks at most this many entries of the leader's log.
pub(super) const LEVEL_ENTRIES: u64 = 1024;

/// Names of intents among the cluster's bookkeeping.
const INTENT_PREFIX: &str = "join:";

const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Core {
    /// JOIN, on any node.
    pub(super) async fn join(self: &Arc<Self>, request: JoinRequest) -> Reply {
        let asked = Request::Join {
            name: request.name.clone(),
            raft_addr: request.raft_addr.clone(),
        };
        match self.at_leader(asked).await {
            Ok(reply) => reply,
            Err(deadline) => match timeout_at(deadline, self.join_here(request)).await {
                Ok(Ok(())) => Reply::Ok,
                Ok(Err(reason)) => Reply::error(format!("ERR {reason}")),
                Err(_) => {
                    Reply::error("TIMEOUT the node has not caught up yet; JOIN it again to go on")
                }
            },
        }
    }

    /// LEAVE, on any node.
    pub(super) async fn leave(self: &Arc<Self>, name: String) -> Reply {
        match self.at_leader(Request::Leave { name: name.clone() }).await {
            Ok(reply) => reply,
            Err(deadline) => match timeout_at(deadline, self.leave_here(&name)).await {
                Ok(Ok(())) => Reply::Ok,
                Ok(Err(reason)) => Reply::error(format!("ERR {reason}")),
                Err(_) => Reply::error("TIMEOUT the change is not finished; LEAVE again to go on"),
            },
        }
    }

    /// Passes a request on to the leader; `Err` with a deadline where that is this node.
    async fn at_leader(&self, request: Request) -> Result<Reply, Instant> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let hold_until = Instant::now() + self.settings.hold;
        loop {
            match self.leadership() {
                Leadership::Mine { .. } => return Err(deadline),
                Leadership::Other { id, member, .. } => {
                    match self.ask(id, &member, &request, deadline).await {
                        Ok(Response::Reply(reply)) => return Ok(reply),
                        Ok(Response::Refused) | Err(AskError::NotSent) => {}
                        Ok(_) | Err(AskError::Lost) => {
                            return Ok(Reply::error(
                                "UNKNOWN the leader's answer was lost; ask again",
                            ));
                        }
                    }
                }
                Leadership::Nobody => {}
            }
            if Instant::now() >= hold_until {
                return Ok(Reply::error("CLUSTERDOWN The cluster is down"));
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Takes a node in; on the leader.
    pub(super) async fn join_here(self: &Arc<Self>, request: JoinRequest) -> Result<(), String> {
        let _one = self.change.lock().await;
        let JoinRequest { name, raft_addr } = request;
        let known = self.find(&name);
        if let Some((id, member)) = &known {
            if member.raft_addr != raft_addr {
                return Err(format!(
                    "'{name}' is a member already, at {}; LEAVE it first",
                    member.raft_addr
                ));
            }
            if self.is_voter(*id) {
                self.forget_intent(&name).await?;
                return Ok(());
            }
        } else if let Some((_, member)) = self
            .members()
            .into_iter()
            .find(|(_, member)| member.raft_addr == raft_addr)
        {
            return Err(format!(
                "{raft_addr} is the member '{}' already",
                member.name
            ));
        }
        // From here on this cluster is not blank, so no other one will take this node over.
        let mut intent = GroupBuilder::internal();
        intent.command(&[
            META_SET,
            format!("{INTENT_PREFIX}{name}").as_bytes(),
            raft_addr.as_bytes(),
        ]);
        self.bookkeep(intent).await?;
        let outcome = self.take_in(&name, &raft_addr).await;
        match &outcome {
            // A refusal is final; a node that does not answer may yet, under this leader or the
            // next, when the operator asks again.
            Ok(()) | Err(_) => self.forget_intent(&name).await?,
        }
        outcome
    }

    async fn take_in(self: &Arc<Self>, name: &str, raft_addr: &str) -> Result<(), String> {
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
        let (id, mut member, level) = match self.understand(answer) {
            Ok(Response::Adopted { id, member, level }) => (id, member, level),
            Ok(Response::Reply(Reply::Error(text))) => return Err(text.into_owned()),
            Ok(_) | Err(_) => {
                return Err(format!("no kvd node answers at {raft_addr}"));
            }
        };
        if id == self.id {
            return Err(format!("{raft_addr} is this node itself"));
        }
        if level < crate::raft::entry::FEATURE_LEVEL {
            return Err(format!(
                "'{name}' runs an older version than the cluster has agreed on"
            ));
        }
        (member.name, member.raft_addr) = (name.to_owned(), raft_addr.to_owned());
        let learner = self
            .raft
            .add_learner(id, member, false)
            .await
            .map_err(|error| format!("'{name}' could not be added: {error}"))?;
        self.level(id, learner.log_id.index).await?;
        self.change_until_uniform(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
            .await?;
        tracing::info!(member = %name, address = %raft_addr, "member joined");
        Ok(())
    }

    /// Waits until `id` holds the entry at `index` and nearly all of the log.
    async fn level(&self, id: NodeId, index: u64) -> Result<(), String> {
        let mut metrics = self.raft.data_metrics();
        loop {
            {
                let metrics = metrics.borrow_watched();
                let Some(replication) = &metrics.replication else {
                    return Err("this node does not lead any more; JOIN again".to_owned());
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
                .map_err(|_| "this node is stopping".to_owned())?;
        }
    }

    async fn change_until_uniform(
        &self,
        change: ChangeMembers<NodeId, Member>,
        retain: bool,
    ) -> Result<(), String> {
        loop {
            self.raft
                .change_membership(change.clone(), retain)
                .await
                .map_err(|error| format!("the membership could not be changed: {error}"))?;
            if self
                .raft
                .server_metrics()
                .borrow_watched()
                .membership_config
                .get_joint_config()
                .len()
                <= 1
            {
                return Ok(());
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Takes a member out; on the leader.
    pub(super) async fn leave_here(self: &Arc<Self>, name: &str) -> Result<(), String> {
        let _one = self.change.lock().await;
        let Some((id, member)) = self.find(name) else {
            return Err(format!("no member is called '{name}'"));
        };
        let voters: BTreeSet<NodeId> = self
            .raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .voter_ids()
            .collect();
        if voters == BTreeSet::from([id]) {
            return Err(format!("'{name}' is the last member and cannot leave"));
        }
        if id == self.id {
            // The next leader takes this one out: it would not lead itself out of the cluster.
            self.hand_over().await?;
            let deadline = Instant::now() + CHANGE_TIMEOUT;
            loop {
                if let Leadership::Other { id, member, .. } = self.leadership() {
                    let request = Request::Leave {
                        name: name.to_owned(),
                    };
                    match self.ask(id, &member, &request, deadline).await {
                        Ok(Response::Reply(Reply::Ok)) => return Ok(()),
                        Ok(Response::Reply(Reply::Error(text))) => return Err(text.into_owned()),
                        Ok(Response::Refused) | Err(AskError::NotSent) => {}
                        Ok(_) | Err(AskError::Lost) => {
                            return Err("the new leader's answer was lost; LEAVE again".to_owned());
                        }
                    }
                }
                sleep(RETRY_AFTER).await;
            }
        }
        if voters.contains(&id) {
            self.change_until_uniform(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
                .await?;
        }
        if self.find(name).is_some() {
            self.change_until_uniform(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false)
                .await?;
        }
        tracing::info!(member = %name, "member left");
        // Raft does not tell a removed node; where it cannot be reached, its next contact is
        // refused all the same.
        let deadline = Instant::now() + self.settings.hold;
        if self
            .ask(id, &member, &Request::Removed, deadline)
            .await
            .is_err()
        {
            tracing::warn!(member = %name, "the removed member could not be told");
        }
        Ok(())
    }

    /// Hands leadership to a member that holds the whole log and was heard lately.
    pub(super) async fn hand_over(&self) -> Result<(), String> {
        let status = self.status();
        let mut candidates: Vec<_> = status
            .members
            .iter()
            .filter(|member| member.voter && member.id != self.id)
            .filter(|member| member.heard_ms.is_some_and(|ms| ms < 1000))
            .filter_map(|member| Some((member.matched?, member.id)))
            .filter(|(matched, _)| matched + LEVEL_ENTRIES >= status.last_log)
            .collect();
        candidates.sort_unstable();
        let Some((_, to)) = candidates.pop() else {
            return Err("no other member is level enough to lead".to_owned());
        };
        self.raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|error| error.to_string())?;
        let mut changes = self.leadership_changes();
        let moved = changes.wait_for(|now| matches!(now, Leadership::Other { .. }));
        match timeout_at(Instant::now() + self.settings.hold, moved).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("leadership was not taken over in time".to_owned()),
        }
    }

    /// Finishes, as a new leader, what an earlier one began.
    pub(super) async fn run_intents(self: Arc<Self>) {
        let mut changes = self.leadership_changes();
        loop {
            if matches!(*changes.borrow_and_update(), Leadership::Mine { .. }) {
                for request in self.intents().await {
                    let name = request.name.clone();
                    let deadline = Instant::now() + CHANGE_TIMEOUT;
                    match timeout_at(deadline, self.join_here(request)).await {
                        Ok(Ok(())) => {
                            tracing::info!(member = %name, "an interrupted JOIN is finished")
                        }
                        Ok(Err(reason)) => {
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

    async fn intents(&self) -> Vec<JoinRequest> {
        let Ok(reading) = self.read(super::types::ReadLevel::Linearizable, 0).await else {
            return Vec::new();
        };
        let found = View::new(&reading.view, reading.replicated_ms, reading.now_ms)
            .and_then(|view| view.systems(INTENT_PREFIX));
        match found {
            Ok(intents) => intents
                .into_iter()
                .map(|(name, addr)| JoinRequest {
                    name: name.trim_start_matches(INTENT_PREFIX).to_owned(),
                    raft_addr: String::from_utf8_lossy(&addr).into_owned(),
                })
                .collect(),
            Err(error) => {
                tracing::error!(%error, "the cluster's bookkeeping could not be read");
                Vec::new()
            }
        }
    }

    async fn forget_intent(&self, name: &str) -> Result<(), String> {
        let mut group = GroupBuilder::internal();
        group.command(&[META_DELETE, format!("{INTENT_PREFIX}{name}").as_bytes()]);
        self.bookkeep(group).await
    }

    async fn bookkeep(&self, group: GroupBuilder) -> Result<(), String> {
        match self.propose(group.finish()).await {
            Ok(_) => Ok(()),
            Err(Reply::Error(text)) => Err(text.into_owned()),
            Err(_) => Err("the cluster's bookkeeping could not be written".to_owned()),
        }
    }

    fn members(&self) -> Vec<(NodeId, Member)> {
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
        let voter = metrics
            .membership_config
            .voter_ids()
            .any(|voter| voter == id);
        voter && metrics.membership_config.get_joint_config().len() <= 1
    }
}
