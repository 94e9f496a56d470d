//! The time that a leader stamps entries with: it follows the wall clock, but not its jumps.

use std::time::Duration;

use tokio::time::Instant;

/// How fast the leader's time may gain on or lose against real time, in parts of a thousand.
///
/// A tenth corrects an hour in half a day, and no client's TTL is off by more than a tenth.
pub(super) const SLEW_PER_MILLE: u64 = 100;

/// A leader that starts after the cluster was down takes a wall clock that is ahead by at most this.
/// One that was up knows how much time has passed, and takes none.
///
/// It covers a week-end; a clock that was set wrong by more must be confirmed by an operator.
pub(super) const STEP_MAX: Duration = Duration::from_secs(4 * 24 * 3600);

/// A wall clock that is further ahead is told to the operator.
const FAR_AHEAD: Duration = Duration::from_secs(1);

/// The clock of one leadership.
#[derive(Debug)]
pub(super) struct LeaderTime {
    ms: u64,
    at: Instant,
}

impl LeaderTime {
    /// Starts a leadership: `last_ms` is the stamp of the last applied entry (0 for none), applied
    /// here at `applied_at`; `live` says that it was made since then, and not only read from the
    /// log; `wall_ms` is what the wall clock says.
    pub(super) fn start(
        last_ms: u64,
        applied_at: Instant,
        live: bool,
        now: Instant,
        wall_ms: u64,
    ) -> Self {
        let expected = last_ms + now.duration_since(applied_at).as_millis() as u64;
        let ahead = wall_ms.saturating_sub(expected);
        let step = !live && ahead > 0 && ahead <= STEP_MAX.as_millis() as u64;
        let ms = if last_ms == 0 || step {
            wall_ms.max(last_ms)
        } else {
            if ahead > FAR_AHEAD.as_millis() as u64 {
                tracing::warn!(
                    ahead_s = ahead / 1000,
                    "the wall clock is far ahead of the cluster's time; following it slowly"
                );
            }
            expected
        };
        LeaderTime { ms, at: now }
    }

    /// The leader's time now; never falls.
    pub(super) fn now(&mut self, now: Instant, wall_ms: u64) -> u64 {
        let elapsed = now.saturating_duration_since(self.at).as_millis() as u64;
        if elapsed == 0 {
            return self.ms;
        }
        let expected = self.ms + elapsed;
        // Below ten milliseconds a tenth would round to nothing, and the clock could never slew.
        let slew = (elapsed * SLEW_PER_MILLE / 1000).max(u64::from(elapsed >= 2));
        self.ms = wall_ms.clamp(expected - slew, expected + slew);
        self.at += Duration::from_millis(elapsed);
        self.ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn time_follows_a_steady_clock() {
        let t0 = Instant::now();
        let mut time = LeaderTime::start(0, t0, false, t0, 5_000_000);
        assert_eq!(time.now(t0 + secs(10), 5_010_000), 5_010_000);
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_followed_slowly() {
        let t0 = Instant::now();
        let mut time = LeaderTime::start(0, t0, false, t0, 5_000_000);
        assert_eq!(time.now(t0 + secs(10), 5_010_000 + 30 * DAY), 5_011_000);
    }

    #[test]
    fn a_clock_that_falls_back_neither_stops_nor_turns_time() {
        let t0 = Instant::now();
        let mut time = LeaderTime::start(0, t0, false, t0, 5_000_000);
        assert_eq!(time.now(t0 + secs(10), 0), 5_009_000);
        assert_eq!(time.now(t0 + secs(10), 0), 5_009_000);
    }

    #[test]
    fn a_new_leader_goes_on_from_the_last_stamp() {
        let t0 = Instant::now();
        let behind =
            LeaderTime::start(9_000_000, t0, false, t0 + secs(2), 1_000).now(t0 + secs(2), 1_000);
        assert_eq!(behind, 9_002_000);
    }

    #[test]
    fn downtime_counts_but_a_wild_clock_does_not() {
        let t0 = Instant::now();
        let mut after_a_day = LeaderTime::start(9_000_000, t0, false, t0, 9_000_000 + DAY);
        assert_eq!(after_a_day.now(t0, 0), 9_000_000 + DAY);
        let mut wild = LeaderTime::start(9_000_000, t0, false, t0, 9_000_000 + 900 * DAY);
        assert_eq!(wild.now(t0, 0), 9_000_000);
    }

    #[test]
    fn who_was_up_takes_no_step() {
        let t0 = Instant::now();
        let wall = 9_000_000 + DAY;
        let mut time = LeaderTime::start(9_000_000, t0, true, t0 + secs(10), wall);
        assert_eq!(time.now(t0 + secs(20), wall + 10_000), 9_021_000);
    }
}
