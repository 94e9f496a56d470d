//! How fast entries are applied where the engine does not keep up: the fuller the room for what
//! waits, the slower, until both are level.

use std::sync::Mutex;
use std::time::Duration;

/// From this share of the room on entries are slowed down.
const SLOWED_FROM: f64 = 0.25;

/// At a full room an entry is held for so many times as long as the engine takes for it. Both are
/// level where it is held once as long.
const SLOWED_MOST: f64 = 2.0;

/// Shorter pauses than a timer can tell are saved up.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// No pause is longer: the engine may have got on by then. The rest is paused for later.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What is owed beyond this is forgotten.
const OWED_MAX: Duration = Duration::from_secs(1);

/// What was paused too long is made up for up to here.
const AHEAD_MAX: Duration = Duration::from_millis(5);

/// So many bytes the engine's pace is taken from.
const REMEMBERED_BYTES: f64 = (16 << 20) as f64;

/// The paces of the engine and of what is applied.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The engine took so long for so many bytes.
    stored_s: f64,
    stored_bytes: f64,
    /// Was applied, and not paused for.
    applied_bytes: f64,
    /// For how long entries should have paused; less than none where they paused too long.
    owed_s: f64,
}

impl Pace {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// The engine took `took` for `bytes`.
    pub(super) fn stored(&self, bytes: usize, took: Duration) {
        let mut state = self.lock();
        state.stored_s += took.as_secs_f64();
        state.stored_bytes += bytes as f64;
        if state.stored_bytes > REMEMBERED_BYTES {
            state.stored_s /= 2.0;
            state.stored_bytes /= 2.0;
        }
    }

    /// So much was applied.
    pub(super) fn applied(&self, bytes: usize) {
        self.lock().applied_bytes += bytes as f64;
    }

    /// How long to wait before more is applied, where this share of the room is taken.
    pub(super) fn pause(&self, full: f64) -> Option<Duration> {
        let mut state = self.lock();
        let applied = std::mem::take(&mut state.applied_bytes);
        if full <= SLOWED_FROM || state.stored_bytes == 0.0 {
            state.owed_s = 0.0;
            return None;
        }
        let took_s = applied * state.stored_s / state.stored_bytes;
        state.owed_s += took_s * SLOWED_MOST * (full - SLOWED_FROM) / (1.0 - SLOWED_FROM);
        state.owed_s = state.owed_s.min(OWED_MAX.as_secs_f64());
        (state.owed_s >= PAUSE_MIN.as_secs_f64())
            .then(|| Duration::from_secs_f64(state.owed_s).min(PAUSE_MAX))
    }

    /// It was waited for so long.
    pub(super) fn paused(&self, took: Duration) {
        let mut state = self.lock();
        state.owed_s = (state.owed_s - took.as_secs_f64()).max(-AHEAD_MAX.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine stores 10 MB a second, and clients would write as fast as they are let: the room
    /// is never full, and what is applied is level with what is stored.
    #[test]
    fn what_is_applied_comes_level_with_what_is_stored() {
        const BYTES: usize = 100_000;
        let (pace, room, rate) = (Pace::default(), 64e6, 10e6);
        let (mut waiting, mut longest): (f64, f64) = (0.0, 0.0);
        let (mut applied_late, mut time_late) = (0.0, 0.0);
        for batch in 0..20_000 {
            // Applying itself takes a tenth of the time that storing does.
            let mut took = BYTES as f64 / rate / 10.0;
            if let Some(pause) = pace.pause(waiting / room) {
                // Timers are late.
                let paused = pause + Duration::from_micros(700);
                pace.paused(paused);
                longest = longest.max(paused.as_secs_f64());
                took += paused.as_secs_f64();
            }
            pace.applied(BYTES);
            let stored = (rate * took).min(waiting);
            if stored > 0.0 {
                pace.stored(stored as usize, Duration::from_secs_f64(stored / rate));
            }
            waiting += BYTES as f64 - stored;
            assert!(waiting < room, "{waiting}");
            if batch >= 10_000 {
                applied_late += BYTES as f64;
                time_late += took;
            }
        }
        let level = applied_late / time_late / rate;
        assert!((0.95..1.05).contains(&level), "{level}");
        assert!(longest < 0.025, "{longest}");
    }

    #[test]
    fn where_little_waits_nothing_is_slowed_down() {
        let pace = Pace::default();
        pace.stored(1000, Duration::from_secs(1));
        pace.applied(1_000_000);
        assert_eq!(pace.pause(SLOWED_FROM), None);
        pace.applied(1_000_000);
        assert_eq!(pace.pause(0.5), Some(PAUSE_MAX));
        pace.paused(PAUSE_MAX);
        assert_eq!(pace.pause(0.5), Some(PAUSE_MAX));
        assert_eq!(pace.pause(0.1), None);
        assert_eq!(pace.pause(0.5), None);
    }
}
