//! What Jepsen found in RedisRaft, scenario by scenario: docs/hazards.md has the list.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvd::resp::Reply;
use kvd_tests::proxy::Trouble;
use kvd_tests::{Client, Node, alone, cluster, level_digests, repository, until};

use super::wired::{SMALL_LOG, Wired, members_are, name, write_beyond};

fn same(digests: &[String]) {
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

/// There a command that was applied was intercepted and entered the log again, for ever.
#[test]
fn one_write_is_one_entry_with_one_effect_on_every_member() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    level_digests(&nodes);
    let last = |node: &Node| node.info_number("raft_last_log_index");
    let (before, mut clients) = (last(&nodes[0]), nodes.iter().map(Node::client));
    let mut clients: Vec<Client> = clients.by_ref().collect();
    for n in 0..30 {
        let length = clients[n % 3].call(&["APPEND", "text", "x"]);
        assert_eq!(length, Reply::Int(n as i64 + 1));
    }
    level_digests(&nodes);
    for node in &nodes {
        assert_eq!(last(node), before + 30);
        let mut client = node.client();
        assert_eq!(client.call(&["READONLY"]), Reply::Ok);
        assert_eq!(client.call(&["GET", "text"]), Reply::bulk("x".repeat(30)));
    }
}

#[test]
fn two_changes_of_members_at_once_are_carried_out_one_after_the_other() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 5, 4, &[]);
    std::thread::scope(|scope| {
        let leave = |via: usize, n: usize| {
            let mut client = wired.nodes[via].client();
            scope.spawn(move || client.call(&["LEAVE", &name(n)]))
        };
        let joined = scope.spawn(|| wired.join(0, 4));
        let left = [leave(0, 2), leave(1, 3)];
        assert_eq!(joined.join().unwrap(), Reply::Ok);
        for left in left {
            assert_eq!(left.join().unwrap(), Reply::Ok);
        }
    });
    let stay: Vec<&Node> = [0, 1, 4].map(|n| &wired.nodes[n]).into();
    members_are(&stay, 3, 3);
    assert_eq!(wired.nodes[4].client().call(&["SET", "a", "1"]), Reply::Ok);
    // Majorities are of those three: with two of them down nothing is acknowledged.
    wired.nodes[1].kill();
    assert_eq!(wired.nodes[4].client().call(&["SET", "a", "2"]), Reply::Ok);
}

/// There reads were answered before the log was carried out again.
#[test]
fn after_a_restart_of_all_no_read_is_answered_from_before() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = (0..3)
        .map(|n| Node::new(temp.path(), &name(n), "redb").with(&["--hold", "300"]))
        .collect();
    kvd_tests::join(&mut nodes);
    for round in 0..3 {
        let mut client = nodes[round].client();
        let mut latest = String::new();
        for n in 0..200 {
            latest = format!("{round}.{n}");
            until("it is written", || {
                client.call(&["SET", "k", &latest]) == Reply::Ok
            });
        }
        for node in &mut nodes {
            node.kill();
        }
        for node in &mut nodes {
            node.spawn();
        }
        let mut seen = [false; 3];
        until("every member answers", || {
            for (node, seen) in nodes.iter().zip(&mut seen) {
                let Ok(mut client) = Client::connect(&node.addr()) else {
                    continue;
                };
                match client.try_call(&["GET", "k"]) {
                    Ok(reply) if reply.is_error() => {}
                    Ok(reply) => {
                        assert_eq!(reply, Reply::bulk(latest.clone()));
                        *seen = true;
                    }
                    Err(_) => {}
                }
            }
            seen.iter().all(|seen| *seen)
        });
    }
}

