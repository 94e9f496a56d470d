//! One measured stretch of work on one system, and what it cost the servers.

use serde::{Deserialize, Serialize};

/// What a load generator has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// Commands that were answered.
    pub count: u64,
    /// How long that took.
    pub seconds: f64,
    /// Half of them took at most this.
    pub p50_ms: f64,
    /// 99 of 100 took at most this.
    pub p99_ms: f64,
    /// The longest of them.
    pub max_ms: f64,
}

impl Load {
    /// Commands a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}

/// The log's counters of a kvd leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogCounters {
    /// Entries that were proposed.
    pub entries: u64,
    /// Commands in them.
    pub commands: u64,
    /// Entries that were written to the log.
    pub logged: u64,
    /// Syncs of the log.
    pub syncs: u64,
}

/// The load, and what it cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Commands a second.
    pub rate: f64,
    /// Half of them took at most this; of a pipeline redis-benchmark times its first reply.
    pub p50_ms: f64,
    /// 99 of 100 took at most this.
    pub p99_ms: f64,
    /// The longest of them.
    pub max_ms: f64,
    /// Processor time of all servers for one command, in microseconds.
    pub cpu_us: f64,
    /// Bytes that all servers wrote to the disk for one command.
    pub written_bytes: f64,
    /// Resident memory of all servers behind it, in bytes.
    pub resident_bytes: u64,
    /// Commands in an entry of the log; kvd's writes only.
    pub commands_per_entry: Option<f64>,
    /// Entries in a sync of the log; kvd's writes only.
    pub entries_per_sync: Option<f64>,
}

impl Sample {
    /// The sample whose every figure is the median of that figure.
    ///
    /// # Panics
    ///
    /// There is none.
    pub(crate) fn median_of(samples: &[Sample]) -> Sample {
        let each =
            |figure: fn(&Sample) -> f64| median(&samples.iter().map(figure).collect::<Vec<_>>());
        let some = |figure: fn(&Sample) -> Option<f64>| {
            let figures: Vec<f64> = samples.iter().filter_map(figure).collect();
            (!figures.is_empty()).then(|| median(&figures))
        };
        Sample {
            rate: each(|sample| sample.rate),
            p50_ms: each(|sample| sample.p50_ms),
            p99_ms: each(|sample| sample.p99_ms),
            max_ms: each(|sample| sample.max_ms),
            cpu_us: each(|sample| sample.cpu_us),
            written_bytes: each(|sample| sample.written_bytes),
            resident_bytes: each(|sample| sample.resident_bytes as f64) as u64,
            commands_per_entry: some(|sample| sample.commands_per_entry),
            entries_per_sync: some(|sample| sample.entries_per_sync),
        }
    }
}

/// The middle one, or the mean of the two in the middle.
///
/// # Panics
///
/// There is none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    assert!(!figures.is_empty(), "the median of nothing");
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_follow_an_outlier() {
        assert_eq!(median(&[5.0]), 5.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 1000.0, 2.0]), 3.0);
    }

    #[test]
    fn each_figure_has_its_own_median() {
        let sample = |rate, max_ms, commands_per_entry| Sample {
            rate,
            max_ms,
            commands_per_entry,
            ..Sample::default()
        };
        let median = Sample::median_of(&[
            sample(1.0, 30.0, Some(4.0)),
            sample(2.0, 20.0, None),
            sample(3.0, 10.0, Some(6.0)),
        ]);
        assert_eq!((median.rate, median.max_ms), (2.0, 20.0));
        assert_eq!(
            (median.commands_per_entry, median.entries_per_sync),
            (Some(5.0), None)
        );
    }
}
