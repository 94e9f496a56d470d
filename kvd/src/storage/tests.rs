//! Layers against a model, the memory engine's disk, and both kinds of read views.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::test_engine::TestEngine;
use super::*;

mod long_reads;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A change that owns its bytes.
#[derive(Debug, Clone)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Change {
    fn op(&self) -> Op<'_> {
        match self {
            Change::Put(key, value) => Op::Put(key, value),
            Change::Delete(key) => Op::Delete(key),
            Change::DeleteRange(from, to) => Op::DeleteRange(from, to),
        }
    }

    fn apply(&self, model: &mut Model) {
        match self {
            Change::Put(key, value) => {
                model.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                model.remove(key);
            }
            Change::DeleteRange(from, to) => {
                model.retain(|key, _| key < from || key >= to);
            }
        }
    }
}

/// Short keys over few bytes: many changes meet the same key, and ranges hide long runs.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..7, 0..3)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (key(), any::<u8>()).prop_map(|(key, value)| Change::Put(key, vec![value])),
        3 => key().prop_map(Change::Delete),
        2 => (key(), key()).prop_map(|(from, to)| Change::DeleteRange(from, to)),
    ]
}

fn collect(read: &dyn Read, range: Range<'_>, max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut entries = Vec::new();
    read.scan(range, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        if entries.len() == max {
            Flow::Stop
        } else {
            Flow::Continue
        }
    })
    .unwrap();
    entries
}

fn value(read: &dyn Read, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = None;
    let found = read
        .get(key, &mut |bytes| value = Some(bytes.to_vec()))
        .unwrap();
    assert_eq!(found, value.is_some());
    value
}

