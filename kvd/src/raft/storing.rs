//! The worker that gives the engine what is applied, so that no client waits for the engine.
//!
//! It is lazy: the more waits, the less a change costs the engine, and what a key was in between
//! never gets there. What waits is bounded; beyond the bound nothing more is applied, and from a
//! quarter of it on it is applied the slower the more waits, so that nobody stands still while the
//! engine gets a batch.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::log::LogStore;
use super::pace::Pace;
use super::position::Position;
use super::snapshot;
use super::spool::Spool;
use super::state_machine::{Observer, Shared};
use super::types::LogId;
use crate::doors::{Doors, Worker};
use crate::exit;
use crate::keyspace::{Failure, State, sweep};
use crate::storage::{self, Amount, ErrorKind, Store};

/// From here on the engine gets something without being asked.
const STORED_FROM: Amount = Amount {
    bytes: 12 << 20,
    changes: 65536,
    layers: 64,
};

/// What may wait for the engine. A batch of entries that begins below it may end above it.
pub(super) const WAITING_MAX: Amount = Amount {
    bytes: 64 << 20,
    changes: 1 << 20,
    layers: 512,
};

/// How many leftovers of earlier epochs are removed at once.
const SWEPT_AT_ONCE_MAX: usize = 1024;

enum Job {
    Some,
    All {
        done: oneshot::Sender<bool>,
    },
    Sync {
        done: oneshot::Sender<io::Result<Position>>,
    },
    Install {
        spool: Spool,
        own: Option<LogId>,
        done: oneshot::Sender<io::Result<bool>>,
    },
    Close {
        done: oneshot::Sender<io::Result<()>>,
    },
}

/// The handle of the worker; cheap to clone.
#[derive(Clone)]
pub(super) struct Storing {
    worker: Worker<Job>,
    asked: Arc<AtomicBool>,
    store: Arc<Store>,
    pace: Arc<Pace>,
    room: Room,
    /// What a start has left waiting, and still does: it has room of its own.
    left: Arc<Mutex<Amount>>,
}

/// Changes whenever something was stored; true once nothing more will be.
type Room = watch::Sender<bool>;

fn reached(amount: Amount, bound: Amount) -> bool {
    amount.bytes >= bound.bytes || amount.changes >= bound.changes || amount.layers >= bound.layers
}

/// What the worker does its jobs with.
struct Hands {
    store: Arc<Store>,
    shared: Arc<Shared>,
    log: LogStore,
    observer: Arc<dyn Observer>,
    pace: Arc<Pace>,
    room: Room,
    /// Nothing is left of epochs before this one.
    swept: u32,
}

impl Storing {
    pub(super) fn start(
        doors: &Doors,
        store: Arc<Store>,
        shared: Arc<Shared>,
        log: LogStore,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let room = Room::new(false);
        let left = Arc::new(Mutex::new(store.waiting()));
        let asked = Arc::new(AtomicBool::new(false));
        let pace = Arc::<Pace>::default();
        let mut hands = Hands {
            store: store.clone(),
            shared,
            log,
            observer,
            pace: pace.clone(),
            room: room.clone(),
            swept: 0,
        };
        let again = asked.clone();
        let worker = Worker::start(&*doors.workers, "kvd-store", move |jobs| {
            for job in jobs {
                if matches!(job, Job::Some) {
                    again.store(false, Ordering::Release);
                }
                if !hands.run(job) {
                    return false;
                }
            }
            true
        });
        Storing {
            worker,
            asked,
            store,
            pace,
            room,
            left,
        }
    }

    /// So many bytes more wait. Never blocks.
    pub(super) fn applied(&self, bytes: usize) {
        self.pace.applied(bytes);
        self.wake();
    }

    /// Has the engine get something, if much waits.
    fn wake(&self) {
        if reached(self.store.waiting(), STORED_FROM) && !self.asked.swap(true, Ordering::AcqRel) {
            self.worker.submit(Job::Some);
        }
    }

    /// How much waits beside what a start has left.
    fn waiting(&self) -> Amount {
        let now = self.store.waiting();
        let mut left = self.left.lock().expect("no panic while held");
        *left = Amount {
            bytes: left.bytes.min(now.bytes),
            changes: left.changes.min(now.changes),
            layers: left.layers.min(now.layers),
        };
        Amount {
            bytes: now.bytes - left.bytes,
            changes: now.changes - left.changes,
            layers: now.layers - left.layers,
        }
    }

    /// Waits while too much waits, and a little where much does.
    pub(super) async fn room(&self) -> io::Result<()> {
        let mut changes = self.room.subscribe();
        loop {
            if *changes.borrow_and_update() {
                return Err(ended());
            }
            let waiting = self.waiting();
            if !reached(waiting, WAITING_MAX) {
                let full = waiting.bytes as f64 / WAITING_MAX.bytes as f64;
                if let Some(pause) = self.pace.pause(full) {
                    let began = Instant::now();
                    sleep(pause).await;
                    self.pace.paused(began.elapsed());
                }
                return Ok(());
            }
            self.wake();
            // The sender lives as long as this does.
            drop(changes.changed().await);
        }
    }

    /// Gives the engine all that is applied, and removes a little of what FLUSHALL left behind;
    /// returns whether more is left.
    pub(super) async fn store_all(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.worker.submit(Job::All { done });
        wait.await.unwrap_or(false)
    }

