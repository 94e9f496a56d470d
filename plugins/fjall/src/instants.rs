//! The moments that somebody still reads: what came before all of them may be forgotten.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lsm_tree::SeqNo;

/// How many readers each moment has.
#[derive(Debug, Default)]
pub(crate) struct Instants(Mutex<BTreeMap<SeqNo, usize>>);

/// A moment, which is kept readable while this lives.
#[derive(Debug)]
pub(crate) struct Instant {
    at: SeqNo,
    all: Arc<Instants>,
}

impl Instants {
    /// Keeps what is readable at `at`, which is not below any that was kept before.
    pub(crate) fn keep(self: &Arc<Self>, at: SeqNo) -> Instant {
        *self.lock().entry(at).or_default() += 1;
        Instant {
            at,
            all: Arc::clone(self),
        }
    }

    /// The oldest moment that somebody reads; 0 while nobody does.
    pub(crate) fn oldest(&self) -> SeqNo {
        self.lock().keys().next().copied().unwrap_or(0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SeqNo, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instant {
    /// The sequence number: writes below it are seen.
    pub(crate) fn at(&self) -> SeqNo {
        self.at
    }
}

impl Drop for Instant {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(readers) = all.get_mut(&self.at) {
            *readers -= 1;
            if *readers == 0 {
                all.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_reader_counts() {
        let all = Arc::new(Instants::default());
        assert_eq!(all.oldest(), 0);
        let first = all.keep(5);
        let again = all.keep(5);
        let last = all.keep(9);
        drop(first);
        assert_eq!(all.oldest(), 5);
        drop(again);
        assert_eq!((all.oldest(), last.at()), (9, 9));
        drop(last);
        assert_eq!(all.oldest(), 0);
    }
}
