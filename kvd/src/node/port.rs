//! The node as its peers meet it: whom it lets in, and what it answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::Node;
use super::core::{Core, Leadership};
use super::membership::taken_out;
use super::peer::{Request, Response};
use crate::data_dir::Stage;
use crate::doors::BoxFuture;
use crate::exit;
use crate::keyspace::State;
use crate::raft::entry::FEATURE_LEVEL;
use crate::raft::spool::{SnapshotMeta, SnapshotSink, SpoolWriter};
use crate::raft::transport::{self, ConnKind, Hello, PeerIdentity, Refusal, RefusalCode, Welcome};
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// The node as its peers meet it.
pub(super) struct PeerPort {
    pub(super) node: Node,
}

impl transport::Gate for PeerPort {
    fn identity(&self) -> transport::Identity {
        let shared = &self.node.shared;
        let identity = self.node.identity();
        transport::Identity {
            cluster: identity.cluster,
            node: identity.node,
            incarnations: identity.incarnations,
            name: identity.name,
            addr: shared.settings.raft_addr.clone(),
            feature_level: u32::from(FEATURE_LEVEL),
        }
    }

    fn admit(&self, hello: &Hello) -> Result<Welcome, Refusal> {
        let own = self.identity();
        let refuse = |code, text: String| Err(Refusal::new(code, text));
        if hello.group != 0 {
            return refuse(RefusalCode::Other, "there is one group only".to_owned());
        }
        if hello.sender.node == own.node {
            return refuse(
                RefusalCode::Target,
                "a node cannot talk to itself".to_owned(),
            );
        }
        if hello.target != 0 && hello.target != own.node {
            if hello.sender.cluster != own.cluster {
                self.suspect_loss(hello);
            }
            return refuse(
                RefusalCode::Target,
                format!(
                    "meant for node {:016x}, this is {:016x}",
                    hello.target, own.node
                ),
            );
        }
        // Only the first contact of a JOIN comes from another cluster.
        let first_contact = hello.kind == ConnKind::Request && hello.target == 0;
        if hello.sender.cluster != own.cluster && !first_contact {
            return refuse(
                RefusalCode::Cluster,
                format!(
                    "cluster {:032x}, this is {:032x}",
                    hello.sender.cluster, own.cluster
                ),
            );
        }
        if hello.sender.cluster == own.cluster {
            self.note(&hello.sender)?;
        }
        Ok(own)
    }

    fn confirm(&self, hello: &Hello, welcome: &Welcome) -> Result<(), Refusal> {
        let first_contact = hello.kind == ConnKind::Request && hello.target == 0;
        if first_contact {
            return Ok(());
        }
        if hello.target != welcome.node || hello.sender.cluster != welcome.cluster {
            return Err(Refusal::new(
                RefusalCode::Target,
                format!(
                    "dialed node {:016x}, met {:016x}",
                    hello.target, welcome.node
                ),
            ));
        }
        self.note(welcome)
    }

    fn moved_to(&self, peer: NodeId) -> Option<String> {
        let core = self.node.shared.core()?;
        let mut members = core.members().into_iter();
        let (_, member) = members.find(|(id, _)| *id == peer)?;
        Some(core.moved.of(peer, member.raft_addr))
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.node.shared.disk.spend_as_follower(bytes)
    }

    fn refused(&self, refusal: &Refusal) {
        if refusal.code != RefusalCode::Incarnation {
            return;
        }
        let port = PeerPort {
            node: self.node.clone(),
        };
        let reason = refusal.text.clone();
        crate::doors::spawn(async move {
            let _one = port.node.shared.life.lock().await;
            if port.withdraw().await {
                tracing::error!(%reason, "this node serves no more");
            }
        });
    }
}

impl PeerPort {
    /// A member of another cluster looks here for one of its own. Where this node founded a
    /// cluster that nobody has used, it did so in the place of a member whose disk was lost: it
    /// must not serve as if there had never been any data.
    fn suspect_loss(&self, hello: &Hello) {
        let port = PeerPort {
            node: self.node.clone(),
        };
        let (peer, target) = (hello.sender.name.clone(), hello.target);
        crate::doors::spawn(async move {
            let shared = &port.node.shared;
            let _one = shared.life.lock().await;
            let identity = port.node.identity();
            let founded = matches!(identity.stage, Stage::Founding | Stage::Founded);
            if !founded || port.give_up_own_cluster(&identity.name).await.is_err() {
                return;
            }
            let waiting = shared
                .dir
                .lock()
                .expect("no panic while held")
                .adopt(0, &identity.name);
            if let Err(error) = waiting {
                (shared.fatal)(exit::IO, &error.to_string());
                return;
            }
            tracing::error!(
                %peer,
                "a cluster expects its member {target:016x} here, but this node started with an \
                 empty data directory: it serves nothing until that cluster takes it in by JOIN"
            );
        });
    }

