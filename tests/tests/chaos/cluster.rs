//! Members that reach each other through proxies, and whose disks and clocks can be made to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::proxy::{Id, Wires};
use kvd_tests::{Client, Node, free_bytes, until};

use crate::power::Disk;
use crate::preload::preload;

/// What may be wrong with a member.
#[derive(Default)]
pub(super) struct State {
    id: Arc<Mutex<Id>>,
    /// Where others reach it: its proxy.
    addr: String,
    paused: bool,
    /// Its disk fails or is full, so it may end by itself.
    fallible: bool,
    /// It was told to leave, and its successor is to be taken in.
    leaving: bool,
    /// Takes the room on its disk away while it is there.
    filler: Option<PathBuf>,
}

/// The room on a member's disk, where it has one of its own.
const DISK_BYTES: u64 = 256 << 20;

/// Below so much, commands that grow the data are refused.
const FLOOR_BYTES: u64 = 32 << 20;

/// How long an administrator waits for an answer before the next thing goes wrong.
const SHORTLY: Duration = Duration::from_secs(1);

pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) wires: Arc<Wires>,
    states: Vec<State>,
    mounts: Vec<Mount>,
}

impl Cluster {
    pub(super) fn start(root: &Path, backends: &[&str]) -> Self {
        // The notes of syncs have the kernel's names of files.
        let root = root.canonicalize().unwrap();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            wires: Arc::default(),
            states: Vec::new(),
            mounts: Vec::new(),
        };
        let shims = ["fail_io", "lose_unsynced", "clock"].map(preload);
        let shims = shims
            .map(|shim| shim.to_str().unwrap().to_owned())
            .join(":");
        for (n, backend) in backends.iter().enumerate() {
            let disk = root.join(format!("disk{n}"));
            fs::create_dir(&disk).unwrap();
            cluster.mounts.extend(Mount::over(&disk));
            let node = Node::new(&disk, &format!("node{n}"), backend);
            let id = Arc::<Mutex<Id>>::default();
            let proxy = cluster.wires.proxy(node.raft_port, id.clone()).unwrap();
            let addr = format!("127.0.0.1:{proxy}");
            let floor = FLOOR_BYTES.to_string();
            // Small logs, so that members catch up by snapshots as well.
            let flags = ["--announce-raft-addr", &addr, "--max-log-bytes", "100000"];
            let mut node = node
                .with(&flags)
                .with(&["--hold", "2000", "--min-free-bytes", &floor])
                .log_in(&root);
            let beside = |what: &str| root.join(format!("node{n}.{what}"));
            let (armed, notes, clock) = (beside("fails"), beside("notes"), beside("clock"));
            let dir = node.dir.clone();
            node.set_env("LD_PRELOAD", Some(&shims));
            node.set_env("KVD_FAIL_DIR", dir.to_str());
            node.set_env("KVD_FAIL_ARMED", armed.to_str());
            node.set_env("KVD_POWER_DIR", dir.to_str());
            node.set_env("KVD_POWER_NOTES", notes.to_str());
            node.set_env("KVD_CLOCK", clock.to_str());
            node.start();
            cluster.nodes.push(node);
            cluster.states.push(State {
                id,
                addr,
                ..State::default()
            });
            cluster.learn_id(n);
        }
        for n in 1..cluster.nodes.len() {
            cluster.join(n);
        }
        cluster
    }

    pub(super) fn id(&self, n: usize) -> Id {
        *self.states[n].id.lock().unwrap()
    }

    fn learn_id(&self, n: usize) {
        let text = self.nodes[n].info("raft_node_id").unwrap();
        *self.states[n].id.lock().unwrap() = Id::from_str_radix(&text, 16).unwrap();
    }

    /// A file beside a member's directory that a preloaded library reads or writes.
    fn beside(&self, n: usize, what: &str) -> PathBuf {
        let root = self.nodes[n].dir.parent().unwrap().parent().unwrap();
        root.join(format!("node{n}.{what}"))
    }

    /// Whether it runs, and listens to what it is told.
    pub(super) fn awake(&self, n: usize) -> bool {
        self.nodes[n].pid().is_some() && !self.states[n].paused
    }

    /// A member ends by itself only where its disk gave it reason to.
    pub(super) fn look_after(&mut self) {
        for (node, state) in self.nodes.iter_mut().zip(&self.states) {
            let Some(status) = node.exited() else {
                continue;
            };
            let allowed = state.fallible && status.code() == Some(exit::IO);
            assert!(allowed, "{} ended with {status}", node.dir.display());
            node.kill();
        }
    }

    pub(super) fn kill(&mut self, n: usize) {
        self.look_after();
        self.nodes[n].kill();
        self.states[n].paused = false;
    }

    /// Its power goes, and what it had not synced with it.
    pub(super) fn lose_power(&mut self, n: usize) {
        self.kill(n);
        let dir = &self.nodes[n].dir;
        let engine = dir.join("groups/0/engine");
        Disk::read(&self.beside(n, "notes")).lose(dir, &engine);
    }

    pub(super) fn pause(&mut self, n: usize) {
        self.nodes[n].pause();
        self.states[n].paused = true;
    }

    /// Its disk fails at this, in the words of `preload/fail_io.c`.
    pub(super) fn fail_disk(&mut self, n: usize, what: &str) {
        fs::write(self.beside(n, "fails"), what).unwrap();
        self.states[n].fallible = true;
    }

    /// Its disk has room for so many bytes, and no more; whether it has a disk of its own.
    pub(super) fn fill_disk(&mut self, n: usize, left: u64) -> bool {
        if self.mounts.is_empty() {
            return false;
        }
        let disk = self.nodes[n].dir.parent().unwrap();
        let filler = disk.join("filler");
        let taken = free_bytes(disk).saturating_sub(left);
        let file = fs::File::create(&filler).unwrap();
        // The node takes room meanwhile.
        if taken > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            let _ = rustix::fs::fallocate(&file, flags, 0, taken);
        }
        self.states[n].filler = Some(filler);
        self.states[n].fallible = true;
        true
    }

    pub(super) fn set_clock(&self, n: usize, off_ms: i64) {
        // As a whole: the node may read it at any time.
        let file = self.beside(n, "clock");
        let new = file.with_extension("clock-new");
        fs::write(&new, off_ms.to_string()).unwrap();
        fs::rename(&new, &file).unwrap();
    }

    /// Asks for leadership to move; nobody may be in a state to hear it.
    pub(super) fn hand_over(&self, from: usize, to: usize) {
        let call = ["RAFT.TRANSFER_LEADER", &format!("node{to}")];
        drop(self.ask(from, &call, SHORTLY));
    }

    fn ask(&self, n: usize, call: &[&str], patience: Duration) -> Option<Reply> {
        let mut client = Client::connect(&self.nodes[n].addr()).ok()?;
        client.set_patience(patience);
        client.try_call(call).ok()
    }

    /// Asks for a member to leave, and does not wait long; when all mends, another comes in its
    /// place. One at a time does.
    pub(super) fn replace(&mut self, n: usize) -> bool {
        if self.states.iter().any(|state| state.leaving) {
            return false;
        }
        self.states[n].leaving = true;
        let by = (n + 1) % self.nodes.len();
        if self.awake(by) {
            drop(self.ask(by, &["LEAVE", &format!("node{n}")], SHORTLY));
        }
        true
    }

    /// Finishes what [`Self::replace`] began.
    fn finish_replacing(&mut self, n: usize) {
        let name = format!("node{n}");
        let by = (n + 1) % self.nodes.len();
        let mut last = None;
        until("a member leaves", || {
            last = self.ask(by, &["LEAVE", &name], kvd_tests::PATIENCE);
            match &last {
                Some(Reply::Ok) => true,
                Some(Reply::Error(text)) => text.starts_with("ERR no member is called"),
                _ => false,
            }
        });
        self.kill(n);
        fs::remove_dir_all(&self.nodes[n].dir).unwrap();
        for what in ["notes", "clock"] {
            // Without a loss of power or a clock that was set there is none.
            drop(fs::remove_file(self.beside(n, what)));
        }
        self.nodes[n].start();
        self.learn_id(n);
        self.join(n);
        self.states[n].leaving = false;
    }

    /// Takes a node in by way of another.
    fn join(&self, n: usize) {
        let by = if n == 0 { 1 } else { 0 };
        let call = ["JOIN", &format!("node{n}"), &self.states[n].addr];
        let mut reply = None;
        until("a node is taken in", || {
            reply = self.ask(by, &call, kvd_tests::PATIENCE);
            reply == Some(Reply::Ok)
        });
    }

    /// Damages a stopped member's log, which must then refuse to start, and replaces the member.
    /// All others must be there for this: they have what it loses.
    pub(super) fn damage(&mut self, n: usize, at: u64) -> bool {
        self.mend();
        kvd_tests::level_digests(&self.nodes);
        self.kill(n);
        let chunks = fs::read_dir(self.nodes[n].dir.join("groups/0/log/chunks")).unwrap();
        let chunks = chunks.map(|chunk| chunk.unwrap().path());
        let file = chunks.max_by_key(|path| fs::metadata(path).unwrap().len());
        let file = file.expect("a log has files");
        let mut bytes = fs::read(&file).unwrap();
        // Near its end, damage cannot be told from a write that was cut off.
        if bytes.len() < 4096 {
            self.mend();
            return false;
        }
        let at = (at % (bytes.len() as u64 / 2)) as usize;
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        self.nodes[n].spawn();
        until("the damage is seen", || self.nodes[n].exited().is_some());
        let code = self.nodes[n].exited().unwrap().code();
        assert_eq!(code, Some(exit::CONFIG), "byte {at} of {}", file.display());
        self.nodes[n].kill();
        self.states[n].leaving = true;
        self.finish_replacing(n);
        true
    }

    /// Everything runs and hears each other again, and whoever was leaving is replaced.
    pub(super) fn mend(&mut self) {
        self.wires.heal();
        for n in 0..self.nodes.len() {
            // What is not there does not fail.
            drop(fs::remove_file(self.beside(n, "fails")));
            if let Some(filler) = self.states[n].filler.take() {
                fs::remove_file(filler).unwrap();
            }
            if std::mem::take(&mut self.states[n].paused) {
                self.nodes[n].resume();
            }
        }
        self.look_after();
        for (node, state) in self.nodes.iter_mut().zip(&mut self.states) {
            // It may still be at its end, of what its disk did before.
            if state.fallible && node.pid().is_some() {
                let answers = |node: &Node| {
                    let client = Client::connect(&node.addr()).ok();
                    client.is_some_and(|mut client| client.try_call(&["PING"]).is_ok())
                };
                until("it answers or has ended", || {
                    node.exited().is_some() || answers(node)
                });
                if let Some(status) = node.exited() {
                    assert_eq!(status.code(), Some(exit::IO), "{}", node.dir.display());
                    node.kill();
                }
            }
            if node.pid().is_none() {
                node.start();
                state.fallible = false;
            }
        }
        for n in 0..self.nodes.len() {
            if self.states[n].leaving {
                self.finish_replacing(n);
            }
        }
    }

    /// Stops all, and has their files verified.
    pub(super) fn verify(&mut self) {
        for node in &mut self.nodes {
            assert_eq!(node.terminate(), Some(exit::OK), "{}", node.dir.display());
            let dir = node.dir.to_str().unwrap();
            for what in ["log", "data"] {
                let output = kvd_tests::kvd(&[what, "verify", dir]);
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(
                    output.status.code(),
                    Some(exit::OK),
                    "{what} verify: {said}"
                );
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Before their disks go.
        for node in &mut self.nodes {
            node.kill();
        }
    }
}

/// A small file system in memory, so that a disk can be full; where the machine allows it.
struct Mount(PathBuf);

impl Mount {
    fn over(dir: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={DISK_BYTES}"),
                "kvd-chaos",
            ])
            .arg(dir)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Mount(dir.to_owned())),
            _ => None,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The directory above it goes next, and says so if this did not work.
        drop(Command::new("umount").arg(&self.0).status());
    }
}
