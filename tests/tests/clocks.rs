//! Clocks that are wrong, and that are changed under a node.

use std::path::Path;

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, join, leader, until};

use crate::preload::preload;

fn node(root: &Path, n: usize) -> Node {
    let mut node = Node::new(root, &format!("node{n}"), "redb");
    node.set_env("LD_PRELOAD", preload("clock").to_str());
    let clock = node.dir.with_extension("clock");
    node.set_env("KVD_CLOCK", clock.to_str());
    node
}

fn set_clock(node: &Node, off_ms: i64) {
    // As a whole: the node may read it at any time.
    let file = node.dir.with_extension("clock");
    let new = file.with_extension("clock-new");
    std::fs::write(&new, off_ms.to_string()).unwrap();
    std::fs::rename(&new, &file).unwrap();
}

const HOUR: i64 = 3_600_000;

#[track_caller]
fn ttl_ms(client: &mut Client, key: &str) -> i64 {
    match client.call(&["PTTL", key]) {
        Reply::Int(ttl) => ttl,
        other => panic!("PTTL answered {other:?}"),
    }
}

#[test]
fn a_members_clock_that_is_off_is_said_and_expires_nothing() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = (0..3).map(|n| node(temp.path(), n)).collect();
    set_clock(&nodes[2], 2 * HOUR);
    join(&mut nodes);
    until("a member says that clocks differ", || {
        nodes.iter().any(|node| node.log().contains("clock"))
    });
    let first = leader(&nodes);
    let mut client = nodes[first].client();
    assert_eq!(client.call(&["SET", "a", "1", "PX", "600000"]), Reply::Ok);
    let mut reader = nodes[2].client();
    assert!((1..=600_000).contains(&ttl_ms(&mut reader, "a")));
    assert_eq!(reader.call(&["READONLY"]), Reply::Ok);
    assert_eq!(reader.call(&["GET", "a"]), Reply::bulk("1"));
    // It leads, and its clock counts from where the cluster's time was.
    let moved = nodes[first]
        .client()
        .call(&["RAFT.TRANSFER_LEADER", "node2"]);
    assert_eq!(moved, Reply::Ok);
    let mut client = nodes[2].client();
    assert_eq!(client.call(&["SET", "b", "1", "PX", "300"]), Reply::Ok);
    until("what is due expires", || {
        client.call(&["EXISTS", "b"]) == Reply::Int(0)
    });
    assert!((500_000..=600_000).contains(&ttl_ms(&mut client, "a")));
}

#[test]
fn a_leaders_clock_that_jumps_neither_expires_the_world_nor_stops_time() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = (0..3).map(|n| node(temp.path(), n)).collect();
    join(&mut nodes);
    let mut client = nodes[0].client();
    assert_eq!(client.call(&["SET", "a", "1", "PX", "600000"]), Reply::Ok);
    for (round, off_ms) in [HOUR, -HOUR, 24 * HOUR, 0].into_iter().enumerate() {
        let first = leader(&nodes);
        set_clock(&nodes[first], off_ms);
        let mut client = nodes[(first + 1) % 3].client();
        let key = format!("short:{round}");
        assert_eq!(client.call(&["SET", &key, "1", "PX", "300"]), Reply::Ok);
        until("what is due expires", || {
            client.call(&["EXISTS", &key]) == Reply::Int(0)
        });
        let left = ttl_ms(&mut client, "a");
        assert!(
            (400_000..=600_000).contains(&left),
            "after {off_ms}: {left}"
        );
        let to = format!("node{}", (first + 1) % 3);
        let moved = nodes[first].client().call(&["RAFT.TRANSFER_LEADER", &to]);
        assert_eq!(moved, Reply::Ok);
        let left = ttl_ms(&mut client, "a");
        assert!(
            (400_000..=600_000).contains(&left),
            "after {off_ms}: {left}"
        );
    }
}
