//! Layers against a model, the memory engine's disk, and both kinds of read views.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

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
    assert!(!store.views_block_writes());
    store.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    let view = store.read().unwrap();
    store.write(&[Op::Put(b"a", b"2")], &mark(2)).unwrap();
    assert_eq!(value(&view, b"a"), Some(b"1".to_vec()));
    assert_eq!(view.mark(), &mark(1));
    assert_eq!(value(&store.read().unwrap(), b"a"), Some(b"2".to_vec()));
}

/// An engine whose writes can be seen half done by whoever reads meanwhile.
struct Halves(MemoryEngine);

impl Read for Halves {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}

impl Engine for Halves {
    fn name(&self) -> &str {
        "halves"
    }
    fn version(&self) -> &str {
        self.0.version()
    }
    fn caps(&self) -> Caps {
        Caps::empty()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn mark(&self) -> Result<Mark> {
        self.0.mark()
    }
    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let before = self.0.mark()?;
        for op in batch {
            self.0.write(&[*op], &before)?;
            for _ in 0..10 {
                std::thread::yield_now();
            }
        }
        self.0.write(&[], mark)
    }
    fn sync(&self) -> Result<Mark> {
        self.0.sync()
    }
    fn view(&self) -> Result<Box<dyn EngineView>> {
        Err(Error::unsupported("view"))
    }
    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.0.replace(feed, mark)
    }
    fn property(&self, name: &str) -> Option<String> {
        self.0.property(name)
    }
    fn properties(&self) -> Vec<String> {
        self.0.properties()
    }
    fn compact(&self) -> Result<()> {
        self.0.compact()
    }
    fn verify(&self) -> Result<()> {
        self.0.verify()
    }
    fn close(&self) -> Result<()> {
        self.0.close()
    }
}

/// Readers of an engine without views see, in one view, only what one write left.
#[test]
fn without_views_a_read_and_a_write_exclude_each_other() {
    let store = Store::new(Arc::new(Halves(MemoryEngine::new())));
    assert!(store.views_block_writes());
    const WRITES: u64 = 500;
    std::thread::scope(|scope| {
        let store = &store;
        let read_all = move || {
            let mut last = 0;
            while last < WRITES {
                let view = store.read().unwrap();
                let index = view.mark().index;
                assert!(index >= last);
                let expected = (index > 0).then(|| index.to_be_bytes().to_vec());
                assert_eq!(value(&view, b"a"), expected);
                std::thread::yield_now();
                assert_eq!(value(&view, b"b"), expected);
                last = index;
            }
        };
        scope.spawn(read_all);
        scope.spawn(read_all);
        for index in 1..=WRITES {
            let number = index.to_be_bytes();
            store
                .write(
                    &[Op::Put(b"a", &number), Op::Put(b"b", &number)],
                    &mark(index),
                )
                .unwrap();
        }
    });
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
