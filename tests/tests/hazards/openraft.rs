//! What openraft leaves to its user, and what it was seen to do: docs/hazards.md has the list.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvd::outcome::Fate;
use kvd::resp::Reply;
use kvd_tests::history;
use kvd_tests::proxy::Trouble;
use kvd_tests::{Client, Node, alone, level_digests, until};

use super::wired::{SMALL_LOG, Wired, members_are, name, write_beyond};

/// A wire over which the snapshots of these tests take some seconds.
const SLOW: Trouble = Trouble::Slow(Duration::from_millis(100));

/// Lets time pass for which nothing but time can be waited for.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    until("time has passed", || Instant::now() >= end);
}

fn same(digests: &[String]) {
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

/// Were the log cut behind a snapshot that is still being sent, it would be stale on arrival, and so
/// would be the next.
#[test]
fn a_member_catches_up_by_one_snapshot_although_logs_are_cut_meanwhile() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 3, 3, &SMALL_LOG);
    wired.lead(0);
    level_digests(&wired.nodes);
    let last = wired.nodes[2].info_number("raft_last_log_index");
    wired.nodes[2].kill();
    write_beyond(&wired.nodes[0], last + 1);
    wired.trouble(0, 2, SLOW);
    let mut away = wired.nodes.remove(2);
    away.start();
    let first = &wired.nodes[0];
    let cut = || first.info_number("raft_purged_index");
    let (before, stop, mut client) = (cut(), AtomicBool::new(false), first.client());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let value = "y".repeat(40_000);
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let key = format!("large:{}", n % 50);
                assert_eq!(client.call(&["SET", &key, &value]), Reply::Ok);
                std::thread::park_timeout(Duration::from_millis(200));
            }
        });
        let applied = |node: &Node| node.info_number("raft_applied_index");
        until("it is level while writes go on", || {
            applied(&away) + 20 >= applied(first)
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(away.info_number("raft_snapshots_installed"), 1);
    // And what was held back is cut by itself, once the member is level.
    until("the log is cut behind the snapshot", || cut() > before + 20);
    wired.wires.heal();
    wired.nodes.push(away);
    same(&level_digests(&wired.nodes));
}

/// Nothing is written besides: the snapshot alone must make it level.
#[test]
fn a_fresh_member_is_taken_in_after_the_log_was_cut() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 2, 1, &SMALL_LOG);
    write_beyond(&wired.nodes[0], 20);
    assert_eq!(wired.join(0, 1), Reply::Ok);
    same(&level_digests(&wired.nodes));
    assert_eq!(wired.nodes[1].info_number("raft_snapshots_installed"), 1);
}

#[test]
fn a_member_that_was_away_for_one_cut_needs_no_snapshot() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 3, 3, &SMALL_LOG);
    wired.lead(0);
    level_digests(&wired.nodes);
    wired.nodes[2].kill();
    let mut client = wired.nodes[0].client();
    let value = "x".repeat(60_000);
    for n in 0..2 {
        assert_eq!(client.call(&["SET", &format!("k{n}"), &value]), Reply::Ok);
    }
    let last = wired.nodes[0].info_number("raft_last_log_index");
    until("a cut is due", || {
        wired.nodes[0].info_number("raft_snapshot_index") >= last
    });
    wired.nodes[2].start();
    same(&level_digests(&wired.nodes));
    assert_eq!(wired.nodes[2].info_number("raft_snapshots_installed"), 0);
}

/// A leader that is cut off takes a write that the others never see.
#[test]
fn a_writer_that_waits_is_answered_when_a_snapshot_replaces_its_entry() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 3, 3, &SMALL_LOG);
    wired.lead(0);
    let mut writer = wired.nodes[0].client();
    assert_eq!(writer.call(&["SET", "a", "before"]), Reply::Ok);
    level_digests(&wired.nodes);
    let last = wired.nodes[0].info_number("raft_last_log_index");
    wired.cut_off(0);
    writer.send(&["SET", "a", "never"]).unwrap();
    until("another one leads", || {
        wired.nodes[1..]
            .iter()
            .any(|node| node.info("raft_role").as_deref() == Some("leader"))
    });
    assert_eq!(
        wired.nodes[0].info_number("raft_last_log_index"),
        last + 1,
        "the write is in the log of the one that led"
    );
    for node in &wired.nodes[1..] {
        write_beyond(node, last + 5);
    }
    wired.wires.heal();
    let answer = writer.receive().unwrap();
    assert_eq!(
        history::fate(Some(&answer)),
        Some(Fate::Unknown),
        "{answer:?}"
    );
    same(&level_digests(&wired.nodes));
    assert_eq!(wired.nodes[0].info_number("raft_snapshots_installed"), 1);
    assert_eq!(writer.call(&["GET", "a"]), Reply::bulk("before"));
}

/// The fourth member hears both the old leader and the majority that the old leader lost.
#[test]
fn a_leader_without_a_majority_does_not_keep_the_others_from_electing_one() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 4, 4, &[]);
    wired.lead(0);
    let term = wired.term(0);
    wired.cut(0, 1);
    wired.cut(0, 2);
    let mut client = wired.nodes[1].client();
    until("the majority writes", || {
        client.call(&["SET", "a", "1"]) == Reply::Ok
    });
    assert!(wired.term(1) > term);
}

