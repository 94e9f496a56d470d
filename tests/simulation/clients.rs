//! Clients: calls on a few keys through any node, with what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::doors::{Net, Random, Stream};
use kvd::outcome::{self, Fate};
use kvd::resp::{Reply, ReplyDecoder};
use kvd_tests::history::{Call, Op};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::plant::{Plant, planted};

/// A call that takes longer is given up, with an unknown outcome.
const PATIENCE: Duration = Duration::from_secs(20);

/// The keys that hold anything, and those that count.
const PLAIN: [&str; 3] = ["a", "b", "c"];
const COUNTERS: [&str; 2] = ["m", "n"];

/// All keys.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    PLAIN.into_iter().chain(COUNTERS)
}

/// What all clients did.
#[derive(Default)]
pub(crate) struct Record {
    clock: u64,
    pub(crate) calls: Vec<(&'static str, Call)>,
    pub(crate) refused: u64,
}

impl Record {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The calls on one key.
    pub(crate) fn of(&self, key: &str) -> Vec<Call> {
        let calls = self.calls.iter().filter(|(of, _)| *of == key);
        calls.map(|(_, call)| call.clone()).collect()
    }
}

/// A connection to a node.
pub(crate) struct Client {
    stream: Stream,
    decoder: ReplyDecoder,
}

impl Client {
    pub(crate) async fn connect(net: &Arc<dyn Net>, addr: &str) -> Option<Self> {
        let stream = timeout(Duration::from_secs(1), net.connect(addr)).await;
        Some(Client {
            stream: stream.ok()?.ok()?,
            decoder: ReplyDecoder::new(),
        })
    }

    /// None where the connection is lost, or nothing is heard for too long.
    pub(crate) async fn call(&mut self, args: &[&str]) -> Option<Reply> {
        let mut request = format!("*{}\r\n", args.len());
        for arg in args {
            request += &format!("${}\r\n{arg}\r\n", arg.len());
        }
        timeout(PATIENCE, async {
            self.stream.write_all(request.as_bytes()).await.ok()?;
            let mut buffer = [0; 4096];
            loop {
                if let Some(reply) = self.decoder.next().ok()? {
                    return Some(reply);
                }
                let count = self.stream.read(&mut buffer).await.ok()?;
                if count == 0 {
                    return None;
                }
                self.decoder.feed(&buffer[..count]);
            }
        })
        .await
        .ok()?
    }
}

fn text(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Ok => Some("OK".to_owned()),
        Reply::Int(number) => Some(number.to_string()),
        Reply::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Reply::Simple(text) => Some(text.to_string()),
        _ => None,
    }
}

/// What became of a connection with a call.
pub(crate) enum Went {
    /// It goes on.
    On,
    /// It is of no more use.
    Away,
    /// The call, which began at this time, is to be sent again; a planted bug alone says so.
    Again(u64),
}

/// Makes one call and notes it. One that is sent again has `begun` already.
pub(crate) async fn call(
    client: &mut Client,
    record: &Mutex<Record>,
    key: &'static str,
    op: Op,
    begun: Option<u64>,
) -> Went {
    let began = begun.unwrap_or_else(|| record.lock().unwrap().tick());
    let args = match &op {
        Op::Get => vec!["GET", key],
        Op::Set(value) => vec!["SET", key, value],
        Op::Swap(value) => vec!["GETSET", key, value],
        Op::Incr => vec!["INCR", key],
        Op::Append(value) => vec!["APPEND", key, value],
    };
    let reply = client.call(&args).await;
    let mut fate = reply
        .as_ref()
        .map_or(Some(Fate::Unknown), |reply| outcome::fate(reply));
    let went = match reply {
        Some(_) => Went::On,
        None => Went::Away,
    };
    if fate == Some(Fate::Unknown) && op != Op::Get {
        if planted(Plant::SentAgain) {
            return Went::Again(began);
        }
        if planted(Plant::WrongRefusal) {
            fate = Some(Fate::NotDone);
        }
    }
    let mut record = record.lock().unwrap();
    let now = record.tick();
    let ended = match fate {
        // It did not happen: no history may need it.
        Some(Fate::NotDone | Fate::Refused) => {
            record.refused += 1;
            return went;
        }
        None => Some((now, reply.as_ref().and_then(text))),
        Some(Fate::Unknown) if op == Op::Get => return went,
        Some(Fate::Unknown) => None,
    };
    record.calls.push((key, Call { op, began, ended }));
    went
}

/// Calls through one node after another until told to stop.
pub(crate) async fn run(
    id: usize,
    net: Arc<dyn Net>,
    addrs: Vec<String>,
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    random: Random,
) {
    let mut n = 0;
    let mut again: Option<(&'static str, Op, u64)> = None;
    while !stop.load(Ordering::Relaxed) {
        let addr = &addrs[random.next() as usize % addrs.len()];
        let Some(mut client) = Client::connect(&net, addr).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        for _ in 0..random.next() % 40 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            n += 1;
            let value = format!("{id}.{n}");
            let (key, op) = match random.next() % 10 {
                0..=2 => (PLAIN[random.next() as usize % PLAIN.len()], Op::Set(value)),
                3 => (PLAIN[random.next() as usize % PLAIN.len()], Op::Swap(value)),
                4..=6 => (PLAIN[random.next() as usize % PLAIN.len()], Op::Get),
                7 | 8 => (COUNTERS[random.next() as usize % COUNTERS.len()], Op::Incr),
                _ => (COUNTERS[random.next() as usize % COUNTERS.len()], Op::Get),
            };
            let (key, op, begun) = match again.take() {
                Some((key, op, begun)) => (key, op, Some(begun)),
                None => (key, op, None),
            };
            match call(&mut client, &record, key, op.clone(), begun).await {
                Went::On => {}
                Went::Away => break,
                Went::Again(begun) => {
                    again = Some((key, op, begun));
                    break;
                }
            }
            sleep(Duration::from_micros(random.next() % 60_000)).await;
        }
    }
}
