//! Real processes that are killed, paused and cut off from each other while clients work, and
//! whose histories are then judged. Seconds here, minutes and hours on demand:
//!
//! ```text
//! KVD_CHAOS_SECONDS=600 cargo test -p kvd-tests --test main -- --nocapture --test-threads 1 chaos
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvd::outcome::Fate;
use kvd::resp::Reply;
use kvd_tests::history::{self, Op, Record, keys};
use kvd_tests::proxy::{Id, Wires};
use kvd_tests::{Client, Node, alone, leader, level_digests, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const CLIENTS: u64 = 5;

/// A client that hears nothing for so long goes to another node.
const PATIENCE: Duration = Duration::from_secs(12);

fn number(name: &str, unless_told: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(unless_told, |told| told.parse().expect("a number"))
}

/// Three members that reach each other through proxies.
struct Cluster {
    nodes: Vec<Node>,
    ids: Vec<Arc<Mutex<Id>>>,
    wires: Arc<Wires>,
    paused: Vec<bool>,
}

impl Cluster {
    fn start(root: &Path, backends: &[&str]) -> Self {
        let wires = Arc::<Wires>::default();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            ids: Vec::new(),
            wires: wires.clone(),
            paused: vec![false; backends.len()],
        };
        let mut addrs = Vec::new();
        for (n, backend) in backends.iter().enumerate() {
            let node = Node::new(root, &format!("node{n}"), backend);
            let id = Arc::<Mutex<Id>>::default();
            let proxy = wires.proxy(node.raft_port, id.clone()).unwrap();
            let addr = format!("127.0.0.1:{proxy}");
            // Small logs, so that members catch up by snapshots as well.
            let flags = ["--announce-raft-addr", &addr, "--max-log-bytes", "100000"];
            let mut node = node.with(&flags).with(&["--hold", "2000"]);
            node.start();
            let text = node.info("raft_node_id").unwrap();
            *id.lock().unwrap() = Id::from_str_radix(&text, 16).unwrap();
            cluster.nodes.push(node);
            cluster.ids.push(id);
            addrs.push(addr);
        }
        for (n, addr) in addrs.iter().enumerate().skip(1) {
            let joined = cluster.nodes[0]
                .client()
                .call(&["JOIN", &format!("node{n}"), addr]);
            assert_eq!(joined, Reply::Ok);
        }
        cluster
    }

    fn id(&self, n: usize) -> Id {
        *self.ids[n].lock().unwrap()
    }

    /// Something goes wrong; its name.
    fn fault(&mut self, random: &mut StdRng) -> &'static str {
        let below = |random: &mut StdRng, end: usize| random.next_u64() as usize % end;
        let count = self.nodes.len();
        let (n, m) = (below(random, count), below(random, count));
        match below(random, 9) {
            0 | 1 => {
                self.nodes[n].kill();
                self.paused[n] = false;
                "kill -9"
            }
            2 => {
                for n in 0..count {
                    self.nodes[n].kill();
                    self.paused[n] = false;
                }
                self.mend();
                "kill -9 of all"
            }
            3 if self.nodes[n].pid().is_some() && !self.paused[n] => {
                self.nodes[n].pause();
                self.paused[n] = true;
                "pause"
            }
            4 => {
                for other in 0..count {
                    self.wires.cut(self.id(n), self.id(other));
                    self.wires.cut(self.id(other), self.id(n));
                }
                "cut off"
            }
            5 => {
                self.wires.cut(self.id(n), self.id(m));
                "cut one way"
            }
            6 if self.nodes[n].pid().is_some() && !self.paused[n] => {
                // It may be in no state to hand anything over.
                if let Ok(mut client) = Client::connect(&self.nodes[n].addr()) {
                    client.set_patience(Duration::from_secs(1));
                    drop(client.try_call(&["RAFT.TRANSFER_LEADER", &format!("node{m}")]));
                }
                "handover"
            }
            _ => {
                self.mend();
                "mend"
            }
        }
    }

    /// Everything runs and hears each other again.
    fn mend(&mut self) {
        self.wires.heal();
        for (node, paused) in self.nodes.iter_mut().zip(&mut self.paused) {
            if std::mem::take(paused) {
                node.resume();
            }
            if node.pid().is_none() {
                node.start();
            }
        }
    }
}

/// Calls through one node after another until told to stop.
fn client(
    id: u64,
    addrs: &[String],
    record: &Mutex<Record>,
    stop: &AtomicBool,
    values: &AtomicU64,
) {
    let mut random = StdRng::seed_from_u64(id);
    while !stop.load(Ordering::Relaxed) {
        let addr = &addrs[random.next_u64() as usize % addrs.len()];
        let Ok(mut client) = Client::connect(addr) else {
            std::thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        client.set_patience(PATIENCE);
        for _ in 0..random.next_u32() % 60 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let value = values.fetch_add(1, Ordering::Relaxed).to_string();
            let (key, op) = Op::pick(random.next_u64(), value);
            let began = record.lock().unwrap().begin();
            let reply = client.try_call(&op.command(key)).ok();
            let fate = history::fate(reply.as_ref());
            let mut record = record.lock().unwrap();
            record.end(key, op, began, reply.as_ref(), fate);
            drop(record);
            if reply.is_none() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(random.next_u64() % 40));
        }
    }
}