/// There clients were given the replies of others when connections between nodes broke.
#[test]
fn each_client_gets_its_own_replies_through_members_whose_wires_break() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 3, 3, &["--hold", "2000"]);
    wired.lead(0);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for id in 0..6 {
            let (addr, stop, answered) = (wired.nodes[1 + id % 2].addr(), &stop, &answered);
            scope.spawn(move || {
                let (key, own) = (format!("key{id}"), format!("{id}:"));
                let of_mine = |reply: &Reply| match reply {
                    Reply::Bulk(bytes) => bytes.starts_with(own.as_bytes()),
                    Reply::Null | Reply::Error(_) => true,
                    _ => false,
                };
                for n in 0.. {
                    let Ok(mut client) = Client::connect(&addr) else {
                        continue;
                    };
                    for at in 0..50 {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let value = format!("{own}{n}.{at}");
                        let call = ["SET", &key, &value, "GET"];
                        let reply = if at % 5 == 0 {
                            for part in [&["MULTI"][..], &call] {
                                assert!(!client.call(part).is_error());
                            }
                            match client.call(&["EXEC"]) {
                                Reply::Array(parts) => parts[0].clone(),
                                other => other,
                            }
                        } else {
                            client.call(&call)
                        };
                        assert!(of_mine(&reply), "{own} was answered {reply:?}");
                        if !reply.is_error() {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for round in 0..12 {
            let (from, to) = [(0, 1), (1, 0), (0, 2), (2, 0)][round % 4];
            wired.trouble(from, to, Trouble::Lossy(5));
            let before = answered.load(Ordering::Relaxed);
            until("calls are answered", || {
                answered.load(Ordering::Relaxed) > before + 100
            });
            wired.wires.heal();
        }
        stop.store(true, Ordering::Relaxed);
    });
    same(&level_digests(&wired.nodes));
}

/// There a snapshot of a state that had come as a snapshot had lost the members.
#[test]
fn a_snapshot_of_a_snapshot_keeps_the_members() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 4, 2, &SMALL_LOG);
    wired.lead(0);
    write_beyond(&wired.nodes[0], 30);
    assert_eq!(wired.join(0, 2), Reply::Ok);
    assert_eq!(wired.nodes[2].info_number("raft_snapshots_installed"), 1);
    // What was a snapshot becomes the contents of the next one.
    wired.lead(2);
    let last = wired.nodes[2].info_number("raft_last_log_index");
    write_beyond(&wired.nodes[2], last);
    assert_eq!(wired.join(2, 3), Reply::Ok);
    assert_eq!(wired.nodes[3].info_number("raft_snapshots_installed"), 1);
    for _ in 0..2 {
        members_are(&wired.nodes.iter().collect::<Vec<_>>(), 4, 4);
        for node in &mut wired.nodes {
            node.kill();
        }
        for node in &mut wired.nodes {
            node.start();
        }
        same(&level_digests(&wired.nodes));
        let first = kvd_tests::leader(&wired.nodes);
        let last = wired.nodes[first].info_number("raft_last_log_index");
        write_beyond(&wired.nodes[first], last);
    }
    members_are(&wired.nodes.iter().collect::<Vec<_>>(), 4, 4);
}

/// There a member that was removed while it was being promoted ended the leader.
#[test]
fn a_member_that_is_taken_out_while_it_is_taken_in_stops_nobody() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 4, 3, &SMALL_LOG);
    wired.lead(0);
    write_beyond(&wired.nodes[0], 30);
    wired.trouble(0, 3, Trouble::Slow(Duration::from_millis(50)));
    let (joined, left) = std::thread::scope(|scope| {
        let joined = scope.spawn(|| wired.join(1, 3));
        until("it catches up without a vote", || {
            wired.nodes[0].info_number("raft_num_nodes") == 4
        });
        let left = wired.nodes[2].client().call(&["LEAVE", "node3"]);
        (joined.join().unwrap(), left)
    });
    assert_eq!(left, Reply::Ok);
    assert!(matches!(joined, Reply::Ok | Reply::Error(_)), "{joined:?}");
    let stay: Vec<&Node> = wired.nodes[..3].iter().collect();
    members_are(&stay, 3, 3);
    for node in stay {
        assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
    }
    until("it serves no more", || {
        let reply = wired.nodes[3].client().call(&["GET", "a"]);
        reply.error_prefix() == Some("NOCLUSTER")
    });
}

