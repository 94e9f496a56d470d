//! Starting and stopping: what works, and what a wrong start says.

use std::path::Path;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{
    Client, Node, alone, built, cluster, free_port, kvd, level_digests, refused, until,
};

/// Flags with addresses that nobody uses.
fn elsewhere() -> [String; 2] {
    [
        format!("--addr=127.0.0.1:{}", free_port()),
        format!("--raft-addr=127.0.0.1:{}", free_port()),
    ]
}

fn refused_in(dir: &Path, extra: &[&str], code: i32, part: &str) {
    let addresses = elsewhere();
    let mut args: Vec<&str> = addresses.iter().map(String::as_str).collect();
    args.extend(extra);
    args.push(dir.to_str().unwrap());
    refused(&args, code, part);
}

#[test]
fn every_engine_serves_and_keeps_what_was_written_over_an_orderly_stop() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    for backend in ["redb", "sled", "fjall", "memory", "plugins/redb"] {
        let mut node = Node::new(temp.path(), &backend.replace('/', "-"), backend);
        node.start();
        assert_eq!(node.client().call(&["SET", "a", "42"]), Reply::Ok);
        assert_eq!(node.terminate(), Some(exit::OK), "{}", node.log());
        node.start();
        assert_eq!(
            node.client().call(&["GET", "a"]),
            Reply::bulk("42"),
            "{backend}"
        );
    }
}

#[test]
fn wrong_plugins_are_refused_in_one_line() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    refused_in(
        &dir,
        &["--backend", "plugins/nope"],
        exit::CONFIG,
        "backend 'plugins/nope': not found",
    );
    let text = temp.path().join("notes.so");
    std::fs::write(&text, "not a library").unwrap();
    refused_in(
        &dir,
        &["--backend", text.to_str().unwrap()],
        exit::CONFIG,
        "not a shared library",
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .find_map(|line| {
            line.split_whitespace()
                .nth(5)
                .filter(|path| path.contains("/libc.so"))
        })
        .expect("the tests are linked with libc");
    refused_in(&dir, &["--backend", libc], exit::CONFIG, "not a kvd plugin");
    refused_in(&dir, &["--backend-opt", "cash=1GiB"], exit::CONFIG, "cash");
}

#[test]
fn a_directory_of_another_engine_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "data", "redb");
    node.start();
    node.kill();
    refused_in(
        &node.dir,
        &["--backend", "sled"],
        exit::CONFIG,
        "was written by backend 'redb'",
    );
}

/// Such a node could vote a second time in the same term.
#[test]
fn a_member_whose_data_was_lost_does_not_start_as_if_it_were_new() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "42"]), Reply::Ok);
    level_digests(&nodes);
    for node in &mut nodes {
        node.kill();
        std::fs::remove_dir_all(node.dir.join("groups")).unwrap();
        let dir = node.dir.clone();
        refused_in(&dir, &[], exit::CONFIG, "its log and its state are empty");
    }
}

#[test]
fn a_port_or_directory_in_use_is_named() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "data", "redb");
    node.start();
    refused_in(&node.dir, &[], exit::LOCKED, "is in use by another process");
    let port = format!("--addr={}", node.addr());
    let raft = format!("--raft-addr=127.0.0.1:{}", free_port());
    let other = temp.path().join("other");
    refused(
        &[&port, &raft, other.to_str().unwrap()],
        exit::ADDRESS,
        "is in use by another process",
    );
}

#[test]
fn wrong_flags_are_named() {
    let _alone = alone();
    refused(&["--nope"], exit::USAGE, "'--nope'");
    refused(
        &["--addr", "nowhere"],
        exit::USAGE,
        "addr 'nowhere' is not HOST:PORT",
    );
    refused(
        &["--raft-addr", "0.0.0.0:19000"],
        exit::USAGE,
        "can be reached from elsewhere, and there is no cluster secret",
    );
}

#[test]
fn a_plugin_says_what_it_offers() {
    let _alone = alone();
    for backend in ["redb", "sled", "fjall", "memory"] {
        built();
        let output = kvd(&["plugin", "info", backend]);
        assert_eq!(output.status.code(), Some(exit::OK));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(&format!("name          {backend} ")),
            "{text}"
        );
        assert!(text.contains("capabilities"), "{text}");
    }
}

/// A shell ignores SIGINT for what it runs in the background, so who is not ready for one loses it.
#[test]
fn a_node_that_has_answered_once_hears_that_it_shall_stop() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let addr = format!("127.0.0.1:{}", free_port());
    let raft_addr = format!("127.0.0.1:{}", free_port());
    let mut node = std::process::Command::new("sh")
        .args(["-c", "trap '' INT; exec \"$0\" \"$@\""])
        .arg(built().join("kvd"))
        .args(["--addr", &addr, "--raft-addr", &raft_addr, "--backend"])
        .arg(built().join("libkvd_memory.so"))
        .arg(temp.path().join("node0"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("a node answers", || {
        Client::connect(&addr)
            .and_then(|mut client| client.try_call(&["PING"]))
            .is_ok()
    });
    let pid = rustix::process::Pid::from_child(&node);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    until("it stops", || node.try_wait().unwrap().is_some());
}
