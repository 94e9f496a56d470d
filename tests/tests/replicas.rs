//! Whether members are alike is seen while they serve.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvd::command::{self, Call};
use kvd::doors::stopwatch;
use kvd::exit;
use kvd::keyspace::{Limits, Txn};
use kvd::raft::position::Position;
use kvd::resp::Reply;
use kvd::storage::{Engine as _, PluginEngine};
use kvd_plugin_api::host::Plugin;
use kvd_tests::{Client, Node, alone, built, cluster};

/// What RAFT.COMPARE answers: the index, the verdict, and a digest or an error for each member.
#[track_caller]
fn compare(node: &Node) -> (i64, String, Vec<(String, Reply)>) {
    let text = |reply: &Reply| match reply {
        Reply::Bulk(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => panic!("{other:?} is no text"),
    };
    let answer = node.client().call(&["RAFT.COMPARE"]);
    let Reply::Array(parts) = &answer else {
        panic!("RAFT.COMPARE answered {answer:?}");
    };
    let [Reply::Int(index), verdict, Reply::Array(members)] = &parts[..] else {
        panic!("RAFT.COMPARE answered {answer:?}");
    };
    let members = members.iter().map(|member| match member {
        Reply::Array(parts) => (text(&parts[0]), parts[1].clone()),
        other => panic!("{other:?} is no member"),
    });
    (*index, text(verdict), members.collect())
}

#[test]
fn members_are_compared_at_one_entry_while_they_serve_writes() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "sled", "fjall"]);
    let stop = AtomicBool::new(false);
    let addrs: Vec<String> = nodes.iter().map(Node::addr).collect();
    std::thread::scope(|scope| {
        for (writer, addr) in addrs.iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let mut client = Client::connect(addr).unwrap();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let key = format!("key:{writer}:{}", n % 500);
                    client.call(&["SET", &key, &n.to_string(), "PX", "700"]);
                    client.call(&["INCR", "all"]);
                }
            });
        }
        let mut last = 0;
        for round in 0..10 {
            let (index, verdict, members) = compare(&nodes[round % 3]);
            assert_eq!(verdict, "equal", "{members:?}");
            assert_eq!(members.len(), 3);
            assert!(index > last, "{index} follows {last}");
            last = index;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Changes one value in a stopped node's engine, as a bug or a bad disk would: behind the log.
fn spoil(dir: &Path) {
    let plugin = Plugin::load(&built().join("libkvd_redb.so")).unwrap();
    let folder = dir.join("groups/0/engine");
    let engine = PluginEngine::open(&plugin, &folder, &[], stopwatch, Arc::default()).unwrap();
    let mark = engine.mark().unwrap();
    let time_ms = Position::time_of(&mark);
    let mut txn = Txn::new(&engine, mark.index, time_ms, 1, Limits::default()).unwrap();
    let args: [&[u8]; 3] = [b"SET", b"a", b"spoilt"];
    let spec = command::lookup(&args).unwrap();
    let reply = command::run_write(spec, &Call::new(&args, 1), &mut txn).unwrap();
    assert_eq!(reply, Reply::Ok);
    let changes = txn.finish();
    engine.write(&changes.ops(), &mark).unwrap();
    engine.sync().unwrap();
    engine.close().unwrap();
}

#[test]
fn a_member_whose_contents_differ_is_found() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "right"]), Reply::Ok);
    let (_, verdict, _) = compare(&nodes[1]);
    assert_eq!(verdict, "equal");
    assert_eq!(nodes[2].terminate(), Some(exit::OK));
    spoil(&nodes[2].dir);
    nodes[2].start();
    let (_, verdict, members) = compare(&nodes[1]);
    assert_eq!(verdict, "different", "{members:?}");
    let digest = |name: &str| {
        let mut members = members.iter();
        members
            .find(|(member, _)| member == name)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(digest("node0"), digest("node1"));
    assert_ne!(digest("node0"), digest("node2"));
    assert!(nodes[1].log().contains("the members' contents differ"));
}
