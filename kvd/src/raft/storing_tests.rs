//! What is applied while the engine does not get on, or fails.

use std::sync::{Arc, Condvar, Mutex, OnceLock};

use futures_util::{FutureExt as _, stream};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftStateMachine as _};

use super::entry::{self, GroupBuilder, Rule, Stamp};
use super::executor::Executor;
use super::log::{Body, Journal as _, LogStore, MemoryDisk, MemoryJournal};
use super::replay::replay;
use super::state_machine::{Observer, StateMachine};
use super::storing::WAITING_MAX;
use super::suite_tests::{Unseen, log_of_everything, machine_of, machine_over};
use super::types::{Entry, Proposal, TypeConfig, log_id};
use crate::doors::Threads;
use crate::exit;
use crate::keyspace::{Limits, View};
use crate::resp::Reply;
use crate::storage::test_engine::TestEngine;
use crate::storage::{Caps, Engine as _, Error, ErrorKind, MemoryEngine, Store};

/// Where the engine's writes stand still.
#[derive(Default)]
struct Barrier {
    /// How many have come, and whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Barrier {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn wait_for_one(&self) {
        let mut state = self.state.lock().unwrap();
        while state.0 == 0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// Notes what waited for the engine at each group that was carried out, and why nothing more is.
#[derive(Default)]
struct Watching {
    store: OnceLock<Arc<Store>>,
    waiting: Mutex<Vec<usize>>,
    stopped: Mutex<Vec<(i32, String)>>,
}

impl Observer for Watching {
    fn applied(&self, _origin: u64, _sequence: u64, _index: u64, _replies: &[Reply]) {
        if let Some(store) = self.store.get() {
            self.waiting.lock().unwrap().push(store.waiting().bytes);
        }
    }

