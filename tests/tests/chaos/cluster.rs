//! Members that reach each other through proxies, and whose disks and clocks can be made to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::proxy::{Id, Wires};
use kvd_tests::{Client, Node, PATIENCE, until};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::disks::{Armed, FLOOR_BYTES, Mount};
use super::membership::Change;
use super::report::Report;
use crate::preload::preload;

/// What may be wrong with a member.
#[derive(Default)]
pub(super) struct State {
    id: Arc<Mutex<Id>>,
    /// Where others reach it: its proxy.
    pub(super) addr: String,
    paused: bool,
    /// Its disk failed or was full in this run of it, so it may end by itself.
    pub(super) fallible: bool,
    /// What its disk was told to do.
    pub(super) armed: Option<Armed>,
    /// Its log was damaged: it cannot start until it is replaced.
    pub(super) damaged: bool,
    /// Takes the room on its disk away while it is there.
    pub(super) filler: Option<PathBuf>,
}

/// How long an administrator waits for an answer before the next thing goes wrong.
pub(super) const SHORTLY: Duration = Duration::from_secs(1);

/// How long commands wait for a leader.
const HOLD_MS: &str = "2000";

/// Entries between two cuts of the log are few, so that members catch up by snapshots as well.
const LOG_BYTES: &str = "100000";

/// Nodes of one cluster, and all that can go wrong with them.
pub(super) struct Cluster<'a> {
    pub(super) nodes: Vec<Node>,
    pub(super) wires: Arc<Wires>,
    pub(super) states: Vec<State>,
    /// The change of the membership that is under way.
    pub(super) change: Option<Change>,
    pub(super) report: &'a Mutex<Report>,
    root: PathBuf,
    pub(super) mounts: Vec<Mount>,
}

