//! The keyspace against a model, iteration under changes, and streams.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::encoding::tests::colliding;
use super::stream::{self, StreamError};
use super::*;
use crate::storage::{Engine, Flow, Mark, MemoryEngine, Op, Range, Read};

type Value = (Vec<u8>, Option<u64>);
type Model = BTreeMap<Vec<u8>, Value>;

fn txn(engine: &MemoryEngine, index: u64, time: u64) -> Txn<'_> {
    Txn::new(engine, index, time, index, Limits::default()).unwrap()
}

fn store(engine: &MemoryEngine, index: u64, changes: &Changes) {
    let mark = Mark {
        index,
        data: Vec::new(),
    };
    engine.write(&changes.ops(), &mark).unwrap();
}

/// Runs one entry of changes and stores it.
fn entry<T>(
    engine: &MemoryEngine,
    index: u64,
    time: u64,
    run: impl FnOnce(&mut Txn<'_>) -> T,
) -> T {
    let mut txn = txn(engine, index, time);
    let result = run(&mut txn);
    store(engine, index, &txn.finish());
    result
}

fn set(txn: &mut Txn<'_>, key: &[u8], value: &[u8]) {
    txn.set_string(key, value, Expire::Clear).unwrap();
}

fn view(engine: &MemoryEngine, time: u64) -> View<'_> {
    View::new(engine, time, time).unwrap()
}

fn entries(read: &dyn Read) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = Range {
        from: b"",
        to: None,
        reverse: false,
    };
    let mut entries = Vec::new();
    read.scan(all, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        Flow::Continue
    })
    .unwrap();
    entries
}

/// The counters and the expiry index fit the records.
fn assert_consistent(engine: &MemoryEngine) {
    let state = State::read(engine).unwrap();
    let (mut keys, mut expiring, mut indexed) = (0, BTreeSet::new(), BTreeSet::new());
    for (engine_key, value) in entries(engine) {
        if let Some((epoch, place, key)) = encoding::split_record(&engine_key) {
            assert_eq!(place, encoding::Place::of(key));
            if epoch == state.epoch {
                keys += 1;
                let (meta, _) = record::decode(&value).unwrap();
                expiring.extend(meta.expires_at_ms.map(|at| (at, key.to_vec())));
            }
        } else if let Some((epoch, at, _, key)) = encoding::split_expiry(&engine_key)
            && epoch == state.epoch
        {
            indexed.insert((at, key.to_vec()));
        }
    }
    assert_eq!(expiring, indexed);
    assert_eq!((keys, expiring.len() as u64), (state.keys, state.expiring));
}

fn assert_same(view: &View<'_>, model: &Model) {
    let live: Vec<_> = model.iter().collect();
    let mut met = BTreeMap::new();
    view.for_each(|key, meta| {
        met.insert(key.to_vec(), meta.expires_at_ms);
        ControlFlow::Continue(())
    })
    .unwrap();
    let expected = live.iter().map(|(key, (_, at))| ((*key).clone(), *at));
    assert_eq!(met, expected.collect());
    for key in 0..KEYS {
        let key = key_of(key);
        let expected = model.get(&key).map(|(value, _)| value.clone());
        let value = view.get_string(&key).unwrap();
        assert_eq!(value.as_deref(), expected.as_deref());
        assert_eq!(view.exists(&key).unwrap(), expected.is_some());
        assert_eq!(
            view.modified(&key).unwrap() < view::ABSENT,
            expected.is_some()
        );
    }
    assert_eq!(view.len().unwrap(), live.len() as u64);
    let expiring = live.iter().filter(|(_, (_, at))| at.is_some()).count();
    assert_eq!(view.expires_len().unwrap(), expiring as u64);
}

const KEYS: u8 = 12;

