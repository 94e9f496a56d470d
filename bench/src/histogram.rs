//! Latencies: counts in buckets whose width grows with the value, each within 1 %.

use std::time::Duration;

/// Values below this have a bucket each; above, each doubling has half as many.
const LINEAR: u64 = 1 << (BITS + 1);

/// Buckets of one doubling: 2 to this.
const BITS: u32 = 7;

/// Doublings above the linear part: up to 2^36 us, nineteen hours.
const DOUBLINGS: usize = 28;

/// How often each latency was seen.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; LINEAR as usize + (DOUBLINGS << BITS)],
            total: 0,
            max_us: 0,
        }
    }
}

fn bucket(us: u64) -> usize {
    if us < LINEAR {
        return us as usize;
    }
    let doubling = us.ilog2() - BITS - 1;
    let within = (us >> (doubling + 1)) - (1 << BITS);
    LINEAR as usize + ((doubling as usize) << BITS) + within as usize
}

/// The largest value of a bucket.
fn bound(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(LINEAR as usize) else {
        return bucket as u64;
    };
    let (doubling, within) = (above >> BITS, above & ((1 << BITS) - 1));
    (((1 << BITS) + within as u64 + 1) << (doubling + 1)) - 1
}

impl Histogram {
    /// Notes one.
    pub(crate) fn note(&mut self, latency: Duration) {
        let us = latency.as_micros() as u64;
        let last = self.counts.len() - 1;
        self.counts[bucket(us).min(last)] += 1;
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    /// The longest, in milliseconds.
    pub(crate) fn max_ms(&self) -> f64 {
        self.max_us as f64 / 1e3
    }

    /// What this share of all took at most, in milliseconds.
    pub(crate) fn percentile_ms(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (n, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return bound(n).min(self.max_us) as f64 / 1e3;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_a_bucket_that_ends_within_one_percent_of_it() {
        let (mut us, mut before) = (0u64, 0);
        while us < 1 << 36 {
            let bound = bound(bucket(us));
            assert!(us <= bound, "{us} is above {bound}");
            assert!(
                (bound - us) as f64 <= us as f64 * 0.01,
                "{us} is shown as {bound}"
            );
            assert!(bucket(us) >= before);
            before = bucket(us);
            us += 1 + us / 300;
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for n in 0..LINEAR as usize + (DOUBLINGS << BITS) - 1 {
            assert_eq!(bucket(bound(n)), n);
            assert_eq!(bucket(bound(n) + 1), n + 1);
        }
    }

    #[test]
    fn percentiles_are_upper_bounds_and_never_above_the_longest() {
        let mut histogram = Histogram::default();
        assert_eq!(
            (histogram.percentile_ms(0.5), histogram.max_ms()),
            (0.0, 0.0)
        );
        for us in 1..=10_000 {
            histogram.note(Duration::from_micros(us));
        }
        for (share, ms) in [(0.5, 5.0), (0.99, 9.9), (0.9999, 9.999), (1.0, 10.0)] {
            let shown = histogram.percentile_ms(share);
            assert!((ms..=ms * 1.01).contains(&shown), "{share}: {shown}");
        }
        histogram.note(Duration::from_secs(1 << 40));
        assert_eq!(histogram.count(), 10_001);
        assert!(histogram.percentile_ms(1.0) > 1e6);
    }
}
