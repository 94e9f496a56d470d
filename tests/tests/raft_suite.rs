//! openraft's own suite of storage tests, on kvd's state machine over each plugin's engine.

use std::path::Path;
use std::sync::Arc;

use kvd::clock::SystemClock;
use kvd::doors::{Doors, Random, Threads, stopwatch};
use kvd::keyspace::Limits;
use kvd::net::Tcp;
use kvd::raft::TypeConfig;
use kvd::raft::executor::Executor;
use kvd::raft::log::{Identity, Journal as _, LogStore, MemoryDisk, MemoryJournal};
use kvd::raft::snapshot::SnapshotDir;
use kvd::raft::state_machine::{Observer, StateMachine, recover};
use kvd::resp::Reply;
use kvd::storage::{PluginEngine, Store};
use kvd_plugin_api::host::Plugin;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

struct Unseen;

impl Observer for Unseen {
    fn applied(&self, _origin: u64, _sequence: u64, _index: u64, _replies: &[Reply]) {}

    fn stopped(&self, _code: i32, reason: &str) {
        panic!("the state machine stopped: {reason}");
    }
}

/// The suite applies entries that it never appended, and the state machine waits until its log has
/// what it applies: this one has everything.
fn log_of_everything() -> LogStore {
    let mut journal = MemoryJournal::open(MemoryDisk::default());
    journal
        .purge(kvd::raft::log_id(0, u64::MAX - 1))
        .expect("memory takes it");
    LogStore::over(Box::new(journal), Arc::new(|_| {}))
}

fn file_log(dir: &Path) -> LogStore {
    let identity = Identity {
        cluster: 7,
        group: 0,
        node: 9,
    };
    let log = LogStore::open(dir, identity, Arc::new(|_| {})).expect("a new log opens");
    log.set_purge_floor(u64::MAX);
    log
}

struct OverPlugin(Plugin);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OverPlugin {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        for folder in ["log", "engine", "snapshots"] {
            std::fs::create_dir(temp.path().join(folder)).unwrap();
        }
        let doors = Doors {
            net: Arc::new(Tcp),
            workers: Arc::new(Threads),
            clock: Arc::new(SystemClock),
            random: Random::from_seed(1),
        };
        let folder = temp.path().join("engine");
        let engine = PluginEngine::open(&self.0, &folder, &[], stopwatch, Arc::default()).unwrap();
        let store = Arc::new(Store::new(Arc::new(engine)));
        let dir = Arc::new(SnapshotDir::open(&temp.path().join("snapshots")).unwrap());
        let durable = recover(&store, &dir).unwrap();
        let machine = StateMachine::start(
            &doors,
            store.clone(),
            log_of_everything(),
            dir,
            durable,
            Executor::new(store, Limits::default()).unwrap(),
            Arc::new(Unseen),
        );
        let log = file_log(&temp.path().join("log"));
        Ok((temp, log, machine))
    }
}

async fn suite_passes_over(plugin: &str) {
    let library = format!(
        "{}kvd_{plugin}{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let plugin = Plugin::load(&kvd_tests::built().join(library)).unwrap();
    Suite::test_all(OverPlugin(plugin)).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_over_redb() {
    suite_passes_over("redb").await;
}

#[tokio::test]
async fn openrafts_suite_passes_over_sled() {
    suite_passes_over("sled").await;
}

#[tokio::test]
async fn openrafts_suite_passes_over_fjall() {
    suite_passes_over("fjall").await;
}

#[tokio::test]
async fn openrafts_suite_passes_over_memory() {
    suite_passes_over("memory").await;
}
