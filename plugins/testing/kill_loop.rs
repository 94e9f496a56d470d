//! A process that writes is killed again and again, and what it leaves is compared with a model.
//!
//! Shared by the engines' tests with `#[path]`; the test runs its own binary again as the process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvd_plugin_api::{Backend, Feed, Flow, Mark, Op, Range, Result};

const DIR_VARIABLE: &str = "KVD_TEST_KILL_LOOP_DIR";

/// Small numbers that are the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// The contents that the batches up to one index amount to.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Model {
    pub(crate) entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A change of a batch, owned.
pub(crate) enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Change {
    pub(crate) fn op(&self) -> Op<'_> {
        match self {
            Change::Put(key, value) => Op::Put(key, value),
            Change::Delete(key) => Op::Delete(key),
            Change::DeleteRange(from, to) => Op::DeleteRange(from, to),
        }
    }
}

/// The mark of the batch with this index.
pub(crate) fn mark(index: u64) -> Mark {
    match index {
        0 => Mark::default(),
        _ => Mark {
            index,
            data: format!("mark {index}").into_bytes(),
        },
    }
}

/// The changes of the batch with this index: always the same.
pub(crate) fn batch(index: u64) -> Vec<Change> {
    let mut random = Random::new(index);
    let key = |random: &mut Random| format!("key {:03}", random.below(400)).into_bytes();
    let mut changes = Vec::new();
    for _ in 0..1 + random.below(30) {
        changes.push(match random.below(20) {
            0..14 => {
                // A few that engines treat specially: more than a page, more than a segment's part.
                let length = match random.below(400) {
                    0 => 200_000,
                    1..8 => 9_000,
                    short => short / 2,
                };
                let mut value = format!("value of batch {index} ").into_bytes();
                value.resize(value.len() + length as usize, b'.');
                Change::Put(key(&mut random), value)
            }
            14..19 => Change::Delete(key(&mut random)),
            _ => {
                let from = random.below(400);
                let to = from + random.below(40);
                Change::DeleteRange(
                    format!("key {from:03}").into_bytes(),
                    format!("key {to:03}").into_bytes(),
                )
            }
        });
    }
    changes
}

impl Model {
    /// The contents after all batches up to `index`.
    pub(crate) fn at(index: u64) -> Model {
        let mut model = Model::default();
        model.advance(0, index);
        model
    }

    /// Adds the batches after `done` up to `index`.
    pub(crate) fn advance(&mut self, done: u64, index: u64) {
        for index in done + 1..=index {
            for change in batch(index) {
                match change {
                    Change::Put(key, value) => drop(self.entries.insert(key, value)),
                    Change::Delete(key) => drop(self.entries.remove(&key)),
                    Change::DeleteRange(from, to) => {
                        self.entries.retain(|key, _| *key < from || *key >= to);
                    }
                }
            }
        }
    }

    /// What an engine holds.
    pub(crate) fn of(backend: &impl Backend) -> Model {
        let mut model = Model::default();
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        backend
            .scan(all, &mut |key, value| {
                model.entries.insert(key.to_vec(), value.to_vec());
                Flow::Continue
            })
            .unwrap();
        model
    }
}

/// Contents as a feed.
pub(crate) struct ModelFeed<I>(pub(crate) I);

impl<I: Iterator<Item = (Vec<u8>, Vec<u8>)>> Feed for ModelFeed<I> {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        Ok(match self.0.next() {
            Some((key, value)) => {
                out(&key, &value);
                true
            }
            None => false,
        })
    }
}

/// Writes the batch with this index.
pub(crate) fn write(backend: &impl Backend, index: u64) {
    let changes = batch(index);
    let ops: Vec<Op<'_>> = changes.iter().map(Change::op).collect();
    backend.write(&ops, &mark(index)).unwrap();
}