/// One stretch: faults for some seconds, then everything mends, and all is judged.
fn stretch(backends: &[&str], seconds: u64, seed: u64, faults: &mut BTreeMap<&str, u64>) -> Record {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), backends);
    let addrs: Vec<String> = cluster.nodes.iter().map(Node::addr).collect();
    let (record, stop) = (Mutex::<Record>::default(), AtomicBool::new(false));
    let values = AtomicU64::new(0);
    let mut random = StdRng::seed_from_u64(seed);
    std::thread::scope(|scope| {
        for id in 0..CLIENTS {
            let (addrs, record, stop, values) = (&addrs, &record, &stop, &values);
            scope.spawn(move || client(seed * CLIENTS + id, addrs, record, stop, values));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(200 + random.next_u64() % 1500));
            *faults.entry(cluster.fault(&mut random)).or_default() += 1;
        }
        cluster.mend();
        stop.store(true, Ordering::Relaxed);
    });
    until("it heals", || {
        cluster.nodes.iter().all(|node| {
            node.info("raft_leader")
                .is_some_and(|leader| !leader.is_empty())
        })
    });
    let digests = level_digests(&cluster.nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    let mut record = record.into_inner().unwrap();
    for node in &cluster.nodes {
        let mut client = node.client();
        for key in keys() {
            let began = record.begin();
            let reply = client.call(&["GET", key]);
            record.end(
                key,
                Op::Get,
                began,
                Some(&reply),
                history::fate(Some(&reply)),
            );
        }
    }
    record.check().unwrap_or_else(|error| panic!("{error}"));
    record
}

#[test]
fn histories_of_real_processes_under_faults_are_linearizable() {
    let _alone = alone();
    let (seconds, seed) = (number("KVD_CHAOS_SECONDS", 24), number("KVD_SEED", 1));
    let engines = [
        ["redb", "redb", "redb"],
        ["redb", "sled", "memory"],
        ["sled", "sled", "sled"],
    ];
    // Long histories take long to judge, and say no more.
    let each = seconds.div_ceil(engines.len() as u64).min(30);
    let (mut faults, mut left) = (BTreeMap::new(), seconds);
    let (mut done, mut unknown, mut refused) = (0, 0, 0);
    for n in 0.. {
        let engines = &engines[n as usize % engines.len()];
        let record = stretch(engines, each, seed + n, &mut faults);
        let counts = record.counts();
        done += counts.0;
        unknown += counts.1;
        refused += record.refused;
        left = left.saturating_sub(each);
        if left == 0 {
            break;
        }
    }
    println!("injected: {faults:?}");
    println!("calls: {done} answered, {unknown} of unknown outcome, {refused} that did not happen");
    println!("found: nothing");
}

/// The origin of a forwarded write finds out from its own log what became of it; but what came to it
/// in a snapshot it has not seen.
#[test]
fn a_forwarded_write_that_a_snapshot_hides_is_unknown_and_not_done_twice() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(leader(&cluster.nodes), 0);
    let mut origin = cluster.nodes[2].client();
    assert_eq!(origin.call(&["SET", "counter", "0"]), Reply::Ok);
    // The leader hears the third member, which does not hear it.
    cluster.wires.cut(cluster.id(0), cluster.id(2));
    let value = "x".repeat(20_000);
    let counter = Reply::bulk("1");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| origin.call(&["INCR", "counter"]));
        let mut client = cluster.nodes[0].client();
        until("the leader has taken the write", || {
            client.call(&["GET", "counter"]) == counter
        });
        let entry = cluster.nodes[0].info_number("raft_last_log_index");
        for n in [0, 1] {
            until("the log is cut behind it", || {
                let key = format!("load:{}", n % 50);
                assert_eq!(client.call(&["SET", &key, &value]), Reply::Ok);
                cluster.nodes[n].info_number("raft_purged_index") > entry
            });
        }
        until("the answer is lost", || {
            let log = cluster.nodes[2].log();
            log.contains("kind=Request error=no sign of life")
        });
        // Another one leads, and has only a snapshot for the third.
        cluster.nodes[0].pause();
        let answer = answer.join().unwrap();
        assert_eq!(
            history::fate(Some(&answer)),
            Some(Fate::Unknown),
            "{answer:?}"
        );
    });
    cluster.nodes[0].resume();
    cluster.wires.heal();
    level_digests(&cluster.nodes);
    let mut reader = cluster.nodes[1].client();
    assert_eq!(reader.call(&["GET", "counter"]), counter);
}
