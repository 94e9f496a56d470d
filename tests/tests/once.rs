//! Clients that send a command again after its reply was lost: they count twice, and once with a
//! token.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;

use kvd::resp::Reply;
use kvd_tests::{Node, alone, client_programs, repository};

/// Passes everything on to `to`, but swallows the reply of the first INCR and closes.
fn swallow_a_reply(listener: TcpListener, to: String) {
    std::thread::spawn(move || {
        let mut swallowed = false;
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            let mut server = TcpStream::connect(&to).expect("the node listens");
            let mut back = (
                server.try_clone().expect("a socket"),
                client.try_clone().expect("a socket"),
            );
            let mut buffer = [0; 4096];
            if swallowed {
                std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
                std::thread::spawn(move || std::io::copy(&mut client, &mut server));
                continue;
            }
            // Requests and replies in turn, until the one that matters.
            while let Ok(count @ 1..) = client.read(&mut buffer) {
                server.write_all(&buffer[..count]).expect("the node reads");
                let request = buffer[..count].to_ascii_uppercase();
                let is_last = request.windows(4).any(|word| word == b"INCR");
                let count = server.read(&mut buffer).expect("the node answers");
                if is_last {
                    swallowed = true;
                    break;
                }
                client
                    .write_all(&buffer[..count])
                    .expect("the client reads");
            }
            // An end of the client's, such as after its handshake, is none of ours.
            drop(client.shutdown(Shutdown::Both));
        }
    });
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