fn key_of(number: u8) -> Vec<u8> {
    match number {
        0..4 => colliding(b'a', number).to_vec(),
        4..8 => format!("{{tag}}{number}").into_bytes(),
        _ => format!("key:{number}").into_bytes(),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u8, u8),
    Delete(u8),
    Expire(u8, Option<u8>),
    Rename(u8, u8),
    FlushAll,
    RemoveDue(u8),
    /// Time passes, and a new entry begins.
    Entry(u8),
    /// What has been gathered is stored, and a new group begins.
    Store,
    /// The engine's leftovers are removed.
    Sweep(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    prop_oneof![
        8 => (key.clone(), any::<u8>(), any::<u8>()).prop_map(|(k, v, e)| Step::Set(k, v, e)),
        3 => key.clone().prop_map(Step::Delete),
        4 => (key.clone(), prop::option::of(0_u8..30)).prop_map(|(k, at)| Step::Expire(k, at)),
        3 => (key.clone(), key).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => Just(Step::FlushAll),
        2 => (0_u8..4).prop_map(Step::RemoveDue),
        4 => (0_u8..8).prop_map(Step::Entry),
        3 => Just(Step::Store),
        2 => (1_u8..4).prop_map(Step::Sweep),
    ]
}

/// Does one step, whatever it answers.
fn run_unchecked(txn: &mut Txn<'_>, step: &Step) {
    let mut model = Model::new();
    txn.view()
        .for_each(|key, meta| {
            model.insert(key.to_vec(), (Vec::new(), meta.expires_at_ms));
            ControlFlow::Continue(())
        })
        .unwrap();
    run(txn, &mut model, step);
}

/// Does one step to both, and compares what it answers.
fn run(txn: &mut Txn<'_>, model: &mut Model, step: &Step) {
    let time = txn.replicated_ms();
    match *step {
        Step::Set(key, value, expire) => {
            let key = key_of(key);
            let value = vec![value; usize::from(value % 5)];
            let (expire, at) = match expire % 4 {
                0 => (Expire::Keep, model.get(&key).and_then(|(_, at)| *at)),
                1 => {
                    let at = time + u64::from(expire % 16);
                    (Expire::At(at), Some(at))
                }
                _ => (Expire::Clear, None),
            };
            txn.set_string(&key, &value, expire).unwrap();
            model.insert(key, (value, at));
        }
        Step::Delete(key) => {
            let existed = model.remove(&key_of(key)).is_some();
            assert_eq!(txn.delete(&key_of(key)).unwrap(), existed);
        }
        Step::Expire(key, at) => {
            let at = at.map(|at| (time + u64::from(at)).saturating_sub(5));
            let entry = model.get_mut(&key_of(key));
            assert_eq!(txn.set_expiry(&key_of(key), at).unwrap(), entry.is_some());
            if let Some(entry) = entry {
                entry.1 = at;
            }
        }
        Step::Rename(from, to) => {
            let value = model.remove(&key_of(from));
            let renamed = txn.rename(&key_of(from), &key_of(to)).unwrap();
            assert_eq!(renamed, value.is_some());
            if let Some(value) = value {
                model.insert(key_of(to), value);
            }
        }
        Step::FlushAll => {
            txn.flush_all();
            model.clear();
        }
        Step::RemoveDue(max) => {
            assert!(txn.remove_due(usize::from(max)).unwrap() <= usize::from(max));
        }
        Step::Entry(_) | Step::Store | Step::Sweep(_) => unreachable!("done by the caller"),
    }
    model.retain(|_, (_, at)| at.is_none_or(|at| at > time));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever is done, in whichever grouping: reads are those of a map, and so is the digest.
    #[test]
    fn transactions_behave_as_a_map_with_expiry(
        steps in prop::collection::vec((step(), any::<bool>()), 1..120)
    ) {
        let engine = MemoryEngine::new();
        let mut model = Model::new();
        let (mut index, mut time) = (1, 1000);
        let mut txn = txn(&engine, index, time);
        for (step, keep) in &steps {
            match *step {
                Step::Entry(passed) => {
                    index += 1;
                    time += u64::from(passed);
                    txn.begin_entry(index, time, index);
                    model.retain(|_, (_, at)| at.is_none_or(|at| at > time));
                }
                Step::Store | Step::Sweep(_) => {
                    store(&engine, index, &txn.finish());
                    assert_consistent(&engine);
                    assert_same(&view(&engine, time), &model);
                    if let Step::Sweep(max) = *step {
                        let digest = view(&engine, time).digest().unwrap();
                        let epoch = State::read(&engine).unwrap().epoch;
                        let left = sweep(&engine, epoch, usize::from(max)).unwrap();
                        let before = engine.len();
                        let mark = engine.mark().unwrap();
                        engine.write(&left.ops(), &mark).unwrap();
                        assert_eq!(before - engine.len(), left.entries);
                        assert!(left.entries <= usize::from(max));
                        assert_eq!(view(&engine, time).digest().unwrap(), digest);
                    }
                    index += 1;
                    txn = Txn::new(&engine, index, time, index, Limits::default()).unwrap();
                }
                _ => {
                    let savepoint = txn.savepoint();
                    let before = (!keep).then(|| model.clone());
                    run(&mut txn, &mut model, step);
                    if let Some(before) = before {
                        txn.rollback(savepoint);
                        model = before;
                    }
                }
            }
            assert_same(&txn.view(), &model);
        }
        store(&engine, index, &txn.finish());
        assert_consistent(&engine);

        // The same contents, put there at once in an engine that never held anything else.
        let other = MemoryEngine::new();
        entry(&other, 7, time, |txn| {
            for (key, (value, at)) in model.iter().rev() {
                let expire = at.map_or(Expire::Clear, Expire::At);
                txn.set_string(key, value, expire).unwrap();
            }
        });
        let digest = view(&engine, time).digest().unwrap();
        prop_assert_eq!(digest, view(&other, time).digest().unwrap());

        // And through a stream.
        let mark = engine.mark().unwrap();
        let mut bytes = Vec::new();
        let written = stream::write(&engine, &mark, &mut bytes).unwrap();
        prop_assert_eq!(stream::verify(&mut &bytes[..]).unwrap(), written);
        let mut feed = stream::Entries::open(&bytes[..]).unwrap();
        other.replace(&mut feed, &mark).unwrap();
        assert_consistent(&other);
        assert_same(&view(&other, time), &model);
        prop_assert_eq!(digest, view(&other, time).digest().unwrap());
        prop_assert_eq!(State::read(&engine).unwrap(), State::read(&other).unwrap());
    }

    /// Two nodes that take the same entries in groups of different sizes store the same bytes,
    /// versions included.
    #[test]
    fn grouping_of_entries_leaves_no_trace(
        script in prop::collection::vec((prop::collection::vec(step(), 0..6), 0_u64..10, any::<bool>()), 1..20)
    ) {
        let contents = |group_ends: &dyn Fn(usize) -> bool| {
            let engine = MemoryEngine::new();
            let mut group = txn(&engine, 1, 1000);
            let mut time = 1000;
            for (number, (steps, passed, keep)) in script.iter().enumerate() {
                let index = number as u64 + 1;
                time += passed;
                group.begin_entry(index, time, index);
                group.remove_due(2).unwrap();
                let savepoint = group.savepoint();
                for step in steps {
                    match step {
                        Step::Entry(_) | Step::Store | Step::Sweep(_) => {}
                        step => run_unchecked(&mut group, step),
                    }
                }
                if !keep {
                    group.rollback(savepoint);
                }
                if group_ends(number) {
                    store(&engine, index, &group.finish());
                    group = txn(&engine, index, time);
                }
            }
            store(&engine, script.len() as u64, &group.finish());
            entries(&engine)
        };
        let together = contents(&|_| false);
        prop_assert_eq!(&contents(&|_| true), &together);
        prop_assert_eq!(&contents(&|number| number % 3 == 1), &together);
    }

    /// A key that is there from the first call to the last is returned, whatever comes and goes
    /// between the calls.
    #[test]
    fn scan_returns_what_exists_throughout(
        stable in prop::collection::btree_set(0_u16..400, 0..60),
        colliding_keys in 0_u8..6,
        changes in prop::collection::vec((0_u16..400, any::<bool>()), 0..200),
        count in 1_usize..20,
    ) {
        let name = |number: u16| format!("key:{number}").into_bytes();
        let engine = MemoryEngine::new();
        let mut expected: BTreeSet<Vec<u8>> = stable.iter().map(|number| name(*number)).collect();
        expected.extend((0..colliding_keys).map(|number| colliding(b'z', number).to_vec()));
        entry(&engine, 1, 1, |txn| {
            for key in &expected {
                set(txn, key, b"");
            }
        });
        let mut changes = changes.chunks(7);
        let (mut cursor, mut index) = (0, 1);
        let mut seen = BTreeSet::new();
        loop {
            let mut step = Vec::new();
            let next = view(&engine, 1)
                .scan(cursor, count, |key, _| step.push(key.to_vec()))
                .unwrap();
            // No more than asked for, but for keys of one place.
            prop_assert!(step.len() <= count + usize::from(colliding_keys));
            seen.extend(step);
            if next == 0 {
                break;
            }
            prop_assert!(next > cursor);
            cursor = next;
            index += 1;
            entry(&engine, index, 1, |txn| {
                for (number, present) in changes.next().unwrap_or_default() {
                    if stable.contains(number) {
                        continue;
                    }
                    if *present {
                        set(txn, &name(*number), b"");
                    } else {
                        txn.delete(&name(*number)).unwrap();
                    }
                }
            });
        }
        prop_assert!(expected.is_subset(&seen));
    }

    #[test]
    fn stream_reader_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        stream::fuzz_stream(&bytes);
    }

    /// Damage in several places, lengths included, of a stream that was valid.
    #[test]
    fn stream_reader_survives_damage(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = small_stream();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        stream::fuzz_stream(&bytes);
        stream::fuzz_stream(&bytes[..cut.index(bytes.len())]);
    }
}

