//! WAIT: how many other members hold a connection's writes.
//!
//! Only the leader knows, so other nodes ask it. What was acknowledged is on a majority in any
//! case; WAIT tells of the members beyond.

use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::core::{Core, Leadership};
use super::peer::{Request, Response};
use crate::resp::Reply;

/// How long the leader is asked at a time: a client that has gone is not waited for longer.
const TURN: Duration = Duration::from_secs(1);

const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Core {
    /// Waits until `wanted` members besides the leader hold the entry at `index`, for `patience` at
    /// the longest, and tells how many do.
    pub(super) async fn replicas(
        self: &Arc<Self>,
        index: u64,
        wanted: u64,
        patience: Option<Duration>,
    ) -> u64 {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let now = Instant::now();
            let turn = deadline.unwrap_or(now + TURN).min(now + TURN);
            let holders = match self.leadership() {
                Leadership::Mine { .. } => self.replicas_here(index, wanted, turn).await,
                Leadership::Other { id, member, .. } => {
                    let request = Request::Replicas {
                        index,
                        wanted,
                        patience_ms: turn.saturating_duration_since(now).as_millis() as u64,
                    };
                    // The answer needs some time beyond the turn to come back.
                    match self.ask(id, &member, &request, turn + TURN).await {
                        Ok(Response::Reply(Reply::Int(holders))) => Some(holders as u64),
                        _ => None,
                    }
                }
                Leadership::Nobody => None,
            };
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match holders {
                Some(holders) if late || holders >= wanted => return holders,
                // Acknowledged writes are on a majority, whoever leads.
                None if late => return self.voters() as u64 / 2,
                Some(_) => {}
                None => sleep(RETRY_AFTER).await,
            }
        }
    }

    /// The same on the leader; none where this node does not lead any more.
    pub(super) async fn replicas_here(
        &self,
        index: u64,
        wanted: u64,
        deadline: Instant,
    ) -> Option<u64> {
        let mut metrics = self.raft.data_metrics();
        loop {
            let holders = {
                let metrics = metrics.borrow_watched();
                let held = metrics.replication.as_ref()?.iter();
                held.filter(|(id, _)| **id != self.id)
                    .filter(|(_, held)| held.as_ref().map_or(0, |held| held.index) >= index)
                    .count() as u64
            };
            if holders >= wanted {
                return Some(holders);
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                _ => return Some(holders),
            }
        }
    }

    fn voters(&self) -> usize {
        let metrics = self.raft.server_metrics();
        metrics
            .borrow_watched()
            .membership_config
            .voter_ids()
            .count()
    }
}
