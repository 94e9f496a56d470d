//! What the engine promises, beyond the conformance suite: crashes, views, keys and damage.

use std::fs;
use std::path::Path;

use kvd_plugin_api::testkit::crash;
use kvd_plugin_api::testkit::fixture::{self, get};
use kvd_plugin_api::testkit::history::{Model, ModelFeed, mark};
use kvd_plugin_api::{Backend, ErrorKind, Op, Result, View};

use crate::LmdbBackend;

fn open(dir: &Path) -> Result<LmdbBackend> {
    LmdbBackend::open_with(dir, 1 << 30)
}

#[test]
fn killed_process_loses_nothing_that_was_synced() {
    let options = &[("map_size", "1GiB")];
    crash::check::<LmdbBackend>(
        "tests::killed_process_loses_nothing_that_was_synced",
        10,
        options,
    );
}

#[test]
fn lost_power_takes_nothing_that_was_synced() {
    let options = &[("map_size", "1GiB")];
    crash::check_power::<LmdbBackend>(
        "tests::lost_power_takes_nothing_that_was_synced",
        8,
        options,
    );
}

#[test]
fn dropped_engine_can_be_opened_again_at_once() {
    fixture::dropped_engine_opens_again_at_once::<LmdbBackend>(&[("map_size", "1GiB")]);
}

#[test]
fn view_outlives_writes_compaction_and_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    backend.write(&[Op::Put(b"a", b"old")], &mark(1)).unwrap();
    let view = backend.view().unwrap();
    backend.write(&[Op::Put(b"a", b"new")], &mark(2)).unwrap();
    let newer = backend.view().unwrap();
    backend.compact().unwrap();
    let entries = [(b"b".to_vec(), b"fed".to_vec())].into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(3)).unwrap();
    for (view, value, index) in [(&view, b"old", 1), (&newer, b"new", 2)] {
        assert_eq!(
            (get(view, b"a"), view.mark()),
            (Some(value.to_vec()), &mark(index))
        );
        assert_eq!(get(view, b"b"), None);
    }
    let last = backend.view().unwrap();
    assert_eq!((get(&last, b"a"), last.mark()), (None, &mark(3)));
    assert_eq!(get(&last, b"b"), Some(b"fed".to_vec()));
    assert!(!dir.path().join("gen-1").exists());
}

#[test]
fn compaction_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let size = || -> u64 {
        let size = backend.property("kvd.disk.bytes").unwrap();
        size.parse().unwrap()
    };
    let value = vec![7; 10 << 20];
    backend.write(&[Op::Put(b"a", &value)], &mark(1)).unwrap();
    backend.write(&[Op::Delete(b"a")], &mark(2)).unwrap();
    let before = size();
    backend.compact().unwrap();
    assert!(size() < before / 10, "{before} to {}", size());
    assert_eq!(backend.mark().unwrap(), mark(2));
}

#[test]
fn keys_longer_than_lmdbs_own_are_kept_in_order() {
    let long = |length: usize, last: u8| [&vec![b'k'; length][..], &[last]].concat();
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let keys = [
        b"k".to_vec(),
        long(600, b'1'),
        long(70_000, b'1'),
        long(70_000, b'2'),
        long(600, b'2'),
        b"l".to_vec(),
    ];
    let mut sorted = keys.clone();
    sorted.sort();
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, b"value")).collect();
    backend.write(&ops, &mark(1)).unwrap();
    backend.close().unwrap();
    let backend = open(dir.path()).unwrap();
    let found: Vec<_> = Model::of(&backend).entries.into_keys().collect();
    assert_eq!(found, sorted);
    let entries = Model::of(&backend).entries.into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(2)).unwrap();
    let found: Vec<_> = Model::of(&backend).entries.into_keys().collect();
    assert_eq!(found, sorted);
    backend
        .write(&[Op::DeleteRange(&sorted[1], &sorted[5])], &mark(3))
        .unwrap();
    let found: Vec<_> = Model::of(&backend).entries.into_keys().collect();
    assert_eq!(found, [sorted[0].clone(), sorted[5].clone()]);
}

#[test]
fn full_map_is_no_space_and_nothing_is_written_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let backend = LmdbBackend::open_with(dir.path(), 1 << 20).unwrap();
    backend.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    let value = vec![7; 4 << 20];
    let error = backend
        .write(&[Op::Put(b"b", &value)], &mark(2))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(backend.sync().unwrap_err().kind(), ErrorKind::Closed);
    drop(backend);
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), mark(1));
    assert_eq!(Model::of(&backend).entries.len(), 1);
}

#[test]
fn file_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::write(
        dir.path().join("gen-1/data.mdb"),
        "not a database".repeat(9000),
    )
    .unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
}

#[test]
fn options_are_checked_when_opening() {
    let right: &[&[(&str, &str)]] = &[&[], &[("map_size", "100000001")]];
    let wrong = &[("map_size", "1KiB"), ("map", "1GiB")];
    fixture::options_are_checked::<LmdbBackend>(right, wrong);
}
