//! Backups, recovery and repair: what an operator does beside running nodes.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{Node, alone, built, cluster, done, kvd, level_digests, refused, text, until};

/// The value behind a name in what `kvd data verify` and its like print.
fn value(printed: &str, name: &str) -> String {
    let line = printed.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {printed}"))
        .trim()
        .to_owned()
}

fn fill(node: &Node, from: usize, to: usize) {
    let mut client = node.client();
    for n in from..to {
        let key = format!("key:{n}");
        assert_eq!(client.call(&["SET", &key, &"x".repeat(n % 97)]), Reply::Ok);
    }
    let expiring = client.call(&["SET", "expiring", "soon", "EX", "10000"]);
    assert_eq!(expiring, Reply::Ok);
}

fn newest_chunk(node: &Node) -> PathBuf {
    let chunks = fs::read_dir(node.dir.join("groups/0/log/chunks")).unwrap();
    let mut chunks: Vec<PathBuf> = chunks.map(|chunk| chunk.unwrap().path()).collect();
    chunks.retain(|chunk| {
        chunk
            .extension()
            .is_some_and(|extension| extension == "wal")
    });
    chunks.sort();
    chunks.pop().expect("a log has a file")
}

/// What a command does whose reader has gone, as `head` does.
fn ends_quietly_unread(args: &[&str]) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(built().join("kvd"));
    let ended = command.args(args).stdout(writer).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    let code = ended.status.code();
    assert_eq!((code, &*said), (Some(exit::UNREAD), ""), "{args:?}");
}

#[test]
fn a_backup_of_a_running_cluster_becomes_a_new_cluster_on_any_engine() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "sled", "memory"]);
    fill(&nodes[0], 0, 500);
    let digest = level_digests(&nodes).remove(0);
    let file = temp.path().join("saved.snap");
    let follower = nodes[1].addr();
    let said = done(&["snapshot", "save", text(&file), "--addr", &follower]);
    assert!(said.starts_with("saved "), "{said}");
    done(&["snapshot", "verify", text(&file)]);
    // A file that is there is not replaced.
    let args = ["snapshot", "save", text(&file), "--addr", &follower];
    refused(&args, exit::IO, "exists");
    fill(&nodes[0], 500, 600);

    let old = nodes[0].info("raft_cluster_id").unwrap();
    for backend in ["redb", "sled", "fjall", "memory"] {
        let mut reborn = Node::new(temp.path(), &format!("reborn-{backend}"), backend);
        let dir = reborn.dir.clone();
        let restore = ["snapshot", "restore", text(&file), text(&dir), "--backend"];
        done(&[&restore[..], &[backend]].concat());
        refused(&[&restore[..], &[backend]].concat(), exit::IO, "not empty");
        let verified = done(&["data", "verify", text(&dir)]);
        assert_eq!(value(&verified, "keys"), "501");
        reborn.start();
        assert_eq!(reborn.digest(), digest, "{backend}");
        assert_ne!(reborn.info("raft_cluster_id").unwrap(), old);
        let mut client = reborn.client();
        assert_eq!(client.call(&["GET", "key:500"]), Reply::Null);
        let Reply::Int(left) = client.call(&["TTL", "expiring"]) else {
            panic!("TTL answers a number");
        };
        assert!((1..=10_000).contains(&left), "{left}");
        // It is a cluster like any other: it takes empty nodes in, and others of its kind not.
        let mut second = Node::new(temp.path(), &format!("second-{backend}"), "redb");
        second.start();
        let joined = client.call(&["JOIN", "second", &second.raft_addr()]);
        assert_eq!(joined, Reply::Ok);
        fill(&second, 600, 650);
        let digests = level_digests(&[reborn, second]);
        assert_eq!(digests[0], digests[1], "{backend}");
    }
}

