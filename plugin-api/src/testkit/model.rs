//! Random operations, compared with a map.

use std::hash::{BuildHasher, RandomState};

use crate::{Backend, Caps, Mark, Op, Range, View};

use super::Clause;
use super::subject::{
    ALL, Bytes, Entries, Kit, Read, Still, Value, Verdict, compare, during, ensure, same_mark, scan,
};

const STEPS: u32 = 400;
/// Tried in every run, beside one that is new each time.
const SEED: u64 = 0x6b76_6421_6b76_6421;
const SEED_VARIABLE: &str = "KVD_TESTKIT_SEED";
const VIEWS_MAX: usize = 4;

pub(super) fn clauses<B: Backend>() -> Vec<Clause<B>> {
    vec![Clause {
        name: "random_operations_match_a_model",
        needs: Caps::empty(),
        try_on: random_operations_match_a_model,
    }]
}

fn random_operations_match_a_model<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let seeds = match std::env::var(SEED_VARIABLE) {
        Ok(text) => {
            let seed = text
                .parse()
                .map_err(|_| format!("{SEED_VARIABLE} is '{text}', expected a number"))?;
            vec![seed]
        }
        Err(_) => vec![SEED, RandomState::new().hash_one(SEED)],
    };
    for seed in seeds {
        try_seed(kit, seed).map_err(|how| format!("seed {seed}: {how}"))?;
    }
    Ok(())
}

/// A small generator (xorshift64*): the same numbers on every machine for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Random(seed.max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `end`, exclusive.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// Short keys of few different bytes, so that they meet again and are prefixes of each other.
    fn key(&mut self) -> Vec<u8> {
        let len = self.below(4);
        (0..len)
            .map(|_| [0, 1, b'a', b'b', 0x7f, 0x80, 0xfe, 0xff][self.below(8) as usize])
            .collect()
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.below(20) {
            0 => 0,
            1 => 1000 + self.below(10_000),
            _ => 1 + self.below(30),
        };
        let byte = self.next() as u8;
        vec![byte; len as usize]
    }

    fn change(&mut self) -> Change {
        match self.below(10) {
            0..=5 => Change::Put(self.key(), self.value()),
            6..=8 => Change::Delete(self.key()),
            _ => Change::DeleteRange(self.key(), self.key()),
        }
    }
}

enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Change {
    fn op(&self) -> Op<'_> {
        match self {
            Change::Put(key, value) => Op::Put(key, value),
            Change::Delete(key) => Op::Delete(key),
            Change::DeleteRange(from, to) => Op::DeleteRange(from, to),
        }
    }

    fn apply(&self, entries: &mut Entries) {
        match self {
            Change::Put(key, value) => drop(entries.insert(key.clone(), value.clone())),
            Change::Delete(key) => drop(entries.remove(key)),
            Change::DeleteRange(from, to) => entries.retain(|key, _| key < from || key >= to),
        }
    }
}

fn try_seed<B: Backend>(kit: &Kit<'_, B>, seed: u64) -> Verdict {
    let mut random = Random::new(seed);
    let mut subject = kit.open()?;
    let mut entries = Entries::new();
    let mut mark = Mark::default();
    let mut views: Vec<(B::View, Entries, Mark)> = Vec::new();
    for step in 0..STEPS {
        let what = match random.below(40) {
            0 => {
                subject.sync()?;
                "sync"
            }
            1 => {
                // A view may keep an engine's files in use.
                views.clear();
                subject.backend.close().map_err(during("close"))?;
                subject = kit.reopen(subject)?;
                if !B::CAPS.contains(Caps::DURABLE) {
                    // Which earlier state it may come back with is another clause's matter.
                    mark = subject.mark()?;
                    entries = scan(&subject, ALL)?.into_iter().collect();
                }
                "close and open"
            }
            2 => {
                entries = (0..random.below(60))
                    .map(|_| (random.key(), random.value()))
                    .collect();
                mark = next_mark(&mut random, &mark);
                subject.replace(&entries, &mark)?;
                "replace"
            }
            3..=6 if B::CAPS.contains(Caps::VIEW) => {
                if views.len() == VIEWS_MAX {
                    views.remove(random.below(VIEWS_MAX as u64) as usize);
                }
                views.push((subject.view()?, entries.clone(), mark.clone()));
                "view"
            }
            7..=14 => {
                check_range(&mut random, &subject, &entries)?;
                "scan"
            }
            _ => {
                let count = random.below(12);
                let changes: Vec<_> = (0..count).map(|_| random.change()).collect();
                let batch: Vec<_> = changes.iter().map(Change::op).collect();
                mark = next_mark(&mut random, &mark);
                subject.write(&batch, &mark)?;
                changes.iter().for_each(|change| change.apply(&mut entries));
                "write"
            }
        };
        let what = format!("step {step}, after {what}");
        same_mark(&what, &subject.mark()?, &mark)?;
        compare(&what, &subject, &entries)?;
        for (view, entries, mark) in &views {
            let what = format!("{what}, in a view");
            same_mark(&what, view.mark(), mark)?;
            compare(&what, &Still(view), entries)?;
            check_range(&mut random, &Still(view), entries)?;
        }
    }
    Ok(())
}

/// The next mark: mostly a higher one, sometimes the same. The default one means that nothing was
/// ever written, so a write never has it.
fn next_mark(random: &mut Random, mark: &Mark) -> Mark {
    if *mark != Mark::default() && random.below(5) == 0 {
        return mark.clone();
    }
    Mark {
        index: mark.index + 1 + random.below(3),
        data: random.value(),
    }
}

/// Scans a random range, and compares the order too.
fn check_range(random: &mut Random, read: &impl Read, entries: &Entries) -> Verdict {
    let from = random.key();
    let to = (random.below(3) > 0).then(|| random.key());
    let range = Range {
        from: &from,
        to: to.as_deref(),
        reverse: random.below(2) == 0,
    };
    let found = scan(read, range)?;
    let mut expected: Vec<_> = entries
        .iter()
        .filter(|(key, _)| **key >= from && to.as_ref().is_none_or(|to| *key < to))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if range.reverse {
        expected.reverse();
    }
    ensure!(
        found == expected,
        "the scan from {} to {}, reverse {}, found {} entries, expected {} (or others, or another \
         order)",
        Bytes(&from),
        Value(to.as_deref()),
        range.reverse,
        found.len(),
        expected.len()
    );
    Ok(())
}
