//! Real processes to which everything happens that may, while clients work, and whose histories are
//! then judged. Seconds here, minutes and hours on demand:
//!
//! ```text
//! KVD_CHAOS_SECONDS=600 cargo test -p kvd-tests --test main -- --nocapture --test-threads 1 chaos
//! ```

mod clients;
mod cluster;
mod faults;
mod report;

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvd::outcome::Fate;
use kvd::resp::Reply;
use kvd_tests::history::{self, Op, Record, keys};
use kvd_tests::{Node, alone, leader, level_digests, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use self::clients::{Shared, Worker};
use self::cluster::Cluster;
use self::faults::FAULTS;
use self::report::Report;

const CLIENTS: usize = 5;

/// The members' engines, stretch by stretch.
const ENGINES: [&str; 4] = [
    "redb,redb,redb",
    "redb,sled,memory",
    "sled,sled,sled",
    "redb,sled,memory,redb,sled",
];

/// Long histories take long to judge, and say no more.
const STRETCH_SECONDS_MAX: u64 = 30;

fn number(name: &str, unless_told: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(unless_told, |told| told.parse().expect("a number"))
}

/// Which faults are in this run.
fn faults() -> Vec<&'static str> {
    let Ok(told) = std::env::var("KVD_CHAOS_FAULTS") else {
        return FAULTS.to_vec();
    };
    let known = |name: &str| FAULTS.iter().copied().find(|known| *known == name);
    told.split(',')
        .map(|name| known(name).unwrap_or_else(|| panic!("no fault '{name}' among {FAULTS:?}")))
        .collect()
}

/// One stretch: faults for some seconds, then everything mends, and all is judged.
fn stretch(
    engines: &str,
    faults: &[&'static str],
    seconds: u64,
    seed: u64,
    report: &Mutex<Report>,
) {
    let temp = tempfile::tempdir().unwrap();
    let engines: Vec<&str> = engines.split(',').collect();
    let mut cluster = Cluster::start(temp.path(), &engines);
    let terms_before = cluster.nodes[0].info_number("raft_term");
    let shared = Shared::new(cluster.nodes.iter().map(Node::addr).collect(), report);
    let mut workers: Vec<Worker<'_>> = (0..CLIENTS)
        .map(|id| Worker::new(&shared, id, seed * CLIENTS as u64 + id as u64))
        .collect();
    let mut random = StdRng::seed_from_u64(seed);
    report.lock().unwrap().begins();
    std::thread::scope(|scope| {
        // Also where a fault shows a violation: nobody goes on then.
        struct Stop<'a>(&'a Shared<'a>);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&shared);
        for worker in &mut workers {
            scope.spawn(|| worker.run());
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(200 + random.next_u64() % 1500));
            if random.next_u64().is_multiple_of(4) {
                cluster.mend();
                continue;
            }
            let name = faults[random.next_u64() as usize % faults.len()];
            if cluster.fault(name, &mut random) {
                report.lock().unwrap().fault(name);
            }
        }
        cluster.mend();
    });
    until("it heals", || {
        cluster.nodes.iter().all(|node| {
            node.info("raft_leader")
                .is_some_and(|leader| !leader.is_empty())
        })
    });
    for (n, worker) in workers.iter_mut().enumerate() {
        worker.settle(&mut cluster.nodes[n % engines.len()].client());
    }
    let digests = level_digests(&cluster.nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    let terms = cluster.nodes[0].info_number("raft_term") - terms_before;
    let mut record = std::mem::take(&mut *shared.record.lock().unwrap());
    read_all(&cluster, &mut record);
    record.check().unwrap_or_else(|error| panic!("{error}"));
    cluster.verify();
    let mut report = report.lock().unwrap();
    report.elections += terms;
    report.stretches += 1;
}

/// Every member is asked for every key.
fn read_all(cluster: &Cluster, record: &mut Record) {
    for node in &cluster.nodes {
        let mut client = node.client();
        for key in keys() {
            let began = record.begin();
            let reply = client.call(&["GET", key]);
            let fate = history::fate(Some(&reply));
            record.end(key, Op::Get, began, Some(&reply), fate);
        }
    }
}

#[test]
fn histories_of_real_processes_under_faults_are_linearizable() {
    let _alone = alone();
    let (seconds, seed) = (number("KVD_CHAOS_SECONDS", 24), number("KVD_SEED", 1));
    let (told, faults) = (std::env::var("KVD_CHAOS_ENGINES").ok(), faults());
    let engines = told.as_deref().map_or(ENGINES.to_vec(), |told| vec![told]);
    let each = seconds
        .div_ceil(engines.len() as u64)
        .min(STRETCH_SECONDS_MAX);
    let report = Mutex::new(Report::new());
    let mut left = seconds;
    for n in 0.. {
        let engines = engines[n as usize % engines.len()];
        let seed = seed + n;
        // The one that fails runs again by itself with this.
        println!("KVD_SEED={seed} KVD_CHAOS_ENGINES={engines} KVD_CHAOS_SECONDS={each}");
        stretch(engines, &faults, each, seed, &report);
        left = left.saturating_sub(each);
        if left == 0 {
            break;
        }
    }
    let report = report.into_inner().unwrap();
    println!("{report}found: nothing");
    if seconds >= 20 * faults.len() as u64 {
        let never: Vec<&&str> = faults
            .iter()
            .filter(|name| report.count(name) == 0)
            .collect();
        println!("never injected: {never:?}");
    }
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
