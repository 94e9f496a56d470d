//! Members that are taken out.

use kvd::resp::Reply;
use kvd_tests::{Node, alone, cluster, leader, until};

#[test]
fn a_member_leaves_and_serves_no_more() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["LEAVE", "node2"]), Reply::Ok);
    until(
        "the removed member says so",
        || matches!(nodes[2].client().call(&["GET", "a"]), Reply::Error(text) if text.starts_with("NOCLUSTER")),
    );
    assert_eq!(nodes[1].client().call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(nodes[0].info_number("raft_members"), 2);
}

#[test]
fn the_leader_leaves_and_the_others_go_on() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let first = leader(&nodes);
    let name = format!("node{first}");
    assert_eq!(nodes[first].client().call(&["LEAVE", &name]), Reply::Ok);
    let other = (first + 1) % 3;
    assert_eq!(nodes[other].client().call(&["SET", "a", "1"]), Reply::Ok);
    until("the membership is smaller", || {
        nodes[other].info_number("raft_members") == 2
    });
}

#[test]
fn a_member_leaves_although_the_leader_loses_its_majority_for_a_moment() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let first = leader(&nodes);
    let others = [(first + 1) % 3, (first + 2) % 3];
    for other in others {
        nodes[other].pause();
    }
    // Without answers to its heartbeats the leader may change nothing, nor know that it leads.
    let (started, name) = (nodes[first].client(), format!("node{}", others[0]));
    let answer = std::thread::scope(|scope| {
        let answer = scope.spawn(|| {
            let mut client = started;
            client.call(&["LEAVE", &name])
        });
        until("the leader has not heard of the others for long", || {
            let lines = (0..3).filter_map(|n| nodes[first].info(&format!("raft_member{n}")));
            let silent = lines.filter(|line| {
                let heard = line
                    .rsplit_once("heard_ms=")
                    .map(|(_, ms)| ms.parse::<u64>());
                heard.is_some_and(|ms| ms.unwrap() > 1000)
            });
            silent.count() == 2
        });
        for other in others {
            nodes[other].resume();
        }
        answer.join().unwrap()
    });
    assert_eq!(answer, Reply::Ok);
    until("the membership is smaller", || {
        nodes[first].info_number("raft_members") == 2
    });
}

/// The other members, when `first` is one of four.
fn others_of(first: usize) -> [usize; 3] {
    [(first + 1) % 4, (first + 2) % 4, (first + 3) % 4]
}

fn name(n: usize) -> String {
    format!("node{n}")
}

fn says_removed(node: &Node) -> bool {
    let mut client = node.client();
    assert_eq!(client.call(&["READONLY"]), Reply::Ok);
    matches!(client.call(&["GET", "a"]), Reply::Error(text) if text.starts_with("NOCLUSTER"))
}

#[test]
fn a_leave_that_was_cut_short_does_not_take_out_the_next_member_of_that_name() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb", "redb"]);
    let first = leader(&nodes);
    let [second, third, out] = others_of(first);
    let term = |node: &Node| node.info_number("raft_current_term");
    let before = term(&nodes[first]);
    for other in [second, third, out] {
        nodes[other].pause();
    }
    let mut client = nodes[first].client();
    client.send(&["LEAVE", &name(out)]).unwrap();
    until("the leader has not heard of the others for long", || {
        let lines = (0..4).filter_map(|n| nodes[first].info(&format!("raft_member{n}")));
        let silent = lines.filter(|line| {
            let heard = line
                .rsplit_once("heard_ms=")
                .map(|(_, ms)| ms.parse::<u64>());
            heard.is_some_and(|ms| ms.unwrap() > 500)
        });
        silent.count() == 3
    });
    nodes[first].pause();
    for other in [second, third, out] {
        nodes[other].resume();
    }
    until("another leads", || {
        [second, third, out].iter().any(|n| {
            nodes[*n].info("raft_role").as_deref() == Some("leader") && term(&nodes[*n]) > before
        })
    });
    let mut admin = nodes[second].client();
    assert_eq!(admin.call(&["LEAVE", &name(out)]), Reply::Ok);
    nodes[out].kill();
    std::fs::remove_dir_all(&nodes[out].dir).unwrap();
    nodes[out].start();
    let addr = nodes[out].raft_addr();
    assert_eq!(admin.call(&["JOIN", &name(out), &addr]), Reply::Ok);
    nodes[first].resume();
    // Whatever it answers, it has come to its end.
    drop(client.receive());
    assert_eq!(nodes[out].client().call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(admin.call(&["LEAVE", &name(out)]), Reply::Ok);
}

#[test]
fn a_member_that_was_taken_out_while_it_was_down_is_told_when_it_comes_back() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    nodes[2].kill();
    assert_eq!(nodes[0].client().call(&["LEAVE", "node2"]), Reply::Ok);
    nodes[2].start();
    until("the member is told that it is none", || {
        says_removed(&nodes[2])
    });
    assert!(nodes[2].log().contains("was removed from its cluster"));
    // Also after another start, and it is not taken in again with what it holds.
    nodes[2].kill();
    nodes[2].start();
    assert!(says_removed(&nodes[2]));
    let addr = nodes[2].raft_addr();
    assert_eq!(
        nodes[0].client().call(&["JOIN", "node2", &addr]),
        Reply::error(
            "ERR 'node2' was removed from its cluster; start it on an empty data directory"
        )
    );
}

#[test]
fn a_member_that_was_taken_out_while_it_was_cut_off_is_told_when_it_is_back() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(
        nodes[0].client().call(&["RAFT.TRANSFER_LEADER", "node0"]),
        Reply::Ok
    );
    nodes[2].pause();
    assert_eq!(nodes[0].client().call(&["LEAVE", "node2"]), Reply::Ok);
    nodes[2].resume();
    until("the member is told that it is none", || {
        says_removed(&nodes[2])
    });
}

#[test]
fn a_deposed_leader_does_not_take_a_member_for_one_that_has_left() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb", "redb"]);
    let first = leader(&nodes);
    let [second, third, out] = others_of(first);
    let addr = nodes[out].raft_addr();
    let mut client = nodes[first].client();
    assert_eq!(client.call(&["PING"]), Reply::simple("PONG"));
    nodes[first].pause();
    let survivors = [second, third];
    until("another leads", || {
        survivors
            .iter()
            .chain(&[out])
            .any(|n| nodes[*n].info("raft_role").as_deref() == Some("leader"))
    });
    assert_eq!(
        nodes[second].client().call(&["LEAVE", &name(out)]),
        Reply::Ok
    );
    nodes[out].kill();
    client.send(&["JOIN", &name(out), &addr]).unwrap();
    nodes[first].resume();
    let answer = client.receive().unwrap();
    assert!(answer.is_error(), "{answer:?}");
}
