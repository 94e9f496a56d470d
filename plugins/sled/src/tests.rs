//! What the engine promises, beyond the conformance suite: crashes, locks and replacements.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvd_plugin_api::testkit::crash;
use kvd_plugin_api::testkit::history::{Model, ModelFeed, mark, write};
use kvd_plugin_api::{
    Backend, ErrorKind, Feed, Flow, Mark, Op, OpenContext, Options, Range, Result,
};
use sled::Mode;

use crate::SledBackend;
use crate::store::Settings;

fn open(dir: &Path) -> Result<SledBackend> {
    SledBackend::open_with(
        dir,
        Settings {
            cache_bytes: 16 << 20,
            mode: Mode::LowSpace,
        },
    )
}

#[test]
fn killed_process_loses_nothing_that_was_synced() {
    let options = &[("cache_capacity", "16MiB")];
    crash::check::<SledBackend>(
        "tests::killed_process_loses_nothing_that_was_synced",
        8,
        options,
    );
}

#[test]
fn lost_power_takes_nothing_that_was_synced() {
    let options = &[("cache_capacity", "16MiB")];
    crash::check_power::<SledBackend>(
        "tests::lost_power_takes_nothing_that_was_synced",
        4,
        options,
    );
}

#[test]
fn what_was_synced_survives_a_lost_process() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    assert_eq!(backend.sync().unwrap(), mark(5));
    (6..=9).for_each(|index| write(&backend, index));
    copy_dir(dir.path(), copy.path());
    let survivor = open(copy.path()).unwrap();
    let found = survivor.mark().unwrap().index;
    assert!((5..=9).contains(&found), "{found}");
    assert_eq!(Model::of(&survivor), Model::at(found));
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn closed_engine_keeps_everything_and_can_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=30).for_each(|index| write(&backend, index));
    backend.close().unwrap();
    assert_eq!(backend.mark().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        backend.write(&[], &mark(31)).unwrap_err().kind(),
        ErrorKind::Closed
    );
    let again = open(dir.path()).unwrap();
    assert_eq!(again.mark().unwrap(), mark(30));
    assert_eq!(Model::of(&again), Model::at(30));
}

#[test]
fn dropped_engine_can_be_opened_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let backend = open(dir.path()).unwrap();
        assert_eq!(backend.mark().unwrap(), mark(round));
        write(&backend, round + 1);
        backend.sync().unwrap();
    }
}

#[test]
fn second_opening_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path()).unwrap();
    assert_eq!(open(dir.path()).err().unwrap().kind(), ErrorKind::Locked);
}

#[test]
fn foreign_directory_is_incompatible() {
    let dir = tempfile::tempdir().unwrap();
    drop(sled::open(dir.path()).unwrap());
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Incompatible
    );

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("CURRENT"), "kvd-redb 1\nnone\n").unwrap();
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Incompatible
    );
}

#[test]
fn contents_without_a_mark_are_corruption() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let db = sled::open(dir.path().join("gen-1")).unwrap();
    db.remove([0]).unwrap().expect("the mark is there");
    db.insert([1, 2], "value").unwrap();
    db.flush().unwrap();
    drop(db);
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Corruption
    );
}

#[test]
fn replacement_and_compaction_take_the_place_of_the_old_contents() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=20).for_each(|index| write(&backend, index));
    backend.compact().unwrap();
    assert_eq!(
        (backend.mark().unwrap(), Model::of(&backend)),
        (mark(20), Model::at(20))
    );
    let entries = [(b"b".to_vec(), b"fed".to_vec())].into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(25)).unwrap();
    drop(backend);
    assert!(!dir.path().join("gen-1").exists() && !dir.path().join("gen-2").exists());
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), mark(25));
    let entries = Model::of(&backend).entries;
    assert_eq!(
        entries.into_iter().collect::<Vec<_>>(),
        [(b"b".to_vec(), b"fed".to_vec())]
    );
}

#[test]
fn failed_feed_leaves_the_old_contents() {
    struct Failing(u32);
    impl Feed for Failing {
        fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
            self.0 += 1;
            if self.0 == 100 {
                return Err(kvd_plugin_api::Error::new(
                    ErrorKind::Other,
                    "source is gone",
                ));
            }
            out(&self.0.to_be_bytes(), b"fed");
            Ok(true)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=7).for_each(|index| write(&backend, index));
    let error = backend.replace(&mut Failing(0), &mark(50)).unwrap_err();
    assert_eq!(error.to_string(), "source is gone");
    write(&backend, 8);
    assert_eq!(backend.sync().unwrap(), mark(8));
    assert_eq!(Model::of(&backend), Model::at(8));
}

