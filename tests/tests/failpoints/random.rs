//! Any member ends at any point, time and again, while clients write. A few rounds here, many on
//! demand:
//!
//! ```text
//! KVD_ROUNDS=500 KVD_SEED=7 cargo test -p kvd-tests --test main -- --nocapture failpoints::random
//! ```

use std::time::{Duration, Instant};

use kvd_tests::{Client, Node, alone, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Cluster, Point, arm, birth, end_of, snapshots, writing};

/// What members come to that nobody takes in or out.
const TABLES: &[&[Point]] = &[
    birth::BEING_BORN,
    writing::FOLLOWING,
    writing::STORING,
    writing::SYNCING,
    writing::VOTING,
    snapshots::CUTTING,
    snapshots::KEEPING,
    snapshots::SENDING,
    snapshots::RECEIVING,
    snapshots::STARTING,
    snapshots::INSTALLING,
];

fn number(name: &str, unless_told: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(unless_told, |told| told.parse().expect("a number"))
}

/// How long members have to come to their points; many are for nodes in other states of life.
const PATIENCE: Duration = Duration::from_secs(1);

impl Cluster {
    /// Writes a little by way of each member that is there.
    fn write_all_round(&mut self, bulk: &str) {
        for node in &self.nodes {
            let Ok(mut client) = Client::connect(&node.addr()) else {
                continue;
            };
            client.set_patience(PATIENCE);
            for _ in 0..10 {
                if !self.writes.one(&mut client, bulk) {
                    break;
                }
            }
        }
    }
}

#[test]
fn members_end_at_random_points_while_clients_write() {
    let _alone = alone();
    let (seed, rounds) = (number("KVD_SEED", 1), number("KVD_ROUNDS", 10));
    eprintln!("KVD_SEED={seed} KVD_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut below = |end: usize| random.next_u64() as usize % end;
    let temp = tempfile::tempdir().unwrap();
    let node = |(n, backend)| {
        Node::new(temp.path(), &format!("node{n}"), backend).with(&["--max-log-bytes", "65536"])
    };
    let backends = ["redb", "sled", "memory"];
    let mut cluster = Cluster::over(backends.into_iter().enumerate().map(node).collect());
    let points: Vec<Point> = TABLES.iter().copied().flatten().copied().collect();
    let mut ended = Vec::new();
    for _ in 0..rounds {
        // One, or two that are a majority.
        let first = below(3);
        let members = [first, (first + 1) % 3];
        let members = &members[..1 + below(3) / 2];
        let bulk = "x".repeat(below(8000));
        for n in members {
            cluster.nodes[*n].kill();
        }
        if members.len() == 1 {
            // So much that it may find the log cut.
            for _ in 0..below(4) {
                cluster.write_all_round(&bulk);
            }
        }
        for n in members {
            let (name, _) = points[below(points.len())];
            let point = (name, below(4) * below(4));
            arm(&mut cluster.nodes[*n], point);
            cluster.nodes[*n].spawn();
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE
            && members.iter().any(|n| cluster.nodes[*n].exited().is_none())
        {
            cluster.write_all_round(&bulk);
        }
        for n in members {
            let node = &mut cluster.nodes[*n];
            ended.extend(end_of(node).map(|at| format!("{n}:{at}")));
            node.kill();
            node.set_env("FAILPOINTS", None);
            node.spawn();
        }
        let before = cluster.writes.acknowledged.len();
        let addr = cluster.nodes[first].addr();
        until("writes go on", || {
            cluster.writes.some(&addr);
            cluster.writes.acknowledged.len() > before
        });
        cluster.check(&format!("KVD_SEED={seed}: {ended:?}"));
    }
    eprintln!("{} ends: {}", ended.len(), ended.join(" "));
    assert!(!ended.is_empty());
}
