//! The encoding of keys, and reads and changes of the keyspace.

use divan::{Bencher, black_box};
use kvd::keyspace::encoding::{record_key, split_record};
use kvd::keyspace::{Expire, Limits, Txn, View, slot};
use kvd::storage::{Engine, Mark, MemoryEngine};

use super::{key, spread};

/// Keys in the engine.
const KEYS: u64 = 100_000;

/// Filled through the keyspace itself.
pub(super) fn filled() -> MemoryEngine {
    // One that keeps nothing to go back to: it would grow with each write.
    let caps = kvd::storage::Caps::VIEW.with(kvd::storage::Caps::FAST_READ);
    let engine = MemoryEngine::with_caps(caps);
    let mut txn = Txn::new(&engine, 1, 1, 0, Limits::default()).expect("an empty engine");
    for number in 0..KEYS {
        let set = txn.set_string(key(number).as_bytes(), b"value", Expire::Clear);
        set.expect("it fits");
    }
    let changes = txn.finish();
    let mark = Mark {
        index: 1,
        data: Vec::new(),
    };
    engine.write(&changes.ops(), &mark).expect("memory");
    engine
}

/// Keys that are there, in no order.
pub(super) fn some_keys() -> Vec<String> {
    (0..1000).map(|n| key(spread(n, KEYS))).collect()
}

#[divan::bench]
fn slot_of_a_key(bencher: Bencher<'_, '_>) {
    let key = key(7);
    bencher.bench_local(|| slot(black_box(key.as_bytes())));
}

#[divan::bench]
fn encode_a_key(bencher: Bencher<'_, '_>) {
    let key = key(7);
    bencher.bench_local(|| record_key(black_box(3), black_box(key.as_bytes())));
}

#[divan::bench]
fn decode_a_key(bencher: Bencher<'_, '_>) {
    let encoded = record_key(3, key(7).as_bytes());
    bencher.bench_local(|| split_record(black_box(encoded.as_slice())).is_some());
}

#[divan::bench]
fn read_a_string(bencher: Bencher<'_, '_>) {
    let (engine, keys) = (filled(), some_keys());
    let view = View::new(&engine, 2, 2).expect("memory");
    let mut turn = keys.iter().cycle();
    bencher.bench_local(|| {
        let key = turn.next().expect("it goes round");
        view.modified(black_box(key.as_bytes())).expect("memory")
    });
}

#[divan::bench]
fn set_a_string(bencher: Bencher<'_, '_>) {
    let (engine, keys) = (filled(), some_keys());
    let mut txn = Txn::new(&engine, 2, 2, 0, Limits::default()).expect("memory");
    let mut turn = keys.iter().cycle();
    bencher.bench_local(|| {
        let key = turn.next().expect("it goes round").as_bytes();
        txn.set_string(black_box(key), b"value", Expire::Clear)
    });
}