#[test]
fn a_member_that_was_cut_off_deposes_nobody_when_it_is_back() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 3, 3, &[]);
    wired.lead(0);
    level_digests(&wired.nodes);
    let term = wired.term(0);
    wired.cut_off(2);
    // It asks the others some times in vain whether they would vote for it.
    pass(Duration::from_secs(3));
    assert_eq!(wired.term(2), term);
    wired.wires.heal();
    assert_eq!(wired.nodes[2].client().call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(wired.term(0), term);
}

/// Raft would stop taking writes at once, and only an election could end that.
#[test]
fn leadership_is_handed_only_to_a_voter_that_is_level() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 4, 3, &[]);
    let mut client = wired.nodes[0].client();
    let call = ["JOIN", "node3", wired.addr(3), "NONVOTER"];
    assert_eq!(client.call(&call), Reply::Ok);
    wired.lead(0);
    let term = wired.term(0);
    wired.nodes[2].pause();
    for n in 1..=1100 {
        assert_eq!(client.call(&["INCR", "n"]), Reply::Int(n));
    }
    for (to, said) in [
        ("node2", "not level enough"),
        ("node3", "invalid target"),
        ("node9", "ERR"),
    ] {
        let reply = client.call(&["RAFT.TRANSFER_LEADER", to]);
        let Reply::Error(text) = &reply else {
            panic!("{to}: {reply:?}");
        };
        assert!(text.contains(said), "{to}: {text}");
        assert!(!client.call(&["INCR", "n"]).is_error());
    }
    assert_eq!(
        client.call(&["RAFT.TRANSFER_LEADER", "node0"]),
        Reply::Ok,
        "to itself"
    );
    assert!(!client.call(&["INCR", "n"]).is_error());
    assert_eq!(wired.term(0), term);
    wired.nodes[2].resume();
}

/// Raft counts as level who lacks less than it was told, be that everything.
#[test]
fn a_member_votes_only_when_it_is_level() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 3, 2, &SMALL_LOG);
    wired.lead(0);
    write_beyond(&wired.nodes[0], 50);
    let last = wired.nodes[0].info_number("raft_last_log_index");
    wired.trouble(0, 2, SLOW);
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| wired.join(0, 2));
        let mut catching_up = 0;
        until("it votes", || {
            let voters = wired.nodes[0].info_number("raft_num_voting_nodes");
            let members = wired.nodes[0].info_number("raft_num_nodes");
            catching_up += usize::from(voters == 2 && members == 3);
            voters == 3
        });
        assert!(wired.nodes[2].info_number("raft_applied_index") >= last);
        assert!(catching_up > 0, "it was seen without a vote");
        assert_eq!(joined.join().unwrap(), Reply::Ok);
    });
}

#[test]
fn a_new_node_leads_before_it_answers() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    for n in 0..5 {
        let mut node = Node::new(temp.path(), &name(n), "redb").with(&["--hold", "0"]);
        node.spawn();
        let mut client = None;
        until("it accepts a connection", || {
            client = Client::connect(&node.addr()).ok();
            client.is_some()
        });
        let reply = client.unwrap().call(&["SET", "a", "1"]);
        assert_eq!(reply, Reply::Ok, "node {n}");
    }
}

/// A leader that replicates to itself would end with a panic.
#[test]
fn a_node_is_not_joined_to_itself() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 2, 2, &[]);
    wired.lead(0);
    // Its own address, and one that leads to it and that it does not know.
    let direct = wired.nodes[0].raft_addr();
    for addr in [wired.addr(0), &direct] {
        let reply = wired.nodes[0].client().call(&["JOIN", "node9", addr]);
        assert!(reply.is_error(), "{addr}: {reply:?}");
    }
    assert_eq!(wired.nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    members_are(&[&wired.nodes[0], &wired.nodes[1]], 2, 2);
}

#[test]
fn members_come_and_go_while_leadership_moves() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 4, 3, &[]);
    let stop = AtomicBool::new(false);
    let addrs: Vec<String> = wired.nodes[..3].iter().map(Node::addr).collect();
    let written = std::thread::scope(|scope| {
        let (addrs, stop) = (&addrs, &stop);
        let mover = scope.spawn(move || {
            let mut moves = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut client = Client::connect(&addrs[moves % 3]).unwrap();
                let to = name((moves + 1) % 3);
                // One that is not level, or not the leader any more, is refused.
                drop(client.call(&["RAFT.TRANSFER_LEADER", &to]));
                moves += 1;
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let writer = scope.spawn(move || {
            let mut client = Client::connect(&addrs[1]).unwrap();
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                match client.call(&["INCR", "n"]) {
                    Reply::Int(n) => written = n,
                    reply => assert!(reply.is_error(), "{reply:?}"),
                }
            }
            written
        });
        for round in 0..4 {
            until("it is taken in", || wired.join(round % 3, 3) == Reply::Ok);
            until("it is taken out", || {
                let reply = wired.nodes[(round + 1) % 3]
                    .client()
                    .call(&["LEAVE", "node3"]);
                match reply {
                    Reply::Ok => true,
                    // An answer that was lost: it is done.
                    Reply::Error(text) => text.contains("no member"),
                    other => panic!("{other:?}"),
                }
            });
            wired.renew(3);
        }
        stop.store(true, Ordering::Relaxed);
        mover.join().unwrap();
        writer.join().unwrap()
    });
    assert!(written > 0);
    let nodes: Vec<&Node> = wired.nodes[..3].iter().collect();
    members_are(&nodes, 3, 3);
    same(&level_digests(&wired.nodes[..3]));
}
