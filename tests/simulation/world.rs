//! The world of one run: members with their disks and clocks, what goes wrong with them, and what
//! must hold at all times.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use kvd::data_dir::{Birth, DataDir};
use kvd::doors::{Clock, Doors, NodeScope, Random};
use kvd::node::{ConfigLimits, Node, Parts, ReadLevel, Role, Settings};
use kvd::raft::log::LogStore;
use kvd::raft::transport::NoAuth;
use kvd::server::{self, Server, ServerSettings};
use kvd::storage::{Caps, Engine as _, MemoryEngine};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::disk::{LogDisk, SimJournal, Tasks, wipe};
use crate::engine;
use crate::net::Wires;
use crate::plant::{Plant, planted};

/// Members that there may be; the last one is outside at first.
pub(crate) const MEMBERS: usize = 4;

/// A log that a snapshot has replaced may take this long to be cut.
const CUT_TIME: Duration = Duration::from_secs(5);

/// A wall clock that can be set.
struct WallClock {
    began: Instant,
    offset_us: AtomicI64,
}

impl Clock for WallClock {
    fn wall_us(&self) -> u64 {
        let since = self.began.elapsed().as_micros() as i64;
        (1_700_000_000_000_000 + since + self.offset_us.load(Ordering::Relaxed)) as u64
    }
}

struct Running {
    node: Node,
    server: Server<Node>,
    scope: Arc<NodeScope>,
}

struct Member {
    dir: PathBuf,
    log: Arc<Mutex<LogDisk>>,
    engine: Arc<MemoryEngine>,
    clock: Arc<WallClock>,
    /// How long each job of its engine is delayed.
    slow_store_ms: Arc<AtomicU64>,
    running: Option<Running>,
    /// Truncations of its log until now.
    truncations: u64,
    /// Entries up to here were compared in this run of it.
    compared: u64,
    /// Since when its log has had another entry than the one that was applied.
    differs: Option<Instant>,
}

pub(crate) struct World {
    random: Random,
    pub(crate) wires: Arc<Wires>,
    members: Vec<Member>,
    /// Why a node stopped by itself.
    fatal: Arc<Mutex<Vec<String>>>,
    /// The cluster that all of this is about.
    cluster: Option<u128>,
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// The contents of each entry that was in any log, by its index and term.
    logged: BTreeMap<(u64, u64), u64>,
    /// Term and contents of each entry that was applied anywhere.
    pub(crate) applied: BTreeMap<u64, (u64, u64)>,
    /// The member that is outside.
    pub(crate) outside: Option<usize>,
    pub(crate) faults: u64,
    _temp: tempfile::TempDir,
}

pub(crate) fn raft_addr(n: usize) -> String {
    format!("10.0.0.{n}:19000")
}

pub(crate) fn client_addr(n: usize) -> String {
    format!("10.0.0.{n}:6379")
}

pub(crate) fn name(n: usize) -> String {
    format!("node{n}")
}

