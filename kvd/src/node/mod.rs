//! One running member: owns the components; proposes, reads, changes membership, shuts down.
//!
//! This is all that `server` knows of agreement.

mod announce;
mod backend;
mod compare;
mod core;
mod disk;
mod gather;
mod greeting;
mod leader_time;
mod maintain;
mod membership;
mod peer;
mod port;
mod propose;
mod read;
mod replicas;
mod types;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::timeout;

use self::announce::Moved;
use self::core::{Core, Leadership, Watcher};
use self::disk::DiskGuard;
pub use self::membership::JOIN_INTENTS;
#[doc(hidden)]
pub use self::peer::fuzz_requests;
use self::peer::{Request, Response};
use self::port::PeerPort;
use self::propose::Proposer;
use self::read::Barrier;
pub use self::types::{
    ConfigLimits, Early, JoinRequest, MemberStatus, ReadLevel, Reading, RedirectMode, Role, Status,
    Written,
};
use crate::data_dir::{Addresses, DataDir, DataDirError, Identity, Stage};
use crate::doors::{Doors, NodeScope};
use crate::raft::entry::Group;
use crate::raft::executor::{Executor, Stop};
use crate::raft::log::{self, LogStore};
use crate::raft::replay::{ReplayError, replay};
use crate::raft::snapshot::SnapshotDir;
use crate::raft::spool::{SnapshotSource as _, Spool};
use crate::raft::state_machine::{self, StateMachine};
use crate::raft::transport;
use crate::raft::{Member, NodeId, Raft};
use crate::resp::Reply;
use crate::storage::{self, Caps, Engine, Store};

/// Heartbeats of a leader.
pub const HEARTBEAT: Duration = Duration::from_millis(75);

/// A follower that has not heard of its leader for a time between these two asks for votes.
pub const ELECTION: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(500));

/// How long a new cluster of one may take until it leads itself: some syncs of its disk.
const FOUNDING_PATIENCE: Duration = Duration::from_secs(30);

/// How often a node that was told to join asks the members it was told of.
const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What a node is told from outside.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients reach this node, as it is announced.
    pub client_addr: String,
    /// Where peers reach this node, as it is announced.
    pub raft_addr: String,
    /// Its name until a cluster gives it another.
    pub name: String,
    /// How long commands wait for a leader.
    pub hold: Duration,
    /// How long a proposed write may take before its outcome counts as unknown.
    pub write_timeout: Duration,
    /// Sizes that are refused before the log.
    pub limits: ConfigLimits,
    /// The log is cut when this many bytes of entries have been appended since the last cut.
    pub log_bytes_max: u64,
    /// Memory for values that were read lately, in bytes.
    pub read_cache_bytes: usize,
    /// How old what a local read sees may be; none means that it may be of any age.
    pub staleness_max: Option<Duration>,
    /// Free bytes of the disk below which data may not grow; none means a share of the disk.
    pub free_bytes_min: Option<u64>,
    /// Raft addresses of members; a node that belongs to no cluster asks them to take it in.
    pub join: Vec<String>,
}

impl Settings {
    fn addresses(&self) -> Addresses {
        Addresses {
            raft: self.raft_addr.clone(),
            client: self.client_addr.clone(),
        }
    }

    fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            raft_addr: self.raft_addr.clone(),
            client_addr: self.client_addr.clone(),
        }
    }
}

/// Opens the engine in a directory.
pub type OpenEngine = Arc<dyn Fn(&Path) -> storage::Result<Arc<dyn Engine>> + Send + Sync>;

/// Opens the log in a directory: [`LogStore::open`], but for simulated worlds.
pub type OpenLog = Arc<
    dyn Fn(&Path, log::Identity, log::OnFatal) -> Result<LogStore, log::OpenError> + Send + Sync,
>;

/// Called once when the node cannot go on: an exit code and one line.
pub type OnFatal = Arc<dyn Fn(i32, &str) + Send + Sync>;

/// Numbers about proposals.
#[derive(Debug, Default)]
pub struct NodeMetrics {
    entries: AtomicU64,
    commands: AtomicU64,
}

