//! A disk that fails: the node stops with its exit code and one line, the others go on, and
//! nothing that was acknowledged is lost.

use std::fs;
use std::path::{Path, PathBuf};

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, join, leader, until};

use crate::crash::{Writes, survive};
use crate::preload::preload;

/// A node whose disk can be made to fail.
fn fallible(root: &Path, name: &str, backend: &str) -> Node {
    let mut node = Node::new(root, name, backend);
    node.set_env("LD_PRELOAD", preload("fail_io").to_str());
    let dir = node.dir.clone();
    node.set_env("KVD_FAIL_DIR", dir.to_str());
    node.set_env("KVD_FAIL_ARMED", armed(&node).to_str());
    node
}

fn armed(node: &Node) -> PathBuf {
    node.dir.with_extension("fails")
}

/// The disk fails until the node has stopped, and works again when it is started.
fn fail(node: &mut Node, what: &str) {
    let lines = node.log().lines().count();
    fs::write(armed(node), what).unwrap();
    until("the node stops", || node.exited().is_some());
    let code = node.exited().unwrap().code();
    let log = node.log();
    let errors: Vec<&str> = log
        .lines()
        .skip(lines)
        .filter(|line| line.contains("ERROR") || line.starts_with("kvd: "))
        // What an engine's own library says of its trouble comes beside kvd's line.
        .filter(|line| !line.contains(" ERROR sled::") && !line.contains(" ERROR lsm_tree::"))
        .collect();
    assert_eq!(code, Some(exit::IO), "{what}: {log}");
    assert_eq!(errors.len(), 1, "{what}: {errors:#?}");
    assert!(errors[0].contains("kvd cannot go on"), "{what}: {errors:?}");
    assert!(
        errors[0].contains("Input/output error"),
        "{what}: {errors:?}"
    );
    fs::remove_file(armed(node)).unwrap();
    node.kill();
    node.start();
}

const LOG: [&str; 2] = ["sync /log/", "write /log/"];

#[test]
fn a_node_alone_whose_log_fails_stops_and_loses_nothing() {
    let _alone = alone();
    for backend in ["redb", "memory"] {
        let temp = tempfile::tempdir().unwrap();
        let mut nodes = [fallible(temp.path(), "node0", backend)];
        nodes[0].start();
        let writes = Writes::default();
        for what in LOG {
            survive(&mut nodes, &writes, |nodes| fail(&mut nodes[0], what));
        }
    }
}

/// A cluster on these engines, whose disks can fail.
fn cluster(root: &Path, backends: [&str; 3]) -> Vec<Node> {
    let nodes = backends.iter().enumerate();
    let node = |(n, backend): (usize, &&str)| fallible(root, &format!("node{n}"), backend);
    let mut nodes: Vec<Node> = nodes.map(node).collect();
    join(&mut nodes);
    nodes
}

#[test]
fn the_others_go_on_when_a_members_log_or_engine_fails() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), ["redb", "redb", "redb"]);
    let writes = Writes::default();
    for what in [LOG[0], LOG[1], "sync /engine/", "write /engine/"] {
        for leads in [true, false] {
            survive(&mut nodes, &writes, |nodes| {
                let first = leader(nodes);
                let n = if leads { first } else { (first + 1) % 3 };
                fail(&mut nodes[n], what);
            });
        }
    }
}

/// A disk that cannot be read says nothing of what is on it: nobody must be told to wipe it.
#[test]
fn a_node_whose_disk_fails_at_its_start_ends_as_one_whose_disk_fails_later() {
    let _alone = alone();
    for backend in ["redb", "sled"] {
        let temp = tempfile::tempdir().unwrap();
        let mut node = fallible(temp.path(), "node0", backend);
        node.start();
        assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
        for what in [
            "read /log/",
            "write /engine/",
            "sync /log/",
            "read /engine/",
        ] {
            node.kill();
            let lines = node.log().lines().count();
            fs::write(armed(&node), what).unwrap();
            node.spawn();
            // Not each engine writes or reads when it is opened. A log is written by each start,
            // though the node may have answered before.
            let may_answer = what.ends_with("/engine/");
            until("the node stops, or answers", || {
                let answers = || {
                    let client = Client::connect(&node.addr()).ok();
                    client.is_some_and(|mut client| client.try_call(&["PING"]).is_ok())
                };
                (may_answer && answers()) || node.exited().is_some()
            });
            let log = node.log();
            let said: Vec<&str> = log.lines().skip(lines).collect();
            let said = said.join("\n");
            if let Some(status) = node.exited() {
                assert_eq!(status.code(), Some(exit::IO), "{backend}, {what}: {said}");
                assert!(said.contains("Input/output error"), "{what}: {said}");
                assert!(!said.contains("wipe"), "{what}: {said}");
            }
            fs::remove_file(armed(&node)).unwrap();
        }
        node.kill();
        node.start();
        assert_eq!(node.client().call(&["GET", "a"]), Reply::bulk("1"));
    }
}

#[test]
fn the_others_go_on_when_an_engine_of_another_kind_fails() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), ["redb", "sled", "fjall"]);
    let writes = Writes::default();
    for what in ["sync /engine/", "write /engine/"] {
        for n in 1..3 {
            survive(&mut nodes, &writes, |nodes| fail(&mut nodes[n], what));
        }
    }
}
