//! What a run did, and what it met.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use kvd::outcome::Fate;

/// Calls of one kind by what became of them.
#[derive(Default)]
struct Calls {
    answered: u64,
    refused: u64,
    unknown: u64,
}

/// The report that a run ends with.
pub(super) struct Report {
    faults: BTreeMap<&'static str, u64>,
    calls: BTreeMap<&'static str, Calls>,
    pub(super) elections: u64,
    pub(super) stretches: u64,
    last_write: Instant,
    longest: Duration,
}

impl Report {
    pub(super) fn new() -> Self {
        Report {
            faults: BTreeMap::new(),
            calls: BTreeMap::new(),
            elections: 0,
            stretches: 0,
            last_write: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    /// Clients begin to write.
    pub(super) fn begins(&mut self) {
        self.last_write = Instant::now();
    }

    pub(super) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    /// How often something of this name was done.
    pub(super) fn count(&self, fault: &str) -> u64 {
        self.faults.get(fault).copied().unwrap_or(0)
    }

    /// A call ended; nothing as fate means that it was answered.
    pub(super) fn call(&mut self, kind: &'static str, writes: bool, fate: Option<Fate>) {
        let calls = self.calls.entry(kind).or_default();
        match fate {
            Some(Fate::Unknown) => calls.unknown += 1,
            Some(Fate::NotDone | Fate::Refused) => calls.refused += 1,
            None => {
                calls.answered += 1;
                if writes {
                    self.longest = self.longest.max(self.last_write.elapsed());
                    self.last_write = Instant::now();
                }
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            faults,
            calls,
            elections,
            stretches,
            longest,
            ..
        } = self;
        writeln!(f, "injected in {stretches} stretches:")?;
        for (name, count) in faults {
            writeln!(f, "  {name:<12} {count:>7}")?;
        }
        writeln!(f, "calls         answered  did not happen  outcome unknown")?;
        for (kind, calls) in calls {
            let Calls {
                answered,
                refused,
                unknown,
            } = calls;
            writeln!(f, "  {kind:<10} {answered:>9} {refused:>15} {unknown:>16}")?;
        }
        writeln!(f, "elections: {elections}")?;
        let longest = longest.as_secs_f64();
        writeln!(
            f,
            "longest time without an acknowledged write: {longest:.1} s"
        )
    }
}