impl NodeMetrics {
    pub(in crate::node) fn entry(&self, commands: u64) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.commands.fetch_add(commands, Ordering::Relaxed);
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The engine.
    #[error("backend: {0}")]
    Engine(storage::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// Log and state do not fit together.
    #[error(transparent)]
    Restart(#[from] log::RestartError),
    /// The state.
    #[error("state: {0}")]
    State(Stop),
    /// Snapshot files.
    #[error("snapshots: {0}")]
    Io(#[from] io::Error),
    /// Raft itself.
    #[error("raft: {0}")]
    Raft(String),
}

/// A running node; cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    doors: Doors,
    scope: Arc<NodeScope>,
    runtime: tokio::runtime::Handle,
    io: tokio::runtime::Handle,
    open_engine: OpenEngine,
    open_log: OpenLog,
    fatal: OnFatal,
    metrics: Arc<NodeMetrics>,
    dir: Mutex<DataDir>,
    disk: Arc<DiskGuard>,
    /// Where members said that they are, while the membership is changed to say so too.
    moved: Arc<Moved>,
    /// Absent while the node belongs to no cluster or is being taken over.
    running: RwLock<Option<Running>>,
    /// Where the transport finds Raft.
    slot: transport::RaftSlot,
    auth: Arc<dyn transport::Auth>,
    wire: transport::Limits,
    /// A client's group may have been proposed: the node cannot be taken over any more.
    used: AtomicBool,
    /// One change of the node's life at a time.
    life: tokio::sync::Mutex<()>,
    stopping: watch::Sender<bool>,
    /// Raft has stopped, or is about to.
    stopped: watch::Sender<bool>,
}

/// What a node is built from.
pub struct Parts {
    /// What it is told from outside.
    pub settings: Settings,
    /// Its locked data directory.
    pub dir: DataDir,
    /// Its doors to the world.
    pub doors: Doors,
    /// Where Raft runs: a runtime that nothing else blocks.
    pub raft_runtime: tokio::runtime::Handle,
    /// Where everything else runs.
    pub io_runtime: tokio::runtime::Handle,
    /// What its tasks have in common.
    pub scope: Arc<NodeScope>,
    /// Opens its engine.
    pub open_engine: OpenEngine,
    /// Opens its log.
    pub open_log: OpenLog,
    /// Proves and checks the cluster's secret.
    pub auth: Arc<dyn transport::Auth>,
    /// Called when it cannot go on.
    pub fatal: OnFatal,
}

impl Node {
    /// Starts a node: recovers log and state, founds a cluster of one where the directory is new,
    /// and serves peers on `listener`.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn start(
        parts: Parts,
        listener: Box<dyn crate::doors::Listener>,
    ) -> Result<Self, StartError> {
        let disk = DiskGuard::new(parts.dir.path(), parts.settings.free_bytes_min)?;
        let shared = Arc::new(Shared {
            settings: parts.settings,
            doors: parts.doors,
            scope: parts.scope,
            runtime: parts.raft_runtime,
            io: parts.io_runtime,
            open_engine: parts.open_engine,
            open_log: parts.open_log,
            fatal: parts.fatal,
            metrics: Arc::default(),
            dir: Mutex::new(parts.dir),
            disk: Arc::new(disk),
            moved: Arc::default(),
            running: RwLock::new(None),
            slot: transport::RaftSlot::default(),
            auth: parts.auth,
            wire: transport::Limits::default(),
            used: AtomicBool::new(false),
            life: tokio::sync::Mutex::new(()),
            stopping: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
        });
        let node = Node { shared };
        if node.identity().addresses.is_none() {
            let addresses = node.shared.settings.addresses();
            node.shared
                .dir
                .lock()
                .expect("no panic while held")
                .update(|identity| identity.addresses = Some(addresses))?;
        }
        let identity = node.identity();
        crash_point!("addresses_noted");
        let member_of_one = identity.cluster != 0 && identity.stage != Stage::Removed;
        if member_of_one {
            node.open().await?;
        } else {
            tracing::warn!(stage = ?identity.stage, "this node belongs to no cluster");
        }
        node.serve_peers(listener);
        if identity.stage == Stage::Joining && !node.shared.settings.join.is_empty() {
            let asking = node.clone().ask_to_join();
            node.shared.scope.spawn_on(&node.shared.io, asking);
        }
        Ok(node)
    }

    /// Asks members to take this node in, until one has.
    async fn ask_to_join(self) {
        let shared = &self.shared;
        let gate = Arc::new(PeerPort { node: self.clone() });
        let peers = transport::RequestClient::new(Arc::new(shared.context(gate)));
        let request = Request::Join(JoinRequest {
            name: shared.settings.name.clone(),
            raft_addr: shared.settings.raft_addr.clone(),
            voter: true,
        });
        let mut said = None;
        loop {
            for addr in &shared.settings.join {
                if self.identity().stage != Stage::Joining {
                    return;
                }
                let answer = peers.call(0, addr, request.encode(), membership::CHANGE_TIMEOUT);
                let refusal = match answer.await.map(Response::decode) {
                    Ok(Ok(Response::Reply(Reply::Error(text)))) => text.into_owned(),
                    Ok(_) => continue,
                    Err(error) => error.to_string(),
                };
                if said.as_ref() != Some(&refusal) {
                    tracing::warn!(member = %addr, %refusal, "not taken in yet");
                    said = Some(refusal);
                }
            }
            tokio::time::sleep(JOIN_AGAIN_AFTER).await;
        }
    }

    /// Begins a graceful stop; [`stopping`](Self::stopping) tells everyone.
    pub fn shutdown(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Turns true when a stop has been asked for.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.shared.stopping.subscribe()
    }

    /// Hands leadership to another member, if this one leads and there is one.
    pub async fn step_down(&self) {
        let Ok(core) = self.core() else { return };
        if matches!(core.leadership(), Leadership::Mine { .. }) && core.status().members.len() > 1 {
            match core.hand_over(None).await {
                Ok(()) => tracing::info!("leadership handed over"),
                Err(reason) => tracing::warn!(%reason, "leadership not handed over"),
            }
        }
    }

    /// Lets go of everything as it stands, after the tasks have ended: a simulated crash.
    pub fn abandon(&self) {
        let running = self.shared.running.write();
        drop(running.expect("no panic while held").take());
        self.shared.slot.set(None);
    }

    /// Makes everything durable, and stops Raft.
    pub async fn stop(&self) {
        let running = self
            .shared
            .running
            .write()
            .expect("no panic while held")
            .take();
        self.shared.stopped.send_replace(true);
        if let Some(running) = running
            && let Err(error) = running.end().await
        {
            tracing::error!(%error, "the engine could not be made durable at the end");
        }
    }

    /// Who this node is.
    pub fn identity(&self) -> crate::data_dir::Identity {
        self.shared
            .dir
            .lock()
            .expect("no panic while held")
            .identity()
            .clone()
    }

    /// Sizes that are checked before a command enters the log.
    pub fn limits(&self) -> ConfigLimits {
        self.shared.settings.limits
    }

    /// Proposes a group: on a follower it is forwarded, without a leader it is held. `early` may be
    /// shown the replies before this returns them, but not instead.
    ///
    /// # Errors
    ///
    /// One error for every command of the group; its prefix says what became of them.
    pub async fn propose(&self, group: Group, early: Option<Early>) -> Result<Written, Reply> {
        // Before the core is looked up: a node that is being taken over looks at this after it
        // has withdrawn the core.
        if !group.is_internal() {
            self.shared.used.store(true, Ordering::SeqCst);
        }
        self.core()?.propose_early(group, early).await
    }

    /// A consistent view that is as fresh as `level` says; a local one holds entry `after`.
    ///
    /// # Errors
    ///
    /// `CLUSTERDOWN` when no leader confirms in time, `LOADING`, `NOCLUSTER`.
    pub async fn read(&self, level: ReadLevel, after: u64) -> Result<Reading, Reply> {
        self.core()?.read(level, after).await
    }

    /// Brings replicated time to the leader's.
    ///
    /// # Errors
    ///
    /// As for [`propose`](Self::propose).
    pub async fn tick(&self) -> Result<(), Reply> {
        self.core()?.tick().await
    }

    /// Whether a point read may run on a thread that serves sockets.
    pub fn reads_are_fast(&self) -> bool {
        self.core().is_ok_and(|core| {
            let store = core.machine.store();
            store.engine().caps().contains(Caps::FAST_READ)
        })
    }

    /// Where Raft runs, while this node leads.
    pub fn leading_runtime(&self) -> Option<tokio::runtime::Handle> {
        let core = self.core().ok()?;
        matches!(core.leadership(), Leadership::Mine { .. }).then(|| core.runtime.clone())
    }

    /// The leader, when that is another node.
    pub fn redirect(&self) -> Option<Member> {
        match self.core().ok()?.leadership() {
            Leadership::Other { member, .. } => Some(member),
            _ => None,
        }
    }

    /// Waits at most `hold` for a leader.
    pub async fn leader_known(&self, hold: Duration) -> bool {
        let Ok(core) = self.core() else { return false };
        let mut changes = core.leadership_changes();
        let known = changes.wait_for(|now| *now != Leadership::Nobody);
        matches!(timeout(hold, known).await, Ok(Ok(_)))
    }

    /// Takes a node in.
    pub async fn join(&self, request: JoinRequest) -> Reply {
        match self.core() {
            Ok(core) => core.join(request).await,
            Err(reply) => reply,
        }
    }

    /// Takes a member out.
    pub async fn leave(&self, name: String) -> Reply {
        match self.core() {
            Ok(core) => core.leave(name).await,
            Err(reply) => reply,
        }
    }

    /// Compares all members' contents behind one entry of the log.
    pub async fn compare(&self) -> Reply {
        match self.core() {
            Ok(core) => core.compare().await,
            Err(reply) => reply,
        }
    }

    /// Hands leadership to a member, or to whichever is best placed.
    pub async fn transfer(&self, to: Option<NodeId>) -> Reply {
        match self.core() {
            Ok(core) => core.transfer(to).await,
            Err(reply) => reply,
        }
    }

    /// Waits until `wanted` members besides the leader hold the entry at `index`, for `patience` at
    /// the longest, and tells how many do; none when this node serves no cluster.
    pub async fn replicas(&self, index: u64, wanted: u64, patience: Option<Duration>) -> u64 {
        match self.core() {
            Ok(core) => core.replicas(index, wanted, patience).await,
            Err(_) => 0,
        }
    }

    /// Writes a snapshot that holds everything acknowledged so far; also the index where it ends.
    ///
    /// # Errors
    ///
    /// `CLUSTERDOWN` when no leader confirms in time, or that the disk failed.
    pub async fn backup(&self) -> Result<(u64, Spool), Reply> {
        let core = self.core()?;
        drop(core.read(ReadLevel::Linearizable, 0).await?);
        match core.machine.spool().await {
            Ok((meta, spool)) => Ok((meta.last_log_id.map_or(0, |id| id.index), spool)),
            Err(error) => {
                tracing::error!(%error, "a backup could not be written");
                Err(Reply::error(format!(
                    "ERR the backup could not be written: {error}"
                )))
            }
        }
    }

    /// The node's state.
    pub fn status(&self) -> Status {
        match self.core() {
            Ok(core) => core.status(),
            Err(_) => {
                let identity = self.identity();
                Status {
                    id: identity.node,
                    cluster: identity.cluster,
                    member: self.shared.settings.member(),
                    role: Role::Outside,
                    leader: None,
                    term: 0,
                    members: Vec::new(),
                    last_log: 0,
                    committed: 0,
                    applied: 0,
                    snapshot: 0,
                    purged: 0,
                    loading: false,
                }
            }
        }
    }

    /// Gives an option of the engine, as `name=value`, another value.
    ///
    /// # Errors
    ///
    /// Why that cannot be.
    pub fn set_backend_option(&self, option: &str) -> Result<(), String> {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| "argument must be name=value".to_owned())?;
        let core = self
            .core()
            .map_err(|_| "the engine is not open".to_owned())?;
        let engine = core.machine.store().engine().clone();
        engine
            .set_option(name, value)
            .map_err(|error| error.to_string())
    }