fn small_stream() -> Vec<u8> {
    let engine = MemoryEngine::new();
    entry(&engine, 3, 100, |txn| {
        set(txn, b"before", b"another epoch");
        txn.flush_all();
        set(txn, b"a", b"1");
        txn.set_string(b"b", b"22", Expire::At(5000)).unwrap();
        txn.set_system("node", Some(b"settings"));
    });
    let mark = Mark {
        index: 3,
        data: b"the mark".to_vec(),
    };
    let mut bytes = Vec::new();
    let header = stream::write(&engine, &mark, &mut bytes).unwrap();
    // The state, an entry of the node, two records and one expiry.
    assert_eq!((header.entries, header.bytes), (5, bytes.len() as u64));
    bytes
}

#[test]
fn every_changed_byte_of_a_stream_is_refused() {
    let good = small_stream();
    stream::verify(&mut &good[..]).unwrap();
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            let result = stream::verify(&mut &bad[..]);
            assert!(
                matches!(result, Err(StreamError::Refused { .. })),
                "byte {at} ^ {flip}: {result:?}"
            );
        }
    }
    for length in 0..good.len() {
        assert!(stream::verify(&mut &good[..length]).is_err(), "{length}");
    }
    let longer = [&good[..], b"x"].concat();
    assert!(stream::verify(&mut &longer[..]).is_err());
}