#[test]
fn later_changes_of_a_batch_see_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let ops = [
        Op::Put(b"", b"empty key"),
        Op::Put(b"k", b""),
        Op::Put(b"bb", b"before"),
    ];
    backend.write(&ops, &mark(1)).unwrap();
    let ops = [
        Op::Put(b"b", b"1"),
        Op::DeleteRange(b"a", b"c"),
        Op::Put(b"b", b"2"),
        Op::DeleteRange(b"z", b"a"),
        Op::Put(b"k", b"3"),
        Op::Delete(b"k"),
    ];
    backend.write(&ops, &mark(1)).unwrap();
    let entries: Vec<_> = Model::of(&backend).entries.into_iter().collect();
    let expected = [(&b""[..], &b"empty key"[..]), (b"b", b"2")];
    assert_eq!(
        entries,
        expected.map(|(key, value)| (key.to_vec(), value.to_vec()))
    );
}

#[test]
fn keys_like_the_marks_are_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let ops = [
        Op::Put(&[0], b"zero"),
        Op::Put(&[0xff; 300], b"high"),
        Op::Delete(&[0, 0]),
    ];
    backend.write(&ops, &mark(1)).unwrap();
    backend
        .write(&[Op::DeleteRange(&[], &[1])], &mark(2))
        .unwrap();
    backend.sync().unwrap();
    drop(backend);
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), mark(2));
    let mut found = Vec::new();
    assert!(
        backend
            .get(&[0xff; 300], &mut |value| found = value.to_vec())
            .unwrap()
    );
    assert_eq!(found, b"high");
    assert!(!backend.get(&[0], &mut |_| ()).unwrap());
}

#[test]
fn large_values_and_batches_survive() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let value = vec![7; 20 << 20];
    backend
        .write(
            &[Op::Put(b"large", &value), Op::Put(b"also", &value)],
            &mark(1),
        )
        .unwrap();
    let keys: Vec<String> = (0..20_000)
        .map(|number| format!("many {number:06}"))
        .collect();
    let ops: Vec<Op<'_>> = keys
        .iter()
        .map(|key| Op::Put(key.as_bytes(), b"x"))
        .collect();
    backend.write(&ops, &mark(2)).unwrap();
    assert_eq!(backend.sync().unwrap(), mark(2));
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let backend = open(copy.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), mark(2));
    assert!(
        backend
            .get(b"large", &mut |found| assert!(found == value))
            .unwrap()
    );
    assert_eq!(Model::of(&backend).entries.len(), 20_002);
    backend
        .write(&[Op::DeleteRange(b"many", b"many z")], &mark(3))
        .unwrap();
    assert_eq!(Model::of(&backend).entries.len(), 2);
}

#[test]
fn too_large_key_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let key = vec![0; (64 << 20) + 1];
    let ops = [Op::Put(b"first", b"x"), Op::Put(&key, b"")];
    assert_eq!(
        backend.write(&ops, &mark(1)).unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    assert_eq!(
        (backend.mark().unwrap(), Model::of(&backend)),
        (mark(0), Model::default())
    );
}

#[test]
fn scan_meets_whole_batches_only() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let done = AtomicBool::new(false);
    let write_all = |index: u64| {
        let value = index.to_be_bytes();
        let keys: Vec<[u8; 2]> = (0..300u16).map(u16::to_be_bytes).collect();
        let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, &value)).collect();
        backend.write(&ops, &mark(index)).unwrap();
    };
    write_all(1);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut scans = 0;
            while !done.load(Ordering::Relaxed) || scans == 0 {
                let mut first = None;
                let all = Range {
                    from: b"",
                    to: None,
                    reverse: scans % 2 == 0,
                };
                backend
                    .scan(all, &mut |_, value| {
                        assert_eq!(*first.get_or_insert(value.to_vec()), value);
                        Flow::Continue
                    })
                    .unwrap();
                scans += 1;
            }
        });
        (2..=60).for_each(write_all);
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn new_directory_has_the_default_mark() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), Mark::default());
    assert_eq!(backend.sync().unwrap(), Mark::default());
    assert_eq!(backend.view().err().unwrap().kind(), ErrorKind::Unsupported);
}

#[test]
fn options_are_checked_when_opening() {
    let dir = tempfile::tempdir().unwrap();
    let open = |given: &[(&'static str, &'static str)]| {
        let options = Options::parse(SledBackend::OPTIONS, given.iter().copied())?;
        SledBackend::open(&OpenContext {
            dir: dir.path(),
            options: &options,
        })
    };
    drop(open(&[]).unwrap());
    drop(open(&[("cache_capacity", "8MiB"), ("mode", "high-throughput")]).unwrap());
    for wrong in [
        ("cache_capacity", "1KiB"),
        ("mode", "fast"),
        ("cache", "1GiB"),
    ] {
        assert_eq!(
            open(&[wrong]).err().unwrap().kind(),
            ErrorKind::InvalidOption,
            "{wrong:?}"
        );
    }
}
