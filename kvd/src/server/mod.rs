//! Sockets: accepts clients, and serves each by a task of its own.
//!
//! A connection cuts requests off its input, joins what it can into one proposal or one read
//! barrier, and answers in the order of the requests. It knows the node only as a [`Service`].

mod backup;
mod cluster;
mod connection;
mod early;
mod info;
mod listener;
mod monitor;
mod pause;
mod place;
mod reads;
mod service;
mod session;
mod slow_log;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::watch;
use tokio::time::Instant;

use self::connection::Queue;
pub use self::listener::serve;
use self::monitor::Monitors;
use self::pause::Pause;
use self::place::Turns;
use self::slow_log::{SlowLog, Spikes};
use crate::doors::Doors;
use crate::metrics::Metrics;
use crate::node::{
    ConfigLimits, Early, JoinRequest, ReadLevel, Reading, RedirectMode, Status, Written,
};
use crate::raft::entry::Group;
use crate::raft::spool::Spool;
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// What connections ask of a node. An error is one reply for every command of the request.
pub trait Service: Clone + Send + Sync + 'static {
    /// Proposes a group: held while there is no leader, forwarded on a follower. `early` may be shown the replies before.
    fn propose(
        &self,
        group: Group,
        early: Option<Early>,
    ) -> impl Future<Output = Result<Written, Reply>> + Send;
    /// A consistent view as fresh as `level` says; a local one holds entry `after`.
    fn read(
        &self,
        level: ReadLevel,
        after: u64,
    ) -> impl Future<Output = Result<Reading, Reply>> + Send;
    /// Brings replicated time to now.
    fn tick(&self) -> impl Future<Output = Result<(), Reply>> + Send;
    /// Whether point reads may run on a thread that serves sockets.
    fn reads_are_fast(&self) -> bool;
    /// Where Raft runs, while this node leads: there a lone client's writes wait for the fewest
    /// threads.
    fn leading_runtime(&self) -> Option<tokio::runtime::Handle>;
    /// The node's state.
    fn status(&self) -> Status;
    /// The leader, when that is known to be another node.
    fn redirect(&self) -> Option<Member>;
    /// Waits until `wanted` members besides the leader hold the entry at `index`, for `patience` at
    /// the longest, and tells how many do.
    fn replicas(
        &self,
        index: u64,
        wanted: u64,
        patience: Option<Duration>,
    ) -> impl Future<Output = u64> + Send;
    /// Takes a node in.
    fn join(&self, request: JoinRequest) -> impl Future<Output = Reply> + Send;
    /// Takes a member out.
    fn leave(&self, name: String) -> impl Future<Output = Reply> + Send;
    /// Hands leadership to a member, or to whichever is best placed.
    fn transfer(&self, to: Option<NodeId>) -> impl Future<Output = Reply> + Send;
    /// Compares all members' contents behind one entry of the log.
    fn compare(&self) -> impl Future<Output = Reply> + Send;
    /// Writes a snapshot that holds everything acknowledged so far; also the index where it ends.
    fn backup(&self) -> impl Future<Output = Result<(u64, Spool), Reply>> + Send;
    /// Waits at most `hold` for a leader.
    fn leader_known(&self, hold: Duration) -> impl Future<Output = bool> + Send;
    /// The lines of INFO's `# Backend`.
    fn backend_info(&self) -> Vec<(String, String)>;
    /// Gives an option of the engine, as `name=value`, another value, or says why not.
    fn set_backend_option(&self, option: &str) -> Result<(), String>;
    /// The lines of INFO's `# Raft`.
    fn raft_info(&self) -> Vec<(String, String)>;
    /// Begins a graceful stop.
    fn shutdown(&self);
    /// Sizes that are checked before a command enters the log.
    fn limits(&self) -> ConfigLimits;
}

/// What a person sets about serving clients.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Clients at one time.
    pub clients_max: usize,
    /// The password that clients must give, if any.
    pub password: Option<String>,
    /// Whether clients from elsewhere are refused while there is no password.
    pub protected_mode: bool,
    /// How fresh reads are by default.
    pub read_level: ReadLevel,
    /// What becomes of writes on a follower.
    pub follower_writes: RedirectMode,
    /// How long CLUSTER SLOTS waits for a leader.
    pub hold: Duration,
    /// A connection that is idle for longer is closed; zero means never.
    pub idle_timeout: Duration,
    /// Commands that take longer are in the slow log; none when there is none.
    pub slower_than: Option<Duration>,
    /// Entries of the slow log.
    pub slow_log_max: usize,
    /// Commands that take so long are spikes; zero means that none are noted.
    pub spike: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            clients_max: 10_000,
            password: None,
            protected_mode: true,
            read_level: ReadLevel::Linearizable,
            follower_writes: RedirectMode::Auto,
            hold: Duration::from_secs(5),
            idle_timeout: Duration::ZERO,
            slower_than: Some(Duration::from_millis(10)),
            slow_log_max: 128,
            spike: Duration::ZERO,
        }
    }
}