#[test]
fn stream_carries_values_larger_than_a_block() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1, |txn| {
        for number in 0..40_u8 {
            let value = vec![number; 100 << (number % 14)];
            set(txn, &[number], &value);
        }
        set(txn, b"", b"");
    });
    let mark = engine.mark().unwrap();
    let mut bytes = Vec::new();
    stream::write(&engine, &mark, &mut bytes).unwrap();
    stream::verify(&mut &bytes[..]).unwrap();
    let other = MemoryEngine::new();
    let mut feed = stream::Entries::open(&bytes[..]).unwrap();
    assert_eq!(feed.mark(), &mark);
    other.replace(&mut feed, &mark).unwrap();
    assert_eq!(entries(&engine), entries(&other));
}

#[test]
fn expired_key_is_absent_though_its_record_is_there() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1000, |txn| {
        set(txn, b"stays", b"1");
        txn.set_string(b"goes", b"1", Expire::At(2000)).unwrap();
    });
    let records = engine.len();
    let before = view(&engine, 1999);
    assert!(before.exists(b"goes").unwrap());
    assert_eq!(before.next_expiry().unwrap(), Some(2000));
    let after = view(&engine, 2000);
    assert_eq!(engine.len(), records);
    assert!(!after.exists(b"goes").unwrap());
    assert!(after.modified(b"goes").unwrap() >= view::ABSENT);
    assert_eq!(after.len().unwrap(), 1);
    assert_eq!(after.expires_len().unwrap(), 0);
    assert_eq!(after.random_key(1).unwrap().as_deref(), Some(&b"stays"[..]));
    let digest = after.digest().unwrap();
    assert_ne!(before.digest().unwrap(), digest);
    let removed = entry(&engine, 2, 2000, |txn| txn.remove_due(10).unwrap());
    // The record and its expiry go, and leave the slot's last removal.
    assert_eq!((removed, engine.len()), (1, records - 1));
    assert_eq!(view(&engine, 2000).digest().unwrap(), digest);
    assert_eq!(view(&engine, 2000).next_expiry().unwrap(), None);
    assert_consistent(&engine);
}