#[test]
fn a_damaged_backup_is_refused_before_anything_is_made() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    fill(&node, 0, 200);
    let file = temp.path().join("saved.snap");
    refused(
        &["snapshot", "save", text(&file), "--from", text(&node.dir)],
        exit::LOCKED,
        "in use by another process",
    );
    assert_eq!(node.terminate(), Some(exit::OK));
    done(&["snapshot", "save", text(&file), "--from", text(&node.dir)]);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let dir = temp.path().join("new");
    let args = ["snapshot", "restore", text(&file), text(&dir)];
    refused(&args, exit::CONFIG, "snapshot is refused at byte");
    assert!(!dir.exists());
    fs::write(&file, "no snapshot").unwrap();
    refused(&args, exit::CONFIG, "snapshot is refused at byte 0");
}

#[test]
fn what_is_left_of_a_lost_majority_becomes_a_new_cluster() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    for backend in ["redb", "sled", "fjall", "memory"] {
        let root = temp.path().join(backend);
        fs::create_dir(&root).unwrap();
        let mut nodes = cluster(&root, &[backend, backend, backend]);
        fill(&nodes[0], 0, 300);
        let digest = level_digests(&nodes).remove(0);
        for node in &mut nodes {
            node.kill();
        }
        let dir = nodes[1].dir.clone();
        let recover = ["recover", "--force-new-cluster", text(&dir)];
        refused(&["recover", text(&dir)], exit::USAGE, "--force-new-cluster");
        let said = done(&recover);
        assert!(
            said.contains("is the only member of the new cluster"),
            "{said}"
        );
        nodes[1].start();
        until("it leads itself", || {
            nodes[1].info("raft_role").as_deref() == Some("leader")
        });
        assert_eq!(nodes[1].digest(), digest, "{backend}");
        // Whoever was not lost after all is no member of it.
        nodes[0].start();
        let mut client = nodes[1].client();
        let joined = client.call(&["JOIN", "node0", &nodes[0].raft_addr()]);
        assert!(joined.is_error(), "{joined:?}");
        let mut empty = Node::new(&root, "node3", backend);
        empty.start();
        let joined = client.call(&["JOIN", "node3", &empty.raft_addr()]);
        assert_eq!(joined, Reply::Ok);
        fill(&empty, 300, 350);
    }
}

#[test]
fn a_recovery_that_was_cut_off_is_given_again() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    fill(&node, 0, 100);
    let digest = node.digest();
    node.kill();
    let recover = ["recover", "--force-new-cluster", text(&node.dir)];
    done(&recover);
    // As if it had been cut off before its last step, with the old log gone or there.
    for log_is_gone in [false, true] {
        let file = node.dir.join("NODE");
        let identity = fs::read_to_string(&file).unwrap();
        let half = identity.replace("\"rebuilding\": false", "\"rebuilding\": true");
        assert_ne!(identity, half);
        fs::write(&file, half).unwrap();
        let log = node.dir.join("groups/0/log");
        if log_is_gone {
            fs::rename(&log, node.dir.join("groups/0/away")).unwrap();
        }
        let addr = format!("--addr={}", node.addr());
        let raft_addr = format!("--raft-addr={}", node.raft_addr());
        let start = [&*addr, &*raft_addr, text(&node.dir)];
        refused(&start, exit::CONFIG, "is half rebuilt");
        done(&recover);
    }
    node.start();
    assert_eq!(node.digest(), digest);
}