fn expected(model: &Model, range: Range<'_>, max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let within = |key: &[u8]| key >= range.from && range.to.is_none_or(|to| key < to);
    let mut entries: Vec<_> = model
        .iter()
        .filter(|(key, _)| within(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if range.reverse {
        entries.reverse();
    }
    entries.truncate(max);
    entries
}

const ALL: Range<'_> = Range {
    from: b"",
    to: None,
    reverse: false,
};

fn mark(index: u64) -> Mark {
    Mark {
        index,
        data: vec![index as u8],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Reads through layers are those of a map to which all changes were applied in order.
    #[test]
    fn stack_reads_as_if_all_layers_were_applied(
        base in prop::collection::vec(change(), 0..120),
        layers in prop::collection::vec(prop::collection::vec(change(), 0..30), 0..4),
        ranges in prop::collection::vec((key(), prop::option::of(key()), any::<bool>(), 1_usize..70), 8),
    ) {
        let mut model = Model::new();
        let engine = MemoryEngine::new();
        for change in &base {
            engine.write(&[change.op()], &mark(1)).unwrap();
            change.apply(&mut model);
        }
        let stored: Vec<Layer> = layers.iter().map(|changes| {
            let mut layer = Layer::new();
            for change in changes {
                layer.apply(change.op());
                change.apply(&mut model);
            }
            let bytes: usize = layer.points().map(|(key, value)| {
                key.len() + value.map_or(0, |value| value.len())
            }).sum();
            assert_eq!(layer.bytes(), bytes);
            layer
        }).collect();
        let stack = Stack::new(&engine, &stored);
        for first in 0..7 {
            for second in 0..7 {
                let key = [first, second];
                prop_assert_eq!(value(&stack, &key), model.get(&key[..]).cloned());
                prop_assert_eq!(value(&stack, &key[..1]), model.get(&key[..1]).cloned());
            }
        }
        for (from, to, reverse, max) in &ranges {
            let range = Range { from, to: to.as_deref(), reverse: *reverse };
            prop_assert_eq!(collect(&stack, range, *max), expected(&model, range, *max));
        }
        // A layer's batch does to an engine what the layer does to reads.
        for layer in &stored {
            engine.write(&layer.ops(), &mark(2)).unwrap();
        }
        prop_assert_eq!(collect(&engine, ALL, usize::MAX), expected(&model, ALL, usize::MAX));
    }

    /// Several layers are the same as one that is joined of them, and as one batch.
    #[test]
    fn layers_are_joined_and_make_one_batch(
        layers in prop::collection::vec(prop::collection::vec(change(), 0..20), 0..6),
        ranges_too in any::<bool>(),
    ) {
        let (mut model, mut stored) = (Model::new(), Vec::new());
        for changes in &layers {
            let mut layer = Layer::new();
            for change in changes {
                if ranges_too || !matches!(change, Change::DeleteRange(..)) {
                    layer.apply(change.op());
                    change.apply(&mut model);
                }
            }
            stored.push(layer);
        }
        let joined = [Layer::joined(&stored)];
        let nothing = MemoryEngine::new();
        let all = expected(&model, ALL, usize::MAX);
        prop_assert_eq!(collect(&Stack::new(&nothing, &joined), ALL, usize::MAX), all.clone());
        let bytes: usize = joined[0].points().map(|(key, value)| {
            key.len() + value.map_or(0, |value| value.len())
        }).sum();
        prop_assert_eq!(joined[0].bytes(), bytes);
        let (engine, batch) = (MemoryEngine::new(), layer::batch_of(&stored));
        if !ranges_too {
            prop_assert_eq!(&batch, &joined[0].ops());
        }
        engine.write(&batch, &mark(1)).unwrap();
        prop_assert_eq!(collect(&engine, ALL, usize::MAX), all);
    }

    /// What one `set` did is undone by what it returned.
    #[test]
    fn restore_takes_back_a_set(changes in prop::collection::vec(change(), 0..40), later in prop::collection::vec((key(), prop::option::of(any::<u8>())), 1..20)) {
        let mut layer = Layer::new();
        for change in &changes {
            layer.apply(change.op());
        }
        let before = layer.clone();
        let mut undo = Vec::new();
        for (key, value) in &later {
            let key: layer::LayerKey = key.as_slice().into();
            let value = value.map(|value| bytes::Bytes::from(vec![value]));
            undo.push((key.clone(), layer.set(key, value)));
        }
        for (key, old) in undo.into_iter().rev() {
            layer.restore(key, old);
        }
        prop_assert_eq!(layer.ops(), before.ops());
        prop_assert_eq!(layer.bytes(), before.bytes());
    }
}

/// A scan over a base of which a layer hides most looks at a small part of it.
#[test]
fn scan_seeks_past_a_removed_range() {
    struct Counting(MemoryEngine, std::cell::Cell<usize>);
    impl Read for Counting {
        fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
            self.0.get(key, out)
        }
        fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
            self.0.scan(range, &mut |key, value| {
                self.1.set(self.1.get() + 1);
                out(key, value)
            })
        }
    }
    let base = Counting(MemoryEngine::new(), Default::default());
    for number in 0..10_000_u32 {
        base.0
            .write(&[Op::Put(&number.to_be_bytes(), b"")], &mark(1))
            .unwrap();
    }
    let mut layer = Layer::new();
    layer.apply(Op::DeleteRange(
        &10_u32.to_be_bytes(),
        &9_990_u32.to_be_bytes(),
    ));
    let layers = [layer];
    let stack = Stack::new(&base, &layers);
    for reverse in [false, true] {
        base.1.set(0);
        assert_eq!(
            collect(&stack, Range { reverse, ..ALL }, usize::MAX).len(),
            20
        );
        assert!(base.1.get() < 50, "{} entries were visited", base.1.get());
    }
}

#[test]
fn crash_goes_back_to_the_last_sync() {
    let engine = MemoryEngine::new();
    engine
        .write(&[Op::Put(b"a", b"1"), Op::Put(b"b", b"1")], &mark(1))
        .unwrap();
    assert_eq!(engine.sync().unwrap(), mark(1));
    engine
        .write(
            &[Op::Put(b"a", b"2"), Op::DeleteRange(b"b", b"c")],
            &mark(2),
        )
        .unwrap();
    engine.write(&[Op::Put(b"c", b"2")], &mark(3)).unwrap();
    assert_eq!(engine.mark().unwrap(), mark(3));
    engine.crash();
    assert_eq!(engine.mark().unwrap(), mark(1));
    let entries = collect(&engine, ALL, usize::MAX);
    assert_eq!(
        entries,
        [(b"a".into(), b"1".into()), (b"b".into(), b"1".into())]
    );
}

#[test]
fn volatile_engine_is_empty_after_a_crash() {
    let engine = MemoryEngine::with_caps(Caps::VIEW);
    engine.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    assert_eq!(engine.sync().unwrap(), Mark::default());
    engine.crash();
    assert!(engine.is_empty());
    assert_eq!(engine.mark().unwrap(), Mark::default());
}

#[test]
fn view_outlives_later_writes() {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    assert!(!store.views_block_stores());
    store.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    let view = store.read().unwrap();
    store.write(&[Op::Put(b"a", b"2")], &mark(2)).unwrap();
    assert_eq!(value(&view, b"a"), Some(b"1".to_vec()));
    assert_eq!(view.mark(), &mark(1));
    assert_eq!(value(&store.read().unwrap(), b"a"), Some(b"2".to_vec()));
}

