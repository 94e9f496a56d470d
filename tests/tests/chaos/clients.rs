//! Clients: calls of all kinds through any node, with what they were told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvd::outcome::{self, Fate};
use kvd::resp::Reply;
use kvd_tests::Client;
use kvd_tests::history::{self, Op, PAIR, PLAIN, Record, TEXT};
use kvd_tests::lease::Lease;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::report::Report;

/// A client that hears nothing for so long goes to another node.
const PATIENCE: Duration = Duration::from_secs(12);

/// Large values are of so many keys, and up to eight times as long as the shortest.
const BULK_KEYS: u64 = 12;
const BULK_BYTES_MIN: u64 = 32 << 10;

/// A client that breaks a rule, so that its history must be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    /// It takes local reads for linearizable ones.
    LocalReads,
    /// It sends a write of unknown outcome again, without a token.
    SentAgain,
}

/// What all clients of a stretch share.
pub(super) struct Shared<'a> {
    pub(super) addrs: Vec<String>,
    pub(super) record: Mutex<Record>,
    pub(super) report: &'a Mutex<Report>,
    pub(super) stop: AtomicBool,
    values: AtomicU64,
    plant: Option<Plant>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(addrs: Vec<String>, report: &'a Mutex<Report>) -> Self {
        Shared {
            addrs,
            record: Mutex::default(),
            report,
            stop: AtomicBool::new(false),
            values: AtomicU64::new(0),
            plant: None,
        }
    }

    pub(super) fn with(mut self, plant: Plant) -> Self {
        self.plant = Some(plant);
        self
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A value unlike all others.
    fn value(&self) -> String {
        self.values.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn note(&self, kind: &'static str, writes: bool, fate: Option<Fate>) {
        self.report.lock().unwrap().call(kind, writes, fate);
    }
}

/// A key that one client alone counts up, each time once however often it asks (docs/exactly-once.md).
struct Counter {
    key: String,
    token: Option<String>,
    sequence: u64,
    counted: u64,
    /// Of these nobody can tell any more: their token was not known when they were asked for again.
    lost: u64,
    /// The last one was not answered yet.
    open: bool,
}

pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    random: StdRng,
    lease: Lease,
    counter: Counter,
}

