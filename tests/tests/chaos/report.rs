//! What a run did, and what it met: for people, and as JSON for others.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use kvd::outcome::Fate;
use serde_json::{Value, json};

/// Calls of one kind by what became of them.
#[derive(Default)]
struct Calls {
    answered: u64,
    refused: u64,
    unknown: u64,
}

/// Faults of one kind.
#[derive(Default)]
struct Faults {
    injected: u64,
    /// It was their turn, and the cluster was in no state for them.
    passed_over: u64,
}

/// The report that a run ends with.
pub(super) struct Report {
    /// What was tested, and with which settings.
    pub(super) run: BTreeMap<&'static str, String>,
    faults: BTreeMap<&'static str, Faults>,
    calls: BTreeMap<&'static str, Calls>,
    events: BTreeMap<&'static str, u64>,
    /// Stretches by the engines of their members, and the seconds in which things went wrong.
    stretches: BTreeMap<String, (u64, u64)>,
    found: Vec<String>,
    last_write: Instant,
    longest: Duration,
}

impl Report {
    pub(super) fn new() -> Self {
        Report {
            run: BTreeMap::new(),
            faults: BTreeMap::new(),
            calls: BTreeMap::new(),
            events: BTreeMap::new(),
            stretches: BTreeMap::new(),
            found: Vec::new(),
            last_write: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    /// Clients begin to write.
    pub(super) fn begins(&mut self) {
        self.last_write = Instant::now();
    }

    pub(super) fn stretch(&mut self, engines: &str, seconds: u64) {
        let (count, sum) = self.stretches.entry(engines.to_owned()).or_default();
        (*count, *sum) = (*count + 1, *sum + seconds);
    }

    /// A fault's turn came, and it was injected or could not be.
    pub(super) fn fault(&mut self, name: &'static str, injected: bool) {
        let faults = self.faults.entry(name).or_default();
        faults.injected += u64::from(injected);
        faults.passed_over += u64::from(!injected);
    }

    /// How often something of this name was done.
    pub(super) fn injected(&self, fault: &str) -> u64 {
        self.faults.get(fault).map_or(0, |faults| faults.injected)
    }

    /// Whether nothing was found.
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// Something happened so many times.
    pub(super) fn happened(&mut self, what: &'static str, count: u64) {
        *self.events.entry(what).or_default() += count;
    }

    /// A promise was broken.
    pub(super) fn found(&mut self, what: String) {
        self.found.push(what);
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

    pub(super) fn json(&self) -> Value {
        let calls = self.calls.iter().map(|(kind, calls)| {
            let Calls {
                answered,
                refused,
                unknown,
            } = calls;
            let counts = json!({"answered": answered, "refused": refused, "unknown": unknown});
            ((*kind).to_owned(), counts)
        });
        let faults = self.faults.iter().map(|(kind, faults)| {
            let Faults {
                injected,
                passed_over,
            } = faults;
            let counts = json!({"injected": injected, "passed_over": passed_over});
            ((*kind).to_owned(), counts)
        });
        let stretches = self.stretches.iter().map(|(engines, (count, seconds))| {
            (
                engines.clone(),
                json!({"stretches": count, "seconds": seconds}),
            )
        });
        json!({
            "run": self.run,
            "engines": stretches.collect::<serde_json::Map<_, _>>(),
            "faults": faults.collect::<serde_json::Map<_, _>>(),
            "calls": calls.collect::<serde_json::Map<_, _>>(),
            "events": self.events,
            "longest_without_a_write_ms": self.longest.as_millis() as u64,
            "found": self.found,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, text) in &self.run {
            writeln!(f, "{what}: {text}")?;
        }
        writeln!(f, "\n{:<32} stretches  seconds", "engines")?;
        for (engines, (count, seconds)) in &self.stretches {
            writeln!(f, "  {engines:<30} {count:>9} {seconds:>8}")?;
        }
        writeln!(f, "\n{:<32}  injected  passed over", "faults")?;
        for (name, faults) in &self.faults {
            let Faults {
                injected,
                passed_over,
            } = faults;
            writeln!(f, "  {name:<30} {injected:>9} {passed_over:>12}")?;
        }
        writeln!(f, "\n{:<32}  answered  did not happen  unknown", "calls")?;
        for (kind, calls) in &self.calls {
            let Calls {
                answered,
                refused,
                unknown,
            } = calls;
            writeln!(f, "  {kind:<30} {answered:>9} {refused:>15} {unknown:>8}")?;
        }
        writeln!(f, "\nwhat happened")?;
        for (what, count) in &self.events {
            writeln!(f, "  {what:<40} {count:>9}")?;
        }
        let longest = self.longest.as_secs_f64();
        writeln!(f, "  longest without an acknowledged write: {longest:.1} s")?;
        match &self.found[..] {
            [] => writeln!(f, "\nfound: nothing"),
            found => writeln!(f, "\nfound:\n{}", found.join("\n")),
        }
    }
}
