//! What the engine promises, beyond the conformance suite: crashes, views, merges and damage.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvd_plugin_api::testkit::crash;
use kvd_plugin_api::testkit::fixture::{self, FailingFeed, copy_dir, get};
use kvd_plugin_api::testkit::history::{Model, ModelFeed, mark, write};
use kvd_plugin_api::{Backend, ErrorKind, Flow, Op, Range, Result, View};

use crate::FjallBackend;
use crate::store::Settings;

const ALL: Range<'_> = Range {
    from: b"",
    to: None,
    reverse: false,
};

fn open_with(dir: &Path, memory_bytes: u64) -> Result<FjallBackend> {
    FjallBackend::open_with(
        dir,
        Settings {
            cache_bytes: 4 << 20,
            memory_bytes,
            is_compressed: true,
        },
    )
}

fn open(dir: &Path) -> Result<FjallBackend> {
    open_with(dir, 1 << 20)
}

#[test]
fn killed_process_loses_nothing_that_was_synced() {
    let options = &[("cache_size", "4MiB"), ("memtable_size", "1MiB")];
    crash::check::<FjallBackend>(
        "tests::killed_process_loses_nothing_that_was_synced",
        10,
        options,
    );
}

#[test]
fn lost_power_takes_nothing_that_was_synced() {
    let options = &[("cache_size", "4MiB"), ("memtable_size", "1MiB")];
    crash::check_power::<FjallBackend>(
        "tests::lost_power_takes_nothing_that_was_synced",
        4,
        options,
    );
}

#[test]
fn only_what_was_synced_survives_a_lost_process() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let backend = open_with(dir.path(), 64 << 20).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    assert_eq!(backend.sync().unwrap(), mark(5));
    (6..=9).for_each(|index| write(&backend, index));
    copy_dir(dir.path(), copy.path()).unwrap();
    let survivor = open(copy.path()).unwrap();
    assert_eq!(survivor.mark().unwrap(), mark(5));
    assert_eq!(Model::of(&survivor), Model::at(5));
}

#[test]
fn memory_becomes_tables_as_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = 0;
    // Whether the worker comes to a table before the engine goes is chance; it does in some round.
    for round in 1..=2000 {
        if round > 20 && at > 20 {
            break;
        }
        let backend = open_with(dir.path(), 1 << 14).unwrap();
        (at + 1..=at + 10).for_each(|index| write(&backend, index));
        drop(backend);
        // What was still in memory is lost, as in a crash.
        let survivor = open(dir.path()).unwrap();
        let index = survivor.mark().unwrap().index;
        assert!((at..=at + 10).contains(&index), "{at}: {index}");
        assert_eq!(survivor.mark().unwrap(), mark(index));
        assert_eq!(Model::of(&survivor), Model::at(index), "round {round}");
        at = index;
    }
    assert!(at > 20, "{at}");
}

#[test]
fn opening_replays_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open_with(dir.path(), 64 << 20).unwrap();
    (1..=200).for_each(|index| write(&backend, index));
    backend.sync().unwrap();
    (201..=400).for_each(|index| write(&backend, index));
    drop(backend);
    let again = open(dir.path()).unwrap();
    assert_eq!(again.mark().unwrap(), mark(200));
    assert_eq!(again.property("fjall.memory.used_bytes").unwrap(), "0");
}

#[test]
fn closed_engine_keeps_everything_and_its_views_may_be_dropped_later() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=30).for_each(|index| write(&backend, index));
    let view = backend.view().unwrap();
    backend.close().unwrap();
    assert_eq!(backend.mark().unwrap_err().kind(), ErrorKind::Closed);
    let refused = backend.write(&[], &mark(31)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    let again = open(dir.path()).unwrap();
    assert_eq!(again.mark().unwrap(), mark(30));
    assert_eq!(Model::of(&again), Model::at(30));
    drop(view);
    write(&again, 31);
    again.sync().unwrap();
    assert_eq!(Model::of(&again), Model::at(31));
}

