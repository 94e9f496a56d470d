//! Disks that run full.

use std::fs::File;
use std::path::Path;

use kvd::resp::Reply;
use kvd_tests::{Node, alone, free_bytes, join, level_digests, until};

/// Takes space away at once, without writing.
fn fill(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
}

#[test]
fn a_nearly_full_disk_refuses_what_grows_and_recovers_without_a_restart() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let filler = temp.path().join("filler");
    // The rest of the machine uses the disk as well.
    const MARGIN: u64 = 300 << 20;
    let floor = (free_bytes(temp.path()) - MARGIN).to_string();
    let mut node = Node::new(temp.path(), "node0", "redb").with(&["--min-free-bytes", &floor]);
    node.start();
    let mut client = node.client();
    assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
    fill(&filler, 2 * MARGIN);
    until("growth is refused", || {
        client.call(&["SET", "a", "1"]).error_prefix() == Some("MISCONF")
    });
    assert_eq!(client.call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(client.call(&["MULTI"]), Reply::Ok);
    client.call(&["APPEND", "a", "2"]);
    client.call(&["DEL", "b"]);
    let Reply::Array(replies) = client.call(&["EXEC"]) else {
        panic!("the transaction is answered");
    };
    assert!(replies.iter().all(Reply::is_error), "{replies:?}");
    assert_eq!(client.call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(client.call(&["DEL", "a"]), Reply::Int(1));
    assert_eq!(client.call(&["FLUSHALL"]), Reply::Ok);
    assert!(node.log().contains("the disk is nearly full"));
    std::fs::remove_file(&filler).unwrap();
    until("there is room again", || {
        client.call(&["SET", "a", "3"]) == Reply::Ok
    });
}

#[test]
fn a_follower_whose_disk_is_full_is_left_behind_and_comes_level_later() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let filler = temp.path().join("filler");
    const MARGIN: u64 = 300 << 20;
    // A follower takes entries down to half its floor.
    let floor = (2 * (free_bytes(temp.path()) - MARGIN)).to_string();
    let mut nodes: Vec<Node> = (0..3)
        .map(|n| Node::new(temp.path(), &format!("node{n}"), "redb"))
        .collect();
    nodes[2] = Node::new(temp.path(), "node2", "redb").with(&["--min-free-bytes", &floor]);
    join(&mut nodes);
    let mut client = nodes[0].client();
    fill(&filler, 2 * MARGIN);
    let mut full = nodes[2].client();
    until("the follower has no room", || {
        assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
        let lag = |node: &Node| node.info_number("raft_last_log_index");
        lag(&nodes[2]) + 10 < lag(&nodes[0])
    });
    assert_eq!(full.call(&["PING"]), Reply::pong());
    std::fs::remove_file(&filler).unwrap();
    let digests = level_digests(&nodes);
    assert_eq!(digests[0], digests[2]);
}