    /// The lines of INFO's `# Raft`.
    pub fn raft_info(&self) -> Vec<(String, String)> {
        let status = self.status();
        let mut lines = Vec::new();
        let mut line = |name: String, value: String| lines.push((name, value));
        line("raft_node_id".to_owned(), format!("{:016x}", status.id));
        line(
            "raft_cluster_id".to_owned(),
            format!("{:032x}", status.cluster),
        );
        line("raft_name".to_owned(), status.member.name.clone());
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Outside => "outside",
        };
        line("raft_role".to_owned(), role.to_owned());
        line("raft_term".to_owned(), status.term.to_string());
        let leader = status.members.iter().find(|member| member.leader);
        let name = leader.map_or("", |leader| leader.member.name.as_str());
        line("raft_leader".to_owned(), name.to_owned());
        // The same in RedisRaft's words, for tools that know those.
        let state = match (&status.role, status.loading) {
            (Role::Outside, _) => "uninitialized",
            (_, true) => "loading",
            _ => "up",
        };
        line("raft_state".to_owned(), state.to_owned());
        let voters = status.members.iter().filter(|member| member.voter);
        let votes = voters.clone().any(|member| member.id == status.id);
        let yes = if votes { "yes" } else { "no" };
        line("raft_is_voting".to_owned(), yes.to_owned());
        let leader_id = status
            .leader
            .map_or("-1".to_owned(), |id| format!("{id:016x}"));
        line("raft_leader_id".to_owned(), leader_id);
        for (name, value) in [
            ("raft_current_term", status.term),
            ("raft_num_nodes", status.members.len() as u64),
            ("raft_num_voting_nodes", voters.count() as u64),
        ] {
            line(name.to_owned(), value.to_string());
        }
        for (name, value) in [
            ("raft_last_log_index", status.last_log),
            ("raft_commit_index", status.committed),
            ("raft_applied_index", status.applied),
            ("raft_snapshot_index", status.snapshot),
            ("raft_purged_index", status.purged),
            ("raft_members", status.members.len() as u64),
        ] {
            line(name.to_owned(), value.to_string());
        }
        let disk = &self.shared.disk;
        line("raft_disk_free_bytes".to_owned(), disk.free().to_string());
        line("raft_disk_floor_bytes".to_owned(), disk.floor().to_string());
        for (n, member) in status.members.iter().enumerate() {
            let mut text = format!(
                "name={},id={:016x},raft={},client={},voter={}",
                member.member.name,
                member.id,
                member.member.raft_addr,
                member.member.client_addr,
                member.voter
            );
            if let Some(matched) = member.matched {
                text += &format!(",lag={}", status.last_log.saturating_sub(matched));
            }
            if let Some(heard_ms) = member.heard_ms
                && member.id != status.id
            {
                text += &format!(",heard_ms={heard_ms}");
            }
            line(format!("raft_member{n}"), text);
        }
        let entries = self.shared.metrics.entries.load(Ordering::Relaxed);
        let commands = self.shared.metrics.commands.load(Ordering::Relaxed);
        line("raft_proposed_entries".to_owned(), entries.to_string());
        line("raft_proposed_commands".to_owned(), commands.to_string());
        line(
            "raft_commands_per_entry".to_owned(),
            ratio(commands, entries),
        );
        if let Ok(core) = self.core() {
            let installed = core.machine.installations();
            line("raft_snapshots_installed".to_owned(), installed.to_string());
            for (name, value) in core.log.info() {
                line(name, value);
            }
        }
        lines
    }

    fn core(&self) -> Result<Arc<Core>, Reply> {
        self.shared.core().ok_or_else(crate::outcome::no_cluster)
    }

    /// Opens log and state and starts Raft over them.
    async fn open(&self) -> Result<(), StartError> {
        let gate = Arc::new(PeerPort { node: self.clone() });
        let running = self.shared.open(gate).await?;
        *self.shared.running.write().expect("no panic while held") = Some(running);
        Ok(())
    }

    fn serve_peers(&self, listener: Box<dyn crate::doors::Listener>) {
        let shared = self.shared.clone();
        let port = Arc::new(PeerPort { node: self.clone() });
        let context = Arc::new(shared.context(port.clone()));
        let service = transport::Service::new(context, shared.slot.clone(), port.clone(), port);
        // Not when a stop begins: a node that hands leadership over must hear of its successor.
        let mut stopped = self.shared.stopped.subscribe();
        // What is accepted wakes the thread that accepted it.
        shared.scope.spawn_on(&shared.runtime, async move {
            let stop = async {
                // The sender lives in the node itself.
                drop(stopped.wait_for(|stopped| *stopped).await);
            };
            transport::serve(service, listener, stop).await;
        });
    }
}

