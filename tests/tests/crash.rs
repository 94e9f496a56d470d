//! Crashes of real processes: what was acknowledged is there afterwards, on every node.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvd::outcome::{self, Fate};
use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, cluster, join, leader, level_digests, until};

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
pub(crate) struct Writes {
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// Those whose error said that they did not happen.
    refused: Mutex<Vec<String>>,
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
                    // Unless an error says that it did not happen, nobody was promised anything.
                    Ok(reply) => match outcome::fate(&reply) {
                        Some(Fate::NotDone | Fate::Refused) => {
                            self.refused.lock().unwrap().push(key);
                        }
                        Some(Fate::Unknown) => {}
                        None => panic!("SET was answered {reply:?}"),
                    },
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
        let acknowledged: Vec<(String, String)> = {
            let acknowledged = self.acknowledged.lock().unwrap();
            let pair = |(key, value): (&String, &String)| (key.clone(), value.clone());
            acknowledged.iter().map(pair).collect()
        };
        for some in acknowledged.chunks(500) {
            let keys = some.iter().map(|(key, _)| key.as_str());
            let command: Vec<&str> = std::iter::once("MGET").chain(keys).collect();
            let Reply::Array(found) = client.call(&command) else {
                panic!("MGET answers an array");
            };
            assert_eq!(found.len(), some.len());
            for ((key, value), found) in some.iter().zip(found) {
                let expected = Reply::bulk(value.clone());
                assert_eq!(found, expected, "{key} on {}", node.dir.display());
            }
        }
        for key in &*self.refused.lock().unwrap() {
            let found = client.call(&["GET", key]);
            assert_eq!(found, Reply::Null, "{key}, which did not happen");
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
pub(crate) fn survive(nodes: &mut [Node], writes: &Writes, crash: impl FnOnce(&mut [Node])) {
    let addrs: Vec<String> = nodes.iter().map(Node::addr).collect();
    let stop = AtomicBool::new(false);
    let before = writes.count();
    std::thread::scope(|scope| {
        scope.spawn(|| writes.run(&addrs, &stop));
        let _stop = StopAtEnd(&stop);
        until("some writes are acknowledged", || {
            writes.count() >= before + 500
        });
        crash(nodes);
        let after = writes.count();
        until("writes go on", || writes.count() >= after + 200);
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

fn kill_the_only_node(nodes: &mut [Node]) {
    nodes[0].kill();
    nodes[0].start();
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

fn crash_one(backend: &str) {
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &[backend]);
    let writes = Writes::default();
    for _ in 0..rounds() {
        survive(&mut nodes, &writes, kill_the_only_node);
    }
    report(&format!("the only node, {backend}"), &writes);
}

fn crash_three(backends: &[&str]) {
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), backends);
    let writes = Writes::default();
    for _ in 0..rounds() {
        survive(&mut nodes, &writes, kill_the_leader);
        survive(&mut nodes, &writes, kill_all);
    }
    report(
        &format!("the leader and all three, {}", backends.join(" ")),
        &writes,
    );
}

fn report(what: &str, writes: &Writes) {
    eprintln!(
        "{} rounds, {what}: {} acknowledged writes, none lost",
        rounds(),
        writes.count()
    );
}

#[test]
fn acknowledged_writes_survive_crashes_on_redb() {
    let _alone = alone();
    crash_one("redb");
    crash_three(&["redb", "redb", "redb"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_sled() {
    let _alone = alone();
    crash_one("sled");
    crash_three(&["sled", "sled", "sled"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_fjall() {
    let _alone = alone();
    crash_one("fjall");
    crash_three(&["fjall", "fjall", "fjall"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_a_volatile_engine() {
    let _alone = alone();
    crash_one("memory");
    crash_three(&["memory", "memory", "memory"]);
}

#[test]
fn acknowledged_writes_survive_crashes_on_mixed_engines() {
    let _alone = alone();
    crash_three(&["redb", "sled", "memory"]);
    crash_three(&["redb", "sled", "fjall"]);
}

#[test]
fn an_error_that_says_it_did_not_happen_never_hides_a_write() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = (0..3)
        .map(|n| Node::new(temp.path(), &format!("node{n}"), "redb").with(&["--hold", "50"]))
        .collect();
    join(&mut nodes);
    let writes = Writes::default();
    let refusals = || writes.refused.lock().unwrap().len();
    for _ in 0..rounds() {
        survive(&mut nodes, &writes, |nodes| {
            let first = leader(nodes);
            let second = (first + 1) % 3;
            let before = refusals();
            // Of three only one is left, which has writers of its own and nobody to elect.
            nodes[first].pause();
            nodes[second].pause();
            until("writes are refused while nobody leads", || {
                refusals() > before
            });
            nodes[second].resume();
            until("another one leads", || {
                let mut others = [second, (first + 2) % 3].into_iter();
                others.any(|n| nodes[n].info("raft_role").as_deref() == Some("leader"))
            });
            nodes[first].resume();
            let to = format!("node{first}");
            until("leadership moves back", || {
                nodes[second].client().call(&["RAFT.TRANSFER_LEADER", &to]) == Reply::Ok
            });
            nodes[first].kill();
            nodes[first].start();
        });
    }
    report("refused writes did not happen", &writes);
    println!("refused: {}", refusals());
}
