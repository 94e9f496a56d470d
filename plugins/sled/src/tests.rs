//! What the engine promises, beyond the conformance suite: crashes, locks and replacements.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use kvd_plugin_api::testkit::crash;
use kvd_plugin_api::testkit::fixture::{self, copy_dir};
use kvd_plugin_api::testkit::history::{Model, ModelFeed, mark, write};
use kvd_plugin_api::{Backend, ErrorKind, Flow, Op, Range, Result};
use sled::Mode;

use crate::SledBackend;
#[cfg(wrapped)]
use crate::flush::{LOG_SYNCS, Watched};
use crate::store::{Settings, Store};

const SETTINGS: Settings = Settings {
    cache_bytes: 16 << 20,
    mode: Mode::LowSpace,
};

fn open(dir: &Path) -> Result<SledBackend> {
    SledBackend::open_with(dir, SETTINGS)
}

/// What the first contents of a directory look like from below.
fn below(dir: &Path) -> Store {
    Store::open(&dir.join("gen-1"), SETTINGS).unwrap().0
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

/// sled notes in its log that it is on the disk, so it must be, and what it points to as well.
#[cfg(wrapped)]
#[test]
fn sleds_own_flush_is_a_sync_of_its_log_and_of_large_values() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = Store::open(dir.path(), SETTINGS).unwrap();
    assert_eq!(files.synced_blobs(), 0);
    let before = LOG_SYNCS.load(Ordering::Relaxed);
    store.db().insert([1], vec![0; 300_000]).unwrap();
    store.db().flush().unwrap();
    assert_eq!(files.synced_blobs(), 1);
    assert!(LOG_SYNCS.load(Ordering::Relaxed) > before);
}

/// sled writes once more when it is dropped: of what was replaced that is worth nothing, and a disk
/// that fails then has taken nothing away.
#[cfg(wrapped)]
#[test]
fn what_was_replaced_is_not_synced_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = Store::open(dir.path(), SETTINGS).unwrap();
    files.replaced();
    store.db().insert([1], vec![0; 300_000]).unwrap();
    store.db().flush().unwrap();
    assert_eq!(files.synced_blobs(), 0);
    assert!(sync_of_pipe(&dir.path().join("pipe")).is_ok());
}

/// sled shortens its log in a thread of its own, and what became of the sync behind that is asked for
/// much later or never.
#[cfg(wrapped)]
#[test]
fn nothing_is_promised_behind_a_sync_that_failed_whoever_asked_for_it() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (backend, unharmed) = (open(dir.path()).unwrap(), open(other.path()).unwrap());
    write(&backend, 1);
    write(&unharmed, 1);
    assert!(sync_of_pipe(&dir.path().join("gen-1/pipe")).is_err());
    let failure = backend.sync().unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Io);
    // Whoever comes later hears why, and not that somebody had closed it.
    let later = backend.write(&[], &mark(2)).unwrap_err();
    assert_eq!(later.to_string(), failure.to_string());
    assert_eq!(unharmed.sync().unwrap(), mark(1));
    // Nor is it passed over where the directory is replaced before the next sync.
    assert!(sync_of_pipe(&other.path().join("gen-1/pipe")).is_err());
    let entries = Model::at(2).entries.into_iter();
    let replaced = unharmed.replace(&mut ModelFeed(entries), &mark(2));
    assert_eq!(replaced.unwrap_err().to_string(), failure.to_string());
}

#[cfg(wrapped)]
#[test]
fn nobody_waits_for_ever_behind_a_sync_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let watched = Watched::new(dir.path()).unwrap();
    assert_eq!(watched.unless_failed(|| 1).unwrap(), 1);
    let (never, news) = mpsc::channel::<()>();
    assert!(sync_of_pipe(&dir.path().join("pipe")).is_err());
    let told = watched.unless_failed(move || news.recv()).unwrap_err();
    assert!(told.to_string().contains("an earlier sync failed"));
    drop(never);
}

/// What `work` comes to, if it comes to an end.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread that waits for ever cannot be waited for"
)]
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, hear) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    let patience = std::time::Duration::from_secs(60);
    hear.recv_timeout(patience).expect("it comes to an end")
}