/// What is of no more use: the connection.
struct Away;

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, id: usize, seed: u64) -> Self {
        Worker {
            shared,
            random: StdRng::seed_from_u64(seed),
            lease: Lease::new(id),
            counter: Counter {
                key: format!("once:{id}"),
                token: None,
                sequence: 0,
                counted: 0,
                lost: 0,
                open: false,
            },
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    /// Calls through one node after another until told to stop.
    pub(super) fn run(&mut self) {
        while !self.shared.stopped() {
            let n = self.below(self.shared.addrs.len() as u64) as usize;
            let Ok(mut client) = Client::connect(&self.shared.addrs[n]) else {
                std::thread::park_timeout(Duration::from_millis(20));
                continue;
            };
            client.set_patience(PATIENCE);
            let local = self.shared.plant == Some(Plant::LocalReads);
            if local && client.try_call(&["READONLY"]).is_err() {
                continue;
            }
            for _ in 0..self.below(60) {
                if self.shared.stopped() {
                    return;
                }
                if self.one(&mut client).is_err() {
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(self.below(40)));
            }
        }
    }

    fn one(&mut self, client: &mut Client) -> Result<(), Away> {
        match self.below(20) {
            0 | 1 => self.pair(client, true),
            2 => self.pair(client, false),
            3 => {
                let value = self.shared.value();
                let ms = (50 + self.below(3000)).to_string();
                let reply = client
                    .try_call(&["SET", self.lease.key(), &value, "PX", &ms])
                    .ok();
                let fate = history::fate(reply.as_ref());
                self.shared.note("lease", true, fate);
                self.lease.set(value, fate);
                reply.map(drop).ok_or(Away)
            }
            4 => {
                let reply = client.try_call(&["GET", self.lease.key()]).ok();
                self.shared
                    .note("lease", false, history::fate(reply.as_ref()));
                if let Err(broken) = self.lease.seen(reply.as_ref()) {
                    self.shared.record.lock().unwrap().broken(broken);
                }
                reply.map(drop).ok_or(Away)
            }
            5 | 6 => self.count(client),
            7 | 8 => self.replace(client),
            9 => {
                let text = format!("{},", self.shared.value());
                self.call(client, TEXT, Op::Append(text)).map(drop)
            }
            10 => self.call(client, TEXT, Op::Get).map(drop),
            11 if self.below(2) == 0 => self.bulk(client),
            _ => {
                let (key, op) = Op::pick(self.random.next_u64(), self.shared.value());
                self.call(client, key, op).map(drop)
            }
        }
    }

    /// One command of a history.
    fn call(&self, client: &mut Client, key: &'static str, op: Op) -> Result<Reply, Away> {
        let kind = match op {
            Op::Get => "get",
            Op::Set(_) => "set",
            Op::Swap(_) => "getset",
            Op::Incr => "incr",
            Op::Append(_) => "append",
            Op::Replace(..) => "replace",
        };
        let began = self.shared.record.lock().unwrap().begin();
        let reply = client.try_call(&op.command(key)).ok();
        let fate = history::fate(reply.as_ref());
        self.shared.note(kind, op != Op::Get, fate);
        let mut record = self.shared.record.lock().unwrap();
        record.end(key, op, began, reply.as_ref(), fate);
        reply.ok_or(Away)
    }

    /// A transaction that counts the pair up, or a read of both.
    fn pair(&self, client: &mut Client, counts: bool) -> Result<(), Away> {
        let began = self.shared.record.lock().unwrap().begin();
        let [p, q] = PAIR;
        let (op, reply) = if counts {
            // Until EXEC is sent nothing happens.
            for part in [&["MULTI"][..], &["INCR", p], &["INCR", q]] {
                client.try_call(part).map_err(|_| Away)?;
            }
            (Op::Incr, client.try_call(&["EXEC"]).ok())
        } else {
            (Op::Get, client.try_call(&["MGET", p, q]).ok())
        };
        // Each command of a transaction has its own outcome.
        let fate = match &reply {
            Some(Reply::Array(both)) if counts => both.first().and_then(outcome::fate),
            reply => history::fate(reply.as_ref()),
        };
        self.shared.note("pair", counts, fate);
        let mut record = self.shared.record.lock().unwrap();
        record.end_pair(op, began, reply.as_ref(), fate);
        reply.map(drop).ok_or(Away)
    }

    /// A large value, so that logs grow and snapshots take their time.
    fn bulk(&mut self, client: &mut Client) -> Result<(), Away> {
        let key = format!("bulk:{}", self.below(BULK_KEYS));
        let bytes = BULK_BYTES_MIN << self.below(4);
        let value = format!("{key},{}", "x".repeat(bytes as usize));
        let reply = client.try_call(&["SET", &key, &value]).ok();
        let fate = history::fate(reply.as_ref());
        self.shared.note("bulk", true, fate);
        reply.map(drop).ok_or(Away)
    }

    /// Replaces a value that was read, unless it has changed.
    fn replace(&mut self, client: &mut Client) -> Result<(), Away> {
        let key = PLAIN[self.below(PLAIN.len() as u64) as usize];
        let new = self.shared.value();
        let watched = client.try_call(&["WATCH", key]).map_err(|_| Away)?;
        if watched != Reply::Ok {
            return Ok(());
        }
        let old = match self.call(client, key, Op::Get)? {
            Reply::Null => None,
            Reply::Bulk(old) => Some(String::from_utf8_lossy(&old).into_owned()),
            _ => return client.try_call(&["UNWATCH"]).map(drop).map_err(|_| Away),
        };
        for part in [&["MULTI"][..], &["SET", key, &new]] {
            client.try_call(part).map_err(|_| Away)?;
        }
        let began = self.shared.record.lock().unwrap().begin();
        let reply = client.try_call(&["EXEC"]).ok();
        let (reply, fate) = match reply {
            // The value was touched.
            Some(Reply::NullArray | Reply::Null) => {
                self.shared.note("replace", false, Some(Fate::Refused));
                return Ok(());
            }
            Some(Reply::Array(replies)) if replies.len() == 1 => {
                let reply = replies.into_iter().next();
                let fate = history::fate(reply.as_ref());
                (reply, fate)
            }
            other => (other.clone(), history::fate(other.as_ref())),
        };
        self.shared.note("replace", true, fate);
        let mut record = self.shared.record.lock().unwrap();
        record.end(key, Op::Replace(old, new), began, reply.as_ref(), fate);
        reply.map(drop).ok_or(Away)
    }

    /// Counts up, or asks again for what was not answered.
    fn count(&mut self, client: &mut Client) -> Result<(), Away> {
        let counter = &mut self.counter;
        if counter.token.is_none() {
            let token = client.try_call(&["ONCE.TOKEN"]).map_err(|_| Away)?;
            let (Reply::Bulk(token) | Reply::Verbatim { text: token, .. }) = token else {
                return Ok(());
            };
            counter.token = Some(String::from_utf8_lossy(&token).into_owned());
            counter.sequence = 0;
        }
        let token = counter.token.as_deref().expect("a token was asked for");
        if !counter.open {
            counter.sequence += 1;
            counter.open = true;
        }
        let sequence = counter.sequence.to_string();
        let reply = match self.shared.plant {
            Some(Plant::SentAgain) => client.try_call(&["INCR", &counter.key]),
            _ => client.try_call(&["ONCE", token, &sequence, "INCR", &counter.key]),
        };
        let reply = reply.ok();
        let fate = history::fate(reply.as_ref());
        self.shared.note("once", true, fate);
        match (&reply, fate) {
            (Some(Reply::Int(_)), _) => {
                (counter.counted, counter.open) = (counter.counted + 1, false)
            }
            (Some(Reply::Error(text)), Some(Fate::Unknown)) if text.contains("token") => {
                counter.lost += 1;
                (counter.token, counter.open) = (None, false);
            }
            (Some(Reply::Error(_)), Some(Fate::Unknown)) | (None, _) => {}
            // That it did not happen this time says nothing of the times before.
            (Some(Reply::Error(_)), _) => {}
            (other, _) => {
                let broken = format!("{} was answered {other:?}", counter.key);
                self.shared.record.lock().unwrap().broken(broken);
            }
        }
        reply.map(drop).ok_or(Away)
    }

    /// When all is well again: what is open is answered, the counter shows what was counted, and
    /// what expires is gone.
    ///
    /// # Errors
    ///
    /// The counter shows something else.
    pub(super) fn settle(&mut self, client: &mut Client) -> Result<(), String> {
        kvd_tests::until("what is open is answered", || {
            assert!(
                !self.counter.open || self.count(client).is_ok(),
                "the node answers"
            );
            !self.counter.open
        });
        let mut number = || match client.call(&["GET", &self.counter.key]) {
            Reply::Null => Some(0),
            Reply::Bulk(number) => String::from_utf8_lossy(&number).parse().ok(),
            // There is no leader, or not yet again.
            _ => None,
        };
        let mut found = None;
        kvd_tests::until("the counter is read", || {
            found = number();
            found.is_some()
        });
        let found = found.expect("it was read");
        let Counter {
            key, counted, lost, ..
        } = &self.counter;
        if !(*counted..=counted + lost).contains(&found) {
            return Err(format!(
                "{key} is {found}, and was counted up {counted} times, and perhaps {lost} times \
                 more"
            ));
        }
        kvd_tests::until("what was set to expire is gone", || {
            client.call(&["GET", self.lease.key()]) == Reply::Null
        });
        Ok(())
    }
}
