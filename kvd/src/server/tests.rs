//! Connections over streams in memory, on a service that applies groups directly.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::command::{self, Call};
use crate::doors::{BoxFuture, Listener, Net, Random, Stream, Threads};
use crate::keyspace::{Limits, Txn};
use crate::node::Role;
use crate::storage::{Mark, MemoryEngine, Store};

#[derive(Clone)]
struct Fake {
    store: Arc<Store>,
    index: Arc<Mutex<u64>>,
}

const NOW_MS: u64 = 1_700_000_000_000;

impl Service for Fake {
    async fn propose(&self, group: Group) -> Result<Written, Reply> {
        let mut index = self.index.lock().unwrap();
        *index += 1;
        let base = self.store.read().unwrap();
        let mut txn = Txn::new(&base, *index, NOW_MS, 1, Limits::default()).unwrap();
        let mut holds = true;
        group
            .preconditions(|key, at| holds &= txn.view().modified(key).unwrap() == at)
            .unwrap();
        if !holds {
            return Ok(Written {
                replies: vec![Reply::NullArray],
                index: *index,
            });
        }
        let (mut replies, mut args, mut commands) = (Vec::new(), Vec::new(), group.commands());
        while commands.next_into(&mut args).unwrap() {
            let spec = command::lookup(&args).unwrap();
            replies.push(
                command::run_write(
                    spec,
                    &Call {
                        args: &args,
                        seed: 1,
                    },
                    &mut txn,
                )
                .unwrap(),
            );
        }
        let changes = txn.finish();
        self.store
            .write(
                &changes.ops(),
                &Mark {
                    index: *index,
                    data: Vec::new(),
                },
            )
            .unwrap();
        Ok(Written {
            replies,
            index: *index,
        })
    }
    async fn read(&self, _: ReadLevel, _: u64) -> Result<Reading, Reply> {
        let view = self.store.read().unwrap();
        Ok(Reading {
            view,
            replicated_ms: NOW_MS,
            now_ms: NOW_MS,
        })
    }
    async fn tick(&self) -> Result<(), Reply> {
        Ok(())
    }
    fn reads_are_fast(&self) -> bool {
        false
    }
    fn status(&self) -> Status {
        let member = Member {
            client_addr: "localhost:6379".to_owned(),
            ..Member::default()
        };
        Status {
            id: 1,
            cluster: 1,
            member,
            role: Role::Leader,
            leader: Some(1),
            term: 1,
            members: Vec::new(),
            last_log: 0,
            committed: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            loading: false,
        }
    }
    fn redirect(&self) -> Option<Member> {
        None
    }
    async fn join(&self, _: JoinRequest) -> Reply {
        Reply::Ok
    }
    async fn leave(&self, _: String) -> Reply {
        Reply::Ok
    }
    async fn leader_known(&self, _: Duration) -> bool {
        true
    }
    fn backend_info(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    fn raft_info(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    fn shutdown(&self) {}
    fn limits(&self) -> ConfigLimits {
        ConfigLimits {
            key_bytes_max: 1 << 16,
            value_bytes_max: 1 << 26,
            group_bytes_max: 1 << 27,
        }
    }
}

struct NoNet;

impl Net for NoNet {
    fn bind<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }
    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }
}

/// Sends everything, ends its side, and returns all that was answered.
async fn talk(requests: &[u8]) -> String {
    let doors = Doors {
        net: Arc::new(NoNet),
        workers: Arc::new(Threads),
        clock: Arc::new(crate::clock::SystemClock),
        random: Random::from_seed(1),
    };
    let fake = Fake {
        store: Arc::new(Store::new(Arc::new(MemoryEngine::new()))),
        index: Arc::default(),
    };
    let server = Server::new(fake, ServerSettings::default(), doors);
    let (client, stream) = tokio::io::duplex(4096);
    listener::begin(&server, Box::new(stream), "memory".to_owned(), "memory:0");
    let (mut read, mut write) = tokio::io::split(client);
    let mut answers = String::new();
    let (sent, got) = tokio::join!(
        async {
            write.write_all(requests).await?;
            write.shutdown().await
        },
        read.read_to_string(&mut answers)
    );
    sent.unwrap();
    got.unwrap();
    answers
}

#[tokio::test]
async fn a_pipeline_is_answered_in_its_order() {
    let answers = talk(b"PING\r\nSET a 1\r\nGET a\r\nNOSUCH\r\nINCR a\r\nGET a\r\nGET b\r\n").await;
    let expected = "+PONG\r\n+OK\r\n$1\r\n1\r\n-ERR unknown command 'NOSUCH', with args beginning \
                    with: \r\n:2\r\n$1\r\n2\r\n$-1\r\n";
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_transaction_is_queued_and_fails_when_a_watched_key_has_changed() {
    let answers = talk(
        b"MULTI\r\nSET a 1\r\nPING\r\nINCR a\r\nEXEC\r\nWATCH a\r\nSET a 5\r\nMULTI\r\nINCR a\r\nEXEC\r\nGET a\r\n",
    )
    .await;
    let expected = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+OK\r\n+PONG\r\n:2\r\n+OK\r\n\
                    +OK\r\n+OK\r\n+QUEUED\r\n*-1\r\n$1\r\n5\r\n";
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_hundred_thousand_commands_of_one_pipeline_are_answered() {
    let answers = talk(&b"INCR n\r\n".repeat(100_000)).await;
    assert!(answers.ends_with(":100000\r\n"));
}
