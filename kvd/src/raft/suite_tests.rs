//! openraft's own suite of storage tests, over kvd's state machine, and what it does not ask.

use std::path::Path;
use std::sync::Arc;

use openraft::StorageError;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};
use openraft::testing::log::{StoreBuilder, Suite};

use super::executor::Executor;
use super::log::{Journal as _, LogStore, MemoryDisk, MemoryJournal, held};
use super::position::Position;
use super::snapshot::SnapshotDir;
use super::spool::{SnapshotData, Spool};
use super::state_machine::{Observer, StateMachine, recover};
use super::types::{TypeConfig, log_id};
use crate::clock::SystemClock;
use crate::doors::{Doors, Random, Threads};
use crate::keyspace::Limits;
use crate::net::Tcp;
use crate::resp::Reply;
use crate::storage::{Engine, MemoryEngine, Store};

pub(super) struct Unseen;

impl Observer for Unseen {
    fn applied(&self, _origin: u64, _sequence: u64, _index: u64, _replies: &[Reply]) {}

    fn stopped(&self, _code: i32, reason: &str) {
        panic!("the state machine stopped: {reason}");
    }
}

fn log() -> LogStore {
    let journal = MemoryJournal::open(MemoryDisk::default());
    let log = LogStore::over(Box::new(journal), Arc::new(|_| {}));
    log.set_purge_floor(u64::MAX);
    log
}

/// The suite applies entries that it never appended, and the state machine waits until its log has
/// what it applies: this one has everything.
pub(super) fn log_of_everything() -> LogStore {
    let mut journal = MemoryJournal::open(MemoryDisk::default());
    journal.purge(log_id(0, u64::MAX - 1)).unwrap();
    LogStore::over(Box::new(journal), Arc::new(|_| {}))
}

/// A state machine over an empty memory engine, with its files in `dir`.
fn machine(log: LogStore, dir: &Path) -> StateMachine {
    machine_over(Arc::new(MemoryEngine::new()), log, dir, Arc::new(Unseen))
}

/// A state machine over an engine, with its files in `dir`.
pub(super) fn machine_over(
    engine: Arc<dyn Engine>,
    log: LogStore,
    dir: &Path,
    observer: Arc<dyn Observer>,
) -> StateMachine {
    let store = Arc::new(Store::new(engine));
    let files = SnapshotDir::open(dir).unwrap();
    recover(&store, &files).unwrap();
    let executor = Executor::new(store, Limits::default()).unwrap();
    machine_of(executor, log, dir, observer)
}

/// A state machine that goes on from where an executor stands.
pub(super) fn machine_of(
    executor: Executor,
    log: LogStore,
    dir: &Path,
    observer: Arc<dyn Observer>,
) -> StateMachine {
    let doors = Doors {
        net: Arc::new(Tcp),
        workers: Arc::new(Threads),
        clock: Arc::new(SystemClock),
        random: Random::from_seed(1),
    };
    let dir = Arc::new(SnapshotDir::open(dir).unwrap());
    let store = executor.store().clone();
    let mark = store.engine().mark().unwrap();
    let durable = Position::from_mark(&mark).unwrap();
    let durable = durable.log_id.is_some().then_some(durable);
    StateMachine::start(&doors, store, log, dir, durable, executor, observer)
}

struct OverMemoryEngine;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OverMemoryEngine {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        let machine = machine(log_of_everything(), temp.path());
        Ok((temp, log(), machine))
    }
}

/// The file of a state that ends at this entry.
fn snapshot_at(files: &SnapshotDir, term: u64, index: u64) -> Spool {
    let source = Store::new(Arc::new(MemoryEngine::new()));
    let position = Position {
        log_id: Some(log_id(term, index)),
        ..Position::default()
    };
    source.write(&[], &position.to_mark()).unwrap();
    let (_, spool) = files.spool_out(source.read().unwrap()).unwrap();
    files.take_in(spool).unwrap()
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_state_machine() {
    Suite::test_all(OverMemoryEngine).await.unwrap();
}

#[tokio::test]
async fn a_snapshots_file_stays_until_the_cut_behind_it_is_synced() {
    let temp = tempfile::tempdir().unwrap();
    let (mut log, flushes) = held();
    let mut machine = machine(log.clone(), temp.path());
    let files = SnapshotDir::open(temp.path()).unwrap();
    let spool = snapshot_at(&files, 1, 5);
    machine
        .install_snapshot(&Default::default(), SnapshotData::Spool(spool))
        .await
        .unwrap();
    log.purge(log_id(1, 5)).await.unwrap();

    let retired = crate::doors::spawn(async move { machine.retire_spools().await });
    tokio::task::yield_now().await;
    assert_eq!(files.complete().unwrap().len(), 1);
    while !retired.is_finished() {
        if let Ok(flush) = flushes.try_recv() {
            flush(Ok(()));
        }
        tokio::task::yield_now().await;
    }
    retired.await.unwrap().unwrap();
    assert_eq!(files.complete().unwrap(), []);
}

#[tokio::test]
async fn a_snapshot_that_ends_below_the_state_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut machine = machine(log(), temp.path());
    let files = SnapshotDir::open(temp.path()).unwrap();
    for (offered, stands) in [(5, 5), (9, 9), (7, 9), (9, 9), (12, 12)] {
        let spool = SnapshotData::Spool(snapshot_at(&files, 1, offered));
        let installed = machine.install_snapshot(&Default::default(), spool).await;
        installed.unwrap();
        assert_eq!(machine.position().index(), stands, "{offered} was offered");
        assert_eq!(machine.store().mark().unwrap().index, stands);
        assert_eq!(machine.progress().borrow().index, stands);
    }
}

/// Raft stops for good where it believes in a snapshot and is given none.
#[tokio::test]
async fn where_something_may_be_cut_there_is_a_snapshot_that_covers_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut machine = machine(log(), temp.path());
    let files = SnapshotDir::open(temp.path()).unwrap();
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
    for index in [5, 9] {
        let spool = SnapshotData::Spool(snapshot_at(&files, 1, index));
        let installed = machine.install_snapshot(&Default::default(), spool).await;
        installed.unwrap();
        let durable = machine.make_durable().await.unwrap();
        assert_eq!(durable.index(), index);
        let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, index)));
    }
}
