//! Sizes and numbers at their limits, at the default settings.

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, cluster, leader, request};

fn peak_kib(node: &Node) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn the_largest_key_and_value_are_served_and_one_byte_more_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let (key, value) = (vec![b'k'; 64 << 10], vec![b'v'; 64 << 20]);
    let mut client = node.client();
    assert_eq!(client.call(&[&b"SET"[..], b"empty", b""]), Reply::Ok);
    assert_eq!(client.call(&[&b"SET"[..], &key, b"1"]), Reply::Ok);
    assert_eq!(client.call(&[&b"SET"[..], b"large", &value]), Reply::Ok);
    for args in [
        [&b"SET"[..], &[&key[..], b"k"].concat(), b"1"],
        [&b"SET"[..], b"larger", &[&value[..], b"v"].concat()],
    ] {
        match client.call(&args) {
            Reply::Error(text) => assert!(
                text.starts_with("ERR ") && text.contains("longer than"),
                "{text}"
            ),
            other => panic!("{other:?}"),
        }
    }
    eprintln!("a value of 64 MiB: {}", peak_kib(&node));
    node.kill();
    node.start();
    let mut client = node.client();
    assert_eq!(client.call(&["GET", "empty"]), Reply::bulk(""));
    assert_eq!(client.call(&[&b"GET"[..], &key]), Reply::bulk("1"));
    assert_eq!(client.call(&["STRLEN", "large"]), Reply::Int(64 << 20));
    assert!(client.call(&["GET", "large"]) == Reply::bulk(value));
    assert_eq!(client.call(&["DBSIZE"]), Reply::Int(3));
}

#[test]
fn a_pipeline_of_a_hundred_thousand_commands_is_answered_in_order() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let addr = node.addr();
    let mut client = Client::connect(&addr).unwrap();
    let mut writer = client.split_writer();
    let sender = std::thread::spawn(move || {
        use std::io::Write as _;
        let command = request(&["INCR", "counter"]);
        for _ in 0..100 {
            writer.write_all(&command.repeat(1000)).unwrap();
        }
    });
    for n in 1..=100_000 {
        assert_eq!(client.receive().unwrap(), Reply::Int(n));
    }
    sender.join().unwrap();
    eprintln!("100,000 pipelined commands: {}", peak_kib(&node));
}

#[test]
fn five_thousand_connections_are_served_without_an_election() {
    let _alone = alone();
    let files = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(files);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(files, raised).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let term = node.info_number("raft_term");
    let mut clients: Vec<Client> = (0..5000)
        .map(|_| Client::connect(&node.addr()).unwrap())
        .collect();
    for client in &mut clients {
        client.send(&["INCR", "all"]).unwrap();
    }
    for client in &mut clients {
        assert!(matches!(client.receive().unwrap(), Reply::Int(_)));
    }
    assert_eq!(clients[0].call(&["GET", "all"]), Reply::bulk("5000"));
    assert_eq!(node.info_number("raft_term"), term);
    eprintln!("5,000 connections: {}", peak_kib(&node));
}

#[test]
fn one_clients_writes_are_one_sync_each_and_many_clients_share_them() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let before = node.info_number("raft_log_syncs");
    let mut client = node.client();
    for n in 0..500 {
        assert_eq!(client.call(&["SET", &format!("key:{n}"), "1"]), Reply::Ok);
    }
    let syncs = node.info_number("raft_log_syncs") - before;
    eprintln!("one client: {syncs} syncs for 500 writes");
    assert!((500..=520).contains(&syncs), "{syncs} syncs for 500 writes");
    let (syncs, entries) = (
        node.info_number("raft_log_syncs"),
        node.info_number("raft_proposed_entries"),
    );
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut client = node.client();
                for _ in 0..40 {
                    assert!(matches!(client.call(&["INCR", "shared"]), Reply::Int(_)));
                }
            });
        }
    });
    let syncs = node.info_number("raft_log_syncs") - syncs;
    let entries = node.info_number("raft_proposed_entries") - entries;
    eprintln!("fifty clients: 2000 writes, {entries} entries, {syncs} syncs");
    assert!(syncs < 1500, "{syncs} syncs for 2000 writes");
}

#[test]
fn the_replies_of_one_transaction_are_bounded() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let mut client = node.client();
    let value = vec![b'v'; 64 << 20];
    assert_eq!(client.call(&[&b"SET"[..], b"large", &value]), Reply::Ok);
    // With a write, so that a group carries it out, and without, so that a view does.
    for first in [["SET", "other", "1"].as_slice(), ["GET", "none"].as_slice()] {
        client.send(&["MULTI"]).unwrap();
        client.send(first).unwrap();
        for _ in 0..9 {
            client.send(&["GET", "large"]).unwrap();
        }
        for _ in 0..11 {
            assert!(!client.receive().unwrap().is_error());
        }
        let Reply::Array(replies) = client.call(&["EXEC"]) else {
            panic!("a transaction answers an array");
        };
        assert_eq!(replies.len(), 10);
        assert!(
            replies[1..9]
                .iter()
                .all(|reply| *reply == Reply::Bulk(value.clone().into()))
        );
        assert!(
            matches!(&replies[9], Reply::Error(text) if text.contains("more than 537919488 bytes")),
        );
    }
    // The client goes on.
    assert_eq!(client.call(&["PING"]), Reply::pong());
    assert_eq!(client.call(&["GET", "other"]), Reply::bulk("1"));
    eprintln!("replies up to the limit: {}", peak_kib(&node));
}

#[test]
fn a_follower_answers_more_than_a_message_between_nodes_holds() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let mut client = nodes[(leader(&nodes) + 1) % 3].client();
    let value = vec![b'v'; 32 << 20];
    assert_eq!(client.call(&[&b"SET"[..], b"large", &value]), Reply::Ok);
    client.send(&["MULTI"]).unwrap();
    client.send(&["INCR", "counter"]).unwrap();
    for _ in 0..5 {
        client.send(&["GET", "large"]).unwrap();
    }
    for _ in 0..7 {
        assert!(!client.receive().unwrap().is_error());
    }
    let mut replies = vec![Reply::Int(1)];
    replies.resize(6, Reply::Bulk(value.into()));
    assert!(client.call(&["EXEC"]) == Reply::Array(replies));
    assert_eq!(client.call(&["GET", "counter"]), Reply::bulk("1"));
}
