//! A member that comes back at other addresses tells the cluster.
//!
//! The others cannot reach it, so it does not learn who leads; it asks every member it knows of.
//! Who it is has been settled by the handshake.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep, timeout};

use super::core::{Core, Leadership};
use super::membership::CHANGE_TIMEOUT;
use super::peer::{Request, Response};
use crate::data_dir::Addresses;
use crate::raft::NodeId;

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
                for (id, member) in members.iter().filter(|(id, _)| *id != self.id) {
                    let deadline = Instant::now() + AGAIN_AFTER;
                    // Whoever does not lead refuses; it is asked again as long as need be.
                    drop(self.ask(*id, member, &request, deadline).await);
                }
            }
            sleep(AGAIN_AFTER).await;
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
        // A change that needs this member's voice can only be committed when it is reached; and
        // Raft goes on with the connections that it has made.
        if id != self.id {
            self.moved
                .lock()
                .expect("no panic while held")
                .insert(id, raft_addr.to_owned());
        }
        let nodes = BTreeMap::from([(id, moved)]);
        let change = self
            .raft
            .change_membership(ChangeMembers::SetNodes(nodes), true);
        let changed = timeout(CHANGE_TIMEOUT, change).await;
        self.moved.lock().expect("no panic while held").remove(&id);
        match changed {
            Ok(Ok(_)) => {
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