/// A key that is due by the leader's time exists until replicated time says so; the view tells.
#[test]
fn view_tells_that_it_met_a_due_key() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1000, |txn| {
        set(txn, b"other", b"1");
        txn.set_string(b"due", b"1", Expire::At(2000)).unwrap();
    });
    let view = View::new(&engine, 1500, 2500).unwrap();
    assert!(view.exists(b"other").unwrap());
    assert!(!view.met_due());
    assert!(view.exists(b"due").unwrap());
    assert!(view.met_due());
    let counting = View::new(&engine, 1500, 2500).unwrap();
    assert_eq!((counting.len().unwrap(), counting.met_due()), (2, true));
    let ticked = View::new(&engine, 2500, 2500).unwrap();
    assert_eq!((ticked.len().unwrap(), ticked.met_due()), (1, false));
    assert!(!ticked.exists(b"due").unwrap());
    assert!(!ticked.met_due());
    // A clock behind replicated time counts as replicated time.
    assert_eq!(View::new(&engine, 2500, 1).unwrap().now_ms(), 2500);
}

#[test]
fn earliest_expiries_are_removed_first() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1000, |txn| {
        for number in 0..10_u64 {
            let key = number.to_string();
            let at = Expire::At(2000 - number);
            txn.set_string(key.as_bytes(), b"", at).unwrap();
        }
    });
    entry(&engine, 2, 5000, |txn| {
        assert_eq!(txn.remove_due(4).unwrap(), 4);
        assert_eq!(txn.view().next_expiry().unwrap(), Some(1995));
        assert_eq!(txn.remove_due(100).unwrap(), 6);
        assert_eq!(txn.remove_due(100).unwrap(), 0);
    });
    assert_consistent(&engine);
    assert_eq!(State::read(&engine).unwrap().keys, 0);
}

#[test]
fn versions_differ_for_every_write() {
    let engine = MemoryEngine::new();
    let versions = entry(&engine, 9, 1, |txn| {
        let mut versions = BTreeSet::new();
        for _ in 0..3 {
            set(txn, b"k", b"same");
            versions.insert(txn.view().version(b"k").unwrap());
            txn.delete(b"k").unwrap();
            versions.insert(txn.view().version(b"k").unwrap());
        }
        set(txn, b"k", b"same");
        versions
    });
    assert_eq!(versions.len(), 4);
    let meta = view(&engine, 1).meta(b"k").unwrap().unwrap();
    assert_eq!((meta.modified, meta.ordinal, meta.payload_len), (9, 4, 4));
}

#[test]
fn limits_are_answers_and_change_nothing() {
    let engine = MemoryEngine::new();
    let limits = Limits {
        key_bytes_max: 3,
        value_bytes_max: 4,
    };
    let mut txn = Txn::new(&engine, 1, 1, 1, limits).unwrap();
    let too_large = |result| match result {
        Err(Failure::TooLarge { what, limit }) => (what, limit),
        other => panic!("{other:?}"),
    };
    let long_key = txn.set_string(b"long", b"", Expire::Clear);
    assert_eq!(too_large(long_key), (What::Key, 3));
    let long_value = txn.set_string(b"k", b"12345", Expire::Clear);
    assert_eq!(too_large(long_value), (What::Value, 4));
    txn.set_string(b"k", b"1234", Expire::Clear).unwrap();
    assert_eq!(
        too_large(txn.rename(b"k", b"long").map(drop)),
        (What::Key, 3)
    );
    assert_eq!(
        txn.view().get_string(b"k").unwrap().as_deref(),
        Some(&b"1234"[..])
    );
}