/// A write that can be seen half done by whoever reads meanwhile.
fn in_halves(memory: &MemoryEngine, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
    let before = memory.mark()?;
    for op in batch {
        memory.write(&[*op], &before)?;
        for _ in 0..10 {
            std::thread::yield_now();
        }
    }
    memory.write(&[], mark)
}

fn layer(changes: &[Op<'_>]) -> Layer {
    let mut layer = Layer::new();
    for change in changes {
        layer.apply(*change);
    }
    layer
}

/// Of little use, but it is there.
const CACHE_BYTES: usize = 1 << 20;

/// While one thread applies and another stores, readers see, in one view, only what one apply left,
/// and never go back.
fn reads_are_consistent_while_changes_are_stored(caps: Caps) {
    const APPLIED: u64 = 2000;
    let store = Store::new(Arc::new(TestEngine::new(caps, in_halves))).with_cache(CACHE_BYTES);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        let read_all = move || {
            let mut last = 0;
            while last < APPLIED {
                let view = store.read().unwrap();
                let index = view.mark().index;
                assert!(index >= last);
                let expected = (index > 0).then(|| index.to_be_bytes().to_vec());
                assert_eq!(value(&view, b"a"), expected);
                std::thread::yield_now();
                assert_eq!(value(&view, b"b"), expected);
                // One key of a kind is there at a time: a range goes, and the next key comes.
                let kinds = collect(
                    &view,
                    Range {
                        from: b"k",
                        to: Some(b"l"),
                        reverse: false,
                    },
                    9,
                );
                assert_eq!(kinds.len(), usize::from(index > 0), "{kinds:?}");
                last = index;
            }
        };
        scope.spawn(read_all);
        scope.spawn(read_all);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                store.store_all().unwrap();
                std::thread::yield_now();
            }
            store.store_all().unwrap();
        });
        for index in 1..=APPLIED {
            let number = index.to_be_bytes();
            let kind = [b"k", &number[..]].concat();
            let latest = store.latest();
            let before = (index > 1).then(|| (index - 1).to_be_bytes().to_vec());
            assert_eq!(value(&latest, b"a"), before);
            assert_eq!(
                collect(&latest, ALL, usize::MAX).len(),
                if index > 1 { 3 } else { 0 }
            );
            let changes = [
                Op::Put(b"a", &number),
                Op::DeleteRange(b"k", b"l"),
                Op::Put(&kind, b""),
                Op::Put(b"b", &number),
            ];
            store.apply(layer(&changes), mark(index));
            store.tidy();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(store.waiting(), Amount::default());
    assert_eq!(store.engine().mark().unwrap(), mark(APPLIED));
    assert_eq!(
        value(&**store.engine(), b"b"),
        Some(APPLIED.to_be_bytes().to_vec())
    );
}

#[test]
fn reads_are_consistent_while_changes_are_stored_under_views() {
    reads_are_consistent_while_changes_are_stored(Caps::VIEW);
}

#[test]
fn reads_are_consistent_while_changes_are_stored_without_views() {
    reads_are_consistent_while_changes_are_stored(Caps::empty());
}

/// What happens to a store, in some order.
#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Change>),
    Tidy,
    Store,
    StoreAll,
    Unseen,
    Open,
    Look,
    Replace,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(change(), 0..6).prop_map(Step::Apply),
        4 => Just(Step::Tidy),
        2 => Just(Step::Store),
        1 => Just(Step::StoreAll),
        1 => Just(Step::Unseen),
        3 => Just(Step::Open),
        6 => Just(Step::Look),
        1 => Just(Step::Replace),
    ]
}

struct Contents(std::collections::btree_map::IntoIter<Vec<u8>, Vec<u8>>);

impl Feed for Contents {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        Ok(self.0.next().is_some_and(|(key, value)| {
            out(&key, &value);
            true
        }))
    }
}

fn looks_like(read: &dyn Read, model: &Model) {
    assert_eq!(
        collect(read, ALL, usize::MAX),
        expected(model, ALL, usize::MAX)
    );
    let reverse = Range {
        reverse: true,
        ..ALL
    };
    assert_eq!(collect(read, reverse, 5), expected(model, reverse, 5));
    for first in 0..7 {
        let key = [first];
        assert_eq!(value(read, &key), model.get(&key[..]).cloned());
    }
}

