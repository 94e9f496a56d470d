//! Clients: calls on a few keys through any node, with what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::doors::{Net, Random, Stream};
use kvd::resp::{Reply, ReplyDecoder};
use kvd_tests::history::{self, Op, PAIR, Record};
use kvd_tests::lease::Lease;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

/// A call that takes longer is given up, with an unknown outcome.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Makes one call and notes it; `false` where the connection is of no more use.
pub(crate) async fn call(
    client: &mut Client,
    record: &Mutex<Record>,
    key: &'static str,
    op: Op,
) -> bool {
    let began = record.lock().unwrap().begin();
    let reply = client.call(&op.command(key)).await;
    let fate = history::fate(reply.as_ref());
    let mut record = record.lock().unwrap();
    record.end(key, op, began, reply.as_ref(), fate);
    reply.is_some()
}

/// A transaction that counts the pair up, or a read of both; `false` where the connection is of no
/// more use.
async fn call_pair(client: &mut Client, record: &Mutex<Record>, counts: bool) -> bool {
    let began = record.lock().unwrap().begin();
    let [p, q] = PAIR;
    let (op, reply) = if counts {
        for part in [&["MULTI"][..], &["INCR", p], &["INCR", q]] {
            // Until EXEC is sent nothing happens.
            if client.call(part).await.is_none() {
                return false;
            }
        }
        (Op::Incr, client.call(&["EXEC"]).await)
    } else {
        (Op::Get, client.call(&["MGET", p, q]).await)
    };
    let fate = history::fate(reply.as_ref());
    let mut record = record.lock().unwrap();
    record.end_pair(op, began, reply.as_ref(), fate);
    reply.is_some()
}

/// Sets this client's lease for a while; `false` where the connection is of no more use.
async fn set_lease(client: &mut Client, lease: &mut Lease, value: String, ms: u64) -> bool {
    let ms = ms.to_string();
    let reply = client.call(&["SET", lease.key(), &value, "PX", &ms]).await;
    lease.set(value, history::fate(reply.as_ref()));
    reply.is_some()
}

async fn see_lease(client: &mut Client, lease: &mut Lease, record: &Mutex<Record>) -> bool {
    let reply = client.call(&["GET", lease.key()]).await;
    if let Err(broken) = lease.seen(reply.as_ref()) {
        record.lock().unwrap().broken(broken);
    }
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
    let mut lease = Lease::new(id);
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
            let chance = random.next() % 12;
            if chance < 4 {
                let went = match chance {
                    0 | 1 => call_pair(&mut client, &record, chance == 0).await,
                    2 => {
                        let ms = 50 + random.next() % 3000;
                        set_lease(&mut client, &mut lease, format!("{id}.{n}"), ms).await
                    }
                    _ => see_lease(&mut client, &mut lease, &record).await,
                };
                if !went {
                    break;
                }
                continue;
            }
            let (key, op) = Op::pick(random.next(), format!("{id}.{n}"));
            if !call(&mut client, &record, key, op).await {
                break;
            }
            sleep(Duration::from_micros(random.next() % 60_000)).await;
        }
    }
}