/// A SET without an expiry reads one entry of the base and writes one.
#[test]
fn set_reads_once_and_writes_once() {
    struct Counting(MemoryEngine, std::cell::Cell<(usize, usize)>);
    impl Read for Counting {
        fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> crate::storage::Result<bool> {
            let (gets, scans) = self.1.get();
            self.1.set((gets + 1, scans));
            self.0.get(key, out)
        }
        fn scan(
            &self,
            range: Range<'_>,
            out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
        ) -> crate::storage::Result<()> {
            let (gets, scans) = self.1.get();
            self.1.set((gets, scans + 1));
            self.0.scan(range, out)
        }
    }
    let base = Counting(MemoryEngine::new(), Default::default());
    entry(&base.0, 1, 1, |txn| set(txn, b"k", b"old"));
    let mut txn = Txn::new(&base, 2, 2, 2, Limits::default()).unwrap();
    base.1.set((0, 0));
    set(&mut txn, b"k", b"new");
    assert_eq!(base.1.get(), (1, 0));
    assert_eq!(txn.remove_due(10).unwrap(), 0);
    assert_eq!(base.1.get(), (1, 0));
    let changes = txn.finish();
    assert_eq!(changes.ops().len(), 1);
    assert!(matches!(changes.ops()[0], Op::Put(..)));
}

#[test]
fn slots_count_and_list_their_keys() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1, |txn| {
        for number in 0..5 {
            set(txn, format!("{{t}}{number}").as_bytes(), b"");
            set(txn, format!("other{number}").as_bytes(), b"");
        }
    });
    let view = view(&engine, 1);
    let tagged = slot(b"t");
    assert_eq!(view.count_keys_in_slot(tagged).unwrap(), 5);
    let first = |count: usize| {
        let mut keys = Vec::new();
        view.keys_in_slot(tagged, |key| {
            keys.push(key.to_vec());
            keys.len() < count
        })
        .unwrap();
        keys
    };
    assert_eq!(first(3).len(), 3);
    let keys = first(100);
    assert!(keys.len() == 5 && keys.iter().all(|key| key.starts_with(b"{t}")));
    let all: u64 = (0..encoding::SLOTS)
        .map(|slot| view.count_keys_in_slot(slot).unwrap())
        .sum();
    assert_eq!(all, 10);
}

/// All keys are found, also when one hash tag puts them into one slot.
#[test]
fn random_key_finds_every_key() {
    for tag in ["", "{one}"] {
        let engine = MemoryEngine::new();
        entry(&engine, 1, 1, |txn| {
            for number in 0..20 {
                set(txn, format!("{tag}{number}").as_bytes(), b"");
            }
        });
        let view = view(&engine, 1);
        let mut seed = 1_u64;
        let mut found = BTreeSet::new();
        for _ in 0..5000 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            found.insert(view.random_key(seed).unwrap().unwrap());
        }
        assert_eq!(found.len(), 20, "{tag}");
    }
    assert_eq!(view(&MemoryEngine::new(), 1).random_key(5).unwrap(), None);
}

/// After a flush its leftovers go in steps of the size that was asked for, and then no more.
#[test]
fn sweep_removes_earlier_epochs_in_small_steps() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1, |txn| {
        for number in 0..25 {
            let at = Expire::At(100 + number);
            txn.set_string(number.to_string().as_bytes(), b"", at)
                .unwrap();
        }
    });
    entry(&engine, 2, 2, |txn| {
        txn.flush_all();
        set(txn, b"new", b"1");
    });
    let mark = engine.mark().unwrap();
    let digest = view(&engine, 2).digest().unwrap();
    let mut steps = 0;
    loop {
        let left = sweep(&engine, 1, 7).unwrap();
        if left.entries == 0 {
            break;
        }
        assert!(left.entries <= 7);
        engine.write(&left.ops(), &mark).unwrap();
        assert_eq!(view(&engine, 2).digest().unwrap(), digest);
        steps += 1;
    }
    assert_eq!(steps, 50_usize.div_ceil(7));
    // The state and the new record.
    assert_eq!(engine.len(), 2);
}