/// Whatever is stored when, reads see all that was applied, and a view, perhaps a long one, what it
/// saw at first.
fn a_store_reads_as_if_nothing_waited(caps: Caps, at_length: bool, steps: &[Step]) {
    let memory = Arc::new(MemoryEngine::with_caps(caps));
    let store = Store::new(memory.clone()).with_cache(CACHE_BYTES);
    let (mut model, mut index) = (Model::new(), 0);
    let mut views: Vec<(ReadView, Mark, Model)> = Vec::new();
    let open = |store: &Store| match at_length {
        true => store.read_at_length().unwrap(),
        false => store.read().unwrap(),
    };
    for step in steps {
        // Who stores would wait for ever for the views of this thread.
        let waits = match step {
            Step::Store | Step::StoreAll => !at_length,
            Step::Replace => true,
            _ => false,
        };
        if waits && !caps.contains(Caps::VIEW) {
            views.clear();
        }
        match step {
            Step::Apply(changes) => {
                index += 1;
                let mut layer = Layer::new();
                for change in changes {
                    change.apply(&mut model);
                    layer.apply(change.op());
                }
                store.apply(layer, mark(index));
            }
            Step::Tidy => store.tidy(),
            Step::Store => {
                let waited = store.waiting().layers > 0;
                assert_eq!(store.store_some(u64::MAX).unwrap() > 0, waited);
            }
            Step::StoreAll => {
                store.store_all().unwrap();
                assert_eq!(store.waiting(), Amount::default());
                assert_eq!(store.engine().mark().unwrap().index, index);
                looks_like(&**store.engine(), &model);
            }
            Step::Unseen => store.store_unseen(&[]).unwrap(),
            Step::Open => views.push((open(&store), store.mark().unwrap(), model.clone())),
            Step::Look => {
                looks_like(&store.latest(), &model);
                looks_like(&store.read().unwrap(), &model);
                for (view, mark, model) in &views {
                    assert_eq!(view.mark(), mark);
                    looks_like(view, model);
                }
            }
            Step::Replace => {
                index += 5;
                model.retain(|key, _| key.first() != Some(&3));
                model.insert(b"new".to_vec(), b"1".to_vec());
                let mut contents = Contents(model.clone().into_iter());
                store.replace(&mut contents, &mark(index)).unwrap();
                assert_eq!(store.waiting(), Amount::default());
            }
        }
        assert_eq!(store.mark().unwrap().index, index);
    }
    drop(views);
    let durable = store.sync().unwrap();
    if caps.contains(Caps::DURABLE) {
        assert_eq!(durable.index, index);
        memory.crash();
        looks_like(&*memory, &model);
    }
}

