//! Crashes of real processes: what was acknowledged is there afterwards, on every node.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, cluster, leader, level_digests, until};

/// Rounds of each kind of crash: a few here, many on demand (`KVD_ROUNDS=20`).
fn rounds() -> usize {
    std::env::var("KVD_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(2)
}

/// Writers in this many threads.
const WRITERS: u64 = 4;

/// The writes of one test: each key is written once, so its value is known.
#[derive(Default)]
struct Writes {
    acknowledged: Mutex<BTreeMap<String, String>>,
    next: AtomicU64,
}

impl Writes {
    /// Writes through `addrs` in turn until `stop`.
    fn run(&self, addrs: &[String], stop: &AtomicBool) {
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || self.write(writer, addrs, stop));
            }
        });
    }

    fn write(&self, writer: u64, addrs: &[String], stop: &AtomicBool) {
        let mut turn = writer as usize;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let Ok(mut client) = Client::connect(&addrs[turn % addrs.len()]) else {
                std::thread::yield_now();
                continue;
            };
            while !stop.load(Ordering::Relaxed) {
                let n = self.next.fetch_add(1, Ordering::Relaxed);
                let (key, value) = (format!("key:{n}"), format!("value:{n}:{writer}"));
                match client.try_call(&["SET", &key, &value]) {
                    Ok(Reply::Ok) => {
                        self.acknowledged.lock().unwrap().insert(key, value);
                    }
                    // An error or a lost connection: nobody was promised anything.
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Every acknowledged write is there, on this node.
    fn check(&self, node: &Node) {
        let mut client = node.client();
        for (key, value) in &*self.acknowledged.lock().unwrap() {
            let found = client.call(&["GET", key]);
            assert_eq!(
                found,
                Reply::bulk(value.clone()),
                "{key} on {}",
                node.dir.display()
            );
        }
    }
}

/// Ends the writers also when a check fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs writers, lets `crash` happen in the middle of them, and checks everything afterwards.
fn survive(nodes: &mut [Node], writes: &Writes, crash: impl FnOnce(&mut [Node])) {
    let addrs: Vec<String> = nodes.iter().map(Node::addr).collect();
    let stop = AtomicBool::new(false);
    let before = writes.count();
    std::thread::scope(|scope| {
        scope.spawn(|| writes.run(&addrs, &stop));
        let _stop = StopAtEnd(&stop);
        until("some writes are acknowledged", || {
            writes.count() >= before + 100
        });
        crash(nodes);
        let after = writes.count();
        until("writes go on", || writes.count() >= after + 50);
    });
    for node in &*nodes {
        writes.check(node);
    }
    let digests = level_digests(nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

fn kill_the_leader(nodes: &mut [Node]) {
    let first = leader(nodes);
    nodes[first].kill();
    leader(nodes);
    nodes[first].start();
}

fn kill_all(nodes: &mut [Node]) {
    for node in nodes.iter_mut() {
        node.kill();
    }
    for node in nodes.iter_mut() {
        node.spawn();
    }
    for node in nodes.iter() {
        until("the node answers again", || {
            node.info("raft_role").is_some()
        });
    }
    leader(nodes);
}

fn crash_three(root: &Path, backends: &[&str]) {
    let mut nodes = cluster(root, backends);
    let writes = Writes::default();
    for _ in 0..rounds() {
        survive(&mut nodes, &writes, kill_the_leader);
        survive(&mut nodes, &writes, kill_all);
    }
}

#[test]
fn acknowledged_writes_survive_crashes_on_redb() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    crash_three(temp.path(), &["redb", "redb", "redb"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_sled() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    crash_three(temp.path(), &["sled", "sled", "sled"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_a_volatile_engine() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    crash_three(temp.path(), &["memory", "memory", "memory"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_mixed_engines() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    crash_three(temp.path(), &["redb", "sled", "memory"]);
}
