//! Clients that send a command again after its reply was lost: they count twice, and once with a
//! token.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvd::resp::Reply;
use kvd_tests::{Node, alone, client_programs, repository};

/// Passes everything on to `to`, but swallows the reply of the first INCR and closes.
fn swallow_a_reply(listener: TcpListener, to: String) {
    let done = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("a client");
            let server = TcpStream::connect(&to).expect("the node listens");
            // Set once the request that matters has gone on.
            let swallow = Arc::new(AtomicBool::new(false));
            let copy = |stream: &TcpStream| stream.try_clone().expect("a socket");
            let (from, back) = ((copy(&client), copy(&server)), (server, client));
            let (asked, answered, done) = (swallow.clone(), swallow, done.clone());
            std::thread::spawn(move || {
                let (mut client, mut server) = from;
                pass(&mut client, &mut server, |request| {
                    let request = request.to_ascii_uppercase();
                    let matters = request.windows(4).any(|word| word == b"INCR");
                    if matters && !done.swap(true, Ordering::SeqCst) {
                        asked.store(true, Ordering::SeqCst);
                    }
                    true
                });
            });
            std::thread::spawn(move || {
                let (mut server, mut client) = back;
                pass(&mut server, &mut client, |_| {
                    !answered.load(Ordering::SeqCst)
                });
            });
        }
    });
}

/// Passes bytes on for as long as `goes_on` says so, and closes both ends.
fn pass(from: &mut TcpStream, to: &mut TcpStream, goes_on: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !goes_on(&buffer[..count]) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

fn counts(node: &Node, program: &mut Command, kind: &str) -> String {
    assert_eq!(node.client().call(&["FLUSHALL"]), Reply::Ok);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    swallow_a_reply(listener, node.addr());
    let output = program
        .args([&port.to_string(), kind])
        .output()
        .expect("the client runs");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[test]
fn a_lost_reply_counts_twice_without_a_token_and_once_with_one() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let work = client_programs();
    let here = repository().join("tests/clients");
    for (kind, total) in [("plain", "2"), ("once", "1")] {
        let mut python = Command::new(work.join("venv/bin/python"));
        python.arg(here.join("twice.py"));
        assert_eq!(counts(&node, &mut python, kind), total, "redis-py, {kind}");
        let mut ioredis = Command::new("node");
        ioredis
            .env("NODE_PATH", work.join("node_modules"))
            .arg(here.join("twice.mjs"));
        assert_eq!(counts(&node, &mut ioredis, kind), total, "ioredis, {kind}");
    }
}
