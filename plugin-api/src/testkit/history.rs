//! A history of batches that is the same wherever it is told: what an engine holds after a crash
//! can be compared with it by the mark, and by where each process took it up.

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use crate::{Backend, Feed, Flow, Mark, Op, Range, Result};

/// Small numbers that are the same for the same seed, on every machine.
pub struct Random(u64);

impl Random {
    /// Seeds that are neighbours give numbers that are not.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A change of a batch, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// As [`Op::Put`].
    Put(Vec<u8>, Vec<u8>),
    /// As [`Op::Delete`].
    Delete(Vec<u8>),
    /// As [`Op::DeleteRange`].
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Change {
    /// The change, lent.
    pub fn op(&self) -> Op<'_> {
        match self {
            Change::Put(key, value) => Op::Put(key, value),
            Change::Delete(key) => Op::Delete(key),
            Change::DeleteRange(from, to) => Op::DeleteRange(from, to),
        }
    }

    /// Carries it out on a map.
    pub fn apply(&self, entries: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        match self {
            Change::Put(key, value) => drop(entries.insert(key.clone(), value.clone())),
            Change::Delete(key) => drop(entries.remove(key)),
            Change::DeleteRange(from, to) => entries.retain(|key, _| key < from || key >= to),
        }
    }
}

/// The mark of the batch with this index; that of index 0 is the default one.
pub fn mark(index: u64) -> Mark {
    match index {
        0 => Mark::default(),
        _ => Mark {
            index,
            data: format!("mark {index}").into_bytes(),
        },
    }
}

/// The processes that have gone on with a history, each from the mark that it found.
///
/// Each writes values of its own, as long as those of the others: what an engine takes up again of
/// what one of them wrote, and the next one did not find, is seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lives(Vec<u64>);

impl Lives {
    /// Another process, which finds the mark `index`.
    pub fn begin(&mut self, index: u64) {
        // What was lost beyond it was written by none of those that count.
        for life in &mut self.0 {
            *life = index.min(*life);
        }
        self.0.push(index);
    }

    /// The one that wrote the batch with this index; 0 is none.
    fn of(&self, index: u64) -> usize {
        self.0.partition_point(|found| *found < index)
    }

    /// The changes of the batch with this index.
    pub fn batch(&self, index: u64) -> Vec<Change> {
        const LETTERS: &[u8] = b" abcdefghijklmnopqrstuvwxyz";
        batch_with(index, LETTERS[self.of(index) % LETTERS.len()].into())
    }
}

impl fmt::Display for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks: Vec<_> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&marks.join(","))
    }
}

impl FromStr for Lives {
    type Err = ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseIntError> {
        let marks = text.split(',').filter(|mark| !mark.is_empty());
        marks
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()
            .map(Lives)
    }
}

/// The changes of the batch with this index: always the same.
pub fn batch(index: u64) -> Vec<Change> {
    Lives::default().batch(index)
}

fn batch_with(index: u64, letter: char) -> Vec<Change> {
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
                let mut value = format!("value of batch {index}{letter}").into_bytes();
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

/// Writes the batch with this index.
///
/// # Panics
///
/// The engine refuses it.
pub fn write(backend: &impl Backend, index: u64) {
    let changes = batch(index);
    let ops: Vec<Op<'_>> = changes.iter().map(Change::op).collect();
    if let Err(error) = backend.write(&ops, &mark(index)) {
        panic!("write of batch {index} failed: {error}");
    }
}

/// The contents that the batches up to one index amount to.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// Keys and values.
    pub entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    /// The contents after all batches up to `index`.
    pub fn at(index: u64) -> Model {
        Model::after(&Lives::default(), index)
    }

    /// The same, of batches that several processes have written.
    pub fn after(lives: &Lives, index: u64) -> Model {
        let mut model = Model::default();
        for index in 1..=index {
            model.add(&lives.batch(index));
        }
        model
    }

    /// Adds the batches after `done` up to `index`.
    pub fn advance(&mut self, done: u64, index: u64) {
        for index in done + 1..=index {
            self.add(&batch(index));
        }
    }

    /// Adds one batch.
    pub fn add(&mut self, batch: &[Change]) {
        for change in batch {
            change.apply(&mut self.entries);
        }
    }

    /// What an engine holds.
    ///
    /// # Panics
    ///
    /// It cannot be scanned.
    pub fn of(backend: &impl Backend) -> Model {
        let mut model = Model::default();
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        let scanned = backend.scan(all, &mut |key, value| {
            model.entries.insert(key.to_vec(), value.to_vec());
            Flow::Continue
        });
        if let Err(error) = scanned {
            panic!("scan failed: {error}");
        }
        model
    }
}

/// Contents as a feed.
pub struct ModelFeed<I>(pub I);

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
