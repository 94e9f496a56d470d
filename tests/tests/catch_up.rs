//! A member that was away while the log was cut: a snapshot brings it back, also when it is killed
//! at any step of the installation.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvd::resp::Reply;
use kvd_tests::patience::Patience;
use kvd_tests::{Node, alone, leader, level_digests, until};

use crate::preload::preload;

/// A small log, so that it is cut while a member is away.
fn small_logs(root: &Path, backends: &[&str]) -> Vec<Node> {
    let mut nodes: Vec<Node> = backends
        .iter()
        .enumerate()
        .map(|(n, backend)| {
            Node::new(root, &format!("node{n}"), backend).with(&["--max-log-bytes", "100000"])
        })
        .collect();
    for node in &mut nodes {
        node.start();
    }
    for n in 1..nodes.len() {
        let (name, addr) = (format!("node{n}"), nodes[n].raft_addr());
        assert_eq!(nodes[0].client().call(&["JOIN", &name, &addr]), Reply::Ok);
    }
    nodes
}

/// Writes until the leader has cut its log beyond entry `index`.
fn write_beyond(nodes: &[Node], index: u64) {
    let first = leader(nodes);
    let mut client = nodes[first].client();
    let value = "x".repeat(40_000);
    let mut n = 0;
    until("the leader cuts its log", || {
        for _ in 0..20 {
            n += 1;
            assert_eq!(
                client.call(&["SET", &format!("large:{}", n % 50), &value]),
                Reply::Ok
            );
        }
        nodes[first].info_number("raft_purged_index") > index
    });
}

#[test]
fn a_member_that_was_away_while_the_log_was_cut_catches_up_by_a_snapshot() {
    let _alone = alone();
    for backends in [
        ["redb", "redb", "redb"],
        ["redb", "redb", "sled"],
        ["sled", "sled", "memory"],
        ["redb", "sled", "fjall"],
        ["fjall", "fjall", "redb"],
    ] {
        let temp = tempfile::tempdir().unwrap();
        let mut nodes = small_logs(temp.path(), &backends);
        assert_eq!(nodes[0].client().call(&["SET", "early", "bird"]), Reply::Ok);
        assert_eq!(
            nodes[0]
                .client()
                .call(&["SET", "brief", "life", "EX", "100000"]),
            Reply::Ok
        );
        level_digests(&nodes);
        let last = nodes[2].info_number("raft_last_log_index");
        nodes[2].kill();
        write_beyond(&nodes[..2], last + 1);
        nodes[2].start();
        let digests = level_digests(&nodes);
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{backends:?}: {digests:?}"
        );
        // And once more from its own disk.
        nodes[2].kill();
        nodes[2].start();
        let digests = level_digests(&nodes);
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{backends:?}: {digests:?}"
        );
        assert_eq!(
            nodes[2].client().call(&["GET", "early"]),
            Reply::bulk("bird")
        );
    }
}

/// One step of an installation that ran to its end, as `preload/kill_at.c` saw it.
#[derive(Debug)]
struct Step {
    name: String,
    path: PathBuf,
}

fn steps(trace: &Path) -> Vec<Step> {
    let text = fs::read_to_string(trace).unwrap_or_default();
    let step = |line: &str| {
        let (_, rest) = line.split_once(' ')?;
        let (name, path) = rest.split_once(' ')?;
        Some(Step {
            name: name.to_owned(),
            path: path.into(),
        })
    };
    text.lines().filter_map(step).collect()
}

/// The steps to be killed at: all that change names or sync, and of writes in a row the first,
/// the one in the middle and the last.
fn chosen(steps: &[Step]) -> Vec<usize> {
    let mut chosen = Vec::new();
    let mut writes = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        if step.name == "write" {
            writes.push(n);
            continue;
        }
        chosen.extend(ends_and_middle(&writes));
        writes.clear();
        chosen.push(n);
    }
    chosen
}

fn ends_and_middle(writes: &[usize]) -> Vec<usize> {
    let mut picked: Vec<usize> = [0, writes.len() / 2, writes.len().saturating_sub(1)]
        .iter()
        .filter_map(|at| writes.get(*at).copied())
        .collect();
    picked.dedup();
    picked
}

