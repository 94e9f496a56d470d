//! The conformance suite: what every engine owes its host, as clauses with names.
//!
//! An engine's author calls [`check`] in a test. Each clause works in a directory of its own and
//! needs as little as it can of what the other clauses are about, so that a fault is reported
//! under its own name.

mod clauses;
mod model;
mod subject;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Backend, Caps};

use self::subject::Kit;

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
    engine: &'static str,
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
struct Clause<B> {
    name: &'static str,
    needs: Caps,
    try_on: fn(&Kit<'_, B>) -> Result<(), String>,
}

/// Tries all clauses on engines that are opened with `options` in temporary directories.
///
/// When the engine does not open, or a clause is broken, the clauses that rest upon it are
/// skipped. The last ones use random numbers: a failure names its seed, and the variable
/// `KVD_TESTKIT_SEED` of the environment repeats it.
pub fn run<B: Backend>(options: &[(&str, &str)]) -> Report {
    let kit = Kit::<B>::new(options);
    let mut report = Report {
        engine: B::NAME,
        outcomes: Vec::new(),
    };
    let stages = [
        clauses::options(),
        clauses::first(),
        clauses::main(),
        model::clauses(),
    ];
    for stage in stages {
        let is_ok = report.is_ok();
        for clause in stage {
            let outcome = if !is_ok {
                Outcome::Skipped("an earlier clause is broken")
            } else if !B::CAPS.contains(clause.needs) {
                Outcome::Skipped("the engine does not claim the capability")
            } else {
                match catch_unwind(AssertUnwindSafe(|| (clause.try_on)(&kit))) {
                    Ok(Ok(())) => Outcome::Kept,
                    Ok(Err(how)) => Outcome::Broken(how),
                    Err(panic) => Outcome::Broken(format!("panic: {}", panic_text(&*panic))),
                }
            };
            report.outcomes.push((clause.name, outcome));
        }
    }
    report
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
