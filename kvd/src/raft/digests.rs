//! The digests of this node's contents behind the entries that asked for them.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use super::position::Position;
use crate::keyspace::View;
use crate::storage::ReadView;

/// So many are remembered.
const KEPT_MAX: usize = 16;

/// So many are computed or wait for it: each has a view of the state, which keeps the engine from
/// giving space back.
const PENDING_MAX: usize = 4;

/// The last digests.
pub(super) struct Digests {
    /// By index, the oldest first; none where it is not computed yet.
    kept: Mutex<VecDeque<(u64, Option<Result<String, String>>)>>,
    changed: watch::Sender<()>,
}

impl Default for Digests {
    fn default() -> Self {
        Digests {
            kept: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Digests {
    /// One is going to be computed, of the state behind the entry at `index`; `false` where there
    /// are too many already.
    pub(super) fn begin(&self, index: u64) -> bool {
        let mut kept = self.kept.lock().expect("no panic while held");
        if kept.iter().filter(|(_, digest)| digest.is_none()).count() >= PENDING_MAX {
            return false;
        }
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((index, None));
        true
    }

    /// Computes it, which reads all contents.
    pub(super) fn compute(&self, position: &Position, view: &ReadView) {
        let digest = View::new(view, position.time_ms, position.time_ms)
            .and_then(|view| view.digest())
            .map(|digest| crate::hex::text(&digest))
            .map_err(|error| error.to_string());
        let mut kept = self.kept.lock().expect("no panic while held");
        let index = position.index();
        if let Some(slot) = kept.iter_mut().find(|(kept, _)| *kept == index) {
            slot.1 = Some(digest);
        }
        drop(kept);
        self.changed.send_replace(());
    }

    /// Waits for the digest behind an entry that this node has applied. None means that there is
    /// none: the state came past it as a snapshot, there were too many, or it is forgotten.
    pub(super) async fn wait(&self, index: u64) -> Option<Result<String, String>> {
        let mut changes = self.changed.subscribe();
        loop {
            let found = {
                let kept = self.kept.lock().expect("no panic while held");
                let slot = kept.iter().find(|(kept, _)| *kept == index);
                slot.map(|(_, digest)| digest.clone())
            };
            match found {
                None => return None,
                Some(Some(digest)) => return Some(digest),
                // The sender lives as long as this does.
                Some(None) => drop(changes.changed().await),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::{MemoryEngine, Store};

    #[tokio::test]
    async fn only_a_few_states_are_held_for_their_digests() {
        let (digests, store) = (
            Digests::default(),
            Store::new(Arc::new(MemoryEngine::new())),
        );
        let taken: Vec<u64> = (1..=9).filter(|index| digests.begin(*index)).collect();
        assert_eq!(taken, [1, 2, 3, 4]);
        assert_eq!(digests.wait(5).await, None);
        let position = Position {
            log_id: Some(crate::raft::log_id(1, 2)),
            ..Position::default()
        };
        digests.compute(&position, &store.read().unwrap());
        assert!(digests.wait(2).await.unwrap().is_ok());
        assert!(digests.begin(10) && !digests.begin(11));
    }
}
