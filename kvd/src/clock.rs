//! The only place that asks what time it is.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::doors::Clock;

/// The operating system's wall clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_us(&self) -> u64 {
        #[expect(
            clippy::disallowed_methods,
            reason = "the door behind which the clock is read"
        )]
        let now = SystemTime::now();
        now.duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64)
    }
}