/// When the run began: there is one in a process.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// For how long the run has lasted.
pub(crate) fn since_start() -> Duration {
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Says what happens, in a run that someone looks at.
macro_rules! say {
    ($($text:tt)*) => {
        if std::env::var_os("KVD_SIMULATION_QUIET").is_none() {
            eprintln!("{:>12?} {}", $crate::world::since_start(), format_args!($($text)*));
        }
    };
}
pub(crate) use say;

impl World {
    pub(crate) fn new(random: &Random, wires: Arc<Wires>, temp: tempfile::TempDir) -> Self {
        let members = (0..MEMBERS).map(|n| Member {
            dir: temp.path().join(name(n)),
            log: Arc::default(),
            engine: Arc::new(engine::of_member(n)),
            clock: Arc::new(WallClock {
                began: Instant::now(),
                offset_us: AtomicI64::new(0),
            }),
            slow_store_ms: Arc::default(),
            running: None,
            truncations: 0,
            compared: 0,
            differs: None,
        });
        World {
            random: Random::from_seed(random.next()),
            wires,
            members: members.collect(),
            fatal: Arc::default(),
            cluster: None,
            leaders: BTreeMap::new(),
            logged: BTreeMap::new(),
            applied: BTreeMap::new(),
            outside: Some(MEMBERS - 1),
            faults: 0,
            _temp: temp,
        }
    }

    async fn start(&mut self, n: usize) -> Result<(), String> {
        // Whoever begins anew waits to be taken in: clients would take it for the cluster.
        let founds = n == 0 && self.cluster.is_none();
        let random = Random::from_seed(self.random.next());
        let scope = NodeScope::new(random.clone(), true);
        let member = &mut self.members[n];
        let doors = Doors {
            net: self.wires.at(n),
            workers: Arc::new(Tasks {
                random: random.clone(),
                slow_store_ms: member.slow_store_ms.clone(),
            }),
            clock: member.clock.clone(),
            random: random.clone(),
        };
        let birth = Birth {
            name: name(n),
            backend: "memory".to_owned(),
            found: founds,
        };
        let dir = DataDir::open(&member.dir, &birth, &random).map_err(|error| error.to_string())?;
        let (engine, disk) = (member.engine.clone(), member.log.clone());
        let clock = member.clock.clone();
        let fatal = self.fatal.clone();
        let parts = Parts {
            settings: Settings {
                client_addr: client_addr(n),
                raft_addr: raft_addr(n),
                name: name(n),
                hold: Duration::from_secs(2),
                write_timeout: Duration::from_secs(5),
                limits: ConfigLimits {
                    key_bytes_max: 64 << 10,
                    value_bytes_max: 1 << 20,
                    group_bytes_max: 2 << 20,
                },
                log_bytes_max: 6000,
                // Little enough that what was read is pushed out by what is read.
                read_cache_bytes: 320 << 10,
                staleness_max: None,
                free_bytes_min: Some(0),
                join: Vec::new(),
            },
            dir,
            doors: doors.clone(),
            raft_runtime: Handle::current(),
            io_runtime: Handle::current(),
            scope: scope.clone(),
            open_engine: Arc::new(move |_| Ok(engine::opened(&engine, clock.clone()))),
            open_log: Arc::new(move |_, _, on_fatal| {
                let journal = SimJournal::open(disk.clone(), random.clone());
                Ok(LogStore::over(Box::new(journal), on_fatal))
            }),
            auth: Arc::new(NoAuth),
            fatal: Arc::new(move |code, reason| {
                fatal
                    .lock()
                    .unwrap()
                    .push(format!("{}: {code}: {reason}", name(n)));
            }),
        };
        let starting = scope.spawn_on(&Handle::current(), async move {
            let peers = doors
                .net
                .bind(&raft_addr(n))
                .await
                .expect("it can be bound");
            let clients = doors
                .net
                .bind(&client_addr(n))
                .await
                .expect("it can be bound");
            let node = Node::start(parts, peers).await?;
            let settings = ServerSettings {
                protected_mode: false,
                hold: Duration::from_secs(2),
                read_level: if planted(Plant::LocalReads) {
                    ReadLevel::Local
                } else {
                    ReadLevel::Linearizable
                },
                ..ServerSettings::default()
            };
            let server = Server::new(node.clone(), settings, doors);
            kvd::doors::spawn(server::serve(server.clone(), clients));
            Ok::<_, kvd::node::StartError>((node, server))
        });
        let started = timeout(Duration::from_secs(60), starting).await;
        let started = started.map_err(|_| format!("{} does not start", name(n)))?;
        let started = started.map_err(|error| format!("{}: {error}", name(n)))?;
        let (node, server) = started.map_err(|error| format!("{}: {error}", name(n)))?;
        (member.compared, member.differs) = (0, None);
        member.running = Some(Running {
            node,
            server,
            scope,
        });
        say!("{} runs", name(n));
        Ok(())
    }

    /// The power of one member goes.
    async fn crash(&mut self, n: usize) {
        let member = &mut self.members[n];
        if let Some(running) = member.running.take() {
            say!("{} loses its power", name(n));
            running.scope.crash().await;
            running.node.abandon();
            drop(running);
            engine::crash(&member.engine);
            member.log.lock().unwrap().crash(&self.random);
        }
    }

    /// One member is stopped in order.
    async fn stop(&mut self, n: usize) {
        let member = &mut self.members[n];
        if let Some(running) = member.running.take() {
            say!("{} stops in order", name(n));
            running.node.step_down().await;
            running.server.stop();
            let stopped = timeout(Duration::from_secs(30), running.node.stop()).await;
            running.scope.crash().await;
            running.node.abandon();
            drop(running);
            // A process that ends takes along what it kept in memory only.
            if stopped.is_err() || !member.engine.caps().contains(Caps::DURABLE) {
                engine::crash(&member.engine);
            }
            if stopped.is_err() {
                member.log.lock().unwrap().crash(&self.random);
            }
        }
    }

    /// A member that was taken out begins anew with an empty disk.
    pub(crate) async fn renew(&mut self, n: usize) -> Result<(), String> {
        self.crash(n).await;
        let member = &mut self.members[n];
        wipe(&member.dir);
        *member.log.lock().unwrap() = LogDisk::default();
        member.truncations = 0;
        member.engine = Arc::new(engine::of_member(n));
        member.dir = member.dir.with_extension((self.faults + 1).to_string());
        self.outside = Some(n);
        self.start(n).await
    }

    pub(crate) async fn start_all(&mut self) -> Result<(), String> {
        for n in 0..MEMBERS {
            if self.members[n].running.is_none() {
                self.start(n).await?;
            }
        }
        Ok(())
    }

    fn below(&self, end: usize) -> usize {
        self.random.next() as usize % end
    }

    /// All that runs runs well.
    pub(crate) fn heal(&self) {
        self.wires.heal();
        for member in &self.members {
            member.slow_store_ms.store(0, Ordering::Relaxed);
        }
    }

    fn cut_off(&self, n: usize) {
        for other in 0..MEMBERS {
            self.wires.cut(n, other);
            self.wires.cut(other, n);
        }
    }

    /// Now and then the power of a member goes at the moment at which it has truncated its log.
    pub(crate) async fn strike(&mut self) {
        for n in 0..MEMBERS {
            let member = &mut self.members[n];
            let truncations = member.log.lock().unwrap().truncations;
            let before = std::mem::replace(&mut member.truncations, truncations);
            if before < truncations && self.below(2) == 0 {
                self.faults += 1;
                self.crash(n).await;
            }
        }
    }

    /// Something goes wrong.
    pub(crate) async fn fault(&mut self) -> Result<(), String> {
        self.faults += 1;
        let n = self.below(MEMBERS);
        match self.below(17) {
            0..=2 => self.crash(n).await,
            3 => {
                for n in 0..MEMBERS {
                    self.crash(n).await;
                }
                self.start_all().await?;
            }
            4 => self.stop(n).await,
            5 | 6 => self.start_all().await?,
            7 => {
                say!("{} is cut off", name(n));
                self.cut_off(n);
            }
            8 => {
                let to = self.below(MEMBERS);
                say!("nothing gets from {} to {}", name(n), name(to));
                self.wires.cut(n, to);
            }
            9 => {
                let to = self.below(MEMBERS);
                say!("connections between {} and {} break", name(n), name(to));
                self.wires.reset(n, to);
            }
            10 => {
                let offset = match self.below(4) {
                    0 => 3_600_000_000,
                    1 => -3_600_000_000,
                    _ => self.below(2_000_000) as i64 - 1_000_000,
                };
                say!("the clock of {} is off by {offset} us", name(n));
                self.members[n]
                    .clock
                    .offset_us
                    .store(offset, Ordering::Relaxed);
            }
            11 => {
                let ms = match self.below(2) {
                    0 => self.below(4000) as u64,
                    _ => 0,
                };
                say!("the engine of {} gets on by jobs of {ms} ms", name(n));
                self.members[n].slow_store_ms.store(ms, Ordering::Relaxed);
            }
            12 | 13 => {
                // Long enough for another to lead, short enough for its own entries to be in the
                // way afterwards, instead of a snapshot.
                let leads = |member: &Member| {
                    let running = member.running.as_ref();
                    running.is_some_and(|running| running.node.status().role == Role::Leader)
                };
                let Some(n) = self.members.iter().position(leads) else {
                    return Ok(());
                };
                say!("{}, which leads, is cut off for a moment", name(n));
                self.cut_off(n);
                let (wires, ms) = (self.wires.clone(), 800 + self.below(1200) as u64);
                tokio::spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    say!("{} is heard again", name(n));
                    wires.heal_at(n);
                });
            }
            14 | 15 => {
                // Shorter and longer than it takes the others to elect a leader.
                let Some(running) = &self.members[n].running else {
                    return Ok(());
                };
                let (scope, ms) = (running.scope.clone(), 50 + self.below(3000) as u64);
                say!("{} does nothing for {ms} ms", name(n));
                scope.pause();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    say!("{} goes on", name(n));
                    scope.resume();
                });
            }
            _ => {
                say!("the network heals");
                self.wires.heal();
            }
        }
        Ok(())
    }

    /// What must hold at all times.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        if let Some(reason) = self.fatal.lock().unwrap().first() {
            return Err(format!("a node stopped by itself: {reason}"));
        }
        for (n, member) in self.members.iter_mut().enumerate() {
            let Some(running) = &member.running else {
                continue;
            };
            let status = running.node.status();
            if status.role == Role::Outside {
                continue;
            }
            let cluster = *self.cluster.get_or_insert(status.cluster);
            if status.cluster != cluster {
                return Err(format!("{} is of cluster {:032x}", name(n), status.cluster));
            }
            if status.role == Role::Leader {
                let first = *self.leaders.entry(status.term).or_insert(status.id);
                if first != status.id {
                    return Err(format!(
                        "{first:016x} and {:016x} led term {}",
                        status.id, status.term
                    ));
                }
            }
            let disk = member.log.lock().unwrap();
            let (mut differs, mut seen) = (None, Vec::new());
            let (mut term, mut broken) = (0, None);
            disk.entries(member.compared + 1, &mut |id, body| {
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                let (entry, before) = ((id.leader_id.term, hasher.finish()), term);
                term = entry.0;
                let first = *self.logged.entry((id.index, term)).or_insert(entry.1);
                if term < before || first != entry.1 {
                    broken.get_or_insert((id.index, before, term));
                }
                if id.index > status.applied {
                    return;
                }
                let agreed = self.applied.get(&id.index).copied();
                if agreed.is_some_and(|agreed| agreed != entry) {
                    differs = Some(id.index);
                }
                seen.push((id.index, entry));
            });
            if let Some((index, before, term)) = broken {
                return Err(format!(
                    "the log of {} has at {index}, behind term {before}, what term {term} has not",
                    name(n)
                ));
            }
            // A snapshot that was installed is ahead of the log until that is cut.
            match differs {
                None => {
                    self.applied.extend(seen);
                    member.differs = None;
                    member.compared = status.applied.max(member.compared);
                }
                Some(index) => {
                    let since = *member.differs.get_or_insert_with(Instant::now);
                    if since.elapsed() > CUT_TIME {
                        return Err(format!("{} applied another entry {index}", name(n)));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn statuses(&self) -> String {
        let lines = self.members.iter().enumerate().map(|(n, member)| {
            let status = member.running.as_ref().map(|running| running.node.status());
            match status {
                None => format!("{} is down", name(n)),
                Some(status) => format!(
                    "{} is {:?} in term {}, log {}, applied {}, knows {} members",
                    name(n),
                    status.role,
                    status.term,
                    status.last_log,
                    status.applied,
                    status.members.len()
                ),
            }
        });
        lines.collect::<Vec<_>>().join("; ")
    }
}
