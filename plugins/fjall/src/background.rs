//! What goes on behind the writes: memory becomes tables, and tables are merged.

#![expect(
    clippy::disallowed_methods,
    reason = "an LSM tree merges its tables on threads of its own"
)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use kvd_plugin_api::{Error, Result};
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree};

use crate::error::from_lsm;
use crate::instants::Instants;

/// New tables are merged into the levels when there are this many runs of them, and they are not
/// much smaller than what they are merged into.
const RUNS_MIN: usize = 4;
/// They are merged whatever their size at this many, because each is looked into by reads.
const RUNS_MAX: usize = 12;
/// Writes wait at this many.
const RUNS_TOO_MANY: usize = 24;
/// Below the n-th part of the level they go to, merging would write that level again for little.
const SHARE: u64 = 4;

/// The size of a table. The first level has four of them, each further one ten times more.
const TABLE_BYTES: u64 = 16 << 20;
const TABLES_MIN: u8 = 4;

/// A tree and its threads.
pub(crate) struct Background {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    tree: AnyTree,
    instants: Arc<Instants>,
    strategy: Arc<Leveled>,
    work: Mutex<Work>,
    changed: Condvar,
    failure: OnceLock<Error>,
}

#[derive(Default)]
struct Work {
    flush: bool,
    merge: bool,
    stop: bool,
}

impl Background {
    /// Starts the threads of `tree`.
    pub(crate) fn start(tree: AnyTree, instants: Arc<Instants>) -> Result<Self> {
        let shared = Arc::new(Shared {
            tree,
            instants,
            strategy: Arc::new(
                Leveled::default()
                    .with_table_target_size(TABLE_BYTES)
                    .with_l0_threshold(TABLES_MIN),
            ),
            work: Mutex::new(Work {
                merge: true,
                ..Work::default()
            }),
            changed: Condvar::new(),
            failure: OnceLock::new(),
        });
        let background = Background {
            shared,
            threads: Mutex::new(Vec::new()),
        };
        background.spawn("fjall-flush", |shared| {
            shared.serve(|work| &mut work.flush, Shared::flush);
        })?;
        background.spawn("fjall-merge", |shared| {
            shared.serve(|work| &mut work.merge, Shared::merge);
        })?;
        Ok(background)
    }

    fn spawn(&self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name(name.to_owned());
        let thread = builder.spawn(move || run(&shared))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// The tree.
    pub(crate) fn tree(&self) -> &AnyTree {
        &self.shared.tree
    }

    /// Why a thread has given up, if one has.
    pub(crate) fn check(&self) -> Result<()> {
        self.shared.failure.get().cloned().map_or(Ok(()), Err)
    }

    /// The sealed memory is to become a table soon.
    pub(crate) fn flush_soon(&self) {
        self.shared.ask(|work| work.flush = true);
    }

    /// Makes all sealed memory a table, durably, before it returns.
    pub(crate) fn flush(&self) -> Result<()> {
        self.shared.flush()
    }

    /// Moves tables that nothing overlaps down to the last level, which writes none again.
    pub(crate) fn settle(&self) -> Result<()> {
        self.shared.merge_once()
    }

    /// Waits while there are so many runs of new tables that reads suffer.
    pub(crate) fn wait_for_merges(&self) -> Result<()> {
        let mut work = lock(&self.shared.work);
        while self.shared.tree.l0_run_count() >= RUNS_TOO_MANY && !work.stop {
            self.check()?;
            work.merge = true;
            self.shared.changed.notify_all();
            work = { self.shared.changed.wait(work) }.unwrap_or_else(PoisonError::into_inner);
        }
        self.check()
    }

    /// Ends the threads, after what they are at.
    pub(crate) fn stop(&self) {
        self.shared.ask(|work| work.stop = true);
        for thread in lock(&self.threads).drain(..) {
            // Its panic was its failure.
            let _ = thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn ask(&self, what: impl FnOnce(&mut Work)) {
        what(&mut lock(&self.work));
        self.changed.notify_all();
    }

    /// Does `job` whenever it was asked for, until the end or its failure.
    fn serve(&self, asked: fn(&mut Work) -> &mut bool, job: fn(&Self) -> Result<()>) {
        let mut work = lock(&self.work);
        loop {
            while !work.stop && !*asked(&mut work) {
                work = { self.changed.wait(work) }.unwrap_or_else(PoisonError::into_inner);
            }
            if work.stop {
                return;
            }
            *asked(&mut work) = false;
            drop(work);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(self)));
            let done = done.unwrap_or_else(|_| {
                let kind = kvd_plugin_api::ErrorKind::Corruption;
                Err(Error::new(kind, "fjall: a background thread panicked"))
            });
            work = lock(&self.work);
            let failed = done.is_err();
            if let Err(error) = done {
                // The next write says the same, and then the host stops.
                log::warn!("{error}");
                // The first failure is the one that counts.
                let _ = self.failure.set(error);
            }
            self.changed.notify_all();
            if failed {
                return;
            }
        }
    }

    fn flush(&self) -> Result<()> {
        let lock = self.tree.get_flush_lock();
        if self.tree.sealed_memtable_count() > 0 {
            let oldest = self.instants.oldest();
            self.tree.flush(&lock, oldest).map_err(from_lsm)?;
        }
        drop(lock);
        self.ask(|work| work.merge = true);
        Ok(())
    }

    fn merge(&self) -> Result<()> {
        while self.is_merge_due() && !lock(&self.work).stop {
            let before = self.tree.current_version().id();
            self.merge_once()?;
            // Writes may wait for it.
            self.ask(|_| ());
            if self.tree.current_version().id() == before {
                break;
            }
        }
        Ok(())
    }

    fn merge_once(&self) -> Result<()> {
        let strategy = Arc::clone(&self.strategy);
        let oldest = self.instants.oldest();
        self.tree.compact(strategy, oldest).map_err(from_lsm)
    }

    /// Whether a merge is worth what it writes again.
    ///
    /// The tree's own strategy merges whenever there are four new tables. With a sync every other
    /// second these may be tiny, and the whole first level would be written again for each.
    fn is_merge_due(&self) -> bool {
        let version = self.tree.current_version();
        let new = version.l0();
        let mut levels = version.iter_levels().skip(1);
        let first = { levels.find(|level| !level.is_empty()) }.map_or(0, |level| level.size());
        if new.is_empty() {
            // The levels may still be out of proportion after a merge.
            return first > u64::from(TABLES_MIN) * TABLE_BYTES;
        }
        let is_large = new.size() >= first / SHARE;
        new.run_count() >= RUNS_MAX || (new.run_count() >= RUNS_MIN && is_large)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
