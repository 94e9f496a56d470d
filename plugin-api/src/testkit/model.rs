//! Random operations, compared with a map; what fails is made as small as it can be.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Caps, Mark, Op, Range, View};

use super::history::{self, Change, Model, Random};
use super::panic_text;
use super::subject::{
    ALL, Bytes, Entries, Kit, Read, Still, Value, Verdict, compare, during, ensure, get, same_mark,
    scan,
};

/// Tried in every run.
const SEED: u64 = 0x6b76_6421_6b76_6421;
const SEED_VARIABLE: &str = "KVD_TESTKIT_SEED";
const VIEWS_MAX: usize = 4;
/// How many shorter examples are tried; an opening of each may take a while.
const ATTEMPTS_MAX: u32 = 300;

pub(super) fn random_operations_match_a_model(kit: &Kit<'_>) -> Verdict {
    let mut seeds = vec![SEED];
    if kit.effort.is_seeded_anew {
        seeds.push(RandomState::new().hash_one(SEED));
    }
    if let Ok(text) = std::env::var(SEED_VARIABLE) {
        let seed = text
            .parse()
            .map_err(|_| format!("{SEED_VARIABLE} is '{text}', expected a number"))?;
        seeds = vec![seed];
    }
    for seed in seeds {
        let mut random = Random::new(seed);
        let steps: Vec<Step> = (0..kit.effort.steps)
            .map(|_| random.step(kit.caps()))
            .collect();
        if let Err(failure) = play(kit, &steps) {
            let (steps, failure) = smallest(kit, steps, failure);
            let mut how = format!("seed {seed}: {}; the smallest example:", failure.how);
            for (at, step) in steps.iter().enumerate() {
                how += &format!("\n{}. {step}", at + 1);
            }
            return Err(how);
        }
    }
    Ok(())
}

/// Keys enough for many pages, and ranges that begin and end anywhere among them.
pub(super) fn reads_among_many_keys_match_a_model(kit: &Kit<'_>) -> Verdict {
    let mut random = Random::new(SEED);
    let key = |random: &mut Random| format!("key {:03}", random.below(420)).into_bytes();
    let subject = kit.open()?;
    let mut model = Model::default();
    for index in 1..=u64::from(kit.effort.steps / 7) {
        let changes = history::batch(index);
        let ops: Vec<_> = changes.iter().map(Change::op).collect();
        subject.write(&ops, &history::mark(index))?;
        model.advance(index - 1, index);
        for _ in 0..10 {
            let wanted = key(&mut random);
            let found = get(&subject, &wanted)?;
            let expected = model.entries.get(&wanted);
            ensure!(
                found.as_ref() == expected,
                "batch {index}: get of {} found {}, expected {}",
                Bytes(&wanted),
                Value(found.as_deref()),
                Value(expected.map(Vec::as_slice))
            );
            let (from, to) = (key(&mut random), key(&mut random));
            let range = Range {
                from: if random.below(5) == 0 { b"" } else { &from },
                to: (random.below(5) > 0).then_some(&to),
                reverse: random.below(2) == 0,
            };
            check_range(&subject, &model.entries, range)?;
        }
    }
    Ok(())
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write(Vec<Change>, Advance),
    Sync,
    Reopen,
    Replace(Entries, Advance),
    View,
    DropView(usize),
    Scan {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        reverse: bool,
    },
}

/// From the last mark to the next: an index that is higher by `by`, or the same mark for 0.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Advance {
    by: u64,
    data: Vec<u8>,
}

impl Advance {
    /// The default mark means that nothing was ever written, so a write never has it.
    fn from(&self, mark: &Mark) -> Mark {
        if self.by == 0 && *mark != Mark::default() {
            return mark.clone();
        }
        Mark {
            index: mark.index + self.by.max(1),
            data: self.data.clone(),
        }
    }
}

