//! The digests of this node's contents behind the entries that asked for them.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use super::position::Position;
use crate::keyspace::View;
use crate::storage::ReadView;

/// So many are remembered.
const KEPT_MAX: usize = 16;

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
    /// One is going to be computed, of the state behind the entry at `index`.
    pub(super) fn begin(&self, index: u64) {
        let mut kept = self.kept.lock().expect("no panic while held");
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((index, None));
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
    /// none: the state came past it as a snapshot, or it is forgotten.
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
