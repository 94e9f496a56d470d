//! kvd ends at each of its own failpoints, as by `kill -9`, and is started again: what was
//! acknowledged is there, the members hold the same, and what was cut off is finished or was never
//! begun.

mod birth;
mod membership;
mod migrating;
mod random;
mod snapshots;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use kvd::failpoints::POINTS;
use kvd::resp::Reply;
use kvd_tests::{Client, Node, join, repository, until};

/// A point, and how often it is passed before the process ends there.
type Point = (&'static str, usize);

/// The next start of the node ends there.
fn arm(node: &mut Node, (name, passed): Point) {
    node.set_env("FAILPOINTS", Some(&format!("{name}={passed}*off->return")));
}

/// Where the node has ended, if it has; it must have been at a point.
fn end_of(node: &mut Node) -> Option<String> {
    let status = node.exited()?;
    let log = node.log();
    let last = log.lines().last().unwrap_or_default();
    let at = last.strip_prefix("kvd: ends at the failpoint ");
    assert_eq!(status.signal(), Some(9), "{log}");
    Some(at.unwrap_or_else(|| panic!("{log}")).to_owned())
}

/// Lets `go_on` happen until the node has ended there, and nowhere else; its next start knows
/// nothing of it.
fn ends_at(node: &mut Node, (name, _): Point, mut go_on: impl FnMut()) {
    until(&format!("a node ends at {name}"), || {
        let ended = node.exited().is_some();
        if !ended {
            go_on();
        }
        ended
    });
    assert_eq!(end_of(node).as_deref(), Some(name));
    node.kill();
    node.set_env("FAILPOINTS", None);
}

/// The writes that were acknowledged.
#[derive(Default)]
struct Writes {
    /// Each key is written once, so its value is known.
    acknowledged: BTreeMap<String, String>,
    next: usize,
}

impl Writes {
    /// Writes some by way of one node, which may end meanwhile.
    fn some(&mut self, addr: &str) {
        let Ok(mut client) = Client::connect(addr) else {
            return;
        };
        for _ in 0..10 {
            if !self.one(&mut client, "") {
                return;
            }
        }
    }

    /// Writes one, and tells whether the connection is of any more use.
    fn one(&mut self, client: &mut Client, bulk: &str) -> bool {
        self.next += 1;
        let (key, value) = (
            format!("key:{}", self.next),
            format!("{}:{bulk}", self.next),
        );
        match client.try_call(&["SET", &key, &value]) {
            Ok(Reply::Ok) => {
                self.acknowledged.insert(key, value);
                true
            }
            Ok(Reply::Error(_)) => true,
            Ok(other) => panic!("SET was answered {other:?}"),
            Err(_) => false,
        }
    }

    /// All that was acknowledged is there.
    fn look_for(&self, node: &Node, what: &str) {
        let mut client = node.client();
        let all: Vec<(&String, &String)> = self.acknowledged.iter().collect();
        for some in all.chunks(100) {
            let keys = some.iter().map(|(key, _)| key.as_str());
            let command: Vec<&str> = std::iter::once("MGET").chain(keys).collect();
            let expected = some.iter().map(|(_, value)| Reply::bulk((*value).clone()));
            let found = client.call(&command);
            assert!(
                found == Reply::Array(expected.collect()),
                "{what}: a write is lost on {}",
                node.dir.display()
            );
        }
    }
}

/// A cluster, and what it has acknowledged.
struct Cluster {
    /// Three members, and perhaps one that comes or goes.
    nodes: Vec<Node>,
    id: String,
    writes: Writes,
}

impl Cluster {
    fn over(mut nodes: Vec<Node>) -> Self {
        join(&mut nodes);
        Cluster {
            id: nodes[0].info("raft_cluster_id").expect("a founded cluster"),
            nodes,
            writes: Writes::default(),
        }
    }

    fn of_redb(root: &Path) -> Self {
        let node = |n| Node::new(root, &format!("node{n}"), "redb");
        Self::over((0..3).map(node).collect())
    }

    /// The node that leads, once there is one; a newcomer may lead a cluster of its own.
    fn leader(&self) -> usize {
        let mut found = None;
        until("a leader is elected", || {
            found = self.nodes.iter().position(|node| {
                node.pid().is_some()
                    && node.info("raft_role").as_deref() == Some("leader")
                    && node.info("raft_cluster_id").as_ref() == Some(&self.id)
            });
            found.is_some()
        });
        found.expect("until has found one")
    }

    /// A member that follows.
    fn follower(&self) -> usize {
        (self.leader() + 1) % 3
    }

    /// Where clients find a member that runs and is not this one.
    fn beside(&self, n: usize) -> String {
        let mut others = [(n + 1) % 3, (n + 2) % 3].into_iter();
        let other = others.find(|other| self.nodes[*other].pid().is_some());
        self.nodes[other.expect("a member beside it runs")].addr()
    }

    /// Stops a node in order, so that it has nothing to carry out again, and starts it anew.
    fn restart_armed(&mut self, n: usize, point: Point) {
        let code = self.nodes[n].terminate();
        assert_eq!(code, Some(0), "{}", self.nodes[n].log());
        arm(&mut self.nodes[n], point);
        self.nodes[n].start();
    }

    /// Moves leadership.
    fn let_lead(&self, n: usize) {
        let command = ["RAFT.TRANSFER_LEADER", &format!("node{n}")];
        until("leadership moves", || {
            let asked = Client::connect(&self.beside(n));
            let moved = asked.and_then(|mut asked| asked.try_call(&command));
            moved.is_ok_and(|reply| reply == Reply::Ok) && self.leader() == n
        });
    }

    /// All members run; they hold the same, and every acknowledged write among it.
    fn check(&self, what: &str) {
        until("the members' contents are compared", || {
            let asked = Client::connect(&self.nodes[self.leader()].addr());
            match asked.and_then(|mut asked| asked.try_call(&["RAFT.COMPARE"])) {
                Ok(Reply::Array(found)) => match &found[..] {
                    [_, verdict, Reply::Array(members)] if *verdict == Reply::bulk("equal") => {
                        assert_eq!(members.len(), self.nodes.len(), "{what}");
                        true
                    }
                    [_, verdict, _] if *verdict == Reply::bulk("incomplete") => false,
                    _ => panic!("{what}: {found:?}"),
                },
                _ => false,
            }
        });
        for node in &self.nodes {
            self.writes.look_for(node, what);
        }
    }
}

#[test]
fn every_point_has_a_test_that_ends_there() {
    let tables = [
        birth::BEING_BORN,
        writing::FOLLOWING,
        writing::STORING,
        writing::SYNCING,
        writing::LEADING,
        writing::VOTING,
        writing::SWEEPING,
        writing::CHUNK_CLOSED,
        writing::TRUNCATING,
        writing::STOPPING,
        snapshots::CUTTING,
        snapshots::KEEPING,
        snapshots::SENDING,
        snapshots::RECEIVING,
        snapshots::STARTING,
        snapshots::INSTALLING,
        membership::JOINING,
        membership::JOINED,
        membership::REPLACING,
        membership::LEAVING,
        membership::LEFT,
        membership::MOVING,
        membership::HANDING_OVER,
        migrating::MIGRATING,
    ];
    let tested = tables.into_iter().flatten();
    let tested: BTreeSet<&str> = tested.map(|(name, _)| *name).collect();
    let listed: BTreeSet<&str> = POINTS.iter().copied().collect();
    assert_eq!(listed.len(), POINTS.len(), "a name stands twice");
    assert_eq!(tested, listed);
}

/// The crates that a build takes, as cargo resolves them.
fn crates_of_a_build(flags: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .current_dir(repository())
        .args(["tree", "--locked", "--workspace", "--edges", "no-dev"])
        .args(["--prefix", "none"])
        .args(flags)
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "{errors}");
    String::from_utf8(tree.stdout).expect("crates have names")
}

/// The README's build and every other that is not for tests.
#[test]
fn a_build_of_the_server_has_no_failpoints() {
    let takes_fail = |crates: &str| crates.lines().any(|line| line.starts_with("fail v"));
    assert!(!takes_fail(&crates_of_a_build(&[])));
    let told = ["--features", "kvd/failpoints"];
    assert!(takes_fail(&crates_of_a_build(&told)));
}
