//! A member ends at each step of a write, of an election and of an orderly stop.

use kvd::resp::Reply;
use kvd_tests::{Client, alone, info_of, until};

use super::{Cluster, Point, Writes, arm, ends_at};

/// Steps of a member that follows.
pub(super) const FOLLOWING: &[Point] = &[
    ("log_append_before", 7),
    ("log_append_begun", 7),
    ("log_append_after", 7),
    ("apply_before", 7),
    ("apply_visible", 7),
    ("apply_after", 7),
];

/// Steps of giving the engine what is applied.
pub(super) const STORING: &[Point] = &[
    ("store_taken", 2),
    ("engine_write_before", 2),
    ("engine_write_after", 2),
    ("store_dropped", 2),
];

/// Steps of making it durable.
pub(super) const SYNCING: &[Point] = &[("engine_sync_before", 1), ("engine_sync_after", 1)];

/// Steps of the member that leads.
pub(super) const LEADING: &[Point] = &[
    ("log_append_before", 20),
    ("log_append_begun", 20),
    ("log_append_after", 20),
    ("apply_visible", 20),
];

pub(super) const VOTING: &[Point] = &[("log_vote_before", 0), ("log_vote_after", 0)];

/// Steps of dropping what FLUSHALL left.
pub(super) const SWEEPING: &[Point] = &[("sweep_before", 0), ("sweep_after", 0)];

/// The log goes on in a new file.
pub(super) const CHUNK_CLOSED: &[Point] = &[("log_chunk_closed", 0)];

/// A former leader drops what it alone had appended.
pub(super) const TRUNCATING: &[Point] = &[
    ("log_truncate_before", 0),
    ("log_truncate_begun", 0),
    ("log_truncate_after", 0),
];

/// Steps of the leader's orderly stop.
pub(super) const STOPPING: &[Point] = &[
    ("stop_begun", 0),
    ("stop_stepped_down", 0),
    ("stop_drained", 0),
    ("end_raft_after", 0),
    ("end_log_after", 0),
    ("engine_close_before", 0),
    ("engine_close_after", 0),
    ("stop_after", 0),
];

/// The member that ends, and one that does not.
struct Scene {
    n: usize,
    own: String,
    other: String,
}

impl Scene {
    fn of(cluster: &Cluster, n: usize) -> Self {
        Scene {
            n,
            own: cluster.nodes[n].addr(),
            other: cluster.beside(n),
        }
    }

    /// Waits until the one that ends says 0 of this, or has ended. While more comes, its engine gets
    /// nothing for a long time.
    fn rests(&self, field: &str) {
        until(field, || {
            info_of(&self.own, field).is_none_or(|left| left == "0")
        });
    }
}

/// A member that follows ends while `go_on` happens, and comes back.
fn follower_ends(cluster: &mut Cluster, point: Point, mut go_on: impl FnMut(&Scene, &mut Writes)) {
    let n = cluster.follower();
    let scene = Scene::of(cluster, n);
    cluster.nodes[n].kill();
    arm(&mut cluster.nodes[n], point);
    cluster.nodes[n].spawn();
    let Cluster { nodes, writes, .. } = cluster;
    ends_at(&mut nodes[n], point, || go_on(&scene, writes));
    nodes[n].start();
    cluster.check(point.0);
}

#[test]
fn a_member_ends_at_each_step_of_a_write() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_redb(temp.path());
    for point in FOLLOWING {
        follower_ends(&mut cluster, *point, |scene, writes| {
            writes.some(&scene.other);
        });
    }
    for point in STORING {
        follower_ends(&mut cluster, *point, |scene, writes| {
            writes.some(&scene.other);
            scene.rests("backend_waiting_changes");
        });
    }
    for point in SYNCING {
        follower_ends(&mut cluster, *point, |scene, writes| {
            writes.some(&scene.other);
            scene.rests("backend_durable_behind");
        });
    }
    for point in LEADING.iter().chain(STORING) {
        let n = cluster.follower();
        cluster.restart_armed(n, *point);
        cluster.let_lead(n);
        let scene = Scene::of(&cluster, n);
        let Cluster { nodes, writes, .. } = &mut cluster;
        ends_at(&mut nodes[n], *point, || {
            writes.some(&scene.other);
            if STORING.contains(point) {
                scene.rests("backend_waiting_changes");
            }
        });
        nodes[n].start();
        cluster.check(point.0);
    }
    let large = "x".repeat(3 << 20);
    for point in CHUNK_CLOSED {
        follower_ends(&mut cluster, *point, |scene, writes| {
            let mut client = Client::connect(&scene.other).unwrap();
            writes.one(&mut client, &large);
        });
    }
    for point in SWEEPING {
        follower_ends(&mut cluster, *point, |scene, writes| {
            writes.some(&scene.other);
            let mut client = Client::connect(&scene.other).unwrap();
            assert_eq!(client.call(&["FLUSHALL"]), Reply::Ok);
            writes.acknowledged.clear();
        });
    }
}

#[test]
fn a_member_ends_at_each_step_of_an_election_and_of_a_stop() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_redb(temp.path());
    for point in VOTING {
        follower_ends(&mut cluster, *point, |scene, writes| {
            writes.some(&scene.other);
            let command = ["RAFT.TRANSFER_LEADER", &format!("node{}", scene.n)];
            let asked = Client::connect(&scene.other);
            // It may have no answer, when the one who would lead has ended.
            drop(asked.and_then(|mut asked| asked.try_call(&command)));
        });
    }
    for point in TRUNCATING {
        let n = leave_a_tail(&mut cluster);
        arm(&mut cluster.nodes[n], *point);
        cluster.nodes[n].spawn();
        ends_at(&mut cluster.nodes[n], *point, || {});
        cluster.nodes[n].start();
        cluster.check(point.0);
    }
    for point in STOPPING {
        let n = cluster.follower();
        cluster.restart_armed(n, *point);
        cluster.let_lead(n);
        let other = cluster.beside(n);
        // It answers by closing the connection.
        drop(cluster.nodes[n].client().try_call(&["SHUTDOWN"]));
        let Cluster { nodes, writes, .. } = &mut cluster;
        ends_at(&mut nodes[n], *point, || writes.some(&other));
        nodes[n].start();
        cluster.check(point.0);
    }
}

/// The leader appends what nobody else gets, and ends; the others go on without it. Returns it.
fn leave_a_tail(cluster: &mut Cluster) -> usize {
    let n = cluster.leader();
    let mut held = cluster.nodes[n].client();
    let (one, other) = ((n + 1) % 3, (n + 2) % 3);
    cluster.nodes[one].kill();
    cluster.nodes[other].kill();
    let last = cluster.nodes[n].info_number("raft_last_log_index");
    held.send(&["SET", "nobody", "knows"]).unwrap();
    until("the leader appends alone", || {
        cluster.nodes[n].info_number("raft_last_log_index") > last
    });
    cluster.nodes[n].kill();
    for n in [one, other] {
        cluster.nodes[n].start();
    }
    cluster.leader();
    let addr = cluster.nodes[one].addr();
    let before = cluster.writes.acknowledged.len();
    until("the others go on", || {
        cluster.writes.some(&addr);
        cluster.writes.acknowledged.len() > before
    });
    n
}
