//! Members change their engine, by `kvd backend migrate` and by leaving and joining anew.

use std::fs;
use std::path::{Path, PathBuf};

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{
    Client, Node, alone, cluster, done, kvd, leader, level_digests, refused, text, until,
};

use crate::crash::{Writes, survive};

/// Copies a stopped node to an engine, beside its directory; later starts are there.
fn migrate(node: &mut Node, backend: &str) -> String {
    let from = node.dir.clone();
    let to = from.with_file_name(format!(
        "{}-{backend}",
        from.file_name().unwrap().to_str().unwrap()
    ));
    let (old, new) = (text(&from), text(&to));
    let args = ["backend", "migrate", "--from", old, "--to", new];
    let said = done(&[&args[..], &["--backend", backend]].concat());
    node.change_to(to, backend);
    said
}

/// The line behind a name in what the command prints.
fn value<'a>(printed: &'a str, name: &str) -> &'a str {
    let line = printed.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {printed}"))
        .trim()
}

/// Every file of a directory, with its contents.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn a_stopped_node_is_the_same_node_on_each_other_engine() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let mut client = node.client();
    for n in 0..400 {
        let (key, value) = (format!("key:{n}"), "x".repeat(n * 7));
        assert_eq!(client.call(&["SET", &key, &value]), Reply::Ok);
    }
    client.call(&["SET", "expiring", "soon", "EX", "10000"]);
    client.call(&["SET", "due", "now", "PX", "1"]);
    client.call(&["DEL", "key:7", "key:8"]);
    assert!(!client.call(&["ONCE.TOKEN"]).is_error());
    let id = node.info("raft_node_id").unwrap();
    let cluster = node.info("raft_cluster_id").unwrap();
    let backends = [
        "sled", "memory", "redb", "memory", "fjall", "redb", "fjall", "sled", "fjall", "memory",
        "sled", "redb",
    ];
    for (round, backend) in backends.iter().enumerate() {
        // In order, and as by a crash: then part of the state is in the log alone.
        match round % 2 {
            0 => assert_eq!(node.terminate(), Some(exit::OK)),
            _ => node.kill(),
        }
        // What a start would finish there is finished.
        let verified = done(&["data", "verify", text(&node.dir)]);
        let old = node.dir.clone();
        let before = (
            fs::read(old.join("NODE")).unwrap(),
            files(&old.join("groups/0/log")),
        );
        let said = migrate(&mut node, backend);
        assert_eq!(value(&said, "digest"), value(&verified, "digest"));
        assert_eq!(value(&said, "keys"), value(&verified, "keys"));
        let after = (
            fs::read(old.join("NODE")).unwrap(),
            files(&old.join("groups/0/log")),
        );
        assert!(before == after, "the old directory was changed");
        let copied = done(&["data", "verify", text(&node.dir)]);
        assert_eq!(value(&copied, "digest"), value(&verified, "digest"));
        node.start();
        assert_eq!(node.info("backend_name").as_deref(), Some(*backend));
        assert_eq!(node.info("raft_node_id").as_ref(), Some(&id));
        assert_eq!(node.info("raft_cluster_id").as_ref(), Some(&cluster));
        let mut client = node.client();
        for n in 0..400 {
            let found = client.call(&["STRLEN", &format!("key:{n}")]);
            let gone = n == 7 || n == 8;
            assert_eq!(found, Reply::Int(if gone { 0 } else { n * 7 }), "{n}");
        }
        assert_eq!(client.call(&["GET", "due"]), Reply::Null);
        let Reply::Int(left) = client.call(&["TTL", "expiring"]) else {
            panic!("TTL answers a number");
        };
        assert!((1..=10_000).contains(&left), "{left}");
        let count = client.call(&["INCR", "rounds"]);
        assert_eq!(count, Reply::Int(round as i64 + 1));
    }
}