/// The whole test: `name` is the path of the calling test in its binary.
pub(crate) fn run<B: Backend>(name: &str, rounds: u32, open: impl Fn(&Path) -> Result<B>) {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        write_until_killed(&open(Path::new(&dir)).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    println!("seed {seed}");
    let mut random = Random::new(u64::from(seed));
    let mut model = Model::default();
    let mut at = 0;
    for round in 0..rounds {
        let synced = kill_one(name, dir.path(), Duration::from_millis(random.below(250)));
        let backend = open(dir.path()).unwrap();
        let found = backend.mark().unwrap();
        println!("round {round}: {at} -> {}, promised {synced}", found.index);
        assert_eq!(found, mark(found.index));
        assert!(
            found.index >= synced.max(at),
            "round {round}: a durable write is lost"
        );
        model.advance(at, found.index);
        at = found.index;
        assert!(
            Model::of(&backend) == model,
            "round {round}: not the state after batch {at}"
        );
    }
    assert!(at > u64::from(rounds), "the process hardly wrote anything");
}

/// Starts the process, kills it some time after its first sync, and returns the last mark that it
/// said was durable.
fn kill_one(name: &str, dir: &Path, delay: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (first, started) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut synced = None;
        // Read to the end of the pipe, also after the kill: a promise is a promise.
        for line in lines {
            if let Some(index) = line.unwrap().strip_prefix("synced ") {
                synced = Some(index.parse().unwrap());
                let _ = first.send(());
            }
        }
        synced.expect("the process ended before its first sync")
    });
    // An error means that the process has ended by itself, which the reader reports.
    let _ = started.recv();
    thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn write_until_killed(backend: &impl Backend) -> ! {
    let start = Instant::now();
    let mut index = backend.mark().unwrap().index;
    let mut model = Model::at(index);
    let promise = |index: u64| {
        println!("synced {index}");
        std::io::stdout().flush().unwrap();
    };
    println!();
    loop {
        for _ in 0..20 {
            index += 1;
            write(backend, index);
            model.advance(index - 1, index);
        }
        assert_eq!(backend.sync().unwrap(), mark(index));
        promise(index);
        if index.is_multiple_of(11) {
            // The same contents that the batches alone would give, so the model needs no case.
            index += 1;
            model.advance(index - 1, index);
            let entries = model.entries.clone().into_iter();
            backend
                .replace(&mut ModelFeed(entries), &mark(index))
                .unwrap();
            promise(index);
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nobody killed this process"
        );
    }
}

/// Reads and scans of random parts agree with the model, in both directions.
pub(crate) fn compare_reads(backend: &impl Backend, seed: u64) {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let key = |random: &mut Random| format!("key {:03}", random.below(420)).into_bytes();
    for index in 1..=60 {
        write(backend, index);
        model.advance(index - 1, index);
        for _ in 0..10 {
            let wanted = key(&mut random);
            let mut found = None;
            let is_found = backend
                .get(&wanted, &mut |value| found = Some(value.to_vec()))
                .unwrap();
            assert_eq!(
                (found.as_ref(), is_found),
                (model.entries.get(&wanted), found.is_some())
            );

            let from = if random.below(5) == 0 {
                Vec::new()
            } else {
                key(&mut random)
            };
            let to = if random.below(5) == 0 {
                None
            } else {
                Some(key(&mut random))
            };
            let reverse = random.below(2) == 0;
            let limit = 1 + random.below(50) as usize;
            let mut seen = Vec::new();
            backend
                .scan(
                    Range {
                        from: &from,
                        to: to.as_deref(),
                        reverse,
                    },
                    &mut |key, value| {
                        seen.push((key.to_vec(), value.to_vec()));
                        if seen.len() == limit {
                            Flow::Stop
                        } else {
                            Flow::Continue
                        }
                    },
                )
                .unwrap();
            let mut expected: Vec<_> = model
                .entries
                .iter()
                .filter(|(key, _)| **key >= from && to.as_ref().is_none_or(|to| *key < to))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if reverse {
                expected.reverse();
            }
            expected.truncate(limit);
            assert!(
                seen == expected,
                "batch {index}: {from:?} to {to:?}, reverse {reverse}"
            );
        }
    }
}
