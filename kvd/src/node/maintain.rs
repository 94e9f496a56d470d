//! What a node does without being asked: ticks for what expires, changes stored and durable, a short
//! log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::core::{Core, Leadership};
use super::membership::LEVEL_ENTRIES;
use crate::doors;
use crate::keyspace::View;
use crate::raft::log::HELD_LOGS_MAX;
use crate::raft::{LogId, NodeId};
use crate::storage::Caps;

/// Most ticks a second that expiry asks for.
pub(super) const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// How soon the engine is made durable once nothing more is applied, and how often while it is: what
/// a restart has to carry out again, and how long an engine keeps pages that it has freed. Each time
/// an engine writes every page that has changed, and the more keys a page has changed in, the less a
/// key costs; see also [`SYNCED_CHANGES`].
const SYNC_INTERVAL_IDLE: Duration = Duration::from_secs(2);
const SYNC_INTERVAL_BUSY: Duration = Duration::from_secs(10);

/// How long Raft may take to learn of a snapshot that is there already; the log is cut as far as
/// the one before then.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// After so many changes it is made durable at once: a restart carries out again as many as this, and
/// what comes until the engine has synced.
const SYNCED_CHANGES: u64 = 1 << 18;

/// The same in bytes of the log.
const SYNCED_BYTES: u64 = 64 << 20;

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
        let log_bytes_max = self.settings.log_bytes_max;
        // What an earlier run left counts as well.
        let stats = self.log.stats();
        let (mut kept, mut cut_at) = (stats.bytes, stats.appended_bytes);
        let (mut synced, mut synced_changes) = (Instant::now(), 0);
        let (mut synced_bytes, mut applied_before) = (stats.appended_bytes, 0);
        let mut stored = Instant::now();
        // Since when, in bytes that were appended, cuts have been held back.
        let (mut last_cut, mut held_back) = (0, None::<u64>);
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
            // A cut that a snapshot on its way has held back is made up for when it has arrived.
            let let_go = held_back.is_some() && self.held_from().is_none();
            let too_long = short || let_go || kept + (appended - cut_at) > log_bytes_max;
            let changes = self.machine.store().changes();
            let idle = applied == applied_before;
            applied_before = applied;
            let interval = match idle {
                true => SYNC_INTERVAL_IDLE,
                false => SYNC_INTERVAL_BUSY,
            };
            let sync_due = durable_engine
                && (synced.elapsed() >= interval
                    || changes - synced_changes >= SYNCED_CHANGES
                    || appended - synced_bytes >= SYNCED_BYTES
                    || self.disk.is_tight());
            if applied > durable && (sync_due || too_long) {
                self.disk.sync_begins();
                if self.machine.make_durable().await.is_err() {
                    return;
                }
                let guard = self.disk.clone();
                doors::blocking(&*self.doors.workers, move || guard.sync_ended()).await;
                (synced, synced_changes, synced_bytes) = (Instant::now(), changes, appended);
            } else if applied <= durable && synced.elapsed() >= SYNC_INTERVAL_IDLE {
                // Entries that a leader sends again and again must not count for ever.
                let guard = self.disk.clone();
                doors::blocking(&*self.doors.workers, move || guard.nothing_to_write()).await;
                synced = Instant::now();
            }
            if too_long {
                let held = held_back.map_or(0, |since| appended - since);
                if short || held > HELD_LOGS_MAX.saturating_mul(log_bytes_max) {
                    self.log.give_up_holds();
                }
                held_back = self.held_from().map(|_| held_back.unwrap_or(appended));
                match self.shorten_log(last_cut).await {
                    Some(cut) => last_cut = cut,
                    None => return,
                }
                (kept, cut_at) = (0, appended);
            }
            // While more comes, the engine gets it in large batches; but what FLUSHALL left goes here.
            if idle || stored.elapsed() >= SYNC_INTERVAL_BUSY {
                while self.machine.store_all().await {}
                stored = Instant::now();
            }
            if let Err(error) = self.machine.retire_spools().await {
                tracing::warn!(%error, "received snapshot files could not be removed");
            }
        }
    }

    /// Up to which entry each other member is known to have the log; none where this node does not
    /// lead.
    fn matched(&self) -> Option<BTreeMap<NodeId, u64>> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        Some(replication.iter().map(|(n, id)| (*n, index(id))).collect())
    }

    /// The last entry that snapshots on their way allow to be cut, where there are any.
    fn held_from(&self) -> Option<u64> {
        let matched = self.matched().unwrap_or_default();
        let level = self.log.stats().last_index.saturating_sub(LEVEL_ENTRIES);
        self.log.held_from(&matched, level)
    }

    /// Drops what the newest durable state covers. What a follower still needs stays until the cut
    /// after this one, so a member that is away costs at most as much log again; then it gets a
    /// snapshot, and what is behind that stays until the member is level. Returns where this cut
    /// was due; none when Raft has ended.
    async fn shorten_log(&self, last_cut: u64) -> Option<u64> {
        let durable = self
            .machine
            .durable()
            .map_or(0, |position| position.index());
        self.raft.trigger().snapshot().await.ok()?;
        // Raft cuts no further than the last snapshot that it knows of.
        let mut news = self.raft.data_metrics();
        let known = async {
            while news.borrow_watched().snapshot.map_or(0, |id| id.index) < durable {
                news.changed().await.ok()?;
            }
            Some(())
        };
        if let Ok(known) = timeout(SNAPSHOT_PATIENCE, known).await {
            known?;
        }
        let slowest = self
            .matched()
            .and_then(|matched| matched.into_values().min());
        let upto = slowest.unwrap_or(durable).max(last_cut).min(durable);
        let upto = self.held_from().map_or(upto, |held| upto.min(held));
        if upto > 0 {
            self.raft.trigger().purge_log(upto).await.ok()?;
        }
        Some(durable)
    }
}
