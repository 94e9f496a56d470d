//! Carries out again, at a start, what the log knows to be committed and the engine does not have on
//! its disk.
//!
//! Raft would do so by itself, a few entries at a time, and no faster than the engine stores them.
//! Here all of it waits in few layers, and the engine gets them when the node serves already. Most of
//! the time goes to keys that are looked up in an engine that has just been opened, so that is done
//! for the entries behind by other threads meanwhile, in the order of the engine's keys.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use openraft::EntryPayload;
use tokio::sync::oneshot;

use super::entry;
use super::executor::{Executor, Stop};
use super::log::LogStore;
use super::types::{Entry, LogId};
use crate::command;
use crate::doors::Workers;
use crate::keyspace::{View, encoding};
use crate::storage::{Read as _, Store};

/// Entries of about so many bytes become one layer: reads look through all of them until the engine
/// has them.
const LAYER_BYTES: usize = 1 << 20;

/// For so many layers keys are looked up ahead.
const AHEAD: usize = 2;

/// What may wait for the engine at the end, about; what is more it gets on the way.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Why a node cannot be brought to where it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log could not be read.
    #[error("log: {0}")]
    Log(#[from] io::Error),
    /// An entry could not be carried out.
    #[error(transparent)]
    Stop(#[from] Stop),
}

/// Brings the state to the last entry that the log knows to be committed; returns how many entries
/// it took.
///
/// # Errors
///
/// See [`ReplayError`].
pub async fn replay(
    log: &LogStore,
    executor: &mut Executor,
    workers: &dyn Workers,
) -> Result<u64, ReplayError> {
    // The first entry of a cluster, its membership, has the index 0.
    let next_of = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
    let begin = next_of(executor.position().log_id);
    let end = next_of(log.committed());
    let store = executor.store().clone();
    let (mut next, mut ahead) = (begin, VecDeque::new());
    loop {
        while next < end && ahead.len() <= AHEAD {
            let entries = Arc::new(log.read(next, end, LAYER_BYTES)?);
            next = check(&entries, next)?;
            ahead.push_back((entries.clone(), look_up_beside(workers, &store, entries)));
        }
        let Some((entries, looked_up)) = ahead.pop_front() else {
            break;
        };
        if let Some(looked_up) = looked_up {
            // A worker that is gone has looked up less.
            let _ = looked_up.await;
        }
        executor.apply(entries.iter())?;
        while store.waiting().bytes > WAITING_BYTES_MAX {
            store.store_some(u64::MAX).map_err(Stop::Engine)?;
        }
    }
    // Nobody is to be slowed down for it.
    executor.take_applied_bytes();
    Ok(next - begin.min(next))
}

/// What comes behind `entries`, which have to begin with the entry `first`.
fn check(entries: &[Entry], first: u64) -> io::Result<u64> {
    match (entries.first(), entries.last()) {
        (Some(begin), Some(last)) if begin.log_id.index == first => Ok(last.log_id.index + 1),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("entry {first} is committed, but is not there"),
        )),
    }
}

/// Looks up what `entries` name, so that carrying them out finds it in memory.
fn look_up_beside(
    workers: &dyn Workers,
    store: &Arc<Store>,
    entries: Arc<Vec<Entry>>,
) -> Option<oneshot::Receiver<()>> {
    // There a reader holds up who writes.
    if store.views_block_stores() {
        return None;
    }
    let (done, wait) = oneshot::channel();
    let store = store.clone();
    workers.run(Box::new(move || {
        look_up(&store, &entries);
        drop(entries);
        // Whoever waited may have gone.
        let _ = done.send(());
    }));
    Some(wait)
}

/// What fails here fails again where it counts.
fn look_up(store: &Store, entries: &[Entry]) {
    let Ok(view) = store.read() else { return };
    let Ok(epoch) = View::new(&view, 0, 0).map(|view| view.state().epoch) else {
        return;
    };
    let mut keys = Vec::new();
    for entry in entries {
        let EntryPayload::Normal(proposal) = &entry.payload else {
            continue;
        };
        let Ok((_, groups)) = entry::decode(proposal.bytes.clone()) else {
            return;
        };
        for group in groups.iter().filter(|group| !group.is_internal()) {
            let (mut commands, mut args) = (group.commands(), Vec::new());
            while let Ok(true) = commands.next_into(&mut args) {
                if let Ok(spec) = command::lookup(&args) {
                    keys.extend(
                        spec.keys_of(&args)
                            .map(|key| encoding::record_key(epoch, key)),
                    );
                }
            }
        }
    }
    keys.sort_unstable_by(|a, b| a.as_slice().cmp(b.as_slice()));
    keys.dedup_by(|a, b| a.as_slice() == b.as_slice());
    for key in &keys {
        if view.get(key.as_slice(), &mut |_| {}).is_err() {
            return;
        }
    }
}
