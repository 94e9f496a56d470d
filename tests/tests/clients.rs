//! redis-benchmark and redis-rs with their defaults; the clients of other languages are in
//! `tests/clients/run`.

use std::process::Command;

use kvd_tests::{Node, alone, cluster, leader};
use redis::Commands as _;

#[test]
fn redis_rs_works_with_its_defaults() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    for protocol in ["", "?protocol=resp3"] {
        let url = format!("redis://{}/{protocol}", node.addr());
        let mut client = redis::Client::open(url).unwrap().get_connection().unwrap();
        let _: () = client.set("rs", 1).unwrap();
        assert_eq!(client.get::<_, i64>("rs").unwrap(), 1);
        assert_eq!(client.incr::<_, _, i64>("rs", 1).unwrap(), 2);
        assert!(client.expire::<_, bool>("rs", 100).unwrap());
        let mut pipeline = redis::pipe();
        for n in 0..100 {
            pipeline.set(format!("rs:{n}"), n).ignore();
        }
        let _: () = pipeline.query(&mut client).unwrap();
        let keys: std::collections::BTreeSet<String> = client
            .scan_match("rs:*")
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(keys.len(), 100);
        let (set, incremented): (String, i64) = redis::pipe()
            .atomic()
            .set("rs", 2)
            .incr("rs", 1)
            .query(&mut client)
            .unwrap();
        assert_eq!((set.as_str(), incremented), ("OK", 3));
    }
}

/// Requests of each test of redis-benchmark: some here, more on demand (`KVD_REQUESTS=100000`).
fn requests() -> String {
    std::env::var("KVD_REQUESTS").unwrap_or_else(|_| "3000".to_owned())
}

/// Runs redis-benchmark with and without pipelining; it prints errors and warnings among the rest.
fn benchmark(node: &Node) {
    for pipeline in ["1", "16"] {
        let output = Command::new("redis-benchmark")
            .args(["-p", &node.port.to_string(), "-t", "ping,set,get,incr,mset"])
            .args(["-n", &requests(), "-c", "50", "-P", pipeline, "--csv"])
            .output()
            .expect("redis-benchmark is installed; .ci/run does it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success() && complained.is_empty(),
            "{complained}{said}"
        );
        let lower = said.to_lowercase();
        assert!(
            !lower.contains("error") && !lower.contains("warn"),
            "{said}"
        );
        let tests = [
            "PING_INLINE",
            "PING_MBULK",
            "SET",
            "GET",
            "INCR",
            "MSET (10 keys)",
        ];
        for test in tests {
            let rate = said.lines().find_map(|line| {
                let rest = line.strip_prefix(&format!("\"{test}\",\""))?;
                rest.split('"').next()?.parse::<f64>().ok()
            });
            assert!(rate.is_some_and(|rate| rate > 0.0), "{test}: {said}");
        }
        eprintln!("port {}, P={pipeline}:\n{said}", node.port);
    }
}

#[test]
fn redis_benchmark_runs_without_an_error_on_a_single_node() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    benchmark(&cluster(temp.path(), &["redb"])[0]);
}

#[test]
fn redis_benchmark_runs_without_an_error_on_each_of_three_nodes() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let term = nodes[leader(&nodes)].info_number("raft_term");
    for node in &nodes {
        benchmark(node);
    }
    let after = nodes[leader(&nodes)].info_number("raft_term");
    assert_eq!(after, term, "an election under load");
}
