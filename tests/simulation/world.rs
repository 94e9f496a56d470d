//! The world of one run: members with their disks and clocks, what goes wrong, and what must hold.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::data_dir::{Birth, DataDir};
use kvd::doors::{Clock, Doors, NodeScope, Random};
use kvd::node::{ConfigLimits, Node, Parts, ReadLevel, Role, Settings};
use kvd::raft::log::LogStore;
use kvd::raft::transport::NoAuth;
use kvd::resp::Reply;
use kvd::server::{self, Server, ServerSettings};
use kvd::storage::{Caps, Engine as _, Flow, MemoryEngine, Op as KeptOp, Range, Read as _};
use kvd_tests::history::{Op, Record, keys};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clients::{self, Client};
use crate::disk::{LogDisk, SimJournal, Tasks, wipe};
use crate::net::Wires;
use crate::plant::{Plant, planted};

/// Members that there may be; the last one is outside at first.
const MEMBERS: usize = 4;
const CLIENTS: usize = 4;

/// The place of the one who commands the cluster, and of the clients behind it.
const ADMIN: usize = 10;

/// For how long things go wrong.
const FAULT_TIME: Duration = Duration::from_secs(20);

/// How long a healed cluster may take to be level.
const HEAL_TIME: Duration = Duration::from_secs(90);

/// A log that a snapshot has replaced may take this long to be cut.
const CUT_TIME: Duration = Duration::from_secs(5);

/// How often what must hold at all times is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

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
    running: Option<Running>,
    /// Entries up to here were compared in this run of it.
    compared: u64,
    /// Since when its log has had another entry than the one that was applied.
    differs: Option<Instant>,
}

struct World {
    random: Random,
    wires: Arc<Wires>,
    members: Vec<Member>,
    /// Why a node stopped by itself.
    fatal: Arc<Mutex<Vec<String>>>,
    /// The cluster that all of this is about.
    cluster: Option<u128>,
    leaders: BTreeMap<u64, u64>,
    /// Term and contents of each entry that was applied anywhere.
    applied: BTreeMap<u64, (u64, u64)>,
    /// The member that is outside.
    outside: Option<usize>,
    faults: u64,
    _temp: tempfile::TempDir,
}

type Shared = Arc<tokio::sync::Mutex<World>>;

fn raft_addr(n: usize) -> String {
    format!("10.0.0.{n}:19000")
}

fn client_addr(n: usize) -> String {
    format!("10.0.0.{n}:6379")
}

fn name(n: usize) -> String {
    format!("node{n}")
}

/// Says what happens, in a run that someone looks at.
macro_rules! say {
    ($($text:tt)*) => {
        if std::env::var_os("KVD_SIMULATION_QUIET").is_none() {
            eprintln!("{:>12?} {}", Instant::now().elapsed_since_start(), format_args!($($text)*));
        }
    };
}

/// When the run began.
trait SinceStart {
    fn elapsed_since_start(&self) -> Duration;
}

tokio::task_local! {
    static BEGAN: Instant;
}

impl SinceStart for Instant {
    fn elapsed_since_start(&self) -> Duration {
        BEGAN.try_with(|began| *self - *began).unwrap_or_default()
    }
}

/// One member's engine keeps nothing itself, so its snapshots and its log must. All have views: a
/// reader of one without holds writers back, and here both are the same thread.
fn engine(n: usize) -> MemoryEngine {
    match n % MEMBERS {
        2 => MemoryEngine::with_caps(Caps::VIEW.with(Caps::FAST_READ)),
        _ => MemoryEngine::new(),
    }
}

fn crash_engine(engine: &MemoryEngine) {
    let mut kept = Vec::new();
    if planted(Plant::LostMark) {
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        let kept = &mut kept;
        let read = engine.scan(all, &mut |key, value| {
            kept.push((key.to_vec(), value.to_vec()));
            Flow::Continue
        });
        read.expect("memory is read");
    }
    engine.crash();
    let batch: Vec<KeptOp<'_>> = kept
        .iter()
        .map(|(key, value)| KeptOp::Put(key, value))
        .collect();
    let mark = engine.mark().expect("memory is read");
    engine.write(&batch, &mark).expect("memory takes it");
}

