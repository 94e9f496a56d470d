//! Runs one node until it is told to stop.

use std::io;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvd::clock::SystemClock;
use kvd::config::{self, Config, LogLevel};
use kvd::data_dir::{Birth, DataDir, DataDirError};
use kvd::doors::{Doors, Listener, Net as _, NodeScope, Random, Threads};
use kvd::exit;
use kvd::net::Tcp;
use kvd::node::{Node, Parts, Settings, StartError};
use kvd::raft::log::LogStore;
use kvd::raft::transport::{Auth, NoAuth, Secret};
use kvd::server::{self, Server, ServerSettings};
use kvd::storage::Calls;
use tokio::signal::unix::{Signal, SignalKind};

use crate::signals::{StopSignals, heard};
use crate::{Failed, plugin};

/// How long connections have to take their last answers when the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How long a proposed write may take before its outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a node.
pub(crate) fn run(config: Config) -> Result<(), Failed> {
    start_logging(config.log_level);
    end_on_panic();
    raise_file_limit(config.maxclients);
    let auth = auth_of(&config)?;
    let io_runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("kvd-io")
        .enable_all()
        .build()
        .map_err(|error| Failed::new(exit::PANIC, format!("no runtime: {error}")))?;
    let raft_runtime = raft_runtime()?;
    io_runtime.block_on(serve(
        config,
        auth,
        io_runtime.handle().clone(),
        raft_runtime,
    ))
}

async fn serve(
    config: Config,
    auth: Arc<dyn Auth>,
    io_runtime: tokio::runtime::Handle,
    raft_runtime: tokio::runtime::Handle,
) -> Result<(), Failed> {
    let doors = Doors {
        net: Arc::new(Tcp),
        workers: Arc::new(Threads),
        clock: Arc::new(SystemClock),
        random: Random::from_os(),
    };
    let plugin = plugin::load_for(&config.backend, &config.limits.keyspace())?;
    let description = plugin.describe();
    let birth = Birth {
        name: config.name.clone(),
        backend: description.name.clone(),
        found: config.bootstrap,
    };
    // Addresses first: a second process on this machine is told of the port, not of the lock.
    let clients = bind(&config.addr).await?;
    let mut peers = bind(&config.raft_addr).await?;
    let dir = DataDir::open(&config.directory, &birth, &doors.random).map_err(data_dir_failed)?;
    let calls = Arc::<Calls>::default();
    kvd::doors::spawn(plugin::watch(description.name.clone(), calls.clone()));
    let open_engine = plugin::opener(plugin, config.backend_options.clone(), calls);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        node = %format!("{:016x}", dir.identity().node),
        name = %dir.identity().name,
        backend = %format!("{} {}", description.name, description.version),
        addr = %config.addr,
        raft_addr = %config.raft_addr,
        directory = %config.directory.display(),
        "kvd starts"
    );
    let parts = Parts {
        settings: Settings {
            client_addr: config.announce_addr.clone(),
            raft_addr: config.announce_raft_addr.clone(),
            name: config.name.clone(),
            hold: config.hold,
            write_timeout: WRITE_TIMEOUT,
            limits: config.limits,
            log_bytes_max: config.log_bytes_max,
            read_cache_bytes: config.read_cache_bytes,
            staleness_max: config.staleness_max,
            free_bytes_min: config.free_bytes_min,
            join: config.join.clone(),
        },
        dir,
        doors: doors.clone(),
        raft_runtime,
        io_runtime,
        scope: NodeScope::new(doors.random.clone(), false),
        open_engine,
        open_log: Arc::new(LogStore::open),
        auth,
        fatal: Arc::new(|code, reason| {
            static SAID: AtomicBool = AtomicBool::new(false);
            // One failure makes others; the first one is the reason.
            if !SAID.swap(true, Ordering::SeqCst) {
                // Nobody else gets a word in between this line and the end: it would be about what
                // follows from the failure, and look like another.
                let _last_word = std::io::stderr().lock();
                if code == exit::CONFIG {
                    tracing::error!(%reason, "kvd cannot go on, nor could it after a restart");
                } else {
                    let then = "a restart finds what reached the disk";
                    tracing::error!(%reason, "kvd cannot go on; {then}");
                }
                std::process::exit(code);
            }
        }),
    };
    // `localhost` may be two addresses; peers need only one of them.
    let node = Node::start(parts, peers.remove(0))
        .await
        .map_err(start_failed)?;
    let settings = ServerSettings {
        clients_max: config.maxclients,
        password: config.requirepass.clone(),
        protected_mode: config.protected_mode,
        read_level: config.read_level,
        follower_writes: config.follower_writes,
        hold: config.hold,
        idle_timeout: config.timeout,
        ..ServerSettings::default()
    };
    let server = Server::new(node.clone(), settings, doors);
    // Whoever has had a reply may stop the node.
    let (stop, hangup) = (StopSignals::new()?, heard(SignalKind::hangup())?);
    for listener in clients {
        kvd::doors::spawn(server::serve(server.clone(), listener));
    }
    tracing::info!("Ready to accept connections");
    until_told(&node, stop, hangup).await;
    // Leadership goes first, while peers are still heard, so that what is in flight and what comes
    // in the meantime finds its new leader.
    kvd::crash_point!("stop_begun");
    node.step_down().await;
    kvd::crash_point!("stop_stepped_down");
    server.stop();
    let drained = tokio::time::timeout(DRAIN_TIME, async {
        while server.connected() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!(connections = server.connected(), "connections were cut off");
    }
    kvd::crash_point!("stop_drained");
    node.stop().await;
    kvd::crash_point!("stop_after");
    tracing::info!("bye");
    Ok(())
}

