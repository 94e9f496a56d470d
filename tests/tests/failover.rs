//! How long writes wait for a new leader, and that redis-benchmark does not notice.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, cluster, join, leader, level_digests, until};

/// Rounds: few here, many on demand (`KVD_ROUNDS=20`).
fn rounds() -> usize {
    std::env::var("KVD_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(2)
}

fn other_than(nodes: &[Node], gone: usize) -> &Node {
    &nodes[(gone + 1) % nodes.len()]
}

/// Writes through one connection until `rounds` successes after `since`; the longest time without
/// a success.
fn longest_gap(client: &mut Client, since: Instant) -> Duration {
    let (mut last, mut longest) = (since, Duration::ZERO);
    for n in 0..20 {
        let reply = client.call(&["SET", "gap", &n.to_string()]);
        assert_eq!(reply, Reply::Ok, "held, and never refused");
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

fn report(what: &str, mut gaps: Vec<Duration>) {
    gaps.sort_unstable();
    let (median, max) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!(
        "{what}: longest time without a successful write, {} times: median {median:?}, maximum {max:?}",
        gaps.len()
    );
}

#[test]
fn a_write_waits_for_the_next_leader_after_a_kill_or_a_handover() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let (mut killed, mut handed) = (Vec::new(), Vec::new());
    for round in 0..rounds() {
        let first = leader(&nodes);
        let mut client = other_than(&nodes, first).client();
        client.call(&["SET", "gap", "first"]);
        let began = Instant::now();
        nodes[first].kill();
        killed.push(longest_gap(&mut client, began));
        nodes[first].start();
        level_digests(&nodes);
        let to = format!("node{}", round % nodes.len());
        let mut client = other_than(&nodes, round).client();
        client.call(&["SET", "gap", "second"]);
        let mut operator = nodes[first].client();
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| handed.push(longest_gap(&mut client, began)));
            assert_eq!(operator.call(&["RAFT.TRANSFER_LEADER", &to]), Reply::Ok);
        });
    }
    report("kill -9 of the leader", killed);
    report("handover of leadership", handed);
}

/// Checkpoints and cuts of the log, a few each second: the time to the next leader must not hang on
/// them.
#[test]
fn a_write_waits_no_longer_for_the_next_leader_while_logs_are_cut() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = (0..3)
        .map(|n| Node::new(temp.path(), &format!("node{n}"), "redb"))
        .map(|node| node.with(&["--max-log-bytes", "300000"]))
        .collect();
    join(&mut nodes);
    let addrs: Vec<String> = nodes.iter().map(Node::addr).collect();
    let stop = AtomicBool::new(false);
    let mut killed = Vec::new();
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (addrs, stop) = (&addrs, &stop);
            scope.spawn(move || {
                let value = "x".repeat(10_000);
                let mut n = writer;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let Ok(mut client) = Client::connect(&addrs[n % 3]) else {
                        continue;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let key = format!("load:{}", n % 1000);
                        if client.try_call(&["SET", &key, &value]).is_err() {
                            break;
                        }
                        std::thread::park_timeout(Duration::from_millis(5));
                    }
                }
            });
        }
        for _ in 0..rounds() {
            let first = leader(&nodes);
            let survivor = other_than(&nodes, first);
            let cut = survivor.info_number("raft_purged_index");
            until("the log is cut", || {
                survivor.info_number("raft_purged_index") > cut
            });
            let mut client = survivor.client();
            client.call(&["SET", "gap", "first"]);
            let began = Instant::now();
            nodes[first].kill();
            killed.push(longest_gap(&mut client, began));
            nodes[first].start();
        }
        stop.store(true, Ordering::Relaxed);
    });
    level_digests(&nodes);
    report("kill -9 of the leader while logs are cut", killed);
}

#[test]
fn redis_benchmark_on_a_survivor_outlives_the_leader() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for round in 0..rounds() {
        let first = leader(&nodes);
        let survivor = (first + 1) % nodes.len();
        let before = nodes[survivor].info_number("total_commands_processed");
        let benchmark = Command::new("redis-benchmark")
            .args(["-p", &nodes[survivor].port.to_string(), "-t", "set,get"])
            .args(["-n", "20000", "-c", "20", "--csv"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("redis-benchmark is installed; .ci/run does it");
        let progressed = |nodes: &[Node], by: u64| {
            until("the benchmark is under way", || {
                nodes[survivor].info_number("total_commands_processed") > before + by
            });
        };
        progressed(&nodes, 2000);
        let to = format!("node{survivor}");
        assert_eq!(
            nodes[survivor]
                .client()
                .call(&["RAFT.TRANSFER_LEADER", &to]),
            Reply::Ok
        );
        let to = format!("node{first}");
        assert_eq!(
            nodes[survivor]
                .client()
                .call(&["RAFT.TRANSFER_LEADER", &to]),
            Reply::Ok
        );
        progressed(&nodes, 6000);
        nodes[first].kill();
        progressed(&nodes, 10_000);
        let output = benchmark.wait_with_output().expect("it ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_lowercase();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success() && !said.contains("error") && complained.is_empty(),
            "round {round}: {complained}{said}"
        );
        nodes[first].start();
        level_digests(&nodes);
    }
}
