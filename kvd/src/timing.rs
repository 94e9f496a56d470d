//! How long something takes: a count, a sum, a maximum and a distribution, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The last bucket takes all that is longer: more than four minutes.
const BUCKETS: usize = 30;

/// Times of one kind.
#[derive(Debug, Default)]
pub struct Timing {
    us: AtomicU64,
    us_max: AtomicU64,
    /// How many took how long: `buckets[n]` took at most 2^n microseconds, and more than half of
    /// it.
    buckets: [AtomicU64; BUCKETS],
}

impl Timing {
    /// Notes one.
    pub fn note(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.us.fetch_add(us, Relaxed);
        self.us_max.fetch_max(us, Relaxed);
        let bucket = us.max(1).next_power_of_two().trailing_zeros() as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Their sum in microseconds.
    pub fn us(&self) -> u64 {
        self.us.load(Relaxed)
    }

    /// The longest in microseconds.
    pub fn us_max(&self) -> u64 {
        self.us_max.load(Relaxed)
    }

    /// Upper bounds in microseconds, each with how many took at most that long.
    pub fn bounds(&self) -> Vec<(u64, u64)> {
        let (mut bounds, mut total) = (Vec::new(), 0);
        for (n, count) in self.buckets.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                total += count;
                bounds.push((1 << n, total));
            }
        }
        bounds
    }

    /// Sets all to zero.
    pub fn reset(&self) {
        self.us.store(0, Relaxed);
        self.us_max.store(0, Relaxed);
        for count in &self.buckets {
            count.store(0, Relaxed);
        }
    }
}

/// The upper bound in microseconds of what this share took, of the bounds of a [`Timing`].
pub fn percentile(bounds: &[(u64, u64)], share: f64) -> u64 {
    let total = bounds.last().map_or(0, |(_, total)| *total);
    let rank = (total as f64 * share).ceil() as u64;
    let bound = bounds.iter().find(|(_, total)| *total >= rank);
    bound.map_or(0, |(us, _)| *us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_in_powers_of_two() {
        let timing = Timing::default();
        assert_eq!((timing.count(), percentile(&timing.bounds(), 0.5)), (0, 0));
        for us in [0, 1, 2, 3, 900, 1024, 1025] {
            timing.note(Duration::from_micros(us));
        }
        let bounds = timing.bounds();
        assert_eq!(bounds, [(1, 2), (2, 3), (4, 4), (1024, 6), (2048, 7)]);
        assert_eq!(
            [0.5, 0.8, 0.99].map(|share| percentile(&bounds, share)),
            [4, 1024, 2048]
        );
        assert_eq!((timing.us(), timing.us_max()), (2955, 1025));
        timing.note(Duration::from_secs(100_000));
        assert_eq!(percentile(&timing.bounds(), 1.0), 1 << (BUCKETS - 1));
        timing.reset();
        assert_eq!((timing.count(), timing.us_max()), (0, 0));
    }
}
