//! Nodes end at each step of JOIN and LEAVE: the leader, whose successor finishes what it began,
//! and the node that is taken in or out.

use std::path::Path;

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, free_port, until};

use super::{Cluster, Point, arm, ends_at};

/// Steps of the leader that takes a node in.
pub(super) const JOINING: &[Point] = &[
    ("join_before", 0),
    ("join_intended", 0),
    ("join_adopted", 0),
    ("join_learner", 0),
    ("join_level", 0),
    ("join_voter", 0),
    ("join_forgotten", 0),
    // As a learner, by a joint configuration, and as a voter.
    ("apply_membership", 0),
    ("apply_membership", 1),
    ("apply_membership", 2),
];

/// The step between a member that lost its disk and the one in its place.
pub(super) const REPLACING: &[Point] = &[("join_replaced", 0)];

/// Steps of the node that is taken in.
pub(super) const JOINED: &[Point] = &[
    ("adopt_before", 0),
    ("adopt_given_up", 0),
    ("end_raft_after", 0),
    ("engine_close_before", 0),
    ("wipe_noted", 0),
    ("wipe_removed", 0),
    ("wipe_synced", 0),
    ("wipe_forgotten", 0),
    ("adopt_wiped", 0),
    ("open_log_after", 1),
    ("adopt_after", 0),
    ("member_before", 0),
    ("member_after", 0),
    ("member_noted", 0),
];

/// Steps of the leader that takes a member out.
pub(super) const LEAVING: &[Point] = &[
    ("leave_before", 0),
    ("leave_no_voter", 0),
    ("leave_taken_out", 0),
    ("leave_told", 0),
    // By a joint configuration, and no more.
    ("apply_membership", 0),
    ("apply_membership", 1),
];

/// Steps of the member that is taken out.
pub(super) const LEFT: &[Point] = &[
    ("removed_before", 0),
    ("removed_noted", 0),
    ("removed_after", 0),
];

/// Steps of a leader that hears of a member's new address.
pub(super) const MOVING: &[Point] = &[("move_before", 0), ("move_after", 0)];

/// Steps of a leader that hands over.
pub(super) const HANDING_OVER: &[Point] = &[("transfer_before", 0), ("transfer_after", 0)];

const NAME: &str = "newcomer";

impl Cluster {
    fn newcomer(root: &Path, n: usize) -> Node {
        Node::new(root, &format!("{NAME}{n}"), "redb")
    }

    /// Sends a command to a member beside `n`; the answer may be of no use.
    fn ask_beside(&self, n: usize, command: &[&str]) -> Client {
        let mut client = Client::connect(&self.beside(n)).unwrap();
        client.send(command).unwrap();
        client
    }

    fn has_members(&self, voters: u64) -> bool {
        let leader = &self.nodes[self.leader()];
        let number = |field| leader.info(field).and_then(|text| text.parse::<u64>().ok());
        let counts = [number("raft_num_voting_nodes"), number("raft_num_nodes")];
        counts == [Some(voters), Some(voters)]
    }

    /// What the leader answers, while it leads.
    fn call_leader(&self, command: &[&str]) -> Reply {
        let mut reply = Reply::Null;
        until("a leader answers", || {
            let asked = Client::connect(&self.nodes[self.leader()].addr());
            match asked.and_then(|mut asked| asked.try_call(command)) {
                Ok(answer) => {
                    reply = answer;
                    reply.error_prefix() != Some("CLUSTERDOWN")
                }
                Err(_) => false,
            }
        });
        reply
    }

    /// A member that follows leads now, and ends at `point` while another node asks for `command`.
    fn leader_ends(&mut self, point: Point, command: &[&str]) -> usize {
        let n = self.follower();
        self.restart_armed(n, point);
        self.let_lead(n);
        let _asked = self.ask_beside(n, command);
        ends_at(&mut self.nodes[n], point, || {});
        n
    }

    /// The newcomer, which was the fourth, is taken out; what it becomes is seen to by others.
    fn newcomer_is_out(&mut self) -> Node {
        until("three are left", || self.has_members(3));
        self.nodes.pop().expect("it was the fourth")
    }
}

