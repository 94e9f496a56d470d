//! Comparing the contents of all members while they serve.
//!
//! Members are never at the same entry at the same time, so an entry of its own says where: each
//! member takes a view of its state when it applies it, and computes the digest beside its work.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::core::Core;
use super::peer::{Request, Response};
use crate::raft::entry::GroupBuilder;
use crate::raft::executor::META_DIGEST;
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// A member that has not answered by then is given up: it may be away, or far behind.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a member is asked at a time.
const TURN: Duration = Duration::from_secs(2);

const RETRY_AFTER: Duration = Duration::from_millis(100);

impl Core {
    /// Compares all members' contents behind one entry: its index, the verdict, and a name with a
    /// digest or an error for each member.
    pub(super) async fn compare(self: &Arc<Self>) -> Reply {
        let mut group = GroupBuilder::internal();
        group.command(&[META_DIGEST]);
        let index = match self.propose(group.finish()).await {
            Ok(written) => written.index,
            Err(reply) => return reply,
        };
        let deadline = Instant::now() + PATIENCE;
        let asked: Vec<_> = self
            .members()
            .into_iter()
            .map(|(id, member)| {
                let (core, name) = (self.clone(), member.name.clone());
                let answer = crate::doors::spawn(async move {
                    core.digest_of(id, &member, index, deadline).await
                });
                (name, answer)
            })
            .collect();
        let mut found = Vec::with_capacity(asked.len());
        for (name, answer) in asked {
            let digest = answer.await.unwrap_or_else(|error| Err(error.to_string()));
            found.push((name, digest));
        }
        let digests = found.iter().filter_map(|(_, digest)| digest.as_ref().ok());
        let distinct: std::collections::BTreeSet<&String> = digests.collect();
        let verdict = match distinct.len() {
            _ if found.iter().any(|(_, digest)| digest.is_err()) && distinct.len() <= 1 => {
                "incomplete"
            }
            1 => "equal",
            _ => {
                tracing::error!(index, ?found, "the members' contents differ");
                "different"
            }
        };
        let members = found.into_iter().map(|(name, digest)| {
            let digest = match digest {
                Ok(digest) => Reply::bulk(digest),
                Err(reason) => Reply::error(format!("ERR {reason}")),
            };
            Reply::Array(vec![Reply::bulk(name), digest])
        });
        Reply::Array(vec![
            Reply::Int(index as i64),
            Reply::bulk(verdict),
            Reply::Array(members.collect()),
        ])
    }

    async fn digest_of(
        &self,
        id: NodeId,
        member: &Member,
        index: u64,
        deadline: Instant,
    ) -> Result<String, String> {
        loop {
            let answer = if id == self.id {
                self.digest_here(index).await
            } else {
                let turn = (Instant::now() + 2 * TURN).min(deadline);
                let request = Request::Digest { index };
                self.ask(id, member, &request, turn)
                    .await
                    .unwrap_or(Response::Refused)
            };
            match answer {
                Response::Reply(Reply::Bulk(digest)) => {
                    return Ok(String::from_utf8_lossy(&digest).into_owned());
                }
                Response::Reply(Reply::Error(reason)) => return Err(reason.into_owned()),
                _ if Instant::now() >= deadline => {
                    return Err("no answer in time: the member is away or behind".to_owned());
                }
                _ => sleep(RETRY_AFTER).await,
            }
        }
    }

    /// This member's own digest; refused while it is not known yet.
    pub(super) async fn digest_here(&self, index: u64) -> Response {
        match timeout(TURN, self.machine.digest_at(index)).await {
            Err(_) => Response::Refused,
            Ok(None) => Response::Reply(Reply::error(
                "none is known: the state came past this entry as a snapshot, the node was started \
                 since, or it has too many digests to compute",
            )),
            Ok(Some(Ok(digest))) => Response::Reply(Reply::bulk(digest)),
            Ok(Some(Err(reason))) => Response::Reply(Reply::error(reason)),
        }
    }
}