#[test]
fn a_copy_to_another_engine_is_refused_where_it_would_harm() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
    let (from, to) = (node.dir.clone(), temp.path().join("new"));
    let args = |to| {
        let from = ["backend", "migrate", "--from", text(&from), "--to", to];
        [&from[..], &["--backend", "sled"]].concat()
    };
    refused(&args(text(&to)), exit::LOCKED, "in use by another process");
    assert_eq!(node.terminate(), Some(exit::OK));
    let without = &args(text(&to))[..6];
    refused(without, exit::USAGE, "--backend");
    let nowhere = [without, &["--backend", "nowhere"]].concat();
    refused(&nowhere, exit::CONFIG, "backend 'nowhere': not found");
    let option = [&args(text(&to))[..], &["--backend-opt", "nope=1"]].concat();
    refused(&option, exit::CONFIG, "nope");
    // The wrong option is found when the engine is opened: what was made until then is taken up.
    refused(
        &["data", "verify", text(&to)],
        exit::CONFIG,
        "is half made: `kvd backend migrate` was cut off",
    );
    let old = ["--from-backend", "memory"];
    refused(
        &[&args(text(&to))[..], &old].concat(),
        exit::CONFIG,
        "was written by backend 'redb', not 'memory'",
    );
    refused(&args(text(&from)), exit::CONFIG, "within the old one");
    let within = from.join("new");
    refused(&args(text(&within)), exit::CONFIG, "within");
    let absent = temp.path().join("absent");
    let of_nothing = ["backend", "migrate", "--from", text(&absent), "--to"];
    refused(
        &[&of_nothing[..], &[text(&to), "--backend", "sled"]].concat(),
        exit::CONFIG,
        "is no data directory",
    );
    // Too small for what the node may be given: sled's keys and values are.
    let large = [&args(text(&to))[..], &["--max-entry-bytes", "536870912"]].concat();
    refused(
        &large,
        exit::CONFIG,
        "takes values of 536870912 bytes at most (value_bytes_max), and kvd needs 536870946",
    );
    let other = temp.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("mine"), "not kvd's").unwrap();
    refused(&args(text(&other)), exit::IO, "not empty");
    assert!(!other.join("LOCK").exists() && !other.join("NODE").exists());
    done(&args(text(&to)));
    refused(&args(text(&to)), exit::IO, "not empty");
    // Whoever starts the old directory with the new engine is told how it is done.
    let start = [
        format!("--addr={}", node.addr()),
        format!("--raft-addr={}", node.raft_addr()),
        "--backend=sled".to_owned(),
        text(&from).to_owned(),
    ];
    let told = kvd(&start.each_ref().map(String::as_str));
    assert_eq!(told.status.code(), Some(exit::CONFIG));
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("`kvd backend migrate`"), "{said}");
}

/// Both directories are the same node: its cluster lets in only the one that it saw last.
#[test]
fn of_a_nodes_old_and_new_directory_only_the_one_that_ran_first_is_let_in() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    level_digests(&nodes);
    nodes[2].terminate();
    let old = nodes[2].dir.clone();
    migrate(&mut nodes[2], "sled");
    nodes[2].start();
    let digests = level_digests(&nodes);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    nodes[2].terminate();
    nodes[2].change_to(old, "redb");
    nodes[2].spawn();
    until("the old directory is refused and says so", || {
        nodes[2].log().contains("this node serves no more")
    });
}

/// Waits until a member has what was committed when it was asked.
fn come_level(nodes: &[Node], n: usize) {
    let committed = nodes[leader(nodes)].info_number("raft_commit_index");
    until("the member is level", || {
        let applied = nodes[n].info("raft_applied_index");
        applied.is_some_and(|index| index.parse::<u64>().unwrap() >= committed)
    });
}

/// All members' contents at one entry are the same, while they serve.
fn compare(nodes: &[Node]) {
    until("the members' contents are compared", || {
        let asked = Client::connect(&nodes[leader(nodes)].addr());
        match asked.and_then(|mut asked| asked.try_call(&["RAFT.COMPARE"])) {
            Ok(Reply::Array(found)) => match &found[1] {
                verdict if *verdict == Reply::bulk("incomplete") => false,
                verdict => {
                    assert_eq!(*verdict, Reply::bulk("equal"), "{found:?}");
                    true
                }
            },
            _ => false,
        }
    });
}

#[test]
fn all_members_of_a_serving_cluster_change_engine_by_copies() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let writes = Writes::default();
    for backend in ["sled", "fjall"] {
        survive(&mut nodes, &writes, |nodes| {
            for n in 0..nodes.len() {
                assert_eq!(nodes[n].terminate(), Some(exit::OK), "{}", nodes[n].log());
                migrate(&mut nodes[n], backend);
                nodes[n].start();
                come_level(nodes, n);
                compare(nodes);
            }
        });
    }
    for node in &nodes {
        assert_eq!(node.info("backend_name").as_deref(), Some("fjall"));
    }
}

#[test]
fn all_members_of_a_serving_cluster_change_engine_by_leaving_and_joining() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["memory", "memory", "memory"]);
    let writes = Writes::default();
    survive(&mut nodes, &writes, |nodes| {
        for (n, backend) in ["redb", "sled", "fjall"].into_iter().enumerate() {
            let (name, others) = (format!("node{n}"), (n + 1) % 3);
            let mut client = nodes[others].client();
            assert_eq!(client.call(&["LEAVE", &name]), Reply::Ok);
            nodes[n].kill();
            let dir = temp.path().join(format!("{name}-{backend}"));
            nodes[n].change_to(dir, backend);
            // On its own it would take writes that its next cluster has never seen.
            nodes[n].set_env("KVD_NO_BOOTSTRAP", Some("true"));
            nodes[n].start();
            let address = nodes[n].raft_addr();
            assert_eq!(client.call(&["JOIN", &name, &address]), Reply::Ok);
            come_level(nodes, n);
            compare(nodes);
        }
    });
}