    /// Refuses a member that does not know of a start of its own that was seen here.
    fn note(&self, peer: &transport::Identity) -> Result<(), Refusal> {
        let mut dir = self.node.shared.dir.lock().expect("no panic while held");
        match dir.note_peer(peer.node, &peer.incarnations) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(seen)) => Err(Refusal::new(
                RefusalCode::Incarnation,
                format!(
                    "the data directory of '{}' lacks its start {} that was seen before: it was \
                     restored from an old copy, or is in use twice; LEAVE {}, and JOIN it with an \
                     empty directory",
                    peer.name, seen.number, peer.name
                ),
            )),
            Err(error) => Err(Refusal::new(RefusalCode::Other, error.to_string())),
        }
    }
}

impl transport::RequestHandler for PeerPort {
    fn handle(&self, from: PeerIdentity, request: Bytes) -> BoxFuture<'static, Bytes> {
        let port = PeerPort {
            node: self.node.clone(),
        };
        Box::pin(async move {
            let stranger = from.cluster != port.node.identity().cluster;
            let response = match Request::decode(request) {
                Ok(Request::Announce {
                    raft_addr,
                    client_addr,
                }) if !stranger => match port.node.shared.core() {
                    Some(core) => core.told(from.node, &raft_addr, &client_addr).await,
                    None => Response::Refused,
                },
                Ok(Request::Greet { member }) if !stranger => {
                    port.node.shared.moved.forget(from.node);
                    match port.node.shared.core() {
                        Some(core) => core.greeted(from.node, member).await,
                        None => Response::Refused,
                    }
                }
                // A change of life goes on when the peer that asked for it is gone.
                Ok(request @ (Request::Adopt { .. } | Request::Removed)) => {
                    let changed = crate::doors::spawn(async move {
                        port.answer(from.node, request, stranger).await
                    });
                    changed.await.unwrap_or(Response::Unknown)
                }
                Ok(request) => port.answer(from.node, request, stranger).await,
                Err(error) => {
                    tracing::warn!(peer = %from.name, %error, "a peer's request is not understood");
                    Response::Refused
                }
            };
            response.encode()
        })
    }
}

impl SnapshotSink for PeerPort {
    fn begin(&self, meta: &SnapshotMeta) -> io::Result<Box<dyn SpoolWriter>> {
        match self.node.shared.core() {
            Some(core) => core.machine.snapshot_dir().begin(meta),
            None => Err(io::Error::other("this node belongs to no cluster")),
        }
    }
}

impl PeerPort {
    async fn answer(&self, asker: NodeId, request: Request, stranger: bool) -> Response {
        match request {
            Request::Adopt { cluster, name } => self.adopt(cluster, name).await,
            // A node that was told to join asks whichever member it was told of.
            Request::Join(request) if stranger => match self.node.shared.core() {
                Some(core) => Response::Reply(core.join(request).await),
                None => Response::Refused,
            },
            _ if stranger => Response::Refused,
            Request::Removed => self.removed().await,
            other => match self.node.shared.core() {
                Some(core) => answer(&core, asker, other).await,
                None => Response::Refused,
            },
        }
    }

    /// Becomes a member of another cluster, if this node has nothing to lose.
    async fn adopt(&self, cluster: u128, name: String) -> Response {
        let shared = &self.node.shared;
        let _one = shared.life.lock().await;
        let identity = self.node.identity();
        if identity.stage == Stage::Removed {
            return Response::Reply(taken_out(&name));
        }
        if identity.cluster != cluster {
            crash_point!("adopt_before");
            if let Err(reason) = self.give_up_own_cluster(&name).await {
                return Response::Reply(Reply::error(reason));
            }
            crash_point!("adopt_given_up");
            let adopted = shared
                .dir
                .lock()
                .expect("no panic while held")
                .adopt(cluster, &name);
            if let Err(error) = adopted {
                (shared.fatal)(exit::of_data_dir(&error), &error.to_string());
                return Response::Refused;
            }
            tracing::info!(cluster = %format!("{cluster:032x}"), %name, "taken in by a cluster");
            crash_point!("adopt_wiped");
            if let Err(error) = self.node.open().await {
                (shared.fatal)(exit::of_start(&error), &error.to_string());
                return Response::Refused;
            }
        }
        crash_point!("adopt_after");
        let member = Member {
            name,
            ..shared.settings.member()
        };
        Response::Adopted {
            id: identity.node,
            member,
            level: FEATURE_LEVEL,
            was_member: identity.cluster == cluster && identity.member,
        }
    }

