//! Unmodified clients in a loop of SET and GET, through a handover of leadership, the leader's
//! `kill -9` and a rolling restart.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kvd::resp::Reply;
use kvd_tests::{Node, PATIENCE, alone, client_programs, cluster, leader, repository, until};

/// The keys that the clients set.
const KEYS: [&str; 8] = [
    "ride:redis-rs",
    "ride:redis-cli",
    "ride:redis-py-plain",
    "ride:redis-py-cluster",
    "ride:ioredis",
    "ride:ioredis-cluster",
    "ride:node-redis",
    "ride:node-redis-cluster",
];

/// One client's loop, and how to end it.
struct Ride {
    name: &'static str,
    end: Box<dyn FnOnce() -> Told>,
}

/// What a client tells at its end.
#[derive(Default)]
struct Told {
    calls: u64,
    errors: Vec<String>,
    longest_ms: u64,
}

/// A loop in a process of its own: it says when it is ready, goes on until its input ends, and
/// tells in a line of JSON.
fn process(name: &'static str, command: &mut Command, nodes: &[Node]) -> Ride {
    let mut process = command
        .args(nodes.iter().map(Node::addr))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the client speaks");
    assert_eq!(line, "ready\n", "{name}");
    let end = move || {
        drop(process.stdin.take());
        let mut line = String::new();
        output.read_line(&mut line).expect("the client speaks");
        process.wait().expect("the client ends");
        let told: serde_json::Value = serde_json::from_str(&line).expect("the client tells");
        let number = |field: &str| told[field].as_u64().expect("a number");
        let errors = told["errors"].as_array().expect("a list");
        Told {
            calls: number("calls"),
            errors: errors.iter().map(ToString::to_string).collect(),
            longest_ms: number("longest_ms"),
        }
    };
    Ride {
        name,
        end: Box::new(end),
    }
}

/// The loop with redis-rs's cluster client.
fn redis_rs_cluster(nodes: &[Node]) -> Ride {
    let urls: Vec<String> = nodes
        .iter()
        .map(|node| format!("redis://{}", node.addr()))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let task = runtime.spawn(async move {
        let client = redis::cluster::ClusterClient::new(urls).expect("the addresses are right");
        let mut client = client.get_async_connection().await.expect("it connects");
        let (mut told, mut n) = (Told::default(), 0);
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            for command in [&["SET", "ride:redis-rs", ""][..], &["GET", "ride:redis-rs"]] {
                let mut request = redis::cmd(command[0]);
                request.arg(command[1]);
                if command.len() == 3 {
                    request.arg(n.to_string());
                }
                let began = Instant::now();
                let got: Result<String, _> = request.query_async(&mut client).await;
                let took_ms = began.elapsed().as_millis() as u64;
                told.longest_ms = told.longest_ms.max(took_ms);
                told.calls += 1;
                match got {
                    Ok(got) if got == "OK" || got == n.to_string() => {}
                    Ok(got) => told.errors.push(format!("wrong value {got}, not {n}")),
                    Err(error) => told.errors.push(error.to_string()),
                }
            }
        }
        told
    });
    let end = move || {
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(task).expect("the loop ends")
    };
    Ride {
        name: "redis-rs cluster",
        end: Box::new(end),
    }
}