#[test]
fn blank_flag_and_system_entries_are_kept() {
    let engine = MemoryEngine::new();
    assert!(!State::read(&engine).unwrap().used);
    entry(&engine, 1, 1, |txn| {
        txn.set_used();
        txn.set_system("name", Some(b"value"));
        assert_eq!(
            txn.view().system("name").unwrap().as_deref(),
            Some(&b"value"[..])
        );
    });
    entry(&engine, 2, 1, |txn| {
        let savepoint = txn.savepoint();
        txn.set_system("name", None);
        assert_eq!(txn.view().system("name").unwrap(), None);
        txn.rollback(savepoint);
        txn.flush_all();
    });
    assert!(State::read(&engine).unwrap().used);
    let kept = view(&engine, 1).system("name").unwrap();
    assert_eq!(kept.as_deref(), Some(&b"value"[..]));
    assert_eq!(view(&engine, 1).system("other").unwrap(), None);
}

#[test]
fn unknown_record_is_the_engines_failure() {
    let engine = MemoryEngine::new();
    let key = encoding::record_key(0, b"k");
    for record in [
        &b""[..],
        b"\x09\x00aaaaaaaabbbb",
        b"\x01\x80aaaaaaaabbbb",
        b"\x01\x01aaaaaaaabbbb",
    ] {
        let mark = Mark::default();
        engine
            .write(&[Op::Put(key.as_slice(), record)], &mark)
            .unwrap();
        assert!(matches!(
            view(&engine, 1).meta(b"k"),
            Err(Failure::Engine(_))
        ));
        assert!(matches!(view(&engine, 1).digest(), Err(Failure::Engine(_))));
        assert!(matches!(
            txn(&engine, 1, 1).delete(b"k"),
            Err(Failure::Engine(_))
        ));
    }
}

/// WATCH must see what came and went in the meantime.
#[test]
fn an_absent_key_tells_that_it_was_there_in_between() {
    let engine = MemoryEngine::new();
    let mut index = 0;
    let mut step = |change: &dyn Fn(&mut Txn<'_>)| {
        index += 1;
        entry(&engine, index, 1000 + index, change);
        view(&engine, 1000 + index).modified(b"k").unwrap()
    };
    let mut seen = vec![step(&|txn| set(txn, b"other", b"1"))];
    let comes_and_goes: [&dyn Fn(&mut Txn<'_>); 5] = [
        &|txn| assert!(txn.delete(b"k").unwrap()),
        &|txn| assert!(txn.set_expiry(b"k", Some(0)).unwrap()),
        &|txn| assert!(txn.rename(b"k", b"k2").unwrap()),
        &|txn| txn.flush_all(),
        &|txn| {
            set(txn, b"k", b"2");
            txn.flush_all();
        },
    ];
    for goes in comes_and_goes {
        let there = step(&|txn| set(txn, b"k", b"1"));
        assert!(there < view::ABSENT);
        let gone = step(goes);
        assert!(gone >= view::ABSENT && !seen.contains(&gone));
        seen.push(gone);
    }
    // In one entry too, and not without a reason.
    let both = step(&|txn| {
        set(txn, b"k", b"1");
        txn.delete(b"k").unwrap();
    });
    assert!(!seen.contains(&both));
    assert_eq!(step(&|txn| set(txn, b"other", b"2")), both);
    assert_eq!(step(&|txn| assert!(!txn.delete(b"k").unwrap())), both);
}

#[test]
fn an_expiry_in_an_entry_that_removed_another_key_of_the_slot_is_a_change() {
    let engine = MemoryEngine::new();
    entry(&engine, 1, 1000, |txn| set(txn, b"{s}other", b"1"));
    entry(&engine, 2, 1000, |txn| {
        txn.delete(b"{s}other").unwrap();
        txn.set_string(b"{s}k", b"1", Expire::At(2000)).unwrap();
    });
    let before = view(&engine, 1500).modified(b"{s}k").unwrap();
    assert_ne!(view(&engine, 2000).modified(b"{s}k").unwrap(), before);
}