#[test]
fn the_next_leader_finishes_a_change_of_members() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_redb(temp.path());
    for (n, point) in JOINING.iter().enumerate() {
        let mut newcomer = Cluster::newcomer(temp.path(), n);
        newcomer.start();
        let addr = newcomer.raft_addr();
        let join = ["JOIN", NAME, &addr];
        let first = cluster.leader_ends(*point, &join);
        cluster.nodes.push(newcomer);
        if point.0 == "join_before" {
            assert!(cluster.has_members(3), "nothing had been begun");
            assert_eq!(cluster.call_leader(&join), Reply::Ok);
        }
        // Nobody asks again.
        until("the next leader finishes the JOIN", || {
            cluster.has_members(4)
        });
        cluster.nodes[first].start();
        let newcomer = cluster.nodes[3].addr();
        cluster.writes.some(&newcomer);
        cluster.check(point.0);
        let leave = ["LEAVE", NAME];
        let Some(point) = LEAVING.get(n) else {
            assert_eq!(cluster.call_leader(&leave), Reply::Ok, "{point:?}");
            cluster.newcomer_is_out();
            continue;
        };
        let first = cluster.leader_ends(*point, &leave);
        if point.0 == "leave_before" {
            assert!(cluster.has_members(4), "nothing had been begun");
            assert_eq!(cluster.call_leader(&leave), Reply::Ok);
        }
        cluster.nodes[first].start();
        cluster.newcomer_is_out();
        cluster.check(point.0);
    }
}

#[test]
fn a_node_ends_at_each_step_of_being_taken_in_and_out() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_redb(temp.path());
    for (n, point) in JOINED.iter().enumerate() {
        let mut newcomer = Cluster::newcomer(temp.path(), n);
        if point.0.starts_with("member_") {
            // A node that founds a cluster passes there, too.
            newcomer = newcomer.with(&["--no-bootstrap"]);
        }
        arm(&mut newcomer, *point);
        newcomer.start();
        let addr = newcomer.raft_addr();
        let join = ["JOIN", NAME, &addr];
        let mut asked = cluster.nodes[cluster.leader()].client();
        asked.send(&join).unwrap();
        ends_at(&mut newcomer, *point, || {});
        let left = LEFT.get(n);
        if let Some(left) = left {
            arm(&mut newcomer, *left);
        }
        newcomer.start();
        if asked.receive().unwrap() != Reply::Ok {
            assert_eq!(cluster.call_leader(&join), Reply::Ok, "{point:?}");
        }
        let addr = newcomer.addr();
        cluster.nodes.push(newcomer);
        cluster.writes.some(&addr);
        cluster.check(point.0);
        let leave = cluster.call_leader(&["LEAVE", NAME]);
        assert_eq!(leave, Reply::Ok, "{point:?}");
        let mut newcomer = cluster.newcomer_is_out();
        if let Some(left) = left {
            ends_at(&mut newcomer, *left, || {});
            newcomer.start();
            until("it has learned that it was taken out", || {
                let reply = newcomer.client().call(&["GET", "a"]);
                reply.error_prefix() == Some("NOCLUSTER")
            });
            cluster.check(left.0);
        }
    }
}

#[test]
fn a_leader_ends_while_a_member_is_replaced_or_has_moved() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_redb(temp.path());
    for point in REPLACING {
        let first = cluster.follower();
        cluster.restart_armed(first, *point);
        cluster.let_lead(first);
        let n = (first + 1) % 3;
        cluster.nodes[n].kill();
        std::fs::remove_dir_all(&cluster.nodes[n].dir).unwrap();
        cluster.nodes[n].start();
        let (name, addr) = (format!("node{n}"), cluster.nodes[n].raft_addr());
        let mut asked = cluster.nodes[(first + 2) % 3].client();
        asked.send(&["JOIN", &name, &addr]).unwrap();
        ends_at(&mut cluster.nodes[first], *point, || {});
        // Of the two members that are left one has ended.
        cluster.nodes[first].start();
        until("the next leader finishes the JOIN", || {
            cluster.has_members(3)
        });
        cluster.check(point.0);
    }
    for point in MOVING {
        let first = cluster.follower();
        cluster.restart_armed(first, *point);
        cluster.let_lead(first);
        let n = (first + 1) % 3;
        cluster.nodes[n].kill();
        cluster.nodes[n].raft_port = free_port();
        cluster.nodes[n].spawn();
        ends_at(&mut cluster.nodes[first], *point, || {});
        cluster.nodes[first].start();
        let addr = format!("raft={},", cluster.nodes[n].raft_addr());
        until("the cluster knows where the member is", || {
            let asked = &cluster.nodes[cluster.leader()];
            (0..3).any(|n| {
                let line = asked.info(&format!("raft_member{n}"));
                line.is_some_and(|line| line.contains(&addr))
            })
        });
        cluster.check(point.0);
    }
    for point in HANDING_OVER {
        let to = (cluster.follower() + 1) % 3;
        let command = ["RAFT.TRANSFER_LEADER", &format!("node{to}")];
        let first = cluster.leader_ends(*point, &command);
        cluster.nodes[first].start();
        cluster.check(point.0);
    }
}