fn ratio(of: u64, to: u64) -> String {
    if to == 0 {
        "0.00".to_owned()
    } else {
        format!("{:.2}", of as f64 / to as f64)
    }
}

/// A core with its tasks.
struct Running {
    core: Arc<Core>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whoever is to be answered may hold the core.
        self.core.machine.abandon();
    }
}

impl Running {
    /// Stops Raft and lets go of log and engine.
    async fn end(self) -> io::Result<()> {
        for task in &self.tasks {
            task.abort();
        }
        if let Err(error) = self.core.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end cleanly");
        }
        crash_point!("end_raft_after");
        self.core.log.sync().await?;
        crash_point!("end_log_after");
        self.core.machine.close().await
    }
}

fn raft_config() -> Config {
    let config = Config {
        cluster_name: "kvd".to_owned(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION.0.as_millis() as u64,
        election_timeout_max: ELECTION.1.as_millis() as u64,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * ELECTION.1.as_millis() as u64),
        // A leader that lost its unsynced tail must not go on in the same term.
        enable_leader_restore: Some(planted!("leader_restored")),
        max_payload_entries: 1024,
        purge_batch_size: 1024,
        snapshot_policy: SnapshotPolicy::Never,
        // Only `purge_log` cuts the log, and this node decides how far.
        max_in_snapshot_log_to_keep: u64::MAX,
        // Being level is this node's own decision.
        replication_lag_threshold: u64::MAX,
        ..Config::default()
    };
    config.validate().expect("the constants fit together")
}

