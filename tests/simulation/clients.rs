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

/// Makes one call and notes it; `false` where the connection is of no more use.
pub(crate) async fn call(
    client: &mut Client,
    record: &Mutex<Record>,
    key: &'static str,
    op: Op,
) -> bool {
    let began = record.lock().unwrap().tick();
    let reply = match &op {
        Op::Get => client.call(&["GET", key]).await,
        Op::Set(value) => client.call(&["SET", key, value]).await,
        Op::Swap(value) => client.call(&["GETSET", key, value]).await,
        Op::Incr => client.call(&["INCR", key]).await,
        Op::Append(value) => client.call(&["APPEND", key, value]).await,
    };
    let mut record = record.lock().unwrap();
    let now = record.tick();
    let fate = reply.as_ref().map(outcome::fate);
    let ended = match fate {
        // It did not happen: no history may need it.
        Some(Some(Fate::NotDone | Fate::Refused)) => {
            record.refused += 1;
            return true;
        }
        Some(None) => Some((now, reply.as_ref().and_then(text))),
        Some(Some(Fate::Unknown)) | None if op == Op::Get => return reply.is_some(),
        Some(Some(Fate::Unknown)) | None => None,
    };
    record.calls.push((key, Call { op, began, ended }));
    reply.is_some()
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
            if !call(&mut client, &record, key, op).await {
                break;
            }
            sleep(Duration::from_micros(random.next() % 60_000)).await;
        }
    }
}