/// Waits for a signal or for SHUTDOWN. A second signal ends the process at once.
async fn until_told(node: &Node, mut stop: StopSignals, mut hangup: Signal) {
    let mut stopping = node.stopping();
    loop {
        tokio::select! {
            () = stop.recv() => break,
            // A terminal that goes away is no reason to stop.
            _ = hangup.recv() => {}
            _ = stopping.wait_for(|stop| *stop) => break,
        }
    }
    tracing::info!("stopping");
    node.shutdown();
    kvd::doors::spawn(async move {
        stop.recv().await;
        eprintln!("kvd: stopped at once by a second signal");
        std::process::exit(exit::OK);
    });
}

/// Binds every address of `addr`; a name may have several, and one is enough.
async fn bind(addr: &str) -> Result<Vec<Box<dyn Listener>>, Failed> {
    let failed =
        |error: &dyn std::fmt::Display| Failed::new(exit::ADDRESS, format!("{addr}: {error}"));
    let mut addresses: Vec<_> = addr
        .to_socket_addrs()
        .map_err(|error| failed(&error))?
        .collect();
    addresses.sort_by_key(|address| address.is_ipv6());
    addresses.dedup();
    let (mut bound, mut last) = (Vec::new(), None);
    for (n, address) in addresses.iter().enumerate() {
        match Tcp.bind(&address.to_string()).await {
            Ok(listener) => bound.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(failed(&format!("{address} is in use by another process")));
            }
            // A machine without IPv6 still resolves `localhost` to its address.
            Err(error) if n > 0 && !bound.is_empty() => {
                tracing::debug!(%address, %error, "address not bound");
            }
            Err(error) => last = Some(error),
        }
    }
    match (bound.is_empty(), last) {
        (false, _) => Ok(bound),
        (true, Some(error)) => Err(failed(&error)),
        (true, None) => Err(failed(&"the name has no address")),
    }
}