#[test]
fn dropped_engine_can_be_opened_again_at_once() {
    fixture::dropped_engine_opens_again_at_once::<FjallBackend>(&[("cache_size", "4MiB")]);
}

#[test]
fn view_outlives_writes_merges_and_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    backend.write(&[Op::Put(b"a", b"old")], &mark(1)).unwrap();
    let view = backend.view().unwrap();
    backend.write(&[Op::Put(b"a", b"new")], &mark(2)).unwrap();
    let newer = backend.view().unwrap();
    backend.write(&[Op::Delete(b"a")], &mark(3)).unwrap();
    backend.sync().unwrap();
    backend.compact().unwrap();
    let gone = backend.view().unwrap();
    let entries = [(b"b".to_vec(), b"fed".to_vec())].into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(4)).unwrap();
    for (view, value, index) in [
        (&view, Some(b"old".to_vec()), 1),
        (&newer, Some(b"new".to_vec()), 2),
        (&gone, None, 3),
    ] {
        assert_eq!((get(view, b"a"), view.mark()), (value, &mark(index)));
        assert_eq!(get(view, b"b"), None);
    }
    let last = backend.view().unwrap();
    assert_eq!((get(&last, b"a"), last.mark()), (None, &mark(4)));
    assert_eq!(get(&last, b"b"), Some(b"fed".to_vec()));
    assert!(dir.path().join("gen-1").exists());
    drop((view, newer, gone));
    assert!(!dir.path().join("gen-1").exists());
}

#[test]
fn a_replacement_that_fails_leaves_what_older_views_read() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    backend.write(&[Op::Put(b"a", b"old")], &mark(1)).unwrap();
    let view = backend.view().unwrap();
    let entries = [(b"b".to_vec(), b"fed".to_vec())].into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(2)).unwrap();
    let error = backend
        .replace(&mut FailingFeed(100), &mark(3))
        .unwrap_err();
    assert_eq!(error.to_string(), "source is gone");
    assert_eq!(get(&view, b"a"), Some(b"old".to_vec()));
    assert!(!dir.path().join("gen-3").exists());
    backend.write(&[Op::Put(b"c", b"")], &mark(4)).unwrap();
    assert_eq!(backend.sync().unwrap(), mark(4));
}

/// Tables come into force while batches are being written, and neither shows.
#[test]
fn readers_meet_whole_batches_while_tables_are_made_and_merged() {
    const KEYS: u16 = 300;
    let dir = tempfile::tempdir().unwrap();
    let backend = open_with(dir.path(), 1 << 13).unwrap();
    let keys: Vec<[u8; 2]> = (0..KEYS).map(u16::to_be_bytes).collect();
    let write_all = |index: u64| {
        let value = index.to_be_bytes();
        let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, &value)).collect();
        backend.write(&ops, &mark(index)).unwrap();
    };
    write_all(1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for reverse in [false, true] {
            let (backend, done) = (&backend, &done);
            scope.spawn(move || {
                let mut at = 0;
                while !done.load(Ordering::Relaxed) {
                    let view = backend.view().unwrap();
                    let index = view.mark().index;
                    assert!(index >= at, "{index} after {at}");
                    at = index;
                    let mut entries = 0;
                    let all = Range { reverse, ..ALL };
                    view.scan(all, &mut |_, value| {
                        assert_eq!(value, index.to_be_bytes());
                        entries += 1;
                        Flow::Continue
                    })
                    .unwrap();
                    assert_eq!(entries, KEYS);
                    assert_eq!(get(&view, &[0, 7]), Some(index.to_be_bytes().to_vec()));
                }
            });
        }
        (2..=400).for_each(write_all);
        done.store(true, Ordering::Relaxed);
    });
    let tables = backend.property("fjall.tables").unwrap();
    assert!(tables.split(' ').any(|level| level != "0"), "{tables}");
}

#[test]
fn new_tables_are_merged_before_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    for index in 1..=120 {
        write(&backend, index);
        backend.sync().unwrap();
        let tables = backend.property("fjall.tables").unwrap();
        let new: usize = tables.split(' ').next().unwrap().parse().unwrap();
        assert!(new <= 24, "after {index} syncs: {tables}");
    }
    assert_eq!(Model::of(&backend), Model::at(120));
}