    /// Stops the cluster of one that this node founded, if nothing was ever written to it.
    async fn give_up_own_cluster(&self, name: &str) -> Result<(), String> {
        let shared = &self.node.shared;
        let running = shared.running.write().expect("no panic while held").take();
        let Some(running) = running else {
            return Ok(());
        };
        shared.slot.set(None);
        settle(&running.core).await;
        // Nobody finds the core any more, so no group can be proposed after this look.
        if !shared.used.load(Ordering::SeqCst) && is_blank(&running.core) {
            return running.end().await.map_err(|error| error.to_string());
        }
        shared.slot.set(Some(Arc::new(running.core.raft.clone())));
        *shared.running.write().expect("no panic while held") = Some(running);
        Err(format!(
            "ERR '{name}' holds data of its own or belongs to another cluster; start it on an empty \
             data directory"
        ))
    }

    pub(super) async fn removed(&self) -> Response {
        let shared = &self.node.shared;
        let _one = shared.life.lock().await;
        crash_point!("removed_before");
        let update = shared
            .dir
            .lock()
            .expect("no panic while held")
            .update(|identity| identity.stage = Stage::Removed);
        if let Err(error) = update {
            (shared.fatal)(exit::of_data_dir(&error), &error.to_string());
            return Response::Refused;
        }
        crash_point!("removed_noted");
        // Clients are told from here on; the operator is told first.
        tracing::warn!("this node was removed from its cluster and serves no more");
        self.withdraw().await;
        crash_point!("removed_after");
        Response::Reply(Reply::Ok)
    }

    /// Takes this node out of service until its next start; whether it was in service.
    async fn withdraw(&self) -> bool {
        let shared = &self.node.shared;
        let running = shared.running.write().expect("no panic while held").take();
        let Some(running) = running else { return false };
        shared.slot.set(None);
        if let Err(error) = running.end().await {
            tracing::error!(%error, "the engine could not be closed");
        }
        true
    }
}

/// How long a node that is to be taken over may take to carry out what is in its log.
const SETTLE_TIME: Duration = Duration::from_secs(5);

/// Waits until a node has carried out what is in its log: one that was founded a moment ago has its
/// own beginnings there.
async fn settle(core: &Core) {
    let last = core.log.stats().last_index;
    let mut progress = core.machine.progress();
    let settled = progress.wait_for(|progress| progress.index >= last);
    // A node that does not get there holds something.
    drop(timeout(SETTLE_TIME, settled).await);
}

/// Whether nothing was ever written to a cluster of one.
fn is_blank(core: &Core) -> bool {
    let status = core.status();
    let alone = status.members.iter().all(|member| member.id == core.id);
    let used = match core.machine.store().read() {
        Ok(view) => State::read(&view).map_or(true, |state| state.used),
        Err(_) => true,
    };
    alone && !used && core.machine.position().index() == core.log.stats().last_index
}

async fn answer(core: &Arc<Core>, asker: NodeId, request: Request) -> Response {
    let leads = matches!(core.leadership(), Leadership::Mine { .. });
    match request {
        Request::Forward { term, groups } => core.append_forwarded(term, groups).await,
        Request::Stand { term } => match core.log.standing().stands_by(term) {
            true => Response::Stands,
            false => Response::Refused,
        },
        Request::Barrier { term } => match core.confirm(Some((asker, term))).await {
            Some(point) => Response::Barrier {
                index: point.index,
                time_ms: point.time_ms,
            },
            None => Response::Refused,
        },
        Request::Join(request) if leads => Response::Reply(core.join(request).await),
        Request::Replicas {
            index,
            wanted,
            patience_ms,
        } => {
            let deadline = Instant::now() + Duration::from_millis(patience_ms);
            match core.replicas_here(index, wanted, deadline).await {
                Some(holders) => Response::Reply(Reply::Int(holders as i64)),
                None => Response::Refused,
            }
        }
        Request::Digest { index } => core.digest_here(index).await,
        Request::Transfer { to } if leads => {
            Response::Reply(core.transfer_here((to != 0).then_some(to)).await)
        }
        Request::Leave { id, name } if leads => Response::Reply(core.leave_as(id, name).await),
        _ => Response::Refused,
    }
}
