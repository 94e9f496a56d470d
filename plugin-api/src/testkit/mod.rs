//! The conformance suite: what every engine owes its host, as clauses with names.
//!
//! An engine's author calls [`check`] in a test, and `kvd plugin check` tries the same clauses on a
//! library that was built. Each clause works in a directory of its own and needs as little as it
//! can of what the other clauses are about, so that a fault is reported under its own name.
//! What a crash leaves is tried by [`crash`].

mod candidate;
mod clauses;
pub mod crash;
pub mod history;
mod model;
mod subject;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Backend, Caps};

pub use self::candidate::Candidate;
pub use self::subject::Kit;

/// What came of one clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The engine keeps the clause.
    Kept,
    /// The engine breaks the clause, in this way.
    Broken(String),
    /// The clause was not tried, for this reason.
    Skipped(&'static str),
}

/// What came of all clauses. Its text has a line for each.
#[derive(Debug, Clone)]
pub struct Report {
    engine: String,
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Whether no clause is broken.
    pub fn is_ok(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The clauses by name, in the order in which they were tried.
    pub fn outcomes(&self) -> &[(&'static str, Outcome)] {
        &self.outcomes
    }

    /// The broken clauses, and how they were broken.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.outcomes
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                Outcome::Broken(how) => Some((*name, how.as_str())),
                Outcome::Kept | Outcome::Skipped(_) => None,
            })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine {}", self.engine)?;
        for (name, outcome) in &self.outcomes {
            match outcome {
                Outcome::Kept => write!(f, "\n  kept    {name}")?,
                Outcome::Broken(how) => write!(f, "\n  broken  {name}: {how}")?,
                Outcome::Skipped(why) => write!(f, "\n  skipped {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// A clause: its name, what an engine must offer for it to apply, and the trial.
pub struct Clause {
    name: &'static str,
    text: &'static str,
    /// When a clause of an earlier stage is broken, this one would fail for the same reason.
    stage: u8,
    needs: Caps,
    try_on: fn(&Kit<'_>) -> Result<(), String>,
}

impl Clause {
    /// All of them, in the order in which they are tried.
    pub fn all() -> &'static [Clause] {
        clauses::ALL
    }

    /// The clause of this name.
    pub fn named(name: &str) -> Option<&'static Clause> {
        clauses::ALL.iter().find(|clause| clause.name == name)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it asks of an engine, as a sentence without a full stop.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Tries it; a panic is a way to break it.
    pub fn try_on(&self, kit: &Kit<'_>) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| (self.try_on)(kit))) {
            Ok(Ok(())) => Outcome::Kept,
            Ok(Err(how)) => Outcome::Broken(how),
            Err(panic) => Outcome::Broken(format!("panic: {}", panic_text(&*panic))),
        }
    }
}

/// How much is tried.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Random operations in a row.
    steps: u32,
    /// Whether a seed that is new each time is tried beside the fixed one.
    is_seeded_anew: bool,
    /// How many times reads and writes must meet.
    meetings: u64,
    /// Values up to this size are tried, and the engine's limit where it is below.
    value_bytes: u64,
    /// Entries of a kilobyte where there should be many.
    entries: u32,
}

impl Effort {
    const FULL: Effort = Effort {
        steps: 400,
        is_seeded_anew: true,
        meetings: 200,
        value_bytes: 8 << 20,
        entries: 3000,
    };
    const QUICK: Effort = Effort {
        steps: 60,
        is_seeded_anew: false,
        meetings: 20,
        value_bytes: 1 << 20,
        entries: 300,
    };
}

/// Tries all clauses on engines that are opened with `options` in temporary directories.
///
/// When the engine does not open, or a clause is broken, the clauses that rest upon it are
/// skipped. The last ones use random numbers: a failure names its seed, and the variable
/// `KVD_TESTKIT_SEED` of the environment repeats it.
pub fn run<B: Backend>(options: &[(&str, &str)]) -> Report {
    run_candidate(&Candidate::of::<B>(), options)
}

/// As [`run`], for an engine wherever its code is.
pub fn run_candidate(candidate: &Candidate, options: &[(&str, &str)]) -> Report {
    let kit = Kit::new(candidate, options);
    let try_one = |clause: &Clause| clause.try_on(&kit);
    run_with(&candidate.name, candidate.caps, try_one, |_, _| {})
}

/// As [`run`], but each clause that applies to an engine with `caps` is tried by `try_one`, in a
/// process of its own for example; `told` hears what came of each, also of those that are skipped.
pub fn run_with(
    name: &str,
    caps: Caps,
    mut try_one: impl FnMut(&Clause) -> Outcome,
    mut told: impl FnMut(&Clause, &Outcome),
) -> Report {
    let mut outcomes = Vec::new();
    let mut broken_stage = u8::MAX;
    for clause in Clause::all() {
        let outcome = if clause.stage > broken_stage {
            Outcome::Skipped("an earlier clause is broken")
        } else if !caps.contains(clause.needs) {
            Outcome::Skipped("the engine does not claim the capability")
        } else {
            try_one(clause)
        };
        if matches!(outcome, Outcome::Broken(_)) {
            broken_stage = broken_stage.min(clause.stage);
        }
        told(clause, &outcome);
        outcomes.push((clause.name, outcome));
    }
    Report {
        engine: name.to_owned(),
        outcomes,
    }
}

/// As [`run`], for use as a test.
///
/// # Panics
///
/// When a clause is broken, with the names of all that are.
pub fn check<B: Backend>(options: &[(&str, &str)]) {
    let report = run::<B>(options);
    if !report.is_ok() {
        let broken: Vec<_> = report
            .broken()
            .map(|(name, how)| format!("{name}: {how}"))
            .collect();
        panic!(
            "engine {} breaks the contract\n{}",
            B::NAME,
            broken.join("\n")
        );
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "without a text"
    }
}
