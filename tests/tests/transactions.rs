//! Transactions and membership changes that a failover meets in the middle.

use kvd::resp::Reply;
use kvd_tests::{Node, alone, cluster, leader, level_digests, until};

#[test]
fn a_transaction_through_a_follower_is_one_and_its_errors_are_its_own() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let follower = (leader(&nodes) + 1) % 3;
    let mut client = nodes[follower].client();
    assert_eq!(client.call(&["SET", "text", "x"]), Reply::Ok);
    assert_eq!(client.call(&["MULTI"]), Reply::Ok);
    for request in [
        &["INCR", "a"][..],
        &["INCR", "text"],
        &["INCR", "a"],
        &["GET", "a"],
    ] {
        assert_eq!(client.call(request), Reply::queued());
    }
    let Reply::Array(replies) = client.call(&["EXEC"]) else {
        panic!("the transaction is carried out");
    };
    assert_eq!(replies[0], Reply::Int(1));
    assert!(replies[1].is_error());
    assert_eq!(replies[2..], [Reply::Int(2), Reply::bulk("2")]);
}

#[test]
fn a_watched_key_is_watched_across_a_failover() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for changed in [false, true] {
        let first = leader(&nodes);
        let (one, other) = ((first + 1) % 3, (first + 2) % 3);
        let mut client = nodes[one].client();
        assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
        assert_eq!(client.call(&["WATCH", "a"]), Reply::Ok);
        nodes[first].kill();
        if changed {
            assert_eq!(nodes[other].client().call(&["SET", "a", "2"]), Reply::Ok);
        }
        assert_eq!(client.call(&["MULTI"]), Reply::Ok);
        assert_eq!(client.call(&["SET", "a", "3"]), Reply::queued());
        let executed = client.call(&["EXEC"]);
        let (reply, value) = match changed {
            false => (Reply::Array(vec![Reply::Ok]), "3"),
            true => (Reply::NullArray, "2"),
        };
        assert_eq!(executed, reply);
        assert_eq!(
            nodes[other].client().call(&["GET", "a"]),
            Reply::bulk(value)
        );
        nodes[first].start();
        level_digests(&nodes);
    }
}

#[test]
fn a_join_whose_leader_dies_is_finished_by_the_next_one() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    nodes.push(Node::new(temp.path(), "node3", "redb"));
    nodes[3].start();
    let first = leader(&nodes[..3]);
    let (one, other) = ((first + 1) % 3, (first + 2) % 3);
    // It cannot answer yet, so the JOIN waits.
    nodes[3].pause();
    let addr = nodes[3].raft_addr();
    let mut client = nodes[one].client();
    level_digests(&nodes[..3]);
    let before = nodes[first].info_number("raft_last_log_index");
    client.send(&["JOIN", "node3", &addr]).unwrap();
    until("the intent is on both survivors", || {
        [one, other]
            .iter()
            .all(|n| nodes[*n].info_number("raft_last_log_index") > before)
    });
    nodes[first].kill();
    nodes[3].resume();
    // What the asker is told depends on when the leader died; that the outcome is unknown at worst.
    match client.receive().unwrap() {
        Reply::Ok => {}
        Reply::Error(text) => assert!(text.starts_with("UNKNOWN"), "{text}"),
        other => panic!("{other:?}"),
    }
    until("the node is taken in", || {
        nodes[other].info("raft_num_voting_nodes").as_deref() == Some("4")
    });
    nodes[first].start();
    let digests = level_digests(&nodes);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}