/// Lets the last node miss a cut of the log; the others are level and their log begins later.
fn be_away(nodes: &mut [Node]) {
    level_digests(nodes);
    let away = nodes.len() - 1;
    let last = nodes[away].info_number("raft_last_log_index");
    nodes[away].kill();
    write_beyond(&nodes[..away], last + 1);
}

fn caught_up(nodes: &[Node]) -> bool {
    let applied = nodes[2].info("raft_applied_index");
    applied.is_some() && applied == nodes[0].info("raft_applied_index")
}

fn holds_snapshot(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().any(|file| {
        file.unwrap()
            .path()
            .extension()
            .is_some_and(|it| it == "snap")
    })
}

fn comes_back_after_a_kill_at_each_step(backend: &str) {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let mut nodes = small_logs(&root, &["redb", "redb", backend]);
    let dir = nodes[2].dir.clone();
    let snapshots = dir.join("groups/0/snapshots");
    let trace = root.join("trace");
    let library = preload("kill_at");
    nodes[2].set_env("LD_PRELOAD", library.to_str());
    nodes[2].set_env("KVD_KILL_DIR", dir.to_str());
    nodes[2].set_env("KVD_KILL_TRACE", trace.to_str());
    be_away(&mut nodes);
    nodes[2].start();
    level_digests(&nodes);
    let durable = nodes[2]
        .info("backend_capabilities")
        .unwrap()
        .contains("durable");
    let removed = |steps: &[Step]| {
        steps
            .iter()
            .position(|step| step.name == "remove" && step.path.starts_with(&snapshots))
    };
    if durable {
        until("the received file is removed", || {
            removed(&steps(&trace)).is_some()
        });
    }
    let mut seen = steps(&trace);
    assert!(!seen.is_empty(), "{backend}: no snapshot was installed");
    let end = removed(&seen).map_or(seen.len(), |at| at + 1);
    seen.truncate(end);
    let chosen = chosen(&seen);
    eprintln!(
        "{backend}: {} steps, killed at {}",
        seen.len(),
        chosen.len()
    );
    let mut killed = 0;
    nodes[2].set_env("KVD_KILL_TRACE", None);
    for at in chosen {
        be_away(&mut nodes);
        nodes[2].set_env("KVD_KILL_AT", Some(&at.to_string()));
        nodes[2].spawn();
        // Steps differ a little between runs, so the last ones may not come.
        until("the node is killed, or has caught up", || {
            nodes[2].exited().is_some()
                || caught_up(&nodes) && (!durable || !holds_snapshot(&snapshots))
        });
        killed += usize::from(nodes[2].exited().is_some());
        nodes[2].kill();
        nodes[2].set_env("KVD_KILL_AT", None);
        nodes[2].start();
        let digests = level_digests(&nodes);
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{backend}, killed at step {at} {:?}: {digests:?}",
            seen[at]
        );
    }
    assert!(killed > 0);
}

#[test]
fn a_node_on_redb_comes_back_after_a_kill_at_each_step_of_an_installation() {
    comes_back_after_a_kill_at_each_step("redb");
}

#[test]
fn a_node_on_sled_comes_back_after_a_kill_at_each_step_of_an_installation() {
    comes_back_after_a_kill_at_each_step("sled");
}

#[test]
fn a_node_on_fjall_comes_back_after_a_kill_at_each_step_of_an_installation() {
    comes_back_after_a_kill_at_each_step("fjall");
}

#[test]
fn a_volatile_node_comes_back_after_a_kill_at_each_step_of_an_installation() {
    comes_back_after_a_kill_at_each_step("memory");
}

/// Each entry is longer than the log may be, so each is due to be cut once it is durable. A cut that
/// falls between an entry's arrival and its application stops before it: one of a few must not.
#[test]
fn a_cut_goes_as_far_as_the_durable_state_and_not_as_the_one_of_the_cut_before() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let node = small_logs(temp.path(), &["redb"]).remove(0);
    let mut client = node.client();
    let value = "x".repeat(150_000);
    let is_cut = |entry: u64| {
        let mut patience = Patience::new(Duration::from_secs(10));
        while node.info_number("raft_purged_index") < entry {
            if patience.is_over() {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        true
    };
    let tries = 3;
    let cut = (0..tries).any(|_| {
        assert_eq!(client.call(&["SET", "large", &value]), Reply::Ok);
        is_cut(node.info_number("raft_applied_index"))
    });
    assert!(cut, "{}", node.log());
}