impl Shared {
    fn core(&self) -> Option<Arc<Core>> {
        let running = self.running.read().expect("no panic while held");
        running.as_ref().map(|running| running.core.clone())
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        self.scope.spawn_on(&self.runtime, future).abort_handle()
    }

    async fn open(self: &Arc<Self>, gate: Arc<PeerPort>) -> Result<Running, StartError> {
        let (identity, log_dir, engine_dir, snapshot_dir) = {
            let dir = self.dir.lock().expect("no panic while held");
            (
                dir.identity().clone(),
                dir.log(),
                dir.engine(),
                dir.snapshots(),
            )
        };
        let engine = (self.open_engine)(&engine_dir).map_err(StartError::Engine)?;
        crash_point!("open_engine_after");
        if let Err(misfit) = self.settings.limits.keyspace().fit(&engine.limits()) {
            let message = format!("'{}' {misfit}", engine.name());
            let error = storage::Error::new(storage::ErrorKind::TooLarge, message);
            return Err(StartError::Engine(error));
        }
        let store = Arc::new(Store::new(engine).with_cache(self.settings.read_cache_bytes));
        if store.views_block_stores() {
            tracing::warn!(
                backend = store.engine().name(),
                "this engine has no views: what it had is kept in memory for long reads"
            );
        }
        let snapshots = Arc::new(SnapshotDir::open(&snapshot_dir)?);
        let durable = state_machine::recover(&store, &snapshots)?;
        crash_point!("open_recovered");
        let mut executor = Executor::new(store.clone(), self.settings.limits.keyspace())
            .map_err(StartError::State)?;
        let applied = executor.position().log_id;
        let fatal = self.fatal.clone();
        let log = (self.open_log)(
            &log_dir,
            log::Identity {
                cluster: identity.cluster,
                group: 0,
                node: identity.node,
            },
            Arc::new(move |reason: &str| fatal(crate::exit::IO, reason)),
        )?;
        crash_point!("open_log_after");
        let newest_spool = snapshots.complete()?.last().map(|(index, _)| *index);
        if let Some(applied) = applied
            && newest_spool == Some(applied.index)
        {
            log.drop_contradicted(applied).await?;
        }
        log.check_restart(applied, newest_spool, identity.stage == Stage::Founded)?;
        let replayed = replay(&log, &mut executor, &*self.doors.workers).await;
        let replayed = replayed.map_err(|error| match error {
            ReplayError::Stop(stop) => StartError::State(stop),
            ReplayError::Log(error) => log::OpenError::of(&log_dir, error).into(),
        })?;
        if replayed > 0 {
            tracing::info!(entries = replayed, "carried out again");
        }
        let proposer = Arc::new(Proposer::new(identity.incarnations.number()));
        let watcher = Arc::new(Watcher {
            id: identity.node,
            proposer: proposer.clone(),
            fatal: self.fatal.clone(),
        });
        let machine = StateMachine::start(
            &self.doors,
            store,
            log.clone(),
            snapshots,
            durable,
            executor,
            watcher,
        );
        let context = Arc::new(self.context(gate));
        let peers = transport::Peers::new(context.clone(), log.standing().clone());
        let requests = transport::RequestClient::new(context);
        let recover_to = log.stats().committed_index;
        let began_behind = log.stats().last_index;
        let (id, config) = (identity.node, Arc::new(raft_config()));
        let (network, storage, state) = (peers, log.clone(), machine.clone());
        let started = self.scope.spawn_on(&self.runtime, async move {
            Raft::new(id, config, network, storage, state).await
        });
        let raft = started
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?
            .map_err(|error| StartError::Raft(error.to_string()))?;
        crash_point!("open_raft_after");
        let core = Arc::new(Core {
            id,
            cluster: identity.cluster,
            settings: Settings {
                name: identity.name.clone(),
                ..self.settings.clone()
            },
            doors: self.doors.clone(),
            scope: self.scope.clone(),
            runtime: self.runtime.clone(),
            raft: raft.clone(),
            log,
            machine,
            peers: requests,
            proposer,
            barrier: Barrier::new(),
            metrics: self.metrics.clone(),
            time: Mutex::new(None),
            recover_to: AtomicU64::new(recover_to),
            recovered: AtomicBool::new(false),
            change: tokio::sync::Mutex::new(()),
            leadership: watch::Sender::new(Leadership::Nobody),
            news: raft.server_metrics(),
            fresh_at: Mutex::new(None),
            disk: self.disk.clone(),
            moved: self.moved.clone(),
            began_behind,
        });
        self.slot.set(Some(Arc::new(raft)));
        if identity.stage == Stage::Founding {
            self.found(&core).await?;
        }
        let mut tasks = vec![
            self.spawn(core.clone().run_leadership()),
            self.spawn(core.clone().run_proposer()),
            self.spawn(core.clone().run_barrier()),
            self.spawn(core.clone().run_intents()),
            self.spawn(core.clone().run_ticks()),
            self.spawn(core.clone().run_upkeep()),
            self.spawn(self.clone().greet(core.clone())),
            self.spawn(core.clone().run_freshness()),
            self.spawn(core.clone().run_disk_guard()),
        ];
        tasks.push(self.spawn(self.clone().watch_raft(core.clone())));
        tasks.push(self.spawn(self.clone().announce(core.clone())));
        if !identity.member {
            tasks.push(self.spawn(self.clone().become_member(core.clone())));
        }
        if identity.stage == Stage::Founding || core.status().members.len() == 1 {
            // A cluster of one leads as soon as it is up; nobody should meet it before.
            let mut changes = core.leadership_changes();
            let leads = changes.wait_for(|now| matches!(now, Leadership::Mine { .. }));
            if timeout(4 * ELECTION.1, leads).await.is_err() {
                tracing::warn!("this node does not lead its cluster of one yet");
            }
        }
        Ok(Running { core, tasks })
    }

