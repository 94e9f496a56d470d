//! kvd ends at each of its own failpoints, as by `kill -9`, and is started again: what was
//! acknowledged is there, the members hold the same, and what was cut off is done or was never
//! begun.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use kvd::failpoints::POINTS;
use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, join, leader, repository, until};

/// A point, and how often it is passed before the process ends there.
type Point = (&'static str, usize);

/// Steps of a member that only follows writes.
const WRITING: &[Point] = &[
    ("log_append_before", 7),
    ("log_append_begun", 7),
    ("log_append_after", 7),
    ("apply_before", 7),
    ("apply_visible", 7),
    ("apply_after", 7),
    ("engine_write_before", 7),
    ("engine_write_after", 7),
    ("engine_sync_before", 1),
    ("engine_sync_after", 1),
];

/// Steps of an election.
const VOTING: &[Point] = &[("log_vote_before", 0), ("log_vote_after", 0)];

/// A cluster, and what it has acknowledged.
struct Cluster {
    nodes: Vec<Node>,
    /// Each key is written once, so its value is known.
    acknowledged: BTreeMap<String, String>,
    next: usize,
}

impl Cluster {
    fn over(mut nodes: Vec<Node>) -> Self {
        join(&mut nodes);
        Cluster {
            nodes,
            acknowledged: BTreeMap::new(),
            next: 0,
        }
    }

    /// Writes a little by way of one node, which may end meanwhile.
    fn write(&mut self, by: usize) {
        let Ok(mut client) = Client::connect(&self.nodes[by].addr()) else {
            return;
        };
        for _ in 0..10 {
            self.next += 1;
            let (key, value) = (format!("key:{}", self.next), format!("value:{}", self.next));
            match client.try_call(&["SET", &key, &value]) {
                Ok(Reply::Ok) => drop(self.acknowledged.insert(key, value)),
                Ok(Reply::Error(_)) => {}
                Ok(other) => panic!("SET was answered {other:?}"),
                Err(_) => return,
            }
        }
    }

    /// Starts a node anew that ends at `point`, and lets `go_on` happen until it has.
    fn end_at(&mut self, n: usize, point: Point, mut go_on: impl FnMut(&mut Self)) {
        self.nodes[n].kill();
        self.arm(n, point);
        self.nodes[n].spawn();
        until(&format!("a node ends at {}", point.0), || {
            if self.nodes[n].exited().is_some() {
                return true;
            }
            go_on(self);
            false
        });
        self.ended_at(n, point);
    }

    fn arm(&mut self, n: usize, (name, skipped): Point) {
        let action = format!("{name}={skipped}*off->return");
        self.nodes[n].set_env("FAILPOINTS", Some(&action));
    }

    /// The node has ended there, and nowhere else; its next start knows nothing of it.
    fn ended_at(&mut self, n: usize, (name, _): Point) {
        let status = self.nodes[n].exited().expect("it has ended");
        let log = self.nodes[n].log();
        assert_eq!(status.signal(), Some(9), "{name}: {log}");
        let last = log.lines().last().unwrap_or_default();
        assert_eq!(last, format!("kvd: ends at the failpoint {name}"), "{log}");
        self.nodes[n].kill();
        self.nodes[n].set_env("FAILPOINTS", None);
    }

    /// All members run; they hold the same, and every acknowledged write among it.
    fn check(&self, what: &str) {
        let first = leader(&self.nodes);
        self.compare(first, what);
        for node in &self.nodes {
            self.look_for_writes(node, what);
        }
    }

    fn compare(&self, by: usize, what: &str) {
        until("the members' contents are compared", || {
            match self.nodes[by].client().call(&["RAFT.COMPARE"]) {
                Reply::Array(found) => match &found[1] {
                    verdict if *verdict == Reply::bulk("equal") => true,
                    verdict if *verdict == Reply::bulk("incomplete") => false,
                    _ => panic!("{what}: {found:?}"),
                },
                Reply::Error(_) => false,
                other => panic!("{what}: {other:?}"),
            }
        });
    }

    fn look_for_writes(&self, node: &Node, what: &str) {
        let mut client = node.client();
        let all: Vec<(&String, &String)> = self.acknowledged.iter().collect();
        for some in all.chunks(1000) {
            let keys = some.iter().map(|(key, _)| key.as_str());
            let command: Vec<&str> = std::iter::once("MGET").chain(keys).collect();
            let expected = some.iter().map(|(_, value)| Reply::bulk((*value).clone()));
            let found = client.call(&command);
            assert_eq!(found, Reply::Array(expected.collect()), "{what}");
        }
    }
}

fn redb(root: &std::path::Path, count: usize) -> Vec<Node> {
    let node = |n| Node::new(root, &format!("node{n}"), "redb");
    (0..count).map(node).collect()
}

#[test]
fn a_member_ends_at_each_step_of_a_write_and_of_an_election() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::over(redb(temp.path(), 3));
    for point in WRITING {
        let n = (leader(&cluster.nodes) + 1) % 3;
        cluster.end_at(n, *point, |cluster| cluster.write((n + 1) % 3));
        cluster.nodes[n].start();
        cluster.check(point.0);
    }
    for point in VOTING {
        let n = (leader(&cluster.nodes) + 1) % 3;
        let name = format!("node{n}");
        cluster.end_at(n, *point, |cluster| {
            let asked = cluster.nodes[(n + 1) % 3].client();
            drop({ asked }.try_call(&["RAFT.TRANSFER_LEADER", &name]));
        });
        cluster.nodes[n].start();
        cluster.write(n);
        cluster.check(point.0);
    }
}

#[test]
fn every_point_has_a_test_that_ends_there() {
    let tested = [WRITING, VOTING].into_iter().flatten();
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
    assert!(takes_fail(&crates_of_a_build(&[
        "--features",
        "kvd/failpoints"
    ])));
}