    /// Makes all that is applied durable.
    pub(super) async fn sync(&self) -> io::Result<Position> {
        let (done, wait) = oneshot::channel();
        self.worker.submit(Job::Sync { done });
        wait.await.map_err(|_| ended())?
    }

    /// Replaces the contents, and forgets what waits, unless the state, which ends at `own`, goes as
    /// far already; returns whether it did. Nothing may be applied meanwhile.
    pub(super) async fn install(&self, spool: Spool, own: Option<LogId>) -> io::Result<bool> {
        let (done, wait) = oneshot::channel();
        self.worker.submit(Job::Install { spool, own, done });
        wait.await.map_err(|_| ended())?
    }

    /// Gives the engine all that is applied, makes it durable, and lets go of the engine's files.
    pub(super) async fn close(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.worker.submit(Job::Close { done });
        wait.await.map_err(|_| ended())?
    }

    /// Drops the jobs that wait.
    pub(super) fn clear(&self) {
        self.worker.clear();
    }
}

fn ended() -> io::Error {
    io::Error::other("nothing more is stored")
}

/// What a batch that its engine does not take is written again by each start.
fn of_engine(error: &storage::Error) -> i32 {
    match error.kind() {
        ErrorKind::TooLarge => exit::CONFIG,
        _ => exit::IO,
    }
}

impl Hands {
    /// Does one job; `false` ends the worker.
    fn run(&mut self, job: Job) -> bool {
        match job {
            Job::Some => match self.store_some(u64::MAX) {
                Ok(_) => true,
                Err(error) => self.fail(of_engine(&error), &format!("engine: {error}")),
            },
            Job::All { done } => {
                let all = self.store_all().map_err(Failure::Engine);
                match all.and_then(|()| self.sweep()) {
                    Ok(more) => {
                        let _ = done.send(more);
                        true
                    }
                    Err(error) => {
                        let code = match &error {
                            Failure::Engine(error) => of_engine(error),
                            _ => exit::IO,
                        };
                        self.fail(code, &format!("engine: {error}"))
                    }
                }
            }
            Job::Sync { done } => match self.sync() {
                Ok(position) => {
                    drop(done.send(position));
                    true
                }
                Err(error) => {
                    self.fail(of_engine(&error), &format!("engine sync: {error}"));
                    drop(done.send(Err(io::Error::other(error.to_string()))));
                    false
                }
            },
            Job::Install { spool, own, done } => {
                crash_point!("install_before");
                match snapshot::install_beyond(own, &spool.path, &self.store) {
                    Ok(installed) => {
                        if let Some(position) = &installed {
                            tracing::info!(index = position.index(), "a snapshot was installed");
                            self.durable(position);
                            self.room.send_replace(false);
                        }
                        drop(done.send(Ok(installed.is_some())));
                        true
                    }
                    Err(error) => {
                        let reason = format!("snapshot installation: {error}");
                        self.fail(exit::IO, &reason);
                        drop(done.send(Err(io::Error::other(reason))));
                        false
                    }
                }
            }
            Job::Close { done } => {
                let stored = self.store_all();
                crash_point!("engine_close_before");
                let closed = stored.and_then(|()| self.store.engine().close());
                crash_point!("engine_close_after");
                self.room.send_replace(true);
                drop(done.send(closed.map_err(|error| io::Error::other(error.to_string()))));
                false
            }
        }
    }

    /// Stops the node.
    fn fail(&self, code: i32, reason: &str) -> bool {
        self.observer.stopped(code, reason);
        self.room.send_replace(true);
        false
    }

    fn store_some(&self, wanted: u64) -> storage::Result<bool> {
        let began = Instant::now();
        let bytes = self.store.store_some(wanted)?;
        if bytes > 0 {
            self.log.phases().engine.note(began.elapsed());
            self.pace.stored(bytes, began.elapsed());
            self.room.send_replace(false);
        }
        Ok(bytes > 0)
    }

    fn store_all(&self) -> storage::Result<()> {
        let wanted = self.store.newest();
        while self.store_some(wanted)? {}
        Ok(())
    }

    fn sync(&self) -> storage::Result<io::Result<Position>> {
        self.store_all()?;
        let mark = self.store.sync()?;
        let position = Position::from_mark(&mark).map_err(io::Error::other);
        if let Ok(position) = &position {
            self.durable(position);
        }
        Ok(position)
    }

    fn durable(&self, position: &Position) {
        self.log.set_purge_floor(position.index());
        self.shared.set_durable(position.clone());
    }

    /// Removes a little of what earlier epochs left behind; returns whether more is left.
    ///
    /// No reader, digest or snapshot sees it, so every node does it in its own time, and the
    /// engine alone tells what is left: what waits is of its epoch or later.
    fn sweep(&mut self) -> Result<bool, Failure> {
        let engine = self.store.engine();
        let epoch = State::read(&**engine)?.epoch;
        if epoch == self.swept {
            return Ok(false);
        }
        let leftovers = sweep(&**engine, epoch, SWEPT_AT_ONCE_MAX)?;
        if leftovers.entries > 0 {
            crash_point!("sweep_before");
            self.store.store_unseen(&leftovers.ops())?;
            crash_point!("sweep_after");
        }
        if leftovers.entries < SWEPT_AT_ONCE_MAX {
            self.swept = epoch;
            return Ok(false);
        }
        Ok(true)
    }
}
