//! How many groups of commands are waited for before an entry is made of them.
//!
//! Clients that wait for their answers would fall into two halves: while the entry of one is synced
//! and replicated the other's gathers, and so on for ever, though each entry costs every member the
//! same however few its commands are. So where more groups are known to be about than wait, the
//! others are waited for a little: those of the entry before are on their way back, most likely.
//! Where they are not, because clients take their time, waiting is given up for so many entries,
//! and for twice as many each time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// With fewer groups than these nobody is waited for: a sync is as short as the way to a client.
const GROUPS_MIN: usize = 4;

/// The share of all groups that is enough.
const ENOUGH_PERCENT: usize = 80;

/// Nobody is waited for longer than the entry before has taken, within these bounds. A timer tells
/// no less than a millisecond.
const PATIENCE_MIN: Duration = Duration::from_millis(1);
const PATIENCE_MAX: Duration = Duration::from_millis(4);

/// For so many entries waiting is given up at most.
const GIVEN_UP_MAX: u32 = 256;

/// Tells who waits for groups when there are enough.
pub(super) struct Gathering {
    /// So many are waited for; `usize::MAX` while nobody waits.
    enough: AtomicUsize,
    reached: Notify,
    rhythm: Mutex<Rhythm>,
}

impl Gathering {
    pub(super) fn new() -> Self {
        Gathering {
            enough: AtomicUsize::new(usize::MAX),
            reached: Notify::new(),
            rhythm: Mutex::new(Rhythm::new(Instant::now())),
        }
    }

    /// So many groups wait now.
    pub(super) fn pushed(&self, waiting: usize) {
        if waiting >= self.enough.load(Ordering::SeqCst) {
            self.reached.notify_one();
        }
    }

    /// Waits for more groups, where `waiting` of them are few beside those that are `unanswered` in
    /// earlier entries.
    pub(super) async fn wait(&self, waiting: impl Fn() -> usize, unanswered: usize) {
        let now = Instant::now();
        let Some((enough, patience)) = self.rhythm().wanted(waiting(), unanswered, now) else {
            return;
        };
        self.enough.store(enough, Ordering::SeqCst);
        let all = async {
            // Looked at after those who push were told: none is missed.
            while waiting() < enough {
                self.reached.notified().await;
            }
        };
        let came = timeout_at(now + patience, all).await.is_ok();
        self.enough.store(usize::MAX, Ordering::SeqCst);
        self.rhythm().waited(came, Instant::now());
    }

    fn rhythm(&self) -> MutexGuard<'_, Rhythm> {
        self.rhythm.lock().expect("no panic while held")
    }
}

/// What the entries before tell of those that come.
struct Rhythm {
    /// So many groups are about.
    about: usize,
    taken_at: Instant,
    /// For so many entries nobody is waited for, and for so many the next time.
    given_up: u32,
    give_up: u32,
}

impl Rhythm {
    fn new(now: Instant) -> Self {
        Rhythm {
            about: 0,
            taken_at: now,
            given_up: 0,
            give_up: 1,
        }
    }

    /// How many groups to wait for, and how long; none to take those that wait.
    fn wanted(
        &mut self,
        waiting: usize,
        unanswered: usize,
        now: Instant,
    ) -> Option<(usize, Duration)> {
        let patience = (now - self.taken_at).clamp(PATIENCE_MIN, PATIENCE_MAX);
        self.taken_at = now;
        // Who has gone is soon forgotten.
        let before = self.about - self.about.div_ceil(8);
        self.about = before.max(waiting + unanswered);
        let enough = (self.about * ENOUGH_PERCENT).div_ceil(100);
        if self.about < GROUPS_MIN || waiting >= enough {
            return None;
        }
        if self.given_up > 0 {
            self.given_up -= 1;
            return None;
        }
        Some((enough, patience))
    }

    /// They were waited for, and `came` or not.
    fn waited(&mut self, came: bool, now: Instant) {
        self.taken_at = now;
        if came {
            self.give_up = 1;
        } else {
            self.given_up = self.give_up;
            self.give_up = (self.give_up * 2).min(GIVEN_UP_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::doors;

    #[tokio::test(start_paused = true)]
    async fn those_on_their_way_back_are_waited_for() {
        let (gathering, waiting) = (Arc::new(Gathering::new()), Arc::new(AtomicUsize::new(10)));
        let began = Instant::now();
        let (own, count) = (gathering.clone(), waiting.clone());
        doors::spawn(async move {
            for _ in 0..6 {
                tokio::task::yield_now().await;
                own.pushed(count.fetch_add(1, Ordering::SeqCst) + 1);
            }
        });
        gathering.wait(|| waiting.load(Ordering::SeqCst), 10).await;
        assert_eq!(waiting.load(Ordering::SeqCst), 16);
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "no longer than it takes them"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_do_not_come_are_waited_for_more_and_more_rarely() {
        let gathering = Gathering::new();
        let began = Instant::now();
        for _ in 0..1000 {
            gathering.wait(|| 5, 5).await;
        }
        let waits = began.elapsed().as_millis();
        assert!((8..=14).contains(&waits), "{waits} ms for 1000 entries");
    }

    #[test]
    fn nobody_is_waited_for_where_all_or_few_are_there() {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(now);
        assert_eq!(rhythm.wanted(1, 1, now), None);
        assert_eq!(rhythm.wanted(8, 2, now), None);
        assert_eq!(rhythm.wanted(7, 3, now), Some((8, PATIENCE_MIN)));
    }

    #[test]
    fn who_has_gone_is_soon_forgotten() {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(now);
        assert_eq!(rhythm.wanted(100, 0, now), None);
        let entries = (0..).take_while(|_| rhythm.wanted(10, 0, now).is_some());
        assert!(entries.count() < 20);
    }
}