/// sled flushes when it is dropped, and does so in vain where it could not write a large value.
#[test]
fn nobody_waits_for_ever_behind_a_large_value_that_was_not_written() {
    let large = || vec![7; 1 << 20];
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_owned();
    let written = in_time(move || {
        let backend = open(&place).unwrap();
        fs::remove_dir_all(place.join("gen-1/blobs")).unwrap();
        backend.write(&[Op::Put(b"k", &large())], &mark(1))
    });
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Io);

    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_owned();
    let replaced = in_time(move || {
        let backend = open(&place).unwrap();
        let entry = || {
            fs::remove_dir_all(place.join("gen-2/blobs")).unwrap();
            Some((b"k".to_vec(), large()))
        };
        let feed = std::iter::from_fn(entry).take(1);
        backend.replace(&mut ModelFeed(feed), &mark(1))
    });
    assert_eq!(replaced.unwrap_err().kind(), ErrorKind::Io);
}

/// A sync that the system refuses: a pipe has no disk.
#[cfg(wrapped)]
#[expect(unsafe_code, reason = "the standard library makes no pipes with names")]
fn sync_of_pipe(pipe: &Path) -> std::io::Result<()> {
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let file = fs::File::options().read(true).write(true).open(pipe);
    file.unwrap().sync_all()
}

/// After a crash at an opening; sled itself takes it for a whole one (its issue 1533).
#[test]
fn a_half_made_snapshot_of_sleds_index_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    drop(backend);
    let half = dir.path().join("gen-1/snap.00000000FFFFFFFF.generating");
    fs::write(half, "half").unwrap();
    assert_eq!(Model::of(&open(dir.path()).unwrap()), Model::at(5));
}

#[test]
fn what_was_synced_survives_a_lost_process() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    assert_eq!(backend.sync().unwrap(), mark(5));
    (6..=9).for_each(|index| write(&backend, index));
    copy_dir(dir.path(), copy.path()).unwrap();
    let survivor = open(copy.path()).unwrap();
    let found = survivor.mark().unwrap().index;
    assert!((5..=9).contains(&found), "{found}");
    assert_eq!(Model::of(&survivor), Model::at(found));
}

#[test]
fn dropped_engine_can_be_opened_again_at_once() {
    fixture::dropped_engine_opens_again_at_once::<SledBackend>(&[("cache_capacity", "16MiB")]);
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

/// Damages what is below, which the next opening must find.
#[track_caller]
fn is_corruption_after(dir: &Path, damage: impl FnOnce(&sled::Db)) {
    let store = below(dir);
    damage(store.db());
    store.db().flush().unwrap();
    drop(store);
    assert_eq!(open(dir).err().unwrap().kind(), ErrorKind::Corruption);
}

#[test]
fn contents_without_a_mark_are_corruption() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    is_corruption_after(dir.path(), |db| {
        db.remove([0]).unwrap().expect("the mark is there");
        db.insert([1, 2], "value").unwrap();
    });
}

/// As after a loss of power that took a part of what was not synced, from the middle.
#[test]
fn contents_that_are_not_those_that_were_written_are_corruption() {
    type Loss = fn(&sled::Db);
    let losses: [Loss; 4] = [
        |db| drop(db.remove(db.scan_prefix([1]).keys().next().unwrap().unwrap())),
        |db| drop(db.insert(db.scan_prefix([1]).keys().last().unwrap().unwrap(), "old")),
        |db| drop(db.insert([1, 255], "removed once")),
        |db| drop(db.insert([0], mark(29).to_bytes())),
    ];
    for lose in losses {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).unwrap();
        (1..=30).for_each(|index| write(&backend, index));
        backend.verify().unwrap();
        drop(backend);
        is_corruption_after(dir.path(), lose);
    }
}

#[test]
fn a_directory_without_a_digest_gets_one_with_the_next_batch() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=30).for_each(|index| write(&backend, index));
    drop(backend);
    let store = below(dir.path());
    let db = store.db();
    db.remove([0, 1]).unwrap().expect("the digest is there");
    drop(store);
    let backend = open(dir.path()).unwrap();
    assert_eq!(Model::of(&backend), Model::at(30));
    write(&backend, 31);
    drop(backend);
    let store = below(dir.path());
    let db = store.db();
    assert!(db.contains_key([0, 1]).unwrap());
    drop(store);
    assert_eq!(Model::of(&open(dir.path()).unwrap()), Model::at(31));
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
    copy_dir(dir.path(), copy.path()).unwrap();
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
fn options_are_checked_when_opening() {
    let right: &[&[(&str, &str)]] = &[
        &[],
        &[("cache_capacity", "8MiB"), ("mode", "high-throughput")],
    ];
    let wrong = &[
        ("cache_capacity", "1KiB"),
        ("mode", "fast"),
        ("cache", "1GiB"),
    ];
    fixture::options_are_checked::<SledBackend>(right, wrong);
}
