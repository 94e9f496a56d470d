//! openraft's own suite of storage tests, over both journals.

use std::io;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{
    EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, StorageError};

use super::*;
use crate::raft::types::{Applied, LogId, StoredMembership, TypeConfig};

/// A state machine that keeps only what a snapshot's meta says.
#[derive(Clone, Default)]
struct Marks {
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Shared with the builders.
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<TypeConfig>>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Marks {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        *self.snapshot.lock().unwrap() = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Marks {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(m) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), m);
            }
            if let Some(responder) = responder {
                responder.send(Applied::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        (): (),
    ) -> io::Result<()> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock().unwrap() = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        let meta = self.snapshot.lock().unwrap().clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct InFiles;
struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, Marks, tempfile::TempDir> for InFiles {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Marks), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            cluster: 7,
            group: 0,
            node: 9,
        };
        let log = LogStore::open(dir.path(), identity, Arc::new(|_| {})).unwrap();
        log.set_purge_floor(u64::MAX);
        Ok((dir, log, Marks::default()))
    }
}

impl StoreBuilder<TypeConfig, LogStore, Marks> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Marks), StorageError<TypeConfig>> {
        let journal = Box::new(MemoryJournal::open(MemoryDisk::default()));
        let log = LogStore::over(journal, Arc::new(|_| {}));
        log.set_purge_floor(u64::MAX);
        Ok(((), log, Marks::default()))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_in_files() {
    Suite::test_all(InFiles).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}