impl Random {
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
        vec![self.below(256) as u8; len as usize]
    }

    fn change(&mut self) -> Change {
        match self.below(10) {
            0..=5 => Change::Put(self.key(), self.value()),
            6..=8 => Change::Delete(self.key()),
            _ => Change::DeleteRange(self.key(), self.key()),
        }
    }

    /// Mostly a higher mark, sometimes the same.
    fn advance(&mut self) -> Advance {
        Advance {
            by: self.below(5).min(3),
            data: self.value(),
        }
    }

    fn step(&mut self, caps: Caps) -> Step {
        match self.below(40) {
            0 => Step::Sync,
            1 => Step::Reopen,
            2 => {
                let count = self.below(60);
                let entries = (0..count).map(|_| (self.key(), self.value())).collect();
                Step::Replace(entries, self.advance())
            }
            3..=5 if caps.contains(Caps::VIEW) => Step::View,
            6 if caps.contains(Caps::VIEW) => Step::DropView(self.below(4) as usize),
            7..=14 => Step::Scan {
                from: self.key(),
                to: (self.below(3) > 0).then(|| self.key()),
                reverse: self.below(2) == 0,
            },
            _ => {
                let count = self.below(12);
                let changes = (0..count).map(|_| self.change()).collect();
                Step::Write(changes, self.advance())
            }
        }
    }
}

/// What went wrong, and at which step.
struct Failure {
    at: usize,
    how: String,
}

/// Carries the steps out on a new engine, and looks at everything after each of them.
fn play(kit: &Kit<'_>, steps: &[Step]) -> Result<(), Failure> {
    let mut at = 0;
    let played = catch_unwind(AssertUnwindSafe(|| try_playing(kit, steps, &mut at)));
    played
        .unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))))
        .map_err(|how| Failure { at, how })
}

fn try_playing(kit: &Kit<'_>, steps: &[Step], at: &mut usize) -> Verdict {
    let mut subject = kit.open()?;
    let mut entries = Entries::new();
    let mut mark = Mark::default();
    let mut views: Vec<(Box<dyn View>, Entries, Mark)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        *at = number;
        match step {
            Step::Write(changes, advance) => {
                let batch: Vec<Op<'_>> = changes.iter().map(Change::op).collect();
                mark = advance.from(&mark);
                subject.write(&batch, &mark)?;
                changes.iter().for_each(|change| change.apply(&mut entries));
            }
            Step::Sync => drop(subject.sync()?),
            Step::Reopen => {
                // A view may keep an engine's files in use.
                views.clear();
                subject.backend.close().map_err(during("close"))?;
                subject = kit.reopen(subject)?;
                if !kit.is_durable() {
                    // Which earlier state it may come back with is another clause's matter.
                    mark = subject.mark()?;
                    entries = scan(&subject, ALL)?.into_iter().collect();
                }
            }
            Step::Replace(new, advance) => {
                mark = advance.from(&mark);
                entries.clone_from(new);
                subject.replace(new, &mark)?;
            }
            Step::View => {
                if views.len() == VIEWS_MAX {
                    views.remove(0);
                }
                views.push((subject.view()?, entries.clone(), mark.clone()));
            }
            Step::DropView(number) => {
                if *number < views.len() {
                    views.remove(*number);
                }
            }
            Step::Scan { from, to, reverse } => {
                let range = Range {
                    from,
                    to: to.as_deref(),
                    reverse: *reverse,
                };
                check_range(&subject, &entries, range)?;
                for (view, entries, _) in &views {
                    check_range(&Still(&**view), entries, range)?;
                }
            }
        }
        same_mark("the engine", &subject.mark()?, &mark)?;
        compare("the engine", &subject, &entries)?;
        for (view, entries, mark) in &views {
            same_mark("a view", view.mark(), mark)?;
            compare("a view", &Still(&**view), entries)?;
        }
    }
    Ok(())
}

/// Scans a range, and compares the order too.
fn check_range(read: &impl Read, entries: &Entries, range: Range<'_>) -> Verdict {
    let found = scan(read, range)?;
    let mut expected: Vec<_> = entries
        .iter()
        .filter(|(key, _)| ***key >= *range.from && range.to.is_none_or(|to| ***key < *to))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if range.reverse {
        expected.reverse();
    }
    ensure!(
        found == expected,
        "the scan from {} to {}, reverse {}, found {} entries, expected {} (or others, or another \
         order)",
        Bytes(range.from),
        Value(range.to),
        range.reverse,
        found.len(),
        expected.len()
    );
    Ok(())
}

