//! Long reads of an engine without views.

use std::sync::mpsc;

use super::*;
use crate::storage::before::{SHORT_GETS, TURN_BYTES, TURN_ENTRIES};

/// Entries that take several turns.
const ENTRIES: u64 = 5 * TURN_ENTRIES as u64;

fn key_of(n: u64) -> Vec<u8> {
    [b"k", &n.to_be_bytes()[..]].concat()
}

/// A store whose engine has no views, with [`ENTRIES`].
fn filled(engine: impl Engine + 'static) -> Store {
    let store = Store::new(Arc::new(engine));
    let keys: Vec<Vec<u8>> = (0..ENTRIES).map(key_of).collect();
    let puts: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, b"old")).collect();
    store.write(&puts, &mark(1)).unwrap();
    store
}

fn without_views() -> MemoryEngine {
    MemoryEngine::with_caps(Caps::DURABLE)
}

/// Changes of every kind, some in front of a scan and some behind it.
fn change_much(store: &Store, index: u64) {
    let (changed, removed, new) = (
        key_of(index * 7 % ENTRIES),
        key_of(index * 13 % ENTRIES),
        key_of(ENTRIES + index),
    );
    let (from, to) = (
        key_of(index * 31 % ENTRIES),
        key_of(index * 31 % ENTRIES + 3),
    );
    let changes = [
        Op::Put(&changed, b"new"),
        Op::Delete(&removed),
        Op::DeleteRange(&from, &to),
        Op::Put(&new, b"new"),
    ];
    store.apply(layer(&changes), mark(index));
}

fn old_entries() -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..ENTRIES).map(|n| (key_of(n), b"old".to_vec())).collect()
}

/// One thread does all: it would wait for ever if it waited for its own view.
#[test]
fn a_long_read_lets_the_engine_change_and_sees_what_was() {
    let store = filled(without_views());
    let optional = store.read_at_length().unwrap();
    let plain = store.read().unwrap();
    assert_eq!(collect(&plain, ALL, usize::MAX), old_entries());
    let by_gets = store.read().unwrap();
    for n in 0..=SHORT_GETS as u64 {
        assert!(value(&by_gets, &key_of(n)).is_some());
    }
    for index in 2..300 {
        change_much(&store, index);
        if index % 10 == 0 {
            store.store_all().unwrap();
            assert_eq!(store.waiting(), Amount::default());
        }
    }
    assert!(store.kept_bytes() > 0);
    let changed = collect(&store.read().unwrap(), ALL, usize::MAX);
    assert_ne!(changed, old_entries());
    let reverse = Range {
        reverse: true,
        ..ALL
    };
    let backwards: Vec<_> = old_entries().into_iter().rev().collect();
    for view in [&optional, &plain, &by_gets] {
        assert_eq!(view.mark(), &mark(1));
        assert_eq!(collect(view, ALL, usize::MAX), old_entries());
        assert_eq!(collect(view, reverse, usize::MAX), backwards);
        assert_eq!(value(view, &key_of(ENTRIES + 2)), None);
        assert_eq!(value(view, &key_of(14)), Some(b"old".to_vec()));
    }
    drop((optional, plain, by_gets));
    assert_eq!(store.kept_bytes(), 0);
}

/// What is removed behind everyone's back was there for whoever came before.
#[test]
fn a_long_read_sees_what_is_swept() {
    let store = filled(without_views());
    let view = store.read_at_length().unwrap();
    let (from, to) = (key_of(10), key_of(2000));
    store.store_unseen(&[Op::DeleteRange(&from, &to)]).unwrap();
    assert_eq!(collect(&view, ALL, usize::MAX), old_entries());
    let left = collect(&**store.engine(), ALL, usize::MAX);
    assert_eq!(left.len() as u64, ENTRIES - 1990);
}

