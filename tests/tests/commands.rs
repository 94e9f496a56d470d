//! Every command's script against a live kvd and, where there is one, against redis-server 7: the
//! replies are those of the script, which are Redis's own.

use std::path::Path;
use std::time::{Duration, Instant};

use kvd::command::script::{FOLDER, Script, Step};
use kvd::resp::Reply;
use kvd_tests::{Client, Node, Redis, alone, until};

/// Replays scripts on a fresh connection each; returns what differed.
fn replay(addr: &str, skip: impl Fn(&Script) -> bool) -> (usize, Vec<String>) {
    let (mut count, mut differences) = (0, Vec::new());
    for script in Script::load(Path::new(FOLDER)) {
        if skip(&script) {
            continue;
        }
        count += 1;
        let mut client = Client::connect(addr).expect("the server accepts a connection");
        client.call(&["HELLO", "3"]);
        assert_eq!(client.call(&["FLUSHALL"]), Reply::Ok);
        let replayed = script.replay(&mut |step| match step {
            Step::Command(args) => client.call(args),
            Step::Advance(time) => {
                // The script is about time that passes on the server.
                let end = Instant::now() + time;
                until("time passes", || Instant::now() >= end);
                Reply::Ok
            }
        });
        if let Err(difference) = replayed {
            differences.push(format!("{}: {difference}", script.name));
        }
    }
    (count, differences)
}

#[test]
fn a_node_answers_every_script_as_redis_does() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let (count, differences) = replay(&node.addr(), |script| script.offline);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(count > 60, "{count} scripts were found");
}

#[test]
fn redis_answers_the_same_scripts_the_same() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(temp.path()) else {
        return;
    };
    let (count, differences) = replay(&redis.addr, |script| script.offline || script.kvd_only);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(count > 40, "{count} scripts were found");
}

#[test]
fn an_expired_key_is_gone_everywhere_without_anyone_asking() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = kvd_tests::cluster(temp.path(), &["redb", "sled"]);
    let mut client = nodes[0].client();
    assert_eq!(
        client.call(&["SET", "brief", "life", "PX", "200"]),
        Reply::Ok
    );
    let began = Instant::now();
    until("the key is removed on both nodes", || {
        nodes
            .iter()
            .all(|node| node.client().call(&["DBSIZE"]) == Reply::Int(0))
    });
    assert!(
        began.elapsed() >= Duration::from_millis(150),
        "it was gone too early"
    );
    for node in &nodes {
        assert_eq!(node.client().call(&["GET", "brief"]), Reply::Null);
    }
}