/// The loop with `redis-cli -c`, as a person would type it.
fn redis_cli(nodes: &[Node]) -> Ride {
    let port = nodes[0].port.to_string();
    let mut process = Command::new("sh")
        .args(["-c", "exec redis-cli -c -h 127.0.0.1 -p \"$0\" 2>&1", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli starts");
    let mut input = process.stdin.take().expect("it is piped");
    let output = BufReader::new(process.stdout.take().expect("it is piped"));
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for read in output.lines().map_while(Result::ok) {
            // It says so when it follows a redirection, and goes on.
            if !read.starts_with("->") && line.send(read).is_err() {
                break;
            }
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let task = std::thread::spawn(move || {
        let (mut told, mut n, mut seen) = (Told::default(), 0_u64, 0_u64);
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            let errors = told.errors.len();
            let (set, value) = (format!("SET ride:redis-cli {n}"), n.to_string());
            for (command, expected) in [(&*set, "OK"), ("GET ride:redis-cli", &*value)] {
                let began = Instant::now();
                writeln!(input, "{command}").expect("redis-cli reads");
                let got = lines.recv_timeout(PATIENCE).expect("redis-cli answers");
                told.longest_ms = told.longest_ms.max(began.elapsed().as_millis() as u64);
                told.calls += 1;
                // After an error nobody knows whether the SET before happened.
                let number = got.parse().ok();
                let lost = told.errors.len() > errors
                    && number.is_some_and(|number| (seen..n).contains(&number));
                if got == expected || lost {
                    seen = number.unwrap_or(seen);
                    continue;
                }
                told.errors.push(format!("{command}: {got}"));
                // How many lines an error takes is its own affair.
                for again in 0.. {
                    let mark = format!("mark-{n}-{again}");
                    writeln!(input, "ECHO {mark}").expect("redis-cli reads");
                    let turn = Duration::from_millis(100);
                    if std::iter::from_fn(|| lines.recv_timeout(turn).ok()).any(|line| line == mark)
                    {
                        break;
                    }
                }
            }
        }
        drop(input);
        process.wait().expect("redis-cli ends");
        told
    });
    let end = move || {
        stop.store(true, Ordering::Relaxed);
        task.join().expect("the loop ends")
    };
    Ride {
        name: "redis-cli -c",
        end: Box::new(end),
    }
}

fn clients(nodes: &[Node]) -> Vec<Ride> {
    let here = repository().join("tests/clients");
    let work = client_programs();
    let mut rides = vec![redis_rs_cluster(nodes), redis_cli(nodes)];
    for (name, kind) in [("redis-py", "plain"), ("redis-py cluster", "cluster")] {
        let mut command = Command::new(work.join("venv/bin/python"));
        command.arg(here.join("ride.py")).arg(kind);
        rides.push(process(name, &mut command, nodes));
    }
    for kind in [
        "ioredis",
        "ioredis-cluster",
        "node-redis",
        "node-redis-cluster",
    ] {
        let mut command = Command::new("node");
        command
            .env("NODE_PATH", work.join("node_modules"))
            .arg(here.join("ride.mjs"))
            .arg(kind);
        rides.push(process(kind, &mut command, nodes));
    }
    rides
}

/// Waits until every client has gone some way on: each sets a key of its own to a higher number.
fn ride(nodes: &[Node]) {
    const STEPS: u64 = 25;
    let alive = nodes.iter().find(|node| node.pid().is_some());
    let mut client = alive.expect("a node runs").client();
    let mut reached = || {
        let request: Vec<&str> = std::iter::once("MGET").chain(KEYS).collect();
        let Reply::Array(values) = client.call(&request) else {
            panic!("MGET answers an array");
        };
        let number = |value: Reply| match value {
            Reply::Bulk(digits) => String::from_utf8_lossy(&digits).parse().unwrap_or(0),
            _ => 0_u64,
        };
        values.into_iter().map(number).collect::<Vec<_>>()
    };
    let before = reached();
    until("every client goes on", || {
        let now = reached();
        now.iter()
            .zip(&before)
            .all(|(now, before)| *now >= before + STEPS)
    });
}

/// What a client does by itself, whatever the server: see docs/clients.md.
fn is_own_limit(name: &str, error: &str) -> bool {
    match name {
        "node-redis" | "node-redis-cluster" => error.contains("Socket closed unexpectedly"),
        "ioredis-cluster" => error.contains("wrong value"),
        // It does not try again, and knows no other node.
        "redis-cli -c" => {
            error.contains("Server closed the connection") || error.contains("Could not connect")
        }
        _ => false,
    }
}

#[test]
fn clients_ride_through_a_handover_a_crash_and_a_rolling_restart() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let rides = clients(&nodes);
    ride(&nodes);
    for to in ["node1", "node2", "node1"] {
        let moved = nodes[0].client().call(&["RAFT.TRANSFER_LEADER", to]);
        assert_eq!(moved, Reply::Ok);
        ride(&nodes);
    }
    nodes[1].kill();
    leader(&nodes);
    ride(&nodes);
    nodes[1].start();
    ride(&nodes);
    for n in 0..nodes.len() {
        assert_eq!(nodes[n].terminate(), Some(0));
        nodes[n].start();
        ride(&nodes);
    }
    let mut failed = Vec::new();
    println!("| client | calls | errors | longest call |");
    println!("| --- | --- | --- | --- |");
    for ride in rides {
        let name = ride.name;
        let told = (ride.end)();
        println!(
            "| {name} | {} | {} | {} ms |",
            told.calls,
            told.errors.len(),
            told.longest_ms
        );
        assert!(told.calls > 100, "{name} made {} calls", told.calls);
        let errors = told.errors.into_iter();
        let errors = errors.filter(|error| !is_own_limit(name, error));
        failed.extend(errors.map(|error| format!("{name}: {error}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