#[test]
fn replaced_contents_lie_in_the_last_level() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let entries = Model::at(200).entries.into_iter();
    backend
        .replace(&mut ModelFeed(entries), &mark(200))
        .unwrap();
    assert_eq!(backend.property("fjall.tables").unwrap(), "0 0 0 0 0 0 1");
    assert_eq!(Model::of(&backend), Model::at(200));
}

#[test]
fn keys_longer_than_the_trees_own_are_kept_in_order() {
    let long = |last: u8| [&[b'k'; 70_000][..], &[last]].concat();
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let keys = [b"k".to_vec(), long(b'1'), long(b'2'), b"l".to_vec()];
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, b"value")).collect();
    backend.write(&ops, &mark(1)).unwrap();
    backend.close().unwrap();
    let backend = open(dir.path()).unwrap();
    let found: Vec<_> = Model::of(&backend).entries.into_keys().collect();
    assert_eq!(found, keys);
    let entries = Model::of(&backend).entries.into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(2)).unwrap();
    let ops = [Op::DeleteRange(&keys[1], &keys[2]), Op::Delete(&keys[3])];
    backend.write(&ops, &mark(3)).unwrap();
    let found: Vec<_> = Model::of(&backend).entries.into_keys().collect();
    assert_eq!(found, [keys[0].clone(), keys[2].clone()]);
}

#[test]
fn too_large_key_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let key = vec![0; (1 << 20) + 1];
    let ops = [Op::Put(b"first", b"x"), Op::Put(&key, b"")];
    let error = backend.write(&ops, &mark(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    backend.sync().unwrap();
    assert_eq!(
        (backend.mark().unwrap(), Model::of(&backend)),
        (mark(0), Model::default())
    );
}

#[test]
fn foreign_directory_is_incompatible() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("CURRENT"), "kvd-redb 1\nnone\n").unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
}

#[test]
fn damaged_table_is_found_by_verify_and_by_who_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let value = [b'v'; 10_000];
    let keys: Vec<[u8; 1]> = (0..30).map(|key| [key]).collect();
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, &value)).collect();
    backend.write(&ops, &mark(1)).unwrap();
    backend.sync().unwrap();
    backend.verify().unwrap();
    let tables = fs::read_dir(dir.path().join("gen-1/tables")).unwrap();
    let largest = tables
        .map(|table| table.unwrap().path())
        .max_by_key(|table| fs::metadata(table).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    assert_eq!(backend.verify().unwrap_err().kind(), ErrorKind::Corruption);
    drop(backend);
    let backend = open(dir.path()).unwrap();
    let error = backend.scan(ALL, &mut |_, _| Flow::Continue).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
}

#[test]
fn damaged_manifest_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    write(&backend, 1);
    backend.close().unwrap();
    let files = fs::read_dir(dir.path().join("gen-1")).unwrap();
    let manifest = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with('v'))
        .unwrap();
    let sound = fs::read(&manifest).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    for bytes in [&damaged[..], &sound[..sound.len() - 1], b""] {
        fs::write(&manifest, bytes).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    }
    fs::write(&manifest, &sound).unwrap();
    assert_eq!(open(dir.path()).unwrap().mark().unwrap(), mark(1));
}

#[test]
fn a_tree_without_a_mark_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_dir_all(dir.path().join("gen-1")).unwrap();
    fs::create_dir(dir.path().join("gen-1")).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
}

#[test]
fn options_are_checked_when_opening() {
    let right: &[&[(&str, &str)]] = &[&[], &[("cache_size", "8MiB"), ("compression", "none")]];
    let wrong = &[
        ("cache_size", "1KiB"),
        ("memtable_size", "1KiB"),
        ("compression", "zstd"),
        ("cache", "1GiB"),
    ];
    fixture::options_are_checked::<FjallBackend>(right, wrong);
}