/// While one thread reads, again and again in one view, another stores: it waits for one turn at
/// most, which is bounded by [`TURN_ENTRIES`], and not for the view.
#[test]
fn who_stores_waits_for_one_turn_of_a_long_read() {
    const STORES: u64 = 50;
    let engine = TestEngine::new(Caps::empty(), MemoryEngine::write);
    let longest_scan = engine.longest_scan.clone();
    let store = filled(engine);
    let view = store.read().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        scope.spawn(move || {
            for index in 2..2 + STORES {
                change_much(store, index);
                store.store_all().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut scans = 0;
        // The view lives longer than this takes, however long that is.
        while !done.load(Ordering::Relaxed) {
            assert_eq!(collect(&view, ALL, usize::MAX), old_entries());
            scans += 1;
        }
        assert!(scans > 0);
    });
    assert_eq!(view.mark(), &mark(1));
    assert_eq!(store.engine().mark().unwrap(), mark(1 + STORES));
    drop(view);
    // New keys that the view does not show are counted too.
    let longest = longest_scan.load(Ordering::Relaxed);
    assert!(longest <= TURN_ENTRIES, "{longest} entries at once");
}

/// Large entries make turns of few.
#[test]
fn a_turn_ends_after_its_bytes() {
    let store = Store::new(Arc::new(without_views()));
    let large = vec![0; TURN_BYTES / 2];
    for n in 0..6_u64 {
        store
            .write(&[Op::Put(&key_of(n), &large)], &mark(n))
            .unwrap();
    }
    let view = store.read().unwrap();
    let (told, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let store = &store;
        scope.spawn(move || {
            // It is in the middle of a turn now, and of those there are several.
            heard.recv().unwrap();
            store.write(&[Op::Delete(&key_of(5))], &mark(9)).unwrap();
        });
        let mut seen = 0;
        view.scan(ALL, &mut |_, _| {
            seen += 1;
            if seen == 1 {
                told.send(()).unwrap();
            }
            Flow::Continue
        })
        .unwrap();
        assert_eq!(seen, 6);
    });
    assert_eq!(
        value(&view, &key_of(5)).map(|value| value.len()),
        Some(large.len())
    );
}

/// Where too much would have to be kept, a read that may fail fails, and nobody waits for it; one
/// that may not is waited for.
#[test]
fn what_is_kept_is_bounded() {
    const BOUND: usize = 100_000;
    let mut store = filled(without_views());
    store.bound_kept(BOUND);
    let (idle, reading) = (
        store.read_at_length().unwrap(),
        store.read_at_length().unwrap(),
    );
    assert_eq!(collect(&reading, ALL, 10).len(), 10);
    let mut index = 1;
    let mut overwrite_all = || {
        for n in 0..ENTRIES {
            index += 1;
            store.apply(layer(&[Op::Put(&key_of(n), b"new")]), mark(index));
            if n % 64 == 0 {
                // In this thread: it would wait for ever for the views.
                store.store_all().unwrap();
                assert!(store.kept_bytes() < 2 * BOUND);
            }
        }
    };
    overwrite_all();
    for view in [&idle, &reading] {
        let error = view.get(b"k", &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("begin anew"), "{error}");
        assert!(view.scan(ALL, &mut |_, _| Flow::Continue).is_err());
    }
    assert_eq!(store.kept_bytes(), 0);
    drop((idle, reading));

    // The same for one that may not fail.
    let view = store.read().unwrap();
    assert_eq!(collect(&view, ALL, usize::MAX).len() as u64, ENTRIES);
    let store = &store;
    let (told, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..ENTRIES {
                let index = 1_000_000 + n;
                store.apply(layer(&[Op::Put(&key_of(n), b"newer")]), mark(index));
                if n % 64 == 0 {
                    if store.kept_bytes() >= BOUND {
                        // Whoever does not listen any more has gone.
                        let _ = told.send(());
                    }
                    store.store_all().unwrap();
                }
            }
        });
        heard.recv().unwrap();
        let all = collect(&view, ALL, usize::MAX);
        assert!(all.iter().all(|(_, value)| value == b"new"));
        assert!(store.kept_bytes() < 2 * BOUND);
        drop(view);
    });
    assert_eq!(store.kept_bytes(), 0);
}