/// One thread for Raft alone: nothing on it blocks, and nothing else delays it.
fn raft_runtime() -> Result<tokio::runtime::Handle, Failed> {
    let failed = |error: io::Error| Failed::new(exit::PANIC, format!("no runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let handle = runtime.handle().clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "the process's own thread, for a runtime"
    )]
    std::thread::Builder::new()
        .name("kvd-raft".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .map_err(failed)?;
    Ok(handle)
}

fn auth_of(config: &Config) -> Result<Arc<dyn Auth>, Failed> {
    if let Some(path) = &config.cluster_secret_file {
        let secret = std::fs::read(path).map_err(|error| {
            Failed::new(
                exit::CONFIG,
                format!("cluster secret {}: {error}", path.display()),
            )
        })?;
        let secret = secret.trim_ascii();
        if secret.len() < 16 {
            return Err(Failed::new(
                exit::CONFIG,
                format!("cluster secret {}: shorter than 16 bytes", path.display()),
            ));
        }
        return Ok(Arc::new(Secret::new(secret, Random::from_os())));
    }
    if !config::is_loopback(&config.raft_addr) && !config.insecure_raft {
        return Err(Failed::new(
            exit::USAGE,
            format!(
                "raft-addr {} can be reached from elsewhere, and there is no cluster secret",
                config.raft_addr
            ),
        )
        .with_hint(Some(
            "--cluster-secret-file FILE, or --insecure-raft where only members reach the port",
        )));
    }
    Ok(Arc::new(NoAuth))
}

pub(crate) fn data_dir_failed(error: DataDirError) -> Failed {
    let hint = match &error {
        DataDirError::HalfRebuilt(_) => Some(
            "give `kvd recover` again; what `kvd snapshot restore` began is removed, and restored \
             anew"
                .to_owned(),
        ),
        DataDirError::HalfMigrated(_) => {
            Some("give `kvd backend migrate` again, or remove it".to_owned())
        }
        DataDirError::Backend { found, .. } => Some(format!(
            "--backend {found}, another directory, or `kvd backend migrate`, which copies a \
             stopped node to another engine"
        )),
        DataDirError::Locked(_)
        | DataDirError::Io { .. }
        | DataDirError::Foreign { .. }
        | DataDirError::Absent(_) => None,
    };
    Failed::new(exit::of_data_dir(&error), error).with_hint(hint.as_deref())
}

fn start_failed(error: StartError) -> Failed {
    match error {
        StartError::DataDir(error) => data_dir_failed(error),
        error => Failed::new(exit::of_start(&error), error),
    }
}

/// Each client is a file to the operating system, whose usual limit is lower than ours.
fn raise_file_limit(maxclients: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Beside clients: peers, the log's chunks, the engine's files.
    const OTHER_FILES: u64 = 1024;
    let wanted = maxclients as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let enough = |current: Option<u64>| current.is_none_or(|current| current >= wanted);
    if enough(limit.current) {
        return;
    }
    let raised = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    let set = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        },
    );
    if set.is_err() || raised < wanted {
        tracing::warn!(
            files = if set.is_err() {
                limit.current
            } else {
                Some(raised)
            },
            wanted,
            "the limit on open files is too low for maxclients"
        );
    }
}

fn start_logging(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    use std::io::IsTerminal as _;
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let libraries = match level {
        tracing::Level::DEBUG | tracing::Level::TRACE => LevelFilter::from_level(level),
        _ => LevelFilter::OFF,
    };
    let targets = tracing_subscriber::filter::Targets::new()
        .with_default(level)
        // Raft's own lines are for those who debug Raft; kvd says what an operator acts on.
        .with_target("openraft", level.min(tracing::Level::ERROR))
        // What these find comes back as a result, of which kvd says one line.
        .with_target("raft_log", libraries)
        .with_target("chunked_wal", libraries);
    tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_target(false)
                .with_ansi(io::stderr().is_terminal()),
        )
        .with(targets)
        .init();
}

/// A panic in any thread or task of kvd's own ends the process: a server whose Raft task has died
/// must not look alive.
fn end_on_panic() {
    static ONCE: AtomicBool = AtomicBool::new(false);
    std::panic::set_hook(Box::new(|info| {
        if kvd::command::panic_is_contained() {
            return;
        }
        if !ONCE.swap(true, Ordering::SeqCst) {
            eprintln!("kvd: a bug: {info}");
            std::process::exit(exit::PANIC);
        }
    }));
}
