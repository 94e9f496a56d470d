//! The harness for tests of whole nodes: builds kvd and its plugins once, starts them as real
//! processes on free ports and in temporary directories, and speaks RESP to them.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes live in real time"
)]

pub mod history;
pub mod lease;
pub mod patience;
pub mod proxy;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kvd::resp::{Protocol, Reply, ReplyDecoder};

use self::patience::Patience;

/// How long anything may take that should take moments; only a hang meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lets one test of processes run at a time: they share two cores, and elections are timed.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder with the `kvd` binary and the plugins: the one that `KVD_BUILT` names, or built when
/// first asked for.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(folder) = std::env::var_os("KVD_BUILT") {
            let folder = repository().join(folder);
            assert!(
                folder.join("kvd").is_file(),
                "no kvd in {}",
                folder.display()
            );
            return folder;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(repository())
            .args([
                "build",
                "--locked",
                "-p",
                "kvd",
                "--features",
                "kvd/failpoints",
            ])
            .args(["-p", "kvd-redb", "-p", "kvd-sled"])
            .args(["-p", "kvd-fjall", "-p", "kvd-memory"])
            .args(["-p", "kvd-files"])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the build of kvd and its plugins failed");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| repository().join("target"), PathBuf::from);
        target.join("debug")
    })
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

/// A port that nobody uses and that no outgoing connection will be given: those come from a range
/// of their own, and one of them may still hold a port when a node is started again.
///
/// # Panics
///
/// None is left.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let end: u16 = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|end| *end > FIRST)
        .unwrap_or(32_768);
    let room = end - FIRST;
    // Two runs of tests at the same time begin at different places.
    let offset = (std::process::id().wrapping_mul(7919) % u32::from(room)) as u16;
    for _ in 0..room {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % room;
        let port = FIRST + ((u32::from(offset) + u32::from(n)) % u32::from(room)) as u16;
        let taken = |host: &str| {
            let bound = TcpListener::bind((host, port));
            // A machine without IPv6 has nobody who listens there.
            bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        if !taken("127.0.0.1") && !taken("::1") {
            return port;
        }
    }
    panic!("no port is free");
}

/// The room on the file system of `path`.
///
/// # Panics
///
/// There is no such path.
pub fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("the path is there");
    stat.f_bavail * stat.f_frsize
}