    async fn found(&self, core: &Arc<Core>) -> Result<(), StartError> {
        let raft_error = |error: String| StartError::Raft(error);
        let initialized = core
            .raft
            .is_initialized()
            .await
            .map_err(|error| raft_error(error.to_string()))?;
        if !initialized {
            let member = core.settings.member();
            core.raft
                .initialize(BTreeMap::from([(core.id, member)]))
                .await
                .map_err(|error| raft_error(error.to_string()))?;
            crash_point!("found_initialized");
        }
        core.raft
            .wait(Some(FOUNDING_PATIENCE))
            .state(ServerState::Leader, "founding")
            .await
            .map_err(|error| raft_error(error.to_string()))?;
        crash_point!("found_leads");
        self.dir
            .lock()
            .expect("no panic while held")
            .update(|identity| identity.stage = Stage::Founded)?;
        crash_point!("found_noted");
        tracing::info!(cluster = %format!("{:032x}", core.cluster), "founded a cluster of one");
        Ok(())
    }

    /// Remembers that the node has been taken in, as soon as it has applied something of its
    /// cluster: long before it may vote. From then on it never starts with nothing again. Then,
    /// that it has been a member.
    async fn become_member(self: Arc<Self>, core: Arc<Core>) {
        let mut progress = core.machine.progress();
        if progress.wait_for(|now| now.index > 0).await.is_err() {
            return;
        }
        crash_point!("member_before");
        self.note(|identity| {
            if identity.stage == Stage::Joining {
                identity.stage = Stage::Founded;
            }
        });
        crash_point!("member_after");
        let is_member = |_: &state_machine::Progress| core.machine.position().has_member(core.id);
        if progress.wait_for(is_member).await.is_ok() {
            self.note(|identity| identity.member = true);
            crash_point!("member_noted");
        }
    }

