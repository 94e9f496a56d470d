//! Disks that take time, and lose at a crash what was not synced; and workers that take time.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::doors::{Random, Wake, Workers, spawn};
use kvd::raft::log::{
    Body, Flushed, Journal, JournalState, MemoryDisk, MemoryJournal, SyncJob, Visit,
};
use kvd::raft::{LogId, Vote};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::plant::{Plant, planted};

enum Record {
    Append(LogId, Body),
    Truncate(Option<LogId>),
    Purge(LogId),
    Vote(Vote),
    Commit(LogId),
}

/// The disk of one node's log.
pub(crate) struct LogDisk {
    /// What is synced.
    durable: MemoryJournal,
    /// How many records that are.
    synced: usize,
    /// What was written since.
    written: Vec<Record>,
    /// How many truncations there were.
    pub(crate) truncations: u64,
}

impl Default for LogDisk {
    fn default() -> Self {
        LogDisk {
            durable: MemoryJournal::open(MemoryDisk::default()),
            synced: 0,
            written: Vec::new(),
            truncations: 0,
        }
    }
}

impl LogDisk {
    /// How many records were written at all.
    fn end(&self) -> usize {
        self.synced + self.written.len()
    }

    /// Everything up to record number `end` is on the disk.
    fn sync(&mut self, end: usize) {
        let count = end.saturating_sub(self.synced);
        self.synced += count;
        for record in self.written.drain(..count) {
            let done = match record {
                Record::Append(id, body) => self.durable.append(id, body),
                Record::Truncate(last) => self.durable.truncate_after(last),
                Record::Purge(upto) => self.durable.purge(upto),
                Record::Vote(vote) => self.durable.save_vote(vote),
                Record::Commit(committed) => self.durable.save_committed(committed),
            };
            done.expect("memory takes it");
        }
    }

    /// Whether a truncation has not reached the disk yet.
    fn truncates(&self) -> bool {
        let mut written = self.written.iter();
        written.any(|record| matches!(record, Record::Truncate(_)))
    }

    /// Shows the entries from `from` on that are synced.
    pub(crate) fn entries(&self, from: u64, show: &mut dyn FnMut(LogId, &[u8])) {
        let read = self.durable.read(from, u64::MAX, &mut |id, body| {
            show(id, &body.0);
            ControlFlow::Continue(())
        });
        read.expect("memory is read");
    }

    /// The power goes: of what was not synced the first records may have reached the disk.
    pub(crate) fn crash(&mut self, random: &Random) {
        let kept = random.next() as usize % (self.written.len() + 1);
        self.sync(self.synced + kept);
        self.written.clear();
    }
}

/// A log on such a disk.
pub(crate) struct SimJournal {
    now: MemoryJournal,
    disk: Arc<Mutex<LogDisk>>,
    random: Random,
}

impl SimJournal {
    pub(crate) fn open(disk: Arc<Mutex<LogDisk>>, random: Random) -> Self {
        let mut now = MemoryJournal::open(MemoryDisk::default());
        {
            let disk = disk.lock().unwrap();
            let state = disk.durable.state();
            if let Some(purged) = state.purged {
                now.purge(purged).expect("memory takes it");
            }
            disk.durable
                .read(0, u64::MAX, &mut |id, body| {
                    now.append(id, body.clone()).expect("memory takes it");
                    ControlFlow::Continue(())
                })
                .expect("memory is read");
            if let Some(vote) = state.vote {
                now.save_vote(vote).expect("memory takes it");
            }
            if let Some(committed) = state.committed {
                now.save_committed(committed).expect("memory takes it");
            }
        }
        SimJournal { now, disk, random }
    }

    fn write(&self, record: Record) {
        self.disk.lock().unwrap().written.push(record);
    }
}

impl Journal for SimJournal {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        self.write(Record::Append(id, body.clone()));
        self.now.append(id, body)
    }

    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.write(Record::Truncate(last));
        self.disk.lock().unwrap().truncations += 1;
        self.now.truncate_after(last)
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.write(Record::Purge(upto));
        self.now.purge(upto)
    }

    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        if planted(Plant::EarlyVote) {
            let disk = self.disk.clone();
            spawn(async move {
                sleep(EARLY_TIME).await;
                disk.lock().unwrap().written.push(Record::Vote(vote));
            });
        } else if !planted(Plant::ForgottenVote) {
            self.write(Record::Vote(vote));
        }
        self.now.save_vote(vote)
    }

    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.write(Record::Commit(committed));
        if planted(Plant::EagerPurge) && self.now.state().purged.is_some() {
            self.write(Record::Purge(committed));
        }
        self.now.save_committed(committed)
    }

    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        let (disk, random) = (self.disk.clone(), self.random.clone());
        let end = disk.lock().unwrap().end();
        spawn(async move {
            let early = planted(Plant::EarlySync)
                || planted(Plant::EarlyTruncation) && disk.lock().unwrap().truncates();
            if early {
                done(Ok(()));
                sleep(EARLY_TIME).await;
                disk.lock().unwrap().sync(end);
                return;
            }
            sleep(latency(&random)).await;
            disk.lock().unwrap().sync(end);
            done(Ok(()));
        });
        Ok(())
    }

    fn write_out(&mut self, _bytes_max: usize) -> io::Result<Option<SyncJob>> {
        let late = planted(Plant::EarlySync) || planted(Plant::EarlyTruncation);
        if late || self.random.next().is_multiple_of(4) {
            return Ok(None);
        }
        let disk = self.disk.clone();
        let end = disk.lock().unwrap().end();
        Ok(Some(Box::new(move || {
            disk.lock().unwrap().sync(end);
            Ok(())
        })))
    }

    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        self.now.read(from, to, visit)
    }

    fn state(&self) -> JournalState {
        self.now.state()
    }

    fn bytes(&self) -> u64 {
        self.now.bytes()
    }
}

/// How long before its time a planted bug reports something: crashes must meet that moment.
const EARLY_TIME: Duration = Duration::from_millis(700);

/// How long a sync or another job of a worker takes.
fn latency(random: &Random) -> Duration {
    let us = match random.next() % 200 {
        0 => 50_000 + random.next() % 300_000,
        1..=19 => 2000 + random.next() % 8000,
        _ => 50 + random.next() % 700,
    };
    Duration::from_micros(us)
}

/// Workers as tasks.
pub(crate) struct Tasks {
    pub(crate) random: Random,
    /// For so many milliseconds the engine does not get on with each job that it is given.
    pub(crate) slow_store_ms: Arc<AtomicU64>,
}

struct TaskWake(Notify);

impl Wake for TaskWake {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl Workers for Tasks {
    fn start(&self, name: &'static str, mut run: Box<dyn FnMut() -> bool + Send>) -> Arc<dyn Wake> {
        let wake = Arc::new(TaskWake(Notify::new()));
        let (own, random) = (wake.clone(), self.random.clone());
        let slow = (name == "kvd-store").then(|| self.slow_store_ms.clone());
        spawn(async move {
            loop {
                own.0.notified().await;
                sleep(latency(&random)).await;
                if let Some(slow) = &slow {
                    sleep(Duration::from_millis(slow.load(Ordering::Relaxed))).await;
                }
                if !run() {
                    return;
                }
            }
        });
        wake
    }

    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        let random = self.random.clone();
        spawn(async move {
            sleep(latency(&random)).await;
            job();
        });
    }
}

/// The folder of a node that starts with nothing.
pub(crate) fn wipe(dir: &Path) {
    if dir.exists() {
        std::fs::remove_dir_all(dir).expect("the folder can be removed");
    }
}