/// Calls `done` until it holds, or fails after [`PATIENCE`], in which time without a CPU does not
/// count.
///
/// # Panics
///
/// It did not hold in time.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    if done() {
        return;
    }
    let mut patience = Patience::new(PATIENCE);
    while !done() {
        let over = patience.is_over();
        assert!(!over, "waited in vain for {}: {what}", patience.spent());
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// One field of INFO of the node at `addr`; none where it does not answer, or has no such field.
///
/// # Panics
///
/// INFO is not answered with text.
pub fn info_of(addr: &str, field: &str) -> Option<String> {
    let mut client = Client::connect(addr).ok()?;
    let text = match client.try_call(&["INFO", "everything"]).ok()? {
        Reply::Bulk(text) | Reply::Verbatim { text, .. } => text,
        other => panic!("INFO answered {other:?}"),
    };
    let text = String::from_utf8(text.to_vec()).expect("INFO is text");
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// How to start a node; its process comes and goes, its directory and ports stay.
pub struct Node {
    /// Its data directory.
    pub dir: PathBuf,
    /// Its client port.
    pub port: u16,
    /// Its Raft port.
    pub raft_port: u16,
    backend: String,
    log: PathBuf,
    extra: Vec<String>,
    envs: Vec<(String, String)>,
    process: Option<Child>,
}

impl Node {
    /// A node with its data under `root`, not started yet.
    pub fn new(root: &Path, name: &str, backend: &str) -> Self {
        let dir = root.join(name);
        Node {
            log: dir.with_extension("log"),
            dir,
            port: free_port(),
            raft_port: free_port(),
            backend: backend.to_owned(),
            extra: Vec::new(),
            envs: Vec::new(),
            process: None,
        }
    }

    /// Adds flags.
    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.extra
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Puts what it says on its standard error into another directory.
    #[must_use]
    pub fn log_in(mut self, dir: &Path) -> Self {
        self.log = dir.join(self.log.file_name().expect("a node has a name"));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets or removes an environment variable for later starts.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.envs.retain(|(known, _)| known != name);
        if let Some(value) = value {
            self.envs.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Its later starts are in this directory, on this engine.
    pub fn change_to(&mut self, dir: PathBuf, backend: &str) {
        self.dir = dir;
        backend.clone_into(&mut self.backend);
    }

    /// Where clients reach it.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where peers reach it.
    pub fn raft_addr(&self) -> String {
        format!("127.0.0.1:{}", self.raft_port)
    }

    /// What it has written to its standard error so far, all runs together.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts the process without waiting for it to serve.
    ///
    /// # Panics
    ///
    /// It runs already, or cannot be started.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the node runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log file opens");
        let child = Command::new(built().join("kvd"))
            .args(["--addr", &self.addr(), "--raft-addr", &self.raft_addr()])
            .args(["--backend", &self.backend])
            .args(&self.extra)
            .arg(&self.dir)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("kvd starts");
        patience::started(child.id());
        self.process = Some(child);
    }

    /// Starts the process and waits until it answers PING.
    ///
    /// # Panics
    ///
    /// It does not.
    pub fn start(&mut self) {
        self.spawn();
        until("the node answers PING", || {
            if let Some(status) = self.exited() {
                panic!("the node ended with {status}: {}", self.log());
            }
            Client::connect(&self.addr())
                .and_then(|mut client| client.try_call(&["PING"]))
                .is_ok_and(|reply| reply == Reply::pong())
        });
    }

    /// How the process ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process
            .as_mut()?
            .try_wait()
            .expect("the process can be waited for")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself.
            drop(child.kill());
            child.wait().expect("the process can be waited for");
            patience::ended(child.id());
        }
    }

    /// SIGTERM, and the exit code.
    ///
    /// # Panics
    ///
    /// It does not end.
    pub fn terminate(&mut self) -> Option<i32> {
        self.process.as_ref()?;
        self.signal(rustix::process::Signal::TERM);
        until("the node ends after SIGTERM", || self.exited().is_some());
        let mut child = self.process.take()?;
        patience::ended(child.id());
        let status = child.wait().expect("the process can be waited for");
        status.code()
    }

    /// SIGSTOP: the process does nothing until [`Self::resume`].
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.process.as_ref().expect("a process that was started");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("a live process");
    }

    /// The process's number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// A connection.
    ///
    /// # Panics
    ///
    /// There is none to be had.
    pub fn client(&self) -> Client {
        Client::connect(&self.addr()).expect("the node accepts a connection")
    }

    /// One field of INFO; none while the node does not answer.
    pub fn info(&self, field: &str) -> Option<String> {
        info_of(&self.addr(), field)
    }

    /// One numeric field of INFO.
    ///
    /// # Panics
    ///
    /// The field is absent or no number.
    pub fn info_number(&self, field: &str) -> u64 {
        self.info(field)
            .unwrap_or_else(|| panic!("INFO has no {field}"))
            .parse()
            .expect("the field is a number")
    }

    /// `DEBUG DIGEST`.
    ///
    /// # Panics
    ///
    /// The answer is not a digest.
    pub fn digest(&self) -> String {
        match self.client().call(&["DEBUG", "DIGEST"]) {
            Reply::Bulk(digest) => String::from_utf8(digest.to_vec()).expect("hex digits"),
            Reply::Simple(digest) => digest.into_owned(),
            other => panic!("DEBUG DIGEST answered {other:?}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.dir.display(), self.log());
        }
        self.kill();
    }
}

/// Runs kvd until it ends by itself.
///
/// # Panics
///
/// It cannot be started.
pub fn kvd(args: &[&str]) -> Output {
    Command::new(built().join("kvd"))
        .args(args)
        .output()
        .expect("kvd starts")
}

/// A path as an argument.
///
/// # Panics
///
/// It is not UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the tests is UTF-8")
}

