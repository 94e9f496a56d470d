//! What a node does without being asked: ticks for what expires, changes stored and durable, a short
//! log.

use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::core::{Core, Leadership};
use crate::doors;
use crate::keyspace::View;
use crate::storage::Caps;

/// Most ticks a second that expiry asks for.
pub(super) const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// How often the engine is made durable while it changes: what a restart has to carry out again,
/// and how long an engine keeps pages that it has freed.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(2);

impl Core {
    /// Proposes a tick whenever an expiry is due and no write has carried the time there.
    pub(super) async fn run_ticks(self: Arc<Self>) {
        let mut every = interval(TICK_INTERVAL);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let Leadership::Mine { term } = self.leadership() else {
                continue;
            };
            let progress = *self.machine.progress().borrow();
            let due = progress.due_left || {
                let now = self.leader_time(term);
                match self.next_expiry().await {
                    Some(at) => at <= now,
                    None => false,
                }
            };
            // A tick that is refused comes again.
            if due && let Err(reply) = self.tick().await {
                tracing::debug!(?reply, "tick refused");
            }
        }
    }

    async fn next_expiry(self: &Arc<Self>) -> Option<u64> {
        let core = self.clone();
        let look = doors::blocking(&*self.doors.workers, move || {
            let view = core.machine.store().read().ok()?;
            View::new(&view, 0, 0)
                .and_then(|view| view.next_expiry())
                .ok()
                .flatten()
        });
        look.await.flatten()
    }

    /// Keeps the engine durable and the log short.
    pub(super) async fn run_upkeep(self: Arc<Self>) {
        let mut every = interval(Duration::from_millis(250));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let durable_engine = self.machine.store().engine().caps().contains(Caps::DURABLE);
        let mut synced = Instant::now();
        let log_bytes_max = self.settings.log_bytes_max;
        // What an earlier run left counts as well.
        let stats = self.log.stats();
        let (mut kept, mut cut_at) = (stats.bytes, stats.appended_bytes);
        let mut last_cut = 0;
        loop {
            every.tick().await;
            let applied = self.machine.progress().borrow().index;
            let durable = self
                .machine
                .durable()
                .map_or(0, |position| position.index());
            let appended = self.log.stats().appended_bytes;
            // Where space is short, the log gives back what it can.
            let short = self.disk.is_below() && kept + (appended - cut_at) > 0;
            let too_long = short || kept + (appended - cut_at) > log_bytes_max;
            let sync_due =
                durable_engine && (synced.elapsed() >= SYNC_INTERVAL || self.disk.is_tight());
            if applied > durable && (sync_due || too_long) {
                self.disk.sync_begins();
                if self.machine.make_durable().await.is_err() {
                    return;
                }
                let guard = self.disk.clone();
                doors::blocking(&*self.doors.workers, move || guard.sync_ended()).await;
                synced = Instant::now();
            } else if applied <= durable && synced.elapsed() >= SYNC_INTERVAL {
                // Entries that a leader sends again and again must not count for ever.
                let guard = self.disk.clone();
                doors::blocking(&*self.doors.workers, move || guard.nothing_to_write()).await;
                synced = Instant::now();
            }
            if too_long {
                match self.shorten_log(last_cut).await {
                    Some(cut) => last_cut = cut,
                    None => return,
                }
                (kept, cut_at) = (0, appended);
            }
            while self.machine.store_all().await {}
            if let Err(error) = self.machine.retire_spools().await {
                tracing::warn!(%error, "received snapshot files could not be removed");
            }
        }
    }

    /// Drops what the newest durable state covers. What a follower still needs stays until the cut
    /// after this one, so a member that is away costs at most as much log again; then it gets a
    /// snapshot. Returns where this cut was due; none when Raft has ended.
    async fn shorten_log(&self, last_cut: u64) -> Option<u64> {
        let durable = self
            .machine
            .durable()
            .map_or(0, |position| position.index());
        self.raft.trigger().snapshot().await.ok()?;
        let slowest = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            metrics.replication.as_ref().and_then(|replication| {
                replication
                    .values()
                    .map(|id| id.as_ref().map_or(0, |id| id.index))
                    .min()
            })
        };
        let upto = slowest.unwrap_or(durable).max(last_cut).min(durable);
        if upto > 0 {
            self.raft.trigger().purge_log(upto).await.ok()?;
        }
        Some(durable)
    }
}
