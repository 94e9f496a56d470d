//! openraft's own suite of storage tests, over kvd's state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::executor::Executor;
use super::log::{Journal as _, LogStore, MemoryDisk, MemoryJournal};
use super::snapshot::SnapshotDir;
use super::state_machine::{Observer, StateMachine, recover};
use super::types::{TypeConfig, log_id};
use crate::clock::SystemClock;
use crate::doors::{Doors, Random, Threads};
use crate::keyspace::Limits;
use crate::net::Tcp;
use crate::resp::Reply;
use crate::storage::{MemoryEngine, Store};

struct Unseen;

impl Observer for Unseen {
    fn applied(&self, _origin: u64, _sequence: u64, _index: u64, _replies: &[Reply]) {}

    fn stopped(&self, reason: &str) {
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
fn log_of_everything() -> LogStore {
    let mut journal = MemoryJournal::open(MemoryDisk::default());
    journal.purge(log_id(0, u64::MAX - 1)).unwrap();
    LogStore::over(Box::new(journal), Arc::new(|_| {}))
}

struct OverMemoryEngine;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OverMemoryEngine {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        let doors = Doors {
            net: Arc::new(Tcp),
            workers: Arc::new(Threads),
            clock: Arc::new(SystemClock),
            random: Random::from_seed(1),
        };
        let store = Arc::new(Store::new(Arc::new(MemoryEngine::new())));
        let dir = Arc::new(SnapshotDir::open(temp.path()).unwrap());
        let durable = recover(&store, &dir).unwrap();
        let executor = Executor::new(store.clone(), Limits::default()).unwrap();
        let machine = StateMachine::start(
            &doors,
            store,
            log_of_everything(),
            dir,
            durable,
            executor,
            Arc::new(Unseen),
        );
        Ok((temp, log(), machine))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_state_machine() {
    Suite::test_all(OverMemoryEngine).await.unwrap();
}
