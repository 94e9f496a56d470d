//! A member that comes back at other addresses tells the cluster.
//!
//! The others cannot reach it, so it does not learn who leads; it tells every member it knows of.
//! Who it is has been settled by the handshake. Each that is told dials it there from then on: so
//! they can elect a leader, who changes the membership, also where most of them have moved.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep, timeout};

use super::core::{Core, Leadership};
use super::membership::CHANGE_TIMEOUT;
use super::peer::{Request, Response};
use crate::data_dir::Addresses;
use crate::raft::NodeId;

/// Where members said that they are, each with where the membership said that it is then: once the
/// membership says something else, that counts.
#[derive(Default)]
pub(super) struct Moved(Mutex<BTreeMap<NodeId, (String, String)>>);

impl Moved {
    /// A member of which the membership says `known` is at `now`.
    pub(super) fn note(&self, id: NodeId, known: &str, now: &str) {
        let mut moved = self.0.lock().expect("no panic while held");
        moved.insert(id, (known.to_owned(), now.to_owned()));
    }

    /// A member has started: it will say where it is, if need be.
    pub(super) fn forget(&self, id: NodeId) {
        self.0.lock().expect("no panic while held").remove(&id);
    }

    /// Where a member is of which the membership says `known`.
    pub(super) fn of(&self, id: NodeId, known: String) -> String {
        match self.0.lock().expect("no panic while held").get(&id) {
            Some((then, now)) if *then == known => now.clone(),
            _ => known,
        }
    }
}

const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Core {
    /// Tells the cluster where this node is, if it was told to be elsewhere than `before`; returns
    /// when the cluster knows.
    ///
    /// What a JOIN called a node counts, and may differ from what the node calls itself: only what
    /// has changed is told.
    pub(super) async fn announce(&self, before: &Addresses) {
        let here = self.settings.member();
        loop {
            let members = self.members();
            if let Some((_, known)) = members.iter().find(|(id, _)| *id == self.id) {
                let changed = |now: &str, before: &str, known: &str| match now == before {
                    true => known.to_owned(),
                    false => now.to_owned(),
                };
                let raft_addr = changed(&here.raft_addr, &before.raft, &known.raft_addr);
                let client_addr = changed(&here.client_addr, &before.client, &known.client_addr);
                if (&raft_addr, &client_addr) == (&known.raft_addr, &known.client_addr) {
                    return;
                }
                if matches!(self.leadership(), Leadership::Mine { .. }) {
                    self.note_addresses(self.id, &raft_addr, &client_addr).await;
                }
                let request = Request::Announce {
                    raft_addr,
                    client_addr,
                };
                // Only the leader can note it; all are told until it has.
                for (id, member) in members.iter().filter(|(id, _)| *id != self.id) {
                    let deadline = Instant::now() + AGAIN_AFTER;
                    let answer = self.ask(*id, member, &request, deadline).await;
                    self.learn(answer.ok());
                }
                // Where all have moved, an operator knows where to.
                for addr in &self.settings.join {
                    let answer = self.peers.call(0, addr, request.encode(), AGAIN_AFTER);
                    let answer = self.understand(answer.await);
                    self.learn(answer.ok());
                }
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    /// A member has told where it is.
    pub(super) async fn told(&self, id: NodeId, raft_addr: &str, client_addr: &str) -> Response {
        let members = self.members();
        let Some((_, member)) = members.iter().find(|(known, _)| *known == id) else {
            return Response::Refused;
        };
        self.moved.note(id, &member.raft_addr, raft_addr);
        if matches!(self.leadership(), Leadership::Mine { .. }) {
            return self.note_addresses(id, raft_addr, client_addr).await;
        }
        let found = members
            .into_iter()
            .map(|(id, member)| (id, self.moved.of(id, member.raft_addr)));
        Response::Whereabouts(found.collect())
    }

    /// Where a member that does not lead finds the others: they may have moved as well.
    fn learn(&self, answer: Option<Response>) {
        let Some(Response::Whereabouts(found)) = answer else {
            return;
        };
        let members = self.members();
        for (id, addr) in found {
            let known = members.iter().find(|(known, _)| *known == id);
            if let Some((_, member)) = known
                && id != self.id
                && member.raft_addr != addr
            {
                self.moved.note(id, &member.raft_addr, &addr);
            }
        }
    }

    /// Changes where a member is, as the leader.
    pub(super) async fn note_addresses(
        &self,
        id: NodeId,
        raft_addr: &str,
        client_addr: &str,
    ) -> Response {
        let _one = self.change.lock().await;
        let members = self.members();
        let Some((_, member)) = members.into_iter().find(|(known, _)| *known == id) else {
            return Response::Refused;
        };
        let mut moved = member.clone();
        (moved.raft_addr, moved.client_addr) = (raft_addr.to_owned(), client_addr.to_owned());
        if moved == member {
            return Response::Reply(crate::resp::Reply::Ok);
        }
        crash_point!("move_before");
        let nodes = BTreeMap::from([(id, moved)]);
        let change = self
            .raft
            .change_membership(ChangeMembers::SetNodes(nodes), true);
        match timeout(CHANGE_TIMEOUT, change).await {
            Ok(Ok(_)) => {
                crash_point!("move_after");
                tracing::info!(member = %member.name, raft_addr, client_addr, "member moved");
                Response::Reply(crate::resp::Reply::Ok)
            }
            Ok(Err(error)) => {
                tracing::warn!(member = %member.name, %error, "a member's move was not noted");
                Response::Refused
            }
            // It may be committed later, and is asked for again until then.
            Err(_) => Response::Unknown,
        }
    }
}