    /// Changes what the `NODE` file says; a node that cannot does not go on.
    fn note(&self, change: impl FnOnce(&mut Identity)) {
        let noted = self.dir.lock().expect("no panic while held").update(change);
        if let Err(error) = noted {
            (self.fatal)(crate::exit::IO, &error.to_string());
        }
    }

    /// Greets the other members, until one says that this node was taken out.
    async fn greet(self: Arc<Self>, core: Arc<Core>) {
        let was_member = || {
            let dir = self.dir.lock().expect("no panic while held");
            dir.identity().member
        };
        core.run_greetings(was_member).await;
        let port = PeerPort {
            node: Node {
                shared: self.clone(),
            },
        };
        // It ends this task too.
        crate::doors::spawn(async move { port.removed().await });
    }

    /// Tells the cluster when this node was told to be elsewhere than before.
    async fn announce(self: Arc<Self>, core: Arc<Core>) {
        let now = self.settings.addresses();
        let before = {
            let dir = self.dir.lock().expect("no panic while held");
            dir.identity().addresses.clone()
        };
        match before {
            Some(before) if before != now => core.announce(&before).await,
            _ => return,
        }
        self.note(|identity| identity.addresses = Some(now));
    }

    fn context(&self, gate: Arc<PeerPort>) -> transport::Context {
        transport::Context {
            net: self.doors.net.clone(),
            gate,
            auth: self.auth.clone(),
            limits: self.wire.clone(),
            io: self.io.clone(),
            raft: self.runtime.clone(),
            workers: self.doors.workers.clone(),
        }
    }

    /// Ends the process when Raft has stopped by itself: a node without it must not look alive.
    async fn watch_raft(self: Arc<Self>, core: Arc<Core>) {
        // It says why among the news that come with every step, and lets go of those that come
        // seldom when it ends.
        let mut seldom = core.raft.server_metrics();
        while seldom.changed().await.is_ok() {}
        let state = core.raft.metrics().borrow_watched().running_state.clone();
        if let Err(error) = state
            && !*self.stopped.borrow()
            && !*self.stopping.borrow()
        {
            (self.fatal)(crate::exit::PANIC, &format!("raft has stopped: {error}"));
        }
    }
}
