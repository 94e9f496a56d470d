//! CLIENT PAUSE: commands that wait until a time, or until UNPAUSE.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    until: Instant,
    all: bool,
}

/// Whether commands of this node's clients are held.
#[derive(Debug)]
pub(super) struct Pause {
    held: watch::Sender<Option<Held>>,
    /// Looked at for every command, so without a lock.
    any: AtomicBool,
}

impl Default for Pause {
    fn default() -> Self {
        Pause {
            held: watch::Sender::new(None),
            any: AtomicBool::new(false),
        }
    }
}

impl Pause {
    /// Holds what writes, or all, for a time. As in Redis a pause is never made shorter or weaker
    /// by another one while it lasts.
    pub(super) fn begin(&self, time: Duration, all: bool) {
        let now = Instant::now();
        self.any.store(true, Ordering::Relaxed);
        self.held.send_modify(|held| {
            let running = held.filter(|held| held.until > now);
            let until = now + time;
            *held = Some(Held {
                until: running.map_or(until, |running| running.until.max(until)),
                all: all || running.is_some_and(|running| running.all),
            });
        });
    }

    pub(super) fn end(&self) {
        self.held.send_replace(None);
        self.any.store(false, Ordering::Relaxed);
    }

    /// Whether there was a pause that nobody has ended.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether a command would wait at this moment.
    pub(super) fn holds(&self, writes: bool) -> bool {
        self.held
            .borrow()
            .is_some_and(|held| (held.all || writes) && held.until > Instant::now())
    }

    /// Waits until a command may go on.
    pub(super) async fn over(&self, writes: bool) {
        let mut changes = self.held.subscribe();
        loop {
            let held = *changes.borrow_and_update();
            match held {
                Some(held) if (held.all || writes) && held.until > Instant::now() => {
                    // Late or changed: it is looked at again.
                    let _ = timeout_at(held.until, changes.changed()).await;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_by_time_or_by_unpause() {
        let pause = Pause::default();
        assert!(!pause.holds(true));
        pause.begin(Duration::from_secs(5), false);
        assert!(pause.holds(true) && !pause.holds(false));
        let began = Instant::now();
        pause.over(false).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        pause.begin(Duration::from_secs(1), true);
        assert!(pause.holds(false));
        pause.over(false).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        pause.begin(Duration::from_secs(5), true);
        pause.end();
        pause.over(true).await;
        assert_eq!(began.elapsed().as_secs(), 5);
    }
}
