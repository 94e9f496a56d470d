//! Waiting that tells a hang from a machine that has other things to do.
//!
//! A process that waits for a CPU has not hung. So time counts by the share that this process and
//! the nodes it has started were given of the CPU time that they asked for, which the kernel says
//! for each thread: on a machine that gives them a fifth, a minute lasts five.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// However little CPU there is, waiting ends after so many times the patience.
const STRETCHED_MAX: u32 = 10;

/// How often the kernel is asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Processes beside this one that are waited for.
static STARTED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A process was started; its CPU time counts until [`ended`].
pub(crate) fn started(pid: u32) {
    let mut all = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(pid);
}

/// A process has ended.
pub(crate) fn ended(pid: u32) {
    let mut all = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    all.remove(&pid);
}

/// The nanoseconds that a thread ran, and those in which it could have run and had to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ran {
    ran: u64,
    waited: u64,
}

/// All threads of this process and of those it has started.
fn threads() -> BTreeMap<(u32, String), Ran> {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let all: Vec<u32> = started
        .iter()
        .copied()
        .chain([std::process::id()])
        .collect();
    drop(started);
    let mut threads = BTreeMap::new();
    for pid in all {
        // Processes and threads end at any time.
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("schedstat"));
            if let Some(ran) = text.ok().as_deref().and_then(parse) {
                threads.insert((pid, task.file_name().to_string_lossy().into_owned()), ran);
            }
        }
    }
    threads
}

fn parse(schedstat: &str) -> Option<Ran> {
    let mut numbers = schedstat.split_whitespace();
    Some(Ran {
        ran: numbers.next()?.parse().ok()?,
        waited: numbers.next()?.parse().ok()?,
    })
}

/// The share of the CPU time that they asked for which threads were given between two looks.
fn share(
    before: &BTreeMap<(u32, String), Ran>,
    now: &BTreeMap<(u32, String), Ran>,
    elapsed: Duration,
) -> f64 {
    let (mut ran, mut waited) = (0, 0);
    for (thread, now) in now {
        let before = before
            .get(thread)
            .copied()
            .unwrap_or(Ran { ran: 0, waited: 0 });
        ran += now.ran.saturating_sub(before.ran);
        waited += now.waited.saturating_sub(before.waited);
    }
    // Who asks for nothing lacks nothing.
    if u128::from(ran + waited) < elapsed.as_nanos() / 50 {
        return 1.0;
    }
    ran as f64 / (ran + waited) as f64
}

/// How long something may take yet.
pub struct Patience {
    limit: Duration,
    began: Instant,
    /// Of what has passed, the part in which it could be worked on.
    counted: Duration,
    looked: Instant,
    threads: BTreeMap<(u32, String), Ran>,
}

impl Patience {
    /// Begins to wait.
    pub fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Patience {
            limit,
            began: now,
            counted: Duration::ZERO,
            looked: now,
            threads: threads(),
        }
    }

    /// Whether it has taken too long.
    pub fn is_over(&mut self) -> bool {
        let elapsed = self.looked.elapsed();
        if elapsed >= LOOK_EVERY {
            let now = threads();
            self.counted += elapsed.mul_f64(share(&self.threads, &now, elapsed));
            (self.looked, self.threads) = (Instant::now(), now);
        }
        self.counted >= self.limit || self.began.elapsed() >= self.limit * STRETCHED_MAX
    }

    /// How long it has been, and how much of it counted.
    pub fn spent(&self) -> String {
        let (whole, counted) = (self.began.elapsed().as_secs(), self.counted.as_secs());
        format!("{whole} s, of which {counted} s with the CPU that was asked for")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(all: &[(u32, u64, u64)]) -> BTreeMap<(u32, String), Ran> {
        let thread = |(pid, ran, waited): &(u32, u64, u64)| {
            let (ran, waited) = (ran * 1_000_000, waited * 1_000_000);
            ((*pid, "1".to_owned()), Ran { ran, waited })
        };
        all.iter().map(thread).collect()
    }

    #[test]
    fn time_counts_by_the_share_of_cpu_that_was_given() {
        let second = Duration::from_secs(1);
        let before = looked(&[(1, 500, 100)]);
        // Idle, busy and alone, and a fifth of what was asked for.
        for (now, expected) in [
            (looked(&[(1, 501, 101)]), 1.0),
            (looked(&[(1, 1500, 100)]), 1.0),
            (looked(&[(1, 600, 500), (2, 100, 400)]), 0.2),
            // A process that has ended had what it had.
            (looked(&[(2, 100, 100)]), 0.5),
        ] {
            let share = share(&before, &now, second);
            assert!((share - expected).abs() < 0.001, "{share} for {now:?}");
        }
    }

    #[test]
    fn this_process_is_seen_to_run() {
        let mut before = threads();
        let mut patience = Patience::new(Duration::from_secs(3600));
        let until = Instant::now() + LOOK_EVERY;
        let mut sum = 0_u64;
        while Instant::now() < until {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(!patience.is_over());
        assert!(patience.counted > Duration::ZERO);
        // Other tests' threads end meanwhile, and take with them what they had run.
        let mut now = threads();
        before.retain(|thread, _| now.contains_key(thread));
        now.retain(|thread, _| before.contains_key(thread));
        let total = |threads: &BTreeMap<_, Ran>| threads.values().map(|one| one.ran).sum::<u64>();
        assert!(total(&now) > total(&before));
    }
}