impl<'a> Cluster<'a> {
    pub(super) fn start(root: &Path, backends: &[&str], report: &'a Mutex<Report>) -> Self {
        // What is noted of syncs has the kernel's names of files.
        let root = root.canonicalize().unwrap();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            wires: Arc::default(),
            states: Vec::new(),
            change: None,
            report,
            root,
            mounts: Vec::new(),
        };
        for (n, backend) in backends.iter().enumerate() {
            cluster.add(n, backend);
        }
        for n in 1..cluster.nodes.len() {
            cluster.join(n);
        }
        // Whoever begins anew waits to be taken in; none founds a cluster of its own.
        cluster.nodes[0].set_env("KVD_NO_BOOTSTRAP", Some("true"));
        cluster
    }

    /// Starts one more node.
    fn add(&mut self, n: usize, backend: &str) {
        let disk = self.root.join(format!("disk{n}"));
        fs::create_dir(&disk).unwrap();
        self.mounts.extend(Mount::over(&disk));
        let node = Node::new(&disk, &format!("node{n}"), backend);
        let id = Arc::<Mutex<Id>>::default();
        let proxy = self.wires.proxy(node.raft_port, id.clone()).unwrap();
        let addr = format!("127.0.0.1:{proxy}");
        let floor = FLOOR_BYTES.to_string();
        let mut node = node
            .with(&["--announce-raft-addr", &addr])
            .with(&["--hold", HOLD_MS, "--max-log-bytes", LOG_BYTES])
            .with(&["--min-free-bytes", &floor])
            .log_in(&self.root);
        let shims = ["fail_io", "lose_unsynced", "clock"].map(preload);
        let shims = shims.map(|shim| shim.to_str().unwrap().to_owned());
        let dir = node.dir.clone();
        node.set_env("LD_PRELOAD", Some(&shims.join(":")));
        node.set_env("KVD_FAIL_DIR", dir.to_str());
        node.set_env("KVD_FAIL_ARMED", self.beside(n, "fails").to_str());
        node.set_env("KVD_POWER_DIR", dir.to_str());
        node.set_env("KVD_POWER_NOTES", self.beside(n, "notes").to_str());
        node.set_env("KVD_CLOCK", self.beside(n, "clock").to_str());
        if n > 0 {
            node.set_env("KVD_NO_BOOTSTRAP", Some("true"));
        }
        node.start();
        self.nodes.push(node);
        self.states.push(State {
            id,
            addr,
            ..State::default()
        });
        self.learn_id(n);
    }

    pub(super) fn id(&self, n: usize) -> Id {
        *self.states[n].id.lock().unwrap()
    }

    /// A node that begins anew has a new identity.
    pub(super) fn learn_id(&self, n: usize) {
        let text = self.nodes[n].info("raft_node_id").unwrap();
        *self.states[n].id.lock().unwrap() = Id::from_str_radix(&text, 16).unwrap();
    }

    /// A file that belongs to a member and is not on its disk.
    pub(super) fn beside(&self, n: usize, what: &str) -> PathBuf {
        self.root.join(format!("node{n}.{what}"))
    }

    pub(super) fn happened(&self, what: &'static str) {
        self.report.lock().unwrap().happened(what, 1);
    }

    /// Whether it runs, and listens to what it is told.
    pub(super) fn awake(&self, n: usize) -> bool {
        self.nodes[n].pid().is_some() && !self.states[n].paused
    }

    /// A member ends by itself only where its disk gave it reason to, and says so.
    pub(super) fn look_after(&mut self, n: usize) {
        let Some(status) = self.nodes[n].exited() else {
            return;
        };
        let log = self.nodes[n].log();
        let last = log
            .lines()
            .rfind(|line| line.contains("ERROR") || line.starts_with("kvd: "));
        let last = last.unwrap_or_default();
        let blames_disk = ["Input/output error", "No space left on device"]
            .iter()
            .any(|error| last.contains(error));
        let allowed = self.states[n].fallible && status.code() == Some(exit::IO) && blames_disk;
        assert!(allowed, "node{n} ended with {status}: {last}");
        self.nodes[n].kill();
        self.forget_what_fired(n);
        self.happened("ended by their disk");
    }

    /// Looks after all. A supervisor starts some of those that have ended again, whatever their
    /// disk does.
    pub(super) fn supervise(&mut self, random: &mut StdRng) {
        for n in 0..self.nodes.len() {
            self.look_after(n);
            let state = &self.states[n];
            let down = self.nodes[n].pid().is_none() && !state.damaged;
            if down && random.next_u64().is_multiple_of(3) {
                self.nodes[n].spawn();
                self.happened("started again while things go wrong");
            }
        }
    }

    pub(super) fn kill(&mut self, n: usize) {
        self.look_after(n);
        self.nodes[n].kill();
        self.forget_what_fired(n);
        self.states[n].paused = false;
    }

    pub(super) fn pause(&mut self, n: usize) {
        self.nodes[n].pause();
        self.states[n].paused = true;
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
        if self.ask(from, &call, SHORTLY) == Some(Reply::Ok) {
            self.happened("leadership handed over");
        }
    }

    pub(super) fn ask(&self, n: usize, call: &[&str], patience: Duration) -> Option<Reply> {
        let mut client = Client::connect(&self.nodes[n].addr()).ok()?;
        client.set_patience(patience);
        client.try_call(call).ok()
    }

    /// Wires, disks and processes are in order again. A change of the membership goes on.
    pub(super) fn mend(&mut self) {
        self.wires.heal();
        for n in 0..self.nodes.len() {
            self.mend_disk(n);
            if std::mem::take(&mut self.states[n].paused) {
                self.nodes[n].resume();
            }
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].pid().is_some() {
                self.answers_or_ends(n);
            }
            let state = &self.states[n];
            if self.nodes[n].pid().is_none() && !state.damaged {
                self.nodes[n].start();
                self.states[n].fallible = false;
            }
        }
    }

    /// Waits until a process answers, or has ended for what its disk did before.
    fn answers_or_ends(&mut self, n: usize) {
        // A sync that failed must not be passed over.
        let must_end = self.states[n]
            .armed
            .take()
            .is_some_and(|armed| armed.has_failed);
        let what = if must_end {
            format!("node{n} has ended, since a sync failed")
        } else {
            format!("node{n} answers, or has ended")
        };
        until(&what, || {
            let answers = || {
                let client = Client::connect(&self.nodes[n].addr()).ok();
                client.is_some_and(|mut client| client.try_call(&["PING"]).is_ok())
            };
            let answers = !must_end && answers();
            answers || self.nodes[n].exited().is_some()
        });
        self.look_after(n);
    }

    /// All is in order, and every node is a member that hears its leader.
    pub(super) fn settle(&mut self) {
        for n in 0..self.nodes.len() {
            self.set_clock(n, 0);
        }
        self.mend();
        self.finish_change();
        for n in 0..self.nodes.len() {
            until("it has a leader", || {
                let leader = self.nodes[n].info("raft_leader");
                leader.is_some_and(|leader| !leader.is_empty())
            });
        }
    }

    /// The members say themselves that their contents are equal.
    pub(super) fn compare(&self) {
        let mut verdict = None;
        until("all members compare their contents", || {
            let reply = self.ask(0, &["RAFT.COMPARE"], PATIENCE);
            if let Some(Reply::Array(parts)) = &reply {
                verdict = parts.get(1).cloned();
            }
            verdict.is_some() && verdict != Some(Reply::bulk("incomplete"))
        });
        assert_eq!(verdict, Some(Reply::bulk("equal")), "the members differ");
    }

    /// Stops all, and has their files verified.
    pub(super) fn verify(&mut self) {
        for node in &mut self.nodes {
            assert_eq!(node.terminate(), Some(exit::OK), "{}", node.dir.display());
            let dir = node.dir.to_str().unwrap();
            for what in ["log", "data"] {
                let output = kvd_tests::kvd(&[what, "verify", dir]);
                let said = String::from_utf8_lossy(&output.stderr);
                let code = output.status.code();
                assert_eq!(code, Some(exit::OK), "{what} verify: {said}");
            }
        }
    }

    /// Counts what the members' own words tell.
    pub(super) fn read_logs(&self) {
        let mut report = self.report.lock().unwrap();
        for node in &self.nodes {
            for line in node.log().lines() {
                for (words, what) in [
                    ("this node leads", "leaders elected"),
                    ("a snapshot was installed", "snapshots installed"),
                    ("an unfinished write at the end", "torn tails cut off"),
                    (
                        "entries that a snapshot replaced",
                        "logs that a snapshot replaced",
                    ),
                    ("the disk is nearly full", "disks nearly full"),
                ] {
                    if line.contains(words) {
                        report.happened(what, 1);
                    }
                }
            }
        }
    }

    /// Keeps everything that is there for whoever wants to know what happened.
    pub(super) fn keep_evidence(&mut self, to: &Path) {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            if let Some(pid) = node.pid() {
                let threads = threads(pid);
                drop(fs::write(
                    self.root.join(format!("node{n}.threads")),
                    threads,
                ));
            }
            node.kill();
        }
        drop(fs::remove_dir_all(to));
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(&self.root)
            .arg(to)
            .status();
        println!("evidence in {}: {copied:?}", to.display());
    }
}

/// What the threads of a process wait for, as far as the kernel says.
fn threads(pid: u32) -> String {
    let of = |dir: &Path, what: &str| fs::read_to_string(dir.join(what)).unwrap_or_default();
    let process = PathBuf::from(format!("/proc/{pid}"));
    let status = of(&process, "status");
    let state = status.lines().find(|line| line.starts_with("State:"));
    let mut told = format!("{}\n", state.unwrap_or("gone"));
    // They end at any time.
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
    for task in tasks.flatten() {
        let files = ["comm", "wchan", "syscall"];
        let lines = files.map(|what| of(&task.path(), what).trim().to_owned());
        told += &format!("{}\n", lines.join("\t"));
    }
    told
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // Before their disks go.
        for node in &mut self.nodes {
            node.kill();
        }
    }
}
