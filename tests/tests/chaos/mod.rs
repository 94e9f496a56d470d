//! Real processes to which everything happens that may, while clients work, and whose histories are
//! then judged. Some seconds in which each kind of fault has its turn here, minutes and hours on
//! demand:
//!
//! ```text
//! KVD_CHAOS_SECONDS=600 cargo test -p kvd-tests --test main -- --nocapture --test-threads 1 chaos::histories
//! ```

mod clients;
mod cluster;
mod disks;
mod faults;
mod membership;
mod plants;
mod report;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvd::outcome::Fate;
use kvd::resp::Reply;
use kvd_tests::history::{self, Op, Record, keys};
use kvd_tests::{Node, alone, leader, level_digests, repository, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use self::clients::{Shared, Worker};
use self::cluster::Cluster;
use self::disks::Mount;
use self::faults::{Deck, FAULTS};
use self::report::Report;

const CLIENTS: u64 = 5;

/// The members' engines, stretch by stretch.
const ENGINES: [&str; 5] = [
    "redb,sled,fjall",
    "redb,redb,redb",
    "fjall,fjall,memory",
    "sled,sled,sled",
    EACH_ENGINE,
];

/// Five members, for some shapes of partition need them, with engines of all kinds.
const EACH_ENGINE: &str = "redb,sled,fjall,memory,fjall";

/// Long histories take long to judge, and say no more.
const STRETCH_SECONDS_MAX: u64 = 45;

/// Where each kind of fault has one turn, what could not be done by then is an error.
const TURNS_SECONDS_MAX: u64 = 60;

fn number(name: &str) -> Option<u64> {
    let told = std::env::var(name).ok();
    told.map(|told| told.parse().expect("a number"))
}

/// Which faults are in this run.
fn faults() -> Vec<&'static str> {
    let Ok(told) = std::env::var("KVD_CHAOS_FAULTS") else {
        let mut all = FAULTS.to_vec();
        // A node needs a disk of its own for it.
        if !Mount::is_possible() {
            println!("no disk can be full: this user may not mount any");
            all.retain(|name| *name != "disk-full");
        }
        return all;
    };
    let known = |name: &str| FAULTS.iter().copied().find(|known| *known == name);
    told.split(',')
        .map(|name| known(name).unwrap_or_else(|| panic!("no fault '{name}' among {FAULTS:?}")))
        .collect()
}

/// One stretch: faults for some seconds, then everything mends, and all is judged.
struct Stretch<'a> {
    engines: &'a str,
    faults: &'a [&'static str],
    /// For so long; without it until each kind of fault has had its turn.
    seconds: Option<u64>,
    seed: u64,
    report: &'a Mutex<Report>,
}

