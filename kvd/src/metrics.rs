//! The numbers that INFO shows about clients and commands.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::{Duration, Instant};

use crate::command::{self, Spec};
use crate::timing::{Timing, percentile};

/// What one command has cost so far.
#[derive(Debug, Default)]
struct CommandStat {
    times: Timing,
    rejected: AtomicU64,
    failed: AtomicU64,
}

/// Counters of one server.
#[derive(Debug)]
pub struct Metrics {
    /// When the server began.
    pub started: Instant,
    /// Connections that were accepted.
    pub connections: AtomicU64,
    /// Connections that were refused because there were too many.
    pub rejected: AtomicU64,
    /// Commands that were answered.
    pub commands: AtomicU64,
    /// Bytes that came from clients.
    pub input_bytes: AtomicU64,
    /// Bytes that went to clients.
    pub output_bytes: AtomicU64,
    /// Lookups of GET that found a value.
    pub hits: AtomicU64,
    /// Lookups of GET that found none.
    pub misses: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    /// One for each row of the table: nothing is locked to count.
    per_command: HashMap<&'static str, CommandStat>,
    /// The last two moments at which the number of commands was noted.
    window: Mutex<(Instant, u64, f64)>,
}

/// Error prefixes are kept up to this many: their number must not depend on what clients send.
const ERROR_PREFIXES_MAX: usize = 128;

/// The rate of commands is taken over at least this time.
const RATE_WINDOW: Duration = Duration::from_millis(500);

impl Default for Metrics {
    fn default() -> Self {
        let now = Instant::now();
        Metrics {
            started: now,
            connections: AtomicU64::default(),
            rejected: AtomicU64::default(),
            commands: AtomicU64::default(),
            input_bytes: AtomicU64::default(),
            output_bytes: AtomicU64::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
            errors: Mutex::default(),
            per_command: command::all()
                .map(|spec| (spec.name, CommandStat::default()))
                .collect(),
            window: Mutex::new((now, 0, 0.0)),
        }
    }
}

impl Metrics {
    /// Notes one call of a command, whether it failed, and how long it took.
    pub fn ran(&self, spec: &Spec, failed: bool, took: Duration) {
        self.commands.fetch_add(1, Relaxed);
        if let Some(stat) = self.per_command.get(spec.name) {
            stat.failed.fetch_add(u64::from(failed), Relaxed);
            stat.times.note(took);
        }
    }

    /// Notes a command that was refused before it ran.
    pub fn refused(&self, spec: &Spec) {
        if let Some(stat) = self.per_command.get(spec.name) {
            stat.rejected.fetch_add(1, Relaxed);
        }
    }

    /// Notes an error reply by its first word.
    pub fn error(&self, prefix: &str) {
        let mut errors = self.errors.lock().expect("no panic while held");
        if let Some(count) = errors.get_mut(prefix) {
            *count += 1;
        } else if errors.len() < ERROR_PREFIXES_MAX {
            errors.insert(prefix.to_owned(), 1);
        }
    }

    /// Commands a second, over the last half second or more.
    pub fn ops_per_second(&self) -> u64 {
        let mut window = self.window.lock().expect("no panic while held");
        let now = Instant::now();
        let (since, count, _) = *window;
        let passed = now.saturating_duration_since(since);
        if passed >= RATE_WINDOW {
            let total = self.commands.load(Relaxed);
            *window = (
                now,
                total,
                total.saturating_sub(count) as f64 / passed.as_secs_f64(),
            );
        }
        window.2 as u64
    }

    /// The total of error replies.
    pub fn error_total(&self) -> u64 {
        self.errors
            .lock()
            .expect("no panic while held")
            .values()
            .sum()
    }

    /// The lines of INFO's `# Errorstats`.
    pub fn error_lines(&self, out: &mut String) {
        for (prefix, count) in &*self.errors.lock().expect("no panic while held") {
            line(
                out,
                &format!("errorstat_{prefix}"),
                &format!("count={count}"),
            );
        }
    }

    /// The lines of INFO's `# Commandstats`.
    pub fn command_lines(&self, out: &mut String) {
        for spec in command::all() {
            let stat = &self.per_command[spec.name];
            let [rejected, failed] = [&stat.rejected, &stat.failed].map(|n| n.load(Relaxed));
            let (calls, usec) = (stat.times.count(), stat.times.us());
            if calls + rejected == 0 {
                continue;
            }
            let each = usec as f64 / calls.max(1) as f64;
            let text = format!(
                "calls={calls},usec={usec},usec_per_call={each:.2},rejected_calls={rejected},\
                 failed_calls={failed}"
            );
            line(out, &format!("cmdstat_{}", spec.name), &text);
        }
    }

    /// For each command that was called and is `wanted`: the calls, and how many of them took at
    /// most so many microseconds.
    pub fn histograms(
        &self,
        wanted: impl Fn(&Spec) -> bool,
    ) -> Vec<(&'static str, u64, Vec<(u64, u64)>)> {
        command::all()
            .filter(|spec| wanted(spec))
            .filter_map(|spec| {
                let bounds = self.per_command[spec.name].times.bounds();
                let (_, calls) = *bounds.last()?;
                Some((spec.name, calls, bounds))
            })
            .collect()
    }

    /// The lines of INFO's `# Latencystats`: upper bounds of what shares of the calls took.
    pub fn latency_lines(&self, out: &mut String) {
        for (name, _, bounds) in self.histograms(|_| true) {
            let text = format!(
                "p50={:.3},p99={:.3},p99.9={:.3}",
                percentile(&bounds, 0.5) as f64,
                percentile(&bounds, 0.99) as f64,
                percentile(&bounds, 0.999) as f64
            );
            line(out, &format!("latency_percentiles_usec_{name}"), &text);
        }
    }

    /// Sets what CONFIG RESETSTAT sets to zero.
    pub fn reset(&self) {
        for counter in [
            &self.connections,
            &self.rejected,
            &self.commands,
            &self.input_bytes,
            &self.output_bytes,
            &self.hits,
            &self.misses,
        ] {
            counter.store(0, Relaxed);
        }
        self.errors.lock().expect("no panic while held").clear();
        for stat in self.per_command.values() {
            stat.times.reset();
            stat.rejected.store(0, Relaxed);
            stat.failed.store(0, Relaxed);
        }
        *self.window.lock().expect("no panic while held") = (Instant::now(), 0, 0.0);
    }
}

/// Appends one line of INFO.
pub fn line(out: &mut String, name: &str, value: &str) {
    write!(out, "{name}:{value}\r\n").expect("a string takes everything");
}