/// Runs kvd, which must succeed, and returns what it prints.
///
/// # Panics
///
/// It ends otherwise.
#[track_caller]
pub fn done(args: &[&str]) -> String {
    let output = kvd(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("kvd prints UTF-8")
}

/// Runs kvd, which must fail: with this exit code, and one line with `part`, perhaps with a hint.
///
/// # Panics
///
/// It ends otherwise.
#[track_caller]
pub fn refused(args: &[&str], code: i32, part: &str) {
    let output = kvd(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    let said: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("kvd: "))
        .collect();
    assert_eq!(said.len(), 1, "{args:?}: {text}");
    assert!(said[0].contains(part), "{args:?}: {text}");
    assert!(
        !text.contains("panicked") && !text.contains("backtrace"),
        "{text}"
    );
}

/// A redis-server to compare with, ended when it is dropped.
pub struct Redis {
    process: Child,
    /// Where it listens.
    pub addr: String,
}

impl Redis {
    /// Starts one with a single database, on a free port; none where it is not installed.
    ///
    /// # Panics
    ///
    /// It does not answer.
    pub fn start(dir: &Path) -> Option<Self> {
        let port = free_port();
        let started = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--databases", "1"])
            .args(["--enable-debug-command", "yes"])
            .current_dir(dir)
            .stdout(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!("redis-server is not installed: nothing to compare with");
            return None;
        };
        let addr = format!("127.0.0.1:{port}");
        let redis = Redis { process, addr };
        until("redis answers", || {
            Client::connect(&redis.addr)
                .and_then(|mut client| client.try_call(&["PING"]))
                .is_ok_and(|reply| reply == Reply::pong())
        });
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that speaks RESP.
pub struct Client {
    stream: TcpStream,
    decoder: ReplyDecoder,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client {
            stream,
            decoder: ReplyDecoder::default(),
        })
    }

    /// How long a reply may take; [`PATIENCE`] unless told.
    ///
    /// # Panics
    ///
    /// The connection is broken.
    pub fn set_patience(&mut self, patience: Duration) {
        let set = self.stream.set_read_timeout(Some(patience));
        set.expect("a timeout can be set");
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    ///
    /// The connection was closed or timed out.
    pub fn try_call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        self.send(args)?;
        self.receive()
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Panics
    ///
    /// The connection was closed or timed out.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.try_call(args).expect("the node answers")
    }

    /// Sends a command without waiting.
    ///
    /// # Errors
    ///
    /// The connection was closed.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<()> {
        self.stream.write_all(&request(args))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// The connection was closed.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A second handle on the connection, for sending while replies are read.
    ///
    /// # Panics
    ///
    /// The operating system gives none.
    pub fn split_writer(&self) -> TcpStream {
        self.stream.try_clone().expect("a socket can be shared")
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// The connection was closed or timed out, or what came is not RESP.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut chunk = [0; 64 * 1024];
        loop {
            if let Some(reply) = self.decoder.next().map_err(io::Error::other)? {
                return Ok(reply);
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.decoder.feed(&chunk[..n]),
            }
        }
    }
}

/// A command as bytes.
pub fn request<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The protocol that connections of the harness speak.
pub const PROTOCOL: Protocol = Protocol::Resp2;

/// The folder where clients of other languages are installed; installs them where they are not.
///
/// # Panics
///
/// They cannot be installed.
pub fn client_programs() -> PathBuf {
    let installed = Command::new(repository().join("tests/clients/install"))
        .stderr(Stdio::inherit())
        .output()
        .expect("bash runs");
    assert!(installed.status.success(), "the clients are installed");
    let path = String::from_utf8(installed.stdout).expect("a path");
    PathBuf::from(path.trim())
}

/// Founds a cluster of the given backends; the first node leads at first.
///
/// # Panics
///
/// A node does not start or is not taken in.
pub fn cluster(root: &Path, backends: &[&str]) -> Vec<Node> {
    let mut nodes: Vec<Node> = backends
        .iter()
        .enumerate()
        .map(|(n, backend)| Node::new(root, &format!("node{n}"), backend))
        .collect();
    join(&mut nodes);
    nodes
}

/// Starts nodes that are called `node0` and so on, and takes all into the cluster of the first.
///
/// # Panics
///
/// A node does not start or is not taken in.
pub fn join(nodes: &mut [Node]) {
    for node in &mut *nodes {
        node.start();
    }
    for (n, node) in nodes.iter().enumerate().skip(1) {
        let (name, addr) = (format!("node{n}"), node.raft_addr());
        let mut reply = Reply::Null;
        // A node that holds commands for no time may refuse while it is still finding its feet.
        until("the node is taken in", || {
            reply = nodes[0].client().call(&["JOIN", &name, &addr]);
            reply.error_prefix() != Some("CLUSTERDOWN")
        });
        assert_eq!(reply, Reply::Ok);
    }
}

/// Waits until all nodes have applied the same entry, and returns their digests.
///
/// # Panics
///
/// They do not come level.
pub fn level_digests(nodes: &[Node]) -> Vec<String> {
    let mut digests = Vec::new();
    until("all nodes are level with equal positions", || {
        let applied = |node: &Node| node.info_number("raft_applied_index");
        let before: Vec<u64> = nodes.iter().map(applied).collect();
        digests = nodes.iter().map(Node::digest).collect();
        let after: Vec<u64> = nodes.iter().map(applied).collect();
        before == after && before.iter().all(|index| *index == before[0])
    });
    digests
}

/// The node that leads, once there is one.
///
/// # Panics
///
/// There is none for long.
pub fn leader(nodes: &[Node]) -> usize {
    let mut found = None;
    until("a leader is elected", || {
        found = nodes.iter().position(|node| {
            node.pid().is_some() && node.info("raft_role").as_deref() == Some("leader")
        });
        found.is_some()
    });
    found.expect("until has found one")
}
