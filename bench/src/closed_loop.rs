//! Our own closed loop of clients, on one thread: for etcd, and where each latency counts.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::histogram::Histogram;
use crate::resp;
use crate::sample::Load;

/// No single answer may take longer: a server that hangs ends the run.
const PATIENCE: Duration = Duration::from_secs(120);

/// One client: each call asks something of a key and waits for the answer.
pub(crate) trait Caller {
    /// Asks for, or sets, the key of this number.
    ///
    /// # Errors
    ///
    /// The answer is an error, or there is none.
    fn call(&mut self, number: u64) -> impl Future<Output = Result<()>>;
}

/// What the clients have seen.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// How long it took in all.
    pub seconds: f64,
    /// How long each took.
    pub latencies: Histogram,
}

impl Seen {
    /// In short.
    pub(crate) fn load(&self) -> Load {
        Load {
            count: self.latencies.count(),
            seconds: self.seconds,
            p50_ms: self.latencies.percentile_ms(0.5),
            p99_ms: self.latencies.percentile_ms(0.99),
            max_ms: self.latencies.max_ms(),
        }
    }
}

/// A runtime of this thread alone.
///
/// # Errors
///
/// The system refuses it.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Lets each of `clients` call for random keys below `keys` until the time is over.
///
/// # Errors
///
/// That of the first call that fails, or takes minutes.
pub(crate) async fn drive<C: Caller + 'static>(
    clients: Vec<C>,
    keys: u64,
    time: Duration,
) -> Result<Seen> {
    let began = Instant::now();
    let latencies = Rc::new(RefCell::new(Histogram::default()));
    let local = LocalSet::new();
    let mut tasks = Vec::new();
    for (n, mut client) in clients.into_iter().enumerate() {
        let latencies = latencies.clone();
        let mut random = Random(n as u64 + 1);
        tasks.push(local.spawn_local(async move {
            while began.elapsed() < time {
                let asked = Instant::now();
                tokio::time::timeout(PATIENCE, client.call(random.below(keys)))
                    .await
                    .context("no answer")??;
                latencies.borrow_mut().note(asked.elapsed());
            }
            anyhow::Ok(())
        }));
    }
    local
        .run_until(async {
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        })
        .await?;
    drop(local);
    Ok(Seen {
        seconds: began.elapsed().as_secs_f64(),
        latencies: latencies.take(),
    })
}

/// Numbers that need to be spread, not secret: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(mixed ^ (mixed >> 31)) * u128::from(bound)) >> 64) as u64
    }
}

/// A client of a server that speaks RESP, which sets values.
pub(crate) struct RespSetter {
    stream: TcpStream,
    value: Vec<u8>,
    request: Vec<u8>,
}

impl RespSetter {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub(crate) async fn connect(port: u16, value_bytes: u32) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(RespSetter {
            stream,
            value: vec![b'v'; value_bytes as usize],
            request: Vec::new(),
        })
    }
}

impl Caller for RespSetter {
    async fn call(&mut self, number: u64) -> Result<()> {
        self.request.clear();
        resp::put(
            &mut self.request,
            [&b"SET"[..], resp::key(number).as_bytes(), &self.value],
        );
        self.stream.write_all(&self.request).await?;
        let mut reply = [0; 5];
        self.stream.read_exact(&mut reply).await?;
        anyhow::ensure!(
            &reply == b"+OK\r\n",
            "SET answered {:?}",
            reply.escape_ascii().to_string()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(Rc<RefCell<Vec<u64>>>, u64);

    impl Caller for Counting {
        async fn call(&mut self, number: u64) -> Result<()> {
            tokio::time::sleep(Duration::from_millis(2)).await;
            self.0.borrow_mut().push(number);
            anyhow::ensure!(self.0.borrow().len() as u64 <= self.1, "no more");
            Ok(())
        }
    }

    #[test]
    fn each_client_waits_for_its_answer_and_each_call_is_counted() {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let clients = (0..3).map(|_| Counting(calls.clone(), u64::MAX)).collect();
        let driven = drive(clients, 1000, Duration::from_millis(60));
        let seen = runtime().unwrap().block_on(driven).unwrap();
        let calls = calls.borrow();
        assert_eq!(seen.latencies.count(), calls.len() as u64);
        // Three at a time, each of 2 ms or more.
        assert!((3..=93).contains(&calls.len()), "{} calls", calls.len());
        assert!(seen.seconds >= 0.06 && seen.load().p50_ms >= 2.0);
        assert!(calls.iter().all(|number| *number < 1000));
        assert!(calls.iter().any(|number| *number != calls[0]));
    }

    #[test]
    fn an_error_ends_the_load() {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let clients = vec![Counting(calls, 2)];
        let driven = drive(clients, 10, Duration::from_secs(600));
        let failed = runtime().unwrap().block_on(driven).err().unwrap();
        assert!(failed.to_string().contains("no more"));
    }

    #[test]
    fn random_keys_are_spread_over_all() {
        let mut random = Random(1);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[random.below(10) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
