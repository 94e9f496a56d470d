//! `kvd dev`: a cluster on this machine, for trying things out. One node may die without the
//! others; each line of a node's log carries its name.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvd::config::DevFlags;
use kvd::exit;
use kvd::resp::Reply;

use crate::Failed;
use crate::client::Client;
use crate::signals::StopSignals;

/// How long a node may take to answer for the first time.
const START_TIME: Duration = Duration::from_secs(30);

/// How long it may take to take a node in.
const ANSWER_TIME: Duration = Duration::from_secs(90);

/// Prints a line. The nodes go on where nobody reads it.
macro_rules! tell {
    ($($text:tt)*) => {
        drop(writeln!(std::io::stdout(), $($text)*))
    };
}

struct Node {
    name: String,
    port: u16,
    raft_port: u16,
}

/// Runs the cluster until a signal.
pub(crate) fn run(flags: &DevFlags) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::new(exit::PANIC, format!("no runtime: {error}")))?;
    runtime.block_on(serve(flags))
}

async fn serve(flags: &DevFlags) -> Result<(), Failed> {
    let nodes: Vec<Node> = (0..flags.nodes)
        .map(|n| Node {
            name: format!("node{n}"),
            port: flags.port + n,
            raft_port: flags.raft_port + n,
        })
        .collect();
    let mut children = BTreeMap::new();
    for node in &nodes {
        children.insert(node.name.clone(), start(node, flags)?);
    }
    let joined = join(&nodes).await;
    if let Err(failed) = joined {
        stop(&mut children);
        return Err(failed);
    }
    let mut stop_signals = StopSignals::new()?;
    let ports: Vec<String> = nodes.iter().map(|node| node.port.to_string()).collect();
    tell!(
        "dev   | a cluster of {} serves on ports {}",
        nodes.len(),
        ports.join(", ")
    );
    tell!("dev   | Ctrl-C stops it; a node that is killed can be started again by hand");
    let mut look = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            () = stop_signals.recv() => break,
            _ = look.tick() => {
                children.retain(|name, child| match child.try_wait() {
                    Ok(Some(status)) => {
                        tell!("{name} | ended with {status}; the others go on");
                        false
                    }
                    _ => true,
                });
                if children.is_empty() {
                    tell!("dev   | no node is left");
                    break;
                }
            }
        }
    }
    stop(&mut children);
    Ok(())
}

fn start(node: &Node, flags: &DevFlags) -> Result<Child, Failed> {
    let exe = std::env::current_exe()
        .map_err(|error| Failed::new(exit::PANIC, format!("own executable: {error}")))?;
    let directory: &Path = &flags.directory;
    let mut child = Command::new(exe)
        .args(["--addr", &format!("localhost:{}", node.port)])
        .args(["--raft-addr", &format!("localhost:{}", node.raft_port)])
        .args(["--backend", &flags.backend])
        .arg(directory.join(&node.name))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failed::new(exit::PANIC, format!("{}: {error}", node.name)))?;
    let lines = BufReader::new(child.stderr.take().expect("it was asked for"));
    let name = node.name.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "a runner of processes, not a node"
    )]
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            tell!("{name} | {line}");
        }
    });
    Ok(child)
}

/// Joins the others to the first, once all answer.
async fn join(nodes: &[Node]) -> Result<(), Failed> {
    for node in nodes {
        let answers = async {
            while !matches!(call(node.port, &["PING"]), Ok(Reply::Simple(_))) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(START_TIME, answers).await.is_err() {
            return Err(Failed::new(
                exit::ADDRESS,
                format!("{} does not answer", node.name),
            ));
        }
    }
    for node in &nodes[1..] {
        let addr = format!("localhost:{}", node.raft_port);
        match call(nodes[0].port, &["JOIN", &node.name, &addr]) {
            Ok(Reply::Ok) => {}
            answer => {
                let answer = match answer {
                    Ok(Reply::Error(text)) => text.into_owned(),
                    Ok(other) => format!("{other:?}"),
                    Err(error) => error.to_string(),
                };
                return Err(Failed::new(
                    exit::CONFIG,
                    format!("JOIN {}: {answer}", node.name),
                ));
            }
        }
    }
    Ok(())
}

/// One command to a node of this machine.
fn call(port: u16, args: &[&str]) -> std::io::Result<Reply> {
    Client::connect(&format!("127.0.0.1:{port}"), ANSWER_TIME)?.call(args)
}

/// SIGTERM to all, then waits for them.
fn stop(children: &mut BTreeMap<String, Child>) {
    for child in children.values() {
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    for child in children.values_mut() {
        drop(child.wait());
    }
}