/// There a flush in the middle of loading ended the follower.
#[test]
fn a_snapshot_is_installed_while_clients_read_and_the_leader_flushes() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut wired = Wired::start(temp.path(), 3, 3, &SMALL_LOG);
    wired.lead(0);
    for round in 0..3 {
        level_digests(&wired.nodes);
        let last = wired.nodes[2].info_number("raft_last_log_index");
        wired.nodes[2].kill();
        write_beyond(&wired.nodes[0], last + 1);
        if round > 0 {
            assert_eq!(wired.nodes[0].client().call(&["FLUSHALL"]), Reply::Ok);
            assert_eq!(wired.nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
        }
        wired.nodes[2].start();
        let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (mut client, stop, reads) = (wired.nodes[2].client(), &stop, &reads);
                scope.spawn(move || {
                    assert_eq!(client.call(&["READONLY"]), Reply::Ok);
                    while !stop.load(Ordering::Relaxed) {
                        for call in [&["GET", "large:7"][..], &["DBSIZE"], &["SCAN", "0"]] {
                            let reply = client.call(call);
                            let loading = reply.error_prefix() == Some("LOADING");
                            assert!(!reply.is_error() || loading, "{reply:?}");
                            reads.fetch_add(u64::from(!loading), Ordering::Relaxed);
                        }
                    }
                });
            }
            until("the snapshot is installed under reads", || {
                wired.nodes[2].info_number("raft_snapshots_installed") > 0
                    && reads.load(Ordering::Relaxed) > 30
            });
            assert_eq!(wired.nodes[0].client().call(&["FLUSHALL"]), Reply::Ok);
            same(&level_digests(&wired.nodes));
            stop.store(true, Ordering::Relaxed);
        });
        for node in &wired.nodes {
            assert_eq!(node.client().call(&["DBSIZE"]), Reply::Int(0));
        }
    }
}

/// There clients' commands went over Raft's own connection, and elections were the price.
#[test]
fn large_values_that_are_forwarded_cost_no_election() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let wired = Wired::start(temp.path(), 3, 3, &[]);
    wired.lead(0);
    let term = wired.term(0);
    // A value takes more than a second on its way; the leader needs answers all the time.
    for from in [1, 2] {
        wired.trouble(from, 0, Trouble::Slow(Duration::from_millis(20)));
    }
    std::thread::scope(|scope| {
        for from in [1, 2] {
            let mut client = wired.nodes[from].client();
            scope.spawn(move || {
                let value = "x".repeat(4 << 20);
                for _ in 0..3 {
                    let reply = client.call(&["SET", &name(from), &value]);
                    assert_eq!(reply, Reply::Ok);
                }
            });
        }
    });
    assert_eq!(wired.term(0), term);
}

/// What a process holds in memory, in bytes.
fn memory(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kb << 10
}

/// There each forwarded command left something behind.
#[test]
fn what_was_forwarded_does_not_stay_in_memory() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb"]);
    let first = kvd_tests::leader(&nodes);
    let other = &nodes[1 - first];
    let (mut client, value) = (other.client(), "x".repeat(1 << 20));
    let mut write = |count: usize| {
        for _ in 0..count {
            assert_eq!(client.call(&["SET", "k", &value]), Reply::Ok);
        }
        memory(other)
    };
    // The log's cache of 64 MiB is full by then.
    let before = write(130);
    let after = write(160);
    assert!(
        after < before + (80 << 20),
        "it grew from {before} to {after} bytes"
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path: PathBuf = file.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

/// There all members were dead after an upgrade. `tests/formats` has a data directory of each format
/// that there was: an identity, a log and a snapshot.
#[test]
fn a_directory_of_each_earlier_format_is_served() {
    let _alone = alone();
    let formats = repository().join("tests/formats");
    let mut found = 0;
    for format in fs::read_dir(formats).unwrap() {
        let format = format.unwrap().path();
        let temp = tempfile::tempdir().unwrap();
        let mut node = Node::new(temp.path(), "node0", "memory");
        copy(&format.join("data"), &node.dir);
        // The engine kept nothing, and git keeps no empty folder.
        fs::create_dir_all(node.dir.join("groups/0/engine")).unwrap();
        node.start();
        let mut client = node.client();
        for (call, reply) in [
            (&["GET", "text"][..], Reply::bulk("in the snapshot")),
            (&["GET", "number"], Reply::bulk("42")),
            (&["GET", "late"], Reply::bulk("in the log")),
            (&["DBSIZE"], Reply::Int(4)),
        ] {
            assert_eq!(client.call(call), reply, "{}", format.display());
        }
        let Reply::Int(seconds) = client.call(&["TTL", "brief"]) else {
            panic!("a key with an expiry has none");
        };
        assert!(seconds > 1_000_000, "{seconds}");
        assert_eq!(client.call(&["SET", "new", "1"]), Reply::Ok);
        found += 1;
    }
    assert!(found > 0, "no format is kept");
}