/// The server of one node: what its connections share. Cheap to clone.
pub struct Server<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Server {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<S> {
    service: S,
    settings: Mutex<Arc<ServerSettings>>,
    /// How often they were changed: connections keep them until this changes.
    settings_changes: AtomicU64,
    metrics: Metrics,
    doors: Doors,
    next_id: AtomicU64,
    clients: Mutex<BTreeMap<u64, Arc<ClientEntry>>>,
    stopping: watch::Sender<bool>,
    /// The same for connections, which look at it for each request.
    stops: AtomicBool,
    pause: Pause,
    turns: Turns,
    /// A connection holds a copy of all data.
    copying: Arc<AtomicBool>,
    monitors: Monitors,
    slow_log: SlowLog,
    spikes: Spikes,
    run_id: String,
}

/// What other connections may know of one.
struct ClientEntry {
    id: u64,
    addr: String,
    local_addr: String,
    since: Instant,
    about: Mutex<About>,
    queued_bytes: AtomicUsize,
    /// CLIENT KILL.
    killed: AtomicBool,
    /// Wakes the connection for that, or for a stop of the server.
    called: AtomicWaker,
}

/// The changing part of a client's line.
#[derive(Clone)]
struct About {
    name: String,
    library: String,
    library_version: String,
    last: Instant,
    command: &'static str,
    protocol: i64,
    queued: Option<usize>,
    readonly: bool,
}

impl<S: Service> Server<S> {
    /// A server without connections.
    pub fn new(service: S, settings: ServerSettings, doors: Doors) -> Self {
        let mut run_id = String::new();
        for _ in 0..3 {
            run_id += &format!("{:016x}", doors.random.next());
        }
        run_id.truncate(40);
        Server {
            shared: Arc::new(Shared {
                service,
                settings: Mutex::new(Arc::new(settings)),
                settings_changes: AtomicU64::new(0),
                metrics: Metrics::default(),
                doors,
                next_id: AtomicU64::new(1),
                clients: Mutex::default(),
                stopping: watch::Sender::new(false),
                stops: AtomicBool::new(false),
                pause: Pause::default(),
                turns: Turns::default(),
                copying: Arc::default(),
                monitors: Monitors::default(),
                slow_log: SlowLog::default(),
                spikes: Spikes::default(),
                run_id,
            }),
        }
    }

    /// Ends every connection once it has answered what it has taken on, and accepts no more.
    pub fn stop(&self) {
        self.shared.stops.store(true, SeqCst);
        self.shared.stopping.send_replace(true);
        let clients = self.shared.clients.lock().expect("no panic while held");
        for entry in clients.values() {
            entry.called.wake();
        }
    }

    /// Connections at this moment.
    pub fn connected(&self) -> usize {
        self.shared
            .clients
            .lock()
            .expect("no panic while held")
            .len()
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}

impl<S> Shared<S> {
    fn is_stopping(&self) -> bool {
        self.stops.load(SeqCst)
    }

    fn settings(&self) -> Arc<ServerSettings> {
        self.settings.lock().expect("no panic while held").clone()
    }

    fn change_settings(&self, changed: ServerSettings) {
        *self.settings.lock().expect("no panic while held") = changed.into();
        self.settings_changes.fetch_add(1, SeqCst);
    }
}

impl ClientEntry {
    /// Ends the connection as soon as it waits for something.
    fn kill(&self) {
        self.killed.store(true, SeqCst);
        self.called.wake();
    }

    fn is_killed(&self) -> bool {
        self.killed.load(SeqCst)
    }

    /// Notes how many commands of a transaction wait.
    fn queued(&self, queue: Option<&Queue>) {
        self.about.lock().expect("no panic while held").queued =
            queue.map(|queue| queue.requests.len());
    }

    fn line(&self) -> String {
        let about = self.about.lock().expect("no panic while held").clone();
        let now = Instant::now();
        format!(
            "id={} addr={} laddr={} fd=0 name={} age={} idle={} flags={} db=0 sub=0 psub=0 \
             ssub=0 multi={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 \
             omem={} tot-mem=0 events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.addr,
            self.local_addr,
            about.name,
            now.saturating_duration_since(self.since).as_secs(),
            now.saturating_duration_since(about.last).as_secs(),
            match (about.queued, about.readonly) {
                (Some(_), _) => "x",
                (None, true) => "r",
                (None, false) => "N",
            },
            about.queued.map_or(-1, |queued| queued as i64),
            self.queued_bytes.load(Relaxed),
            about.command,
            about.protocol,
            about.library,
            about.library_version,
        )
    }
}