/// Between a replacement and the news of it, a reader has the new contents, whatever was read of
/// the old ones, and what it reads is not taken for theirs.
#[test]
fn what_was_read_of_replaced_contents_is_never_mixed_with_the_new_ones() {
    let engine = Arc::new(TestEngine::new(Caps::VIEW, in_halves));
    let store = Arc::new(Store::new(engine.clone()).with_cache(CACHE_BYTES));
    for key in [&b"a"[..], b"b"] {
        store.write(&[Op::Put(key, b"old")], &mark(1)).unwrap();
    }
    let before = store.read().unwrap();
    assert_eq!(value(&before, b"a").as_deref(), Some(&b"old"[..]));
    let (readers, looked) = (Arc::downgrade(&store), Arc::new(AtomicBool::new(false)));
    let own = looked.clone();
    let look = move || {
        let view = readers.upgrade().unwrap().read().unwrap();
        assert_eq!(view.mark(), &mark(7));
        assert_eq!(value(&view, b"a").as_deref(), Some(&b"new"[..]));
        assert_eq!(value(&view, b"b").as_deref(), Some(&b"new"[..]));
        own.store(true, Ordering::Relaxed);
    };
    assert!(engine.replaced.set(Box::new(look)).is_ok());
    let contents = ["a", "b"].map(|key| (key.into(), b"new".to_vec()));
    let mut contents = Contents(Model::from(contents).into_iter());
    store.replace(&mut contents, &mark(7)).unwrap();
    assert!(looked.load(Ordering::Relaxed));
    for key in [b"a", b"b"] {
        assert_eq!(value(&before, key).as_deref(), Some(&b"old"[..]));
        let after = value(&store.read().unwrap(), key);
        assert_eq!(after.as_deref(), Some(&b"new"[..]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_store_with_views_reads_as_if_nothing_waited(steps in prop::collection::vec(step(), 1..80)) {
        a_store_reads_as_if_nothing_waited(Caps::DURABLE.with(Caps::VIEW), false, &steps);
    }

    #[test]
    fn a_store_without_views_reads_as_if_nothing_waited(steps in prop::collection::vec(step(), 1..80)) {
        a_store_reads_as_if_nothing_waited(Caps::DURABLE, false, &steps);
    }

    #[test]
    fn a_store_without_views_reads_at_length_as_if_nothing_waited(steps in prop::collection::vec(step(), 1..80)) {
        a_store_reads_as_if_nothing_waited(Caps::DURABLE, true, &steps);
    }

    #[test]
    fn a_volatile_store_reads_as_if_nothing_waited(steps in prop::collection::vec(step(), 1..80)) {
        a_store_reads_as_if_nothing_waited(Caps::VIEW, false, &steps);
    }
}

/// The first entry has the index of no entry at all, and is not taken for stored.
#[test]
fn the_mark_of_the_first_layer_is_seen() {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    store.apply(layer(&[Op::Put(b"a", b"1")]), mark(0));
    let view = store.read().unwrap();
    assert_eq!(view.mark(), &mark(0));
    assert_eq!(value(&view, b"a"), Some(b"1".to_vec()));
}

/// However many layers are applied, a read looks through few, and the engine gets them as few
/// batches.
#[test]
fn many_small_layers_become_few() {
    let batches = Arc::new(AtomicUsize::new(0));
    let count = batches.clone();
    let engine = TestEngine::new(Caps::VIEW, move |memory, batch, mark| {
        count.fetch_add(1, Ordering::Relaxed);
        memory.write(batch, mark)
    });
    let store = Store::new(Arc::new(engine));
    let mut most = 0;
    for index in 1..=10_000_u64 {
        store.apply(layer(&[Op::Put(&index.to_be_bytes(), b"1")]), mark(index));
        store.tidy();
        most = most.max(store.waiting().layers);
    }
    assert!(most < 30, "{most} layers");
    assert_eq!(store.waiting().changes, 10_000);
    assert!(store.waiting().bytes > 10_000 * 9);
    store.store_all().unwrap();
    assert_eq!(batches.load(Ordering::Relaxed), 1);
    assert_eq!(collect(&**store.engine(), ALL, usize::MAX).len(), 10_000);
}

/// Much that waits reaches the engine in bounded batches, each with its own mark, and a crash
/// between two of them leaves a state that was.
#[test]
fn batches_for_the_engine_are_bounded() {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    let large = vec![0; 3 << 20];
    for index in 1..=7_u64 {
        store.apply(layer(&[Op::Put(&index.to_be_bytes(), &large)]), mark(index));
    }
    let mut stored = Vec::new();
    while store.store_some(u64::MAX).unwrap() > 0 {
        let mark = store.engine().mark().unwrap();
        let entries = collect(&**store.engine(), ALL, usize::MAX).len();
        assert_eq!(entries as u64, mark.index);
        stored.push(mark.index);
    }
    assert_eq!(stored, [5, 7]);
}

/// A view that was opened in one thread may be closed in another, and the writer goes on then.
#[test]
fn writer_goes_on_when_the_last_view_closes() {
    let store = Store::new(Arc::new(MemoryEngine::with_caps(Caps::DURABLE)));
    let (first, second) = (store.read().unwrap(), store.read().unwrap());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.write(&[Op::Put(b"a", b"1")], &mark(1)));
        scope.spawn(move || drop(first));
        assert_eq!(value(&second, b"a"), None);
        drop(second);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(store.mark().unwrap(), mark(1));
}

#[test]
fn replacement_out_of_order_is_refused() {
    struct Entries(Vec<&'static [u8]>);
    impl Feed for Entries {
        fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
            Ok(self.0.pop().is_some_and(|key| {
                out(key, b"v");
                true
            }))
        }
    }
    let store = Store::new(Arc::new(MemoryEngine::new()));
    store.write(&[Op::Put(b"old", b"1")], &mark(1)).unwrap();
    let error = store.replace(&mut Entries(vec![b"a", b"b"]), &mark(2));
    assert!(error.is_err());
    assert_eq!(store.mark().unwrap(), mark(1));
    store
        .replace(&mut Entries(vec![b"b", b"a"]), &mark(2))
        .unwrap();
    assert_eq!(store.mark().unwrap(), mark(2));
    assert_eq!(value(&store.read().unwrap(), b"old"), None);
    assert_eq!(value(&store.read().unwrap(), b"b"), Some(b"v".to_vec()));
}