#[test]
fn damage_of_a_log_is_told_from_an_unfinished_write_and_repaired_as_far_as_one_says() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    fill(&node, 0, 200);
    let dir = node.dir.clone();
    let verify = ["log", "verify", text(&dir)];
    refused(&verify, exit::LOCKED, "in use by another process");
    node.kill();
    let whole = done(&verify);
    let last: u64 = value(&whole, "last")
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let inspected = done(&["log", "inspect", text(&dir)]);
    assert!(inspected.contains(": SET\n"), "{inspected}");
    let mut end = 0;
    for line in done(&["log", "inspect", "--json", text(&dir)]).lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(record["kind"].is_string(), "{line}");
        end = record["offset"].as_u64().unwrap() + record["bytes"].as_u64().unwrap();
    }
    for args in [
        &["log", "inspect", text(&dir)][..],
        &["log", "inspect", "--json", text(&dir)],
        &verify,
        &["data", "verify", text(&dir)],
        &["plugin", "list"],
    ] {
        ends_quietly_unread(args);
    }
    let from = (last - 1).to_string();
    let some = done(&["log", "inspect", "--json", "--from", &from, text(&dir)]);
    assert_eq!(some.lines().count(), 2, "{some}");

    // The beginning of a record that was never finished.
    let chunk = newest_chunk(&node);
    let before = fs::read(&chunk).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&chunk).unwrap();
    file.write_all_at(&[0, 0, 0, 1, 7, 7, 7], end).unwrap();
    refused(&verify, exit::TORN, "an unfinished record of 7 bytes");
    let said = done(&["log", "repair", "--drop-tail", text(&dir)]);
    assert!(said.starts_with("7 bytes were dropped"), "{said}");
    let (records, zeros) = before.split_at(end as usize);
    assert!(zeros.iter().all(|byte| *byte == 0));
    assert_eq!(fs::read(&chunk).unwrap(), records);
    assert_eq!(done(&verify), whole);

    // Something that was durable.
    let mut damaged = records.to_vec();
    let middle = damaged.len() * 3 / 4;
    damaged[middle] ^= 0x40;
    fs::write(&chunk, &damaged).unwrap();
    refused(&verify, exit::CONFIG, "is damaged at byte");
    refused(
        &["log", "repair", "--drop-tail", text(&dir)],
        exit::CONFIG,
        "nothing was changed",
    );
    let addr = format!("--addr={}", node.addr());
    let raft_addr = format!("--raft-addr={}", node.raft_addr());
    refused(
        &[&*addr, &*raft_addr, text(&dir)],
        exit::CONFIG,
        "is damaged",
    );
    let too_late = last.to_string();
    let drop_from = |index: &str| {
        let args = ["log", "repair", "--drop-from", index, text(&dir)];
        kvd(&[&args[..], &["--accept-data-loss"]].concat())
    };
    let output = drop_from(&too_late);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot be read"), "{said}");
    let first_lost: u64 = said.split(' ').nth(2).unwrap().parse().unwrap();
    refused(
        &["log", "repair", "--drop-from", "9", text(&dir)],
        exit::USAGE,
        "--accept-data-loss",
    );
    let output = drop_from(&first_lost.to_string());
    assert!(output.status.success(), "{output:?}");
    let repaired = done(&verify);
    assert_eq!(
        value(&repaired, "last").split(' ').next().unwrap(),
        (first_lost - 1).to_string()
    );
    done(&["recover", "--force-new-cluster", text(&dir)]);
    node.start();
    assert_eq!(node.client().call(&["GET", "key:0"]), Reply::bulk(""));
    // The first entries of all are kvd's own, so key:n was written after entry n.
    let there = format!("key:{}", first_lost / 2);
    let kept = node.client().call(&["EXISTS", &there]);
    assert_eq!(kept, Reply::Int(1), "{there}");
    assert_eq!(node.terminate(), Some(exit::OK));
    done(&["data", "verify", text(&dir)]);
}

#[test]
fn a_member_whose_log_was_shortened_does_not_vote() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["memory", "memory", "memory"]);
    fill(&nodes[0], 0, 100);
    level_digests(&nodes);
    nodes[2].kill();
    let verified = done(&["log", "verify", text(&nodes[2].dir)]);
    let last = value(&verified, "last");
    let last = last.split(' ').next().unwrap();
    done(&[
        "log",
        "repair",
        "--drop-from",
        last,
        "--accept-data-loss",
        text(&nodes[2].dir),
    ]);
    nodes[2].spawn();
    until("it is refused and says so", || {
        nodes[2].log().contains("this node serves no more")
    });
    fill(&nodes[0], 100, 150);
}
