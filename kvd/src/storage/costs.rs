//! What an engine's calls cost: how many there were of each kind, and how long they took.
//!
//! Reads come hundreds of thousands of times a second, from several threads. Threads count in
//! lines of memory of their own, and of each thread's reads of a kind one in [`READS_PER_SAMPLE`]
//! is timed; other calls are all timed.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Of so many reads of one kind by one thread the first is timed.
pub const READS_PER_SAMPLE: u64 = 64;

/// Threads beyond this many share lines of memory.
const SHARDS: usize = 16;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A point read, of the engine or of a view.
    Get,
    /// A scan, of the engine or of a view, with what the host does with each entry.
    Scan,
    /// The opening of a view.
    View,
    /// A batch.
    Write,
    /// A sync.
    Sync,
    /// A replacement of all contents, with the reading of the feed.
    Replace,
    /// A compaction.
    Compact,
}

impl Call {
    /// All kinds.
    pub const ALL: [Call; 7] = [
        Call::Get,
        Call::Scan,
        Call::View,
        Call::Write,
        Call::Sync,
        Call::Replace,
        Call::Compact,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Call::Get => "get",
            Call::Scan => "scan",
            Call::View => "view",
            Call::Write => "write",
            Call::Sync => "sync",
            Call::Replace => "replace",
            Call::Compact => "compact",
        }
    }

    /// One of how many is timed.
    pub fn per_sample(self) -> u64 {
        match self {
            Call::Get | Call::Scan | Call::View => READS_PER_SAMPLE,
            Call::Write | Call::Sync | Call::Replace | Call::Compact => 1,
        }
    }
}

/// A clock that never goes back; only differences of what it says mean anything.
pub type Stopwatch = fn() -> Duration;

/// The calls of one engine so far.
#[derive(Debug)]
pub struct Costs {
    stopwatch: Stopwatch,
    shards: [Shard; SHARDS],
    times: [Times; Call::ALL.len()],
    changes: AtomicU64,
}

/// The calls of some threads, one counter for each kind.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard([AtomicU64; Call::ALL.len()]);

#[derive(Debug, Default)]
struct Times {
    timed: AtomicU64,
    ns: AtomicU64,
    ns_max: AtomicU64,
}

/// What calls of one kind have cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// How many there were.
    pub calls: u64,
    /// How long they took together, in microseconds; an estimate where not all are timed.
    pub us: f64,
    /// The longest that was timed, in microseconds.
    pub us_max: f64,
}

impl Costs {
    /// No calls yet; times are taken by `stopwatch`.
    pub fn new(stopwatch: Stopwatch) -> Self {
        Costs {
            stopwatch,
            shards: Default::default(),
            times: Default::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// Makes a call and counts it.
    #[inline]
    pub fn count<T>(&self, call: Call, make: impl FnOnce() -> T) -> T {
        let before = self.shards[shard()].0[call as usize].fetch_add(1, Relaxed);
        if !before.is_multiple_of(call.per_sample()) {
            return make();
        }
        let began = (self.stopwatch)();
        let made = make();
        let took = (self.stopwatch)().saturating_sub(began).as_nanos() as u64;
        let times = &self.times[call as usize];
        times.timed.fetch_add(1, Relaxed);
        times.ns.fetch_add(took, Relaxed);
        times.ns_max.fetch_max(took, Relaxed);
        made
    }

    /// Notes the length of a batch that was written.
    pub fn changed(&self, changes: usize) {
        self.changes.fetch_add(changes as u64, Relaxed);
    }

    /// Changes that were written, of all batches together.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// What calls of this kind have cost so far.
    pub fn of(&self, call: Call) -> Cost {
        let calls = |shard: &Shard| shard.0[call as usize].load(Relaxed);
        let calls = self.shards.iter().map(calls).sum();
        let times = &self.times[call as usize];
        let [timed, ns, ns_max] = [&times.timed, &times.ns, &times.ns_max].map(|n| n.load(Relaxed));
        Cost {
            calls,
            us: ns as f64 / 1000.0 * calls as f64 / timed.max(1) as f64,
            us_max: ns_max as f64 / 1000.0,
        }
    }
}

/// Where this thread counts.
fn shard() -> usize {
    const UNKNOWN: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(UNKNOWN) };
    }
    MINE.with(|mine| {
        if mine.get() == UNKNOWN {
            mine.set(NEXT.fetch_add(1, Relaxed) % SHARDS);
        }
        mine.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    fn costs() -> Costs {
        Costs::new(|| Duration::from_nanos(NOW.get()))
    }

    fn takes(ns: u64) -> impl FnOnce() {
        move || NOW.set(NOW.get() + ns)
    }

    #[test]
    fn every_write_is_timed() {
        let costs = costs();
        for us in [1, 5, 3] {
            costs.count(Call::Write, takes(us * 1000));
            costs.changed(us as usize);
        }
        let cost = costs.of(Call::Write);
        assert_eq!((cost.calls, cost.us, cost.us_max), (3, 9.0, 5.0));
        assert_eq!(costs.changes(), 9);
        assert_eq!(costs.of(Call::Sync).calls, 0);
    }

    #[test]
    fn all_reads_are_counted_and_some_are_timed() {
        let costs = costs();
        for n in 0..READS_PER_SAMPLE * 2 {
            let ns = if n % READS_PER_SAMPLE == 0 { 500 } else { 7 };
            costs.count(Call::Get, takes(ns));
        }
        let cost = costs.of(Call::Get);
        assert_eq!((cost.calls, cost.us_max), (READS_PER_SAMPLE * 2, 0.5));
        assert_eq!(cost.us, 0.5 * (READS_PER_SAMPLE * 2) as f64);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "threads that count at the same time"
    )]
    fn threads_count_together() {
        let costs = std::sync::Arc::new(costs());
        let threads: Vec<_> = (0..SHARDS * 2)
            .map(|_| {
                let costs = costs.clone();
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        costs.count(Call::View, takes(1));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("it only counts");
        }
        assert_eq!(costs.of(Call::View).calls, SHARDS as u64 * 2 * 1000);
    }
}