impl World {
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
                staleness_max: None,
                free_bytes_min: Some(0),
                join: Vec::new(),
            },
            dir,
            doors: doors.clone(),
            raft_runtime: Handle::current(),
            io_runtime: Handle::current(),
            scope: scope.clone(),
            open_engine: Arc::new(move |_| Ok(engine.clone())),
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
            crash_engine(&member.engine);
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
            if stopped.is_err() {
                crash_engine(&member.engine);
                member.log.lock().unwrap().crash(&self.random);
            }
        }
    }

    /// A member that was taken out begins anew with an empty disk.
    async fn renew(&mut self, n: usize) -> Result<(), String> {
        self.crash(n).await;
        let member = &mut self.members[n];
        wipe(&member.dir);
        *member.log.lock().unwrap() = LogDisk::default();
        member.engine = Arc::new(engine(n));
        member.dir = member.dir.with_extension((self.faults + 1).to_string());
        self.outside = Some(n);
        self.start(n).await
    }

    async fn start_all(&mut self) -> Result<(), String> {
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

    /// Something goes wrong.
    async fn fault(&mut self) -> Result<(), String> {
        self.faults += 1;
        let n = self.below(MEMBERS);
        match self.below(12) {
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
                for other in 0..MEMBERS {
                    self.wires.cut(n, other);
                    self.wires.cut(other, n);
                }
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
            _ => {
                say!("the network heals");
                self.wires.heal();
            }
        }
        Ok(())
    }

    /// What must hold at all times.
    fn look(&mut self) -> Result<(), String> {
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
            disk.entries(member.compared + 1, status.applied, &mut |id, body| {
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                let entry = (id.leader_id.term, hasher.finish());
                let agreed = self.applied.get(&id.index).copied();
                if agreed.is_some_and(|agreed| agreed != entry) {
                    differs = Some(id.index);
                }
                seen.push((id.index, entry));
            });
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

    fn statuses(&self) -> String {
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

/// Asks any member; who is outside may be a cluster of its own.
async fn command(
    wires: &Arc<Wires>,
    random: &Random,
    outside: Option<usize>,
    args: &[&str],
) -> Option<Reply> {
    let inside: Vec<usize> = (0..MEMBERS).filter(|n| outside != Some(*n)).collect();
    let n = inside[random.next() as usize % inside.len()];
    let mut client = Client::connect(&wires.at(ADMIN), &client_addr(n)).await?;
    client.call(args).await
}

/// Takes members out and in, and moves leadership, until told to stop.
async fn administer(
    world: Shared,
    wires: Arc<Wires>,
    random: Random,
    stop: Arc<AtomicBool>,
) -> Result<(), String> {
    loop {
        sleep(Duration::from_millis(300 + random.next() % 3000)).await;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if random.next().is_multiple_of(3) {
            let to = name(random.next() as usize % MEMBERS);
            say!("leadership is to move to {to}");
            let outside = world.lock().await.outside;
            drop(command(&wires, &random, outside, &["RAFT.TRANSFER_LEADER", &to]).await);
            continue;
        }
        let outside = world.lock().await.outside;
        let n = outside.unwrap_or(random.next() as usize % MEMBERS);
        let (name, addr) = (name(n), raft_addr(n));
        let args = match outside {
            Some(_) => vec!["JOIN", &name, &addr],
            None => vec!["LEAVE", &name],
        };
        say!("{}", args.join(" "));
        // Once begun it is carried through: what is half done is another's to end.
        loop {
            let reply = command(&wires, &random, outside, &args).await;
            say!("{}: {reply:?}", args.join(" "));
            let said = match &reply {
                Some(Reply::Ok) => break,
                Some(Reply::Error(text)) => text.to_string(),
                _ => String::new(),
            };
            // An answer that was lost: it is done.
            if said.contains("no member") {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        let mut world = world.lock().await;
        match outside {
            Some(_) => world.outside = None,
            None => world.renew(n).await?,
        }
    }
}

/// Waits until all members are level and alike.
async fn level(world: &Shared, wires: &Arc<Wires>, random: &Random) -> Result<(), String> {
    let deadline = Instant::now() + HEAL_TIME;
    let mut last = None;
    while Instant::now() < deadline {
        let outside = world.lock().await.outside;
        let answer = command(wires, random, outside, &["RAFT.COMPARE"]).await;
        if let Some(Reply::Array(parts)) = &answer
            && let [_, Reply::Bulk(verdict), Reply::Array(members)] = &parts[..]
        {
            if &verdict[..] == b"different" {
                return Err(format!("the members' contents differ: {members:?}"));
            }
            let expected = MEMBERS - usize::from(outside.is_some());
            if &verdict[..] == b"equal" && members.len() == expected {
                return Ok(());
            }
        }
        last = answer;
        sleep(Duration::from_millis(200)).await;
    }
    let statuses = world.lock().await.statuses();
    Err(format!("it does not heal: {statuses}; last: {last:?}"))
}

async fn live(seed: u64) -> Result<String, String> {
    let temp = tempfile::tempdir().map_err(|error| error.to_string())?;
    let random = Random::from_seed(seed);
    let wires = Wires::new(Random::from_seed(random.next()));
    let members = (0..MEMBERS).map(|n| Member {
        dir: temp.path().join(name(n)),
        log: Arc::default(),
        engine: Arc::new(engine(n)),
        clock: Arc::new(WallClock {
            began: Instant::now(),
            offset_us: AtomicI64::new(0),
        }),
        running: None,
        compared: 0,
        differs: None,
    });
    let mut world = World {
        random: Random::from_seed(random.next()),
        wires: wires.clone(),
        members: members.collect(),
        fatal: Arc::default(),
        cluster: None,
        leaders: BTreeMap::new(),
        applied: BTreeMap::new(),
        outside: Some(MEMBERS - 1),
        faults: 0,
        _temp: temp,
    };
    world.start_all().await?;
    world.look()?;
    let calm = Random::from_seed(random.next());
    for n in 1..MEMBERS - 1 {
        let mut first = Client::connect(&wires.at(ADMIN), &client_addr(0)).await;
        let first = first.as_mut().ok_or("node0 does not answer")?;
        let joined = first.call(&["JOIN", &name(n), &raft_addr(n)]).await;
        if joined != Some(Reply::Ok) {
            return Err(format!("JOIN {}: {joined:?}", name(n)));
        }
    }
    let world: Shared = Arc::new(tokio::sync::Mutex::new(world));
    let (record, stop) = (
        Arc::<Mutex<Record>>::default(),
        Arc::new(AtomicBool::new(false)),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|id| {
            tokio::spawn(clients::run(
                id,
                wires.at(ADMIN + 1 + id),
                (0..MEMBERS).map(client_addr).collect(),
                record.clone(),
                stop.clone(),
                Random::from_seed(random.next()),
            ))
        })
        .collect();
    let admin = tokio::spawn(BEGAN.scope(
        BEGAN.get(),
        administer(
            world.clone(),
            wires.clone(),
            Random::from_seed(random.next()),
            stop.clone(),
        ),
    ));
    let watched = world.clone();
    let mut watch = tokio::spawn(async move {
        loop {
            watched.lock().await.look()?;
            sleep(LOOK_EVERY).await;
        }
        #[expect(unreachable_code, reason = "it says what kind of error ends it")]
        Ok::<(), String>(())
    });
    let faults = async {
        let until = Instant::now() + FAULT_TIME;
        while Instant::now() < until {
            sleep(Duration::from_millis(50 + calm.next() % 1200)).await;
            world.lock().await.fault().await?;
        }
        say!("all heals");
        let mut healed = world.lock().await;
        healed.wires.heal();
        healed.start_all().await?;
        drop(healed);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.map_err(|error| error.to_string())?;
        }
        timeout(2 * HEAL_TIME, admin)
            .await
            .map_err(|_| "a change of members does not end".to_owned())?
            .map_err(|error| error.to_string())??;
        level(&world, &wires, &calm).await?;
        for n in 0..MEMBERS {
            if world.lock().await.outside == Some(n) {
                continue;
            }
            let mut client = Client::connect(&wires.at(ADMIN), &client_addr(n)).await;
            let client = client.as_mut().ok_or("a healed node does not answer")?;
            for key in keys() {
                clients::call(client, &record, key, Op::Get, None).await;
            }
        }
        Ok::<(), String>(())
    };
    tokio::select! {
        biased;
        seen = &mut watch => seen.map_err(|error| error.to_string())??,
        done = faults => done?,
    }
    watch.abort();
    let mut world = world.lock().await;
    world.look()?;
    let record = record.lock().unwrap();
    record.check()?;
    let (done, unknown) = record.counts();
    let hash = *wires.hash.lock().unwrap();
    Ok(format!(
        "seed={seed} done={done} unknown={unknown} refused={} faults={} entries={} terms={} \
         hash={hash:016x}",
        record.refused,
        world.faults,
        world.applied.len(),
        world.leaders.len(),
    ))
}

/// One run.
pub(crate) fn run(seed: u64) -> Result<String, String> {
    if std::env::var_os("KVD_SIMULATION_QUIET").is_none() {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .without_time()
            .with_ansi(false);
        let targets =
            tracing_subscriber::filter::Targets::new().with_target("kvd", tracing::Level::INFO);
        tracing_subscriber::registry()
            .with(lines)
            .with(targets)
            .init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async { BEGAN.scope(Instant::now(), live(seed)).await })
}
