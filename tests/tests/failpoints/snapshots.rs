//! Members end at each step of cutting their logs, and of sending, receiving, installing and
//! keeping snapshots.

use std::path::Path;

use kvd_tests::{Client, Node, alone, until};

use super::{Cluster, Point, arm, ends_at};

/// Steps of a member that cuts its log.
pub(super) const CUTTING: &[Point] = &[
    ("snapshot_build_before", 0),
    ("snapshot_build_after", 0),
    ("log_purge_before", 0),
    ("log_purge_begun", 0),
    ("log_purge_after", 0),
];

/// Steps of a volatile engine's member that cuts its log.
pub(super) const KEEPING: &[Point] = &[
    ("spool_created", 1),
    ("spool_written", 1),
    ("spool_sync_before", 1),
    ("spool_renamed", 1),
    ("keep_before_pruning", 1),
    ("keep_pruned", 1),
    ("log_purge_begun", 1),
];

/// Steps of a leader that sends one.
pub(super) const SENDING: &[Point] = &[
    ("spool_created", 0),
    ("spool_written", 0),
    ("send_before", 0),
    ("send_chunk", 0),
    ("send_after", 0),
];

/// Steps of a member that receives one; each start comes a step further.
pub(super) const RECEIVING: &[Point] = &[
    ("receive_begun", 0),
    ("receive_chunk", 0),
    ("spool_sync_before", 0),
    ("spool_sync_after", 0),
    ("spool_renamed", 0),
];

/// Steps of a start that finds a received snapshot, each start a step further.
pub(super) const STARTING: &[Point] = &[
    ("recover_install_before", 0),
    ("engine_replace_before", 0),
    ("recover_install_after", 0),
];

/// Steps of a member that has received one.
pub(super) const INSTALLING: &[Point] = &[
    ("spool_finished", 0),
    ("install_before", 0),
    ("engine_replace_before", 0),
    ("engine_replace_after", 0),
    ("install_after", 0),
    ("retire_before", 0),
    ("retire_after", 0),
];

fn small_logs(root: &Path, backends: [&str; 3]) -> Cluster {
    let node = |(n, backend): (usize, &str)| {
        Node::new(root, &format!("node{n}"), backend).with(&["--max-log-bytes", "100000"])
    };
    Cluster::over(backends.into_iter().enumerate().map(node).collect())
}

/// Writes what fills a log soon, and takes little room in the end.
fn fill(addr: &str) {
    let Ok(mut client) = Client::connect(addr) else {
        return;
    };
    let value = "x".repeat(60_000);
    for _ in 0..3 {
        if client.try_call(&["SET", "large", &value]).is_err() {
            return;
        }
    }
}

impl Cluster {
    /// A member misses a cut of the log.
    fn be_away(&mut self, n: usize) {
        self.nodes[n].kill();
        let addr = self.beside(n);
        self.writes.some(&addr);
        let others = [(n + 1) % 3, (n + 2) % 3];
        let number = |n: usize, field: &str| self.nodes[n].info_number(field);
        let last = others.map(|n| number(n, "raft_last_log_index"));
        until("the others cut their logs", || {
            fill(&addr);
            let purged = others.map(|n| number(n, "raft_purged_index"));
            purged.iter().min() > last.iter().max()
        });
    }

    fn start_to_end_at(&mut self, n: usize, point: Point) {
        arm(&mut self.nodes[n], point);
        self.nodes[n].spawn();
        ends_at(&mut self.nodes[n], point, || {});
    }
}

#[test]
fn a_member_ends_at_each_step_of_cutting_its_log() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = small_logs(temp.path(), ["redb", "redb", "memory"]);
    let of_redb = CUTTING.iter().map(|point| (*point, false));
    let of_memory = KEEPING.iter().map(|point| (*point, true));
    for (point, volatile) in of_redb.chain(of_memory) {
        let n = match (volatile, cluster.leader()) {
            (true, _) => 2,
            (false, 0) => 1,
            (false, _) => 0,
        };
        let other = cluster.beside(n);
        cluster.nodes[n].kill();
        arm(&mut cluster.nodes[n], point);
        cluster.nodes[n].spawn();
        let Cluster { nodes, writes, .. } = &mut cluster;
        ends_at(&mut nodes[n], point, || {
            writes.some(&other);
            fill(&other);
        });
        nodes[n].start();
        cluster.check(point.0);
    }
}

#[test]
fn members_end_at_each_step_of_a_snapshot_on_its_way() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = small_logs(temp.path(), ["redb", "redb", "redb"]);
    let n = 2;
    cluster.be_away(n);
    for point in RECEIVING.iter().chain(STARTING) {
        cluster.start_to_end_at(n, *point);
    }
    cluster.nodes[n].start();
    cluster.check("received");
    for point in INSTALLING {
        cluster.be_away(n);
        cluster.start_to_end_at(n, *point);
        cluster.nodes[n].start();
        cluster.check(point.0);
    }
    for point in SENDING {
        let first = cluster.follower();
        let away = (first + 1) % 3;
        cluster.restart_armed(first, *point);
        cluster.be_away(away);
        cluster.let_lead(first);
        cluster.nodes[away].start();
        ends_at(&mut cluster.nodes[first], *point, || {});
        cluster.nodes[first].start();
        cluster.check(point.0);
    }
}