/// A shorter list of steps that fails too, though perhaps in another way: steps are left out, then
/// parts of them, for as long as something still fails and there is patience.
fn smallest(kit: &Kit<'_>, mut steps: Vec<Step>, mut failure: Failure) -> (Vec<Step>, Failure) {
    steps.truncate(failure.at + 1);
    let mut attempts = ATTEMPTS_MAX;
    let mut fails = |steps: &[Step]| {
        attempts = attempts.checked_sub(1)?;
        play(kit, steps).err()
    };
    loop {
        let before = steps.clone();
        let mut piece = steps.len() / 2;
        while piece > 0 {
            // From the end: what comes last matters most, and stays.
            let mut end = steps.len();
            while end > 0 {
                let start = end.saturating_sub(piece);
                let mut shorter = steps.clone();
                shorter.drain(start..end);
                if let Some(found) = fails(&shorter) {
                    shorter.truncate(found.at + 1);
                    (steps, failure) = (shorter, found);
                }
                end = start.min(steps.len());
            }
            piece /= 2;
        }
        for at in (0..steps.len()).rev() {
            let mut part = 0;
            while part < steps.get(at).map_or(0, Step::parts) {
                let mut shorter = steps.clone();
                let failed = steps[at].simpler(part).and_then(|simpler| {
                    shorter[at] = simpler;
                    fails(&shorter)
                });
                match failed {
                    Some(found) => {
                        shorter.truncate(found.at + 1);
                        (steps, failure) = (shorter, found);
                    }
                    None => part += 1,
                }
            }
        }
        if steps == before {
            return (steps, failure);
        }
    }
}

impl Step {
    /// How many ways there may be to make it simpler: each change or entry can be left out or
    /// shortened, and the mark can lose its bytes.
    fn parts(&self) -> usize {
        match self {
            Step::Write(changes, _) => 2 * changes.len() + 1,
            Step::Replace(entries, _) => 2 * entries.len() + 1,
            Step::Sync | Step::Reopen | Step::View | Step::DropView(_) | Step::Scan { .. } => 0,
        }
    }

    /// The step with its part of this number made simpler; none where that changes nothing.
    fn simpler(&self, part: usize) -> Option<Step> {
        let mut step = self.clone();
        match &mut step {
            Step::Write(changes, advance) => match part.checked_sub(changes.len()) {
                None => drop(changes.remove(part)),
                Some(0) => advance.data.clear(),
                Some(rest) => {
                    if let Some(Change::Put(_, value)) = changes.get_mut(rest - 1) {
                        value.truncate(1);
                    }
                }
            },
            Step::Replace(entries, advance) => match part.checked_sub(entries.len()) {
                None => drop(
                    entries
                        .keys()
                        .nth(part)
                        .cloned()
                        .and_then(|key| entries.remove(&key)),
                ),
                Some(0) => advance.data.clear(),
                Some(rest) => {
                    if let Some(value) = entries.values_mut().nth(rest - 1) {
                        value.truncate(1);
                    }
                }
            },
            Step::Sync | Step::Reopen | Step::View | Step::DropView(_) | Step::Scan { .. } => {}
        }
        (step != *self).then_some(step)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Write(changes, advance) => {
                write!(f, "write {} changes", changes.len())?;
                for (at, change) in changes.iter().enumerate() {
                    f.write_str(if at == 0 { ": " } else { ", " })?;
                    match change {
                        Change::Put(key, value) => {
                            write!(f, "put {} = {}", Bytes(key), Bytes(value))?;
                        }
                        Change::Delete(key) => write!(f, "delete {}", Bytes(key))?,
                        Change::DeleteRange(from, to) => {
                            write!(f, "delete {} to {}", Bytes(from), Bytes(to))?;
                        }
                    }
                }
                write!(f, "; {advance}")
            }
            Step::Sync => f.write_str("sync"),
            Step::Reopen => f.write_str("close and open again"),
            Step::Replace(entries, advance) => {
                write!(f, "replace by {} entries", entries.len())?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    let between = if at == 0 { ": " } else { ", " };
                    write!(f, "{between}{} = {}", Bytes(key), Bytes(value))?;
                }
                write!(f, "; {advance}")
            }
            Step::View => f.write_str("take a view"),
            Step::DropView(number) => write!(f, "drop view {number}, if there is one"),
            Step::Scan { from, to, reverse } => {
                let to = Value(to.as_deref());
                write!(f, "scan from {} to {to}, reverse {reverse}", Bytes(from))
            }
        }
    }
}

impl fmt::Display for Advance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            0 => f.write_str("mark unchanged"),
            by => write!(f, "mark +{by}"),
        }
    }
}