impl Stretch<'_> {
    /// The one that fails runs again by itself with this.
    fn command(&self) -> String {
        let (seed, engines) = (self.seed, self.engines);
        let seconds = self
            .seconds
            .map(|seconds| format!(" KVD_CHAOS_SECONDS={seconds}"));
        let mut told = format!("KVD_SEED={seed} KVD_CHAOS_ENGINES={engines}");
        told += &seconds.unwrap_or_default();
        if self.faults.len() < FAULTS.len() {
            told += &format!(" KVD_CHAOS_FAULTS={}", self.faults.join(","));
        }
        told
    }

    /// Runs it; what is found is in the report. Whether nothing was.
    fn run(&self) -> bool {
        println!("{}", self.command());
        let temp = tempfile::tempdir().unwrap();
        let engines: Vec<&str> = self.engines.split(',').collect();
        let mut cluster = Cluster::start(temp.path(), &engines, self.report);
        let addrs = cluster.nodes.iter().map(Node::addr).collect();
        let shared = Shared::new(addrs, self.report);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let workers = self.disturb(&mut cluster, &shared);
            self.judge(&mut cluster, &shared, workers);
        }));
        cluster.read_logs();
        let Err(panic) = done else {
            return true;
        };
        let evidence = format!("chaos-{}", self.seed);
        let evidence = Path::new(env!("CARGO_TARGET_TMPDIR")).join(evidence);
        cluster.keep_evidence(&evidence);
        let history = shared.record.lock().unwrap().lines();
        std::fs::write(evidence.join("history"), history).unwrap();
        let mut report = self.report.lock().unwrap();
        report.found(format!("{}\n{}", self.command(), text(&*panic)));
        false
    }

    /// Clients work, and things go wrong.
    fn disturb<'a>(&self, cluster: &mut Cluster<'_>, shared: &'a Shared<'a>) -> Vec<Worker<'a>> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut deck = Deck::new(self.faults, &mut random);
        let began = Instant::now();
        let workers = work(shared, self.seed, || {
            let (limit, pause_ms_max) = match self.seconds {
                Some(seconds) => (seconds, 1300),
                None => (TURNS_SECONDS_MAX, 400),
            };
            while began.elapsed() < Duration::from_secs(limit) {
                let pause_ms = 100 + random.next_u64() % pause_ms_max;
                std::thread::park_timeout(Duration::from_millis(pause_ms));
                cluster.supervise(&mut random);
                cluster.administer(&mut random);
                if random.next_u64().is_multiple_of(4) {
                    cluster.mend();
                    continue;
                }
                let name = match (deck.deal(), self.seconds) {
                    (Some(name), _) => name,
                    (None, Some(_)) => deck.again(&mut random),
                    (None, None) => break,
                };
                let injected = cluster.fault(name, &mut random);
                self.report.lock().unwrap().fault(name, injected);
                if !injected && self.seconds.is_none() {
                    deck.put_back(name);
                }
            }
            cluster.settle();
        });
        let mut report = self.report.lock().unwrap();
        report.stretch(self.engines, began.elapsed().as_secs());
        drop(report);
        workers
    }

    /// Nothing that was promised is broken.
    fn judge(&self, cluster: &mut Cluster<'_>, shared: &Shared<'_>, workers: Vec<Worker<'_>>) {
        let count = cluster.nodes.len();
        for (n, mut worker) in workers.into_iter().enumerate() {
            let settled = worker.settle(&mut cluster.nodes[n % count].client());
            settled.unwrap_or_else(|error| panic!("{error}"));
        }
        let digests = level_digests(&cluster.nodes);
        let equal = digests.iter().all(|digest| *digest == digests[0]);
        assert!(equal, "{digests:?}");
        cluster.compare();
        let term = cluster.nodes[0].info_number("raft_term");
        cluster.report.lock().unwrap().happened("terms", term);
        let mut record = shared.record.lock().unwrap();
        read_all(cluster, &mut record);
        let checked = record.check();
        // Whoever fails keeps the history.
        drop(record);
        checked.unwrap_or_else(|error| panic!("{error}"));
        cluster.verify();
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

/// Clients work while `meanwhile` runs.
fn work<'a>(shared: &'a Shared<'a>, seed: u64, meanwhile: impl FnOnce()) -> Vec<Worker<'a>> {
    let workers = (0..CLIENTS).map(|id| Worker::new(shared, id as usize, seed * CLIENTS + id));
    let mut workers: Vec<Worker<'_>> = workers.collect();
    shared.report.lock().unwrap().begins();
    std::thread::scope(|scope| {
        // Also where something is found: nobody goes on then.
        struct Stop<'a>(&'a Shared<'a>);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(shared);
        for worker in &mut workers {
            scope.spawn(|| worker.run());
        }
        meanwhile();
    });
    shared.stop.store(false, Ordering::Relaxed);
    workers
}

/// Every member is asked for every key.
fn read_all(cluster: &Cluster<'_>, record: &mut Record) {
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

/// The commit that is tested.
fn version() -> String {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(repository())
        .output();
    let described = described.ok().filter(|output| output.status.success());
    described.map_or("unknown".to_owned(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

#[test]
fn histories_of_real_processes_under_faults_are_linearizable() {
    let _alone = alone();
    let (seconds, seed) = (number("KVD_CHAOS_SECONDS"), number("KVD_SEED").unwrap_or(1));
    let (told, faults) = (std::env::var("KVD_CHAOS_ENGINES").ok(), faults());
    let engines: Vec<&str> = match (&told, seconds) {
        (Some(told), _) => told.split(';').collect(),
        (None, Some(_)) => ENGINES.to_vec(),
        (None, None) => vec![EACH_ENGINE],
    };
    let report = Mutex::new(Report::new());
    {
        let mut report = report.lock().unwrap();
        report.run.insert("version", version());
        report.run.insert("seed", seed.to_string());
        let unix_s = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        report.run.insert("began (Unix time)", unix_s.to_string());
    }
    let mut left = seconds;
    for n in 0.. {
        let stretch = Stretch {
            engines: engines[n as usize % engines.len()],
            faults: &faults,
            seconds: left.map(|left| left.min(STRETCH_SECONDS_MAX)),
            seed: seed + n,
            report: &report,
        };
        let well = stretch.run();
        left = left.map(|left| left.saturating_sub(STRETCH_SECONDS_MAX));
        if !well || left.is_none_or(|left| left == 0) {
            break;
        }
    }
    let report = report.into_inner().unwrap();
    println!("{report}");
    let file = std::env::var_os("KVD_CHAOS_REPORT").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos.json"),
        |file| repository().join(file),
    );
    std::fs::write(&file, format!("{:#}\n", report.json())).unwrap();
    println!("the same as JSON: {}", file.display());
    assert!(report.is_clean(), "a promise was broken");
    let never: Vec<&&str> = { faults.iter() }
        .filter(|name| report.injected(name) == 0)
        .collect();
    assert!(
        seconds.is_some() || never.is_empty(),
        "never injected: {never:?}"
    );
}

/// The origin of a forwarded write finds out from its own log what became of it; but what came to it
/// in a snapshot it has not seen.
#[test]
fn a_forwarded_write_that_a_snapshot_hides_is_unknown_and_not_done_twice() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let report = Mutex::new(Report::new());
    let cluster = Cluster::start(temp.path(), &["redb", "redb", "redb"], &report);
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