    fn stopped(&self, code: i32, reason: &str) {
        let mut stopped = self.stopped.lock().unwrap();
        stopped.push((code, reason.to_owned()));
    }
}

fn engine_behind(barrier: &Arc<Barrier>) -> Arc<TestEngine> {
    let barrier = barrier.clone();
    let caps = Caps::DURABLE.with(Caps::VIEW);
    Arc::new(TestEngine::new(caps, move |memory, batch, mark| {
        barrier.pass();
        memory.write(batch, mark)
    }))
}

fn set(index: u64, key: &str, value: &str) -> Entry {
    let mut group = GroupBuilder::new(Rule::Each);
    group.command(&["SET", key, value]);
    let stamp = Stamp {
        level: 1,
        time_ms: 1_700_000_000_000 + index,
        seed: index,
    };
    let mut group = group.finish();
    group.origin = 1;
    let bytes = entry::encode(stamp, &[group]);
    Entry {
        log_id: log_id(1, index),
        payload: EntryPayload::Normal(Proposal::new(bytes)),
    }
}

/// Applies an entry, and waits for its replies.
async fn apply(machine: &mut StateMachine, entry: Entry) {
    let item: EntryResponder<TypeConfig> = (entry, None);
    machine.apply(stream::iter([Ok(item)])).await.unwrap();
}

fn get(store: &Store, key: &str) -> Option<String> {
    let view = store.read().unwrap();
    let value = View::new(&view, 0, 0).unwrap().get_string(key.as_bytes());
    value
        .unwrap()
        .map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_stands_still_delays_no_reply() {
    let temp = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::default());
    let engine = engine_behind(&barrier);
    let mut machine = machine_over(
        engine.clone(),
        log_of_everything(),
        temp.path(),
        Arc::new(Unseen),
    );
    apply(&mut machine, set(1, "a", "1")).await;
    let storing = machine.clone();
    let storing = crate::doors::spawn(async move { storing.store_all().await });
    tokio::task::block_in_place(|| barrier.wait_for_one());
    // The engine has begun to write, and does not end.
    for index in 2..=100 {
        apply(&mut machine, set(index, "a", &index.to_string())).await;
        assert_eq!(get(machine.store(), "a"), Some(index.to_string()));
    }
    assert_eq!(machine.progress().borrow().index, 100);
    assert_eq!(machine.store().mark().unwrap().index, 100);
    assert!(engine.memory.is_empty());
    barrier.open();
    storing.await.unwrap();
    // What a key was in between the engine never gets to see; the mark tells where it stands.
    assert_eq!(machine.make_durable().await.unwrap().index(), 100);
    assert_eq!(machine.durable().unwrap().index(), 100);
    machine.close().await.unwrap();
    assert_eq!(barrier.state.lock().unwrap().0, 2);
    assert_eq!(get(&Store::new(engine), "a").as_deref(), Some("100"));
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_nothing_is_applied_until_the_engine_gets_on() {
    let temp = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::default());
    let observer = Arc::new(Watching::default());
    let mut machine = machine_over(
        engine_behind(&barrier),
        log_of_everything(),
        temp.path(),
        observer.clone(),
    );
    drop(observer.store.set(machine.store().clone()));
    let value = "x".repeat(1 << 20);
    let mut index = 0;
    while machine.store().waiting().bytes < WAITING_MAX.bytes {
        index += 1;
        apply(&mut machine, set(index, &format!("key:{index}"), &value)).await;
    }
    assert!(machine.store().waiting().bytes < WAITING_MAX.bytes + (2 << 20));
    tokio::task::block_in_place(|| barrier.wait_for_one());
    let mut applying = Box::pin(apply(&mut machine, set(index + 1, "last", "1")));
    for _ in 0..1000 {
        assert!((&mut applying).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    barrier.open();
    applying.await;
    let seen = observer.waiting.lock().unwrap().clone();
    assert_eq!(seen.len() as u64, index + 1);
    assert!(seen[seen.len() - 1] < WAITING_MAX.bytes);
    machine.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_to_store_stops_the_node_once() {
    let temp = tempfile::tempdir().unwrap();
    let observer = Arc::new(Watching::default());
    let engine = TestEngine::new(Caps::DURABLE.with(Caps::VIEW), |_, _, _| {
        Err(Error::new(ErrorKind::Io, "the disk is gone"))
    });
    let mut machine = machine_over(
        Arc::new(engine),
        log_of_everything(),
        temp.path(),
        observer.clone(),
    );
    apply(&mut machine, set(1, "a", "1")).await;
    assert!(machine.make_durable().await.is_err());
    let item: EntryResponder<TypeConfig> = (set(2, "a", "2"), None);
    assert!(machine.apply(stream::iter([Ok(item)])).await.is_err());
    assert_eq!(machine.store().mark().unwrap().index, 1);
    let stopped = observer.stopped.lock().unwrap();
    assert_eq!(stopped.len(), 1);
    let (code, reason) = &stopped[0];
    assert_eq!(*code, exit::IO);
    assert!(reason.contains("the disk is gone"), "{stopped:?}");
}

/// A process that ends between apply and store finds the engine as it was, and carries the entries
/// out again to the same contents.
#[test]
fn what_was_applied_and_not_stored_is_applied_again() {
    let memory = Arc::new(MemoryEngine::new());
    let entries: Vec<Entry> = (1..=9)
        .map(|index| set(index, &format!("key:{}", index % 4), &index.to_string()))
        .collect();
    let mut digests = Vec::new();
    for stored in [2, 5, 9] {
        let store = Arc::new(Store::new(memory.clone()));
        let mut executor = Executor::new(store.clone(), Limits::default()).unwrap();
        let behind = executor.position().index() as usize;
        executor.apply(entries[behind..stored].iter()).unwrap();
        store.sync().unwrap();
        executor.apply(entries[stored..].iter()).unwrap();
        let view = store.read().unwrap();
        assert_eq!(view.mark().index, 9);
        digests.push(View::new(&view, 0, 0).unwrap().digest().unwrap());
        drop((view, executor, store));
        memory.crash();
        assert_eq!(memory.mark().unwrap().index, stored as u64);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

/// More than may wait else is committed at a start, and the engine stands still: it is carried out
/// up to the last entry that is known to be committed, and delays nothing that comes then.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_carries_out_again_waits_for_no_engine() {
    let temp = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::default());
    let engine = engine_behind(&barrier);
    let value = "x".repeat(1 << 20);
    let committed = (WAITING_MAX.bytes >> 20) as u64 + 6;
    let mut journal = MemoryJournal::open(MemoryDisk::default());
    for index in 0..=committed + 1 {
        let entry = set(index, &format!("key:{index}"), &value);
        let body = Body::of(&entry.payload);
        journal.append(entry.log_id, body).unwrap();
    }
    journal.save_committed(log_id(1, committed)).unwrap();
    let log = LogStore::over(Box::new(journal), Arc::new(|_| {}));
    let store = Arc::new(Store::new(engine.clone()));
    let mut executor = Executor::new(store.clone(), Limits::default()).unwrap();
    assert_eq!(
        replay(&log, &mut executor, &Threads).await.unwrap(),
        committed + 1
    );
    assert_eq!(replay(&log, &mut executor, &Threads).await.unwrap(), 0);
    assert_eq!(store.mark().unwrap().index, committed);
    assert!(store.waiting().bytes > WAITING_MAX.bytes && engine.memory.is_empty());
    let mut machine = machine_of(executor, log, temp.path(), Arc::new(Unseen));
    let last = committed + 1;
    apply(&mut machine, set(last, "last", "1")).await;
    assert_eq!(get(machine.store(), "last").as_deref(), Some("1"));
    let first = get(machine.store(), "key:0").map(|value| value.len());
    assert_eq!(first, Some(value.len()));
    barrier.open();
    assert_eq!(machine.make_durable().await.unwrap().index(), last);
    machine.close().await.unwrap();
}
