//! What the engine promises, beyond the conformance suite: crashes, locks, views and replacements.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvd_plugin_api::testkit::crash;
use kvd_plugin_api::testkit::fixture::{self, FailingFeed, get};
use kvd_plugin_api::testkit::history::{Change, Model, ModelFeed, Random, batch, mark, write};
use kvd_plugin_api::{Backend, ErrorKind, Op, Result, View};
use redb::{Builder, StorageBackend};

use crate::store::Store;
use crate::{RedbBackend, Settings};

fn open(dir: &Path) -> Result<RedbBackend> {
    RedbBackend::open_with(
        dir,
        Settings {
            cache_bytes: 4 << 20,
            check_on_open: false,
        },
    )
}

#[test]
fn killed_process_loses_nothing_that_was_synced() {
    let options = &[("cache_size", "4MiB")];
    crash::check::<RedbBackend>(
        "tests::killed_process_loses_nothing_that_was_synced",
        10,
        options,
    );
}

#[test]
fn lost_power_takes_nothing_that_was_synced() {
    let options = &[("cache_size", "4MiB")];
    crash::check_power::<RedbBackend>(
        "tests::lost_power_takes_nothing_that_was_synced",
        4,
        options,
    );
}

#[test]
fn only_what_was_synced_survives_a_lost_process() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    assert_eq!(backend.sync().unwrap(), mark(5));
    (6..=9).for_each(|index| write(&backend, index));
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let survivor = open(copy.path()).unwrap();
    assert_eq!(survivor.mark().unwrap(), mark(5));
    assert_eq!(Model::of(&survivor), Model::at(5));
}

#[test]
fn opening_after_a_crash_needs_no_repair() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=5).for_each(|index| write(&backend, index));
    backend.sync().unwrap();
    (6..=9).for_each(|index| write(&backend, index));
    let file = copy.path().join("file");
    fs::copy(dir.path().join("gen-1"), &file).unwrap();
    Builder::new()
        .set_repair_callback(|repair| repair.abort())
        .open(file)
        .unwrap();
}

fn size(backend: &RedbBackend) -> u64 {
    backend.property("kvd.disk.bytes").unwrap().parse().unwrap()
}

/// Overwrites a hundred kilobytes `times` times, with a sync every so often.
fn overwrite(backend: &RedbBackend, times: u64, sync_every: u64) {
    let value = [b'v'; 1000];
    let keys: Vec<[u8; 1]> = (0..100).map(|key| [key]).collect();
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put(key, &value)).collect();
    for time in 1..=times {
        backend.write(&ops, &backend.mark().unwrap()).unwrap();
        if time % sync_every == 0 {
            backend.sync().unwrap();
        }
    }
}

/// What a lazy commit frees that came since the last durable one is used again at once; the rest
/// waits for the next durable one. So the file holds what is there a few times, and no more.
#[test]
fn overwriting_does_not_make_the_file_grow_with_or_without_syncs() {
    for sync_every in [10, u64::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path()).unwrap();
        overwrite(&backend, 30, sync_every);
        backend.sync().unwrap();
        let early = size(&backend);
        overwrite(&backend, 300, sync_every);
        let late = size(&backend);
        assert!(late <= early * 3, "{sync_every}: {early}, {late}");
    }
}

#[test]
fn a_dropped_view_gives_its_pages_back() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    overwrite(&backend, 10, 10);
    let before = size(&backend);
    let view = backend.view().unwrap();
    overwrite(&backend, 300, 10);
    let held = size(&backend);
    drop(view);
    overwrite(&backend, 300, 10);
    let after = size(&backend);
    assert!(before < held && after <= held, "{before}, {held}, {after}");
}

#[test]
fn foreign_directory_is_incompatible() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("something"), "else").unwrap();
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Incompatible
    );

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("CURRENT"), "kvd-sled 1\nnone\n").unwrap();
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Incompatible
    );
}

#[test]
fn redb_file_of_another_program_is_incompatible() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let file = dir.path().join("gen-1");
    fs::remove_file(&file).unwrap();
    let db = redb::Database::create(&file).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(redb::TableDefinition::<u64, u64>::new("data"))
        .unwrap();
    txn.commit().unwrap();
    drop(db);
    assert_eq!(
        open(dir.path()).err().unwrap().kind(),
        ErrorKind::Incompatible
    );
}

#[test]
fn damaged_file_is_corruption() {
    for damage in ["not a database", ""] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        fs::write(dir.path().join("gen-1"), damage).unwrap();
        assert_eq!(
            open(dir.path()).err().unwrap().kind(),
            ErrorKind::Corruption,
            "{damage:?}"
        );
    }
}

#[test]
fn damaged_page_is_found_by_verify_and_by_a_checked_opening() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    let value = [b'v'; 100_000];
    backend.write(&[Op::Put(b"key", &value)], &mark(1)).unwrap();
    backend.verify().unwrap();
    backend.close().unwrap();
    let file = dir.path().join("gen-1");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes
        .windows(50_000)
        .position(|window| window == &value[..50_000])
        .unwrap();
    bytes[at + 100] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.verify().unwrap_err().kind(), ErrorKind::Corruption);
    drop(backend);
    fs::write(&file, &bytes).unwrap();
    let checked = RedbBackend::open_with(
        dir.path(),
        Settings {
            cache_bytes: 4 << 20,
            check_on_open: true,
        },
    );
    assert_eq!(checked.err().unwrap().kind(), ErrorKind::Corruption);
}

#[test]
fn verify_keeps_contents_and_names_a_view_in_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=20).for_each(|index| write(&backend, index));
    let view = backend.view().unwrap();
    let error = backend.verify().unwrap_err();
    assert!(
        error.kind() == ErrorKind::Other && error.to_string().contains("view"),
        "{error}"
    );
    drop(view);
    backend.verify().unwrap();
    assert_eq!(backend.mark().unwrap(), mark(20));
    assert_eq!(Model::of(&backend), Model::at(20));
    write(&backend, 21);
    assert_eq!(Model::of(&backend), Model::at(21));
}

#[test]
fn view_outlives_writes_replacement_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    backend.write(&[Op::Put(b"a", b"old")], &mark(1)).unwrap();
    let view = backend.view().unwrap();
    backend.write(&[Op::Put(b"a", b"new")], &mark(2)).unwrap();
    backend.compact().unwrap();
    let entries = [(b"b".to_vec(), b"fed".to_vec())].into_iter();
    backend.replace(&mut ModelFeed(entries), &mark(3)).unwrap();
    assert_eq!(
        (get(&view, b"a"), view.mark()),
        (Some(b"old".to_vec()), &mark(1))
    );
    assert_eq!(get(&view, b"b"), None);
    let view = backend.view().unwrap();
    assert_eq!((get(&view, b"a"), view.mark()), (None, &mark(3)));
    assert_eq!(get(&view, b"b"), Some(b"fed".to_vec()));
    assert!(!dir.path().join("gen-1").exists());
}

#[test]
fn failed_feed_leaves_the_old_contents() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=7).for_each(|index| write(&backend, index));
    let error = backend
        .replace(&mut FailingFeed(100), &mark(50))
        .unwrap_err();
    assert_eq!(error.to_string(), "source is gone");
    assert!(!dir.path().join("gen-2").exists());
    write(&backend, 8);
    assert_eq!(backend.sync().unwrap(), mark(8));
    assert_eq!(Model::of(&backend), Model::at(8));
}

#[test]
fn unchanged_mark_is_kept_and_later_changes_see_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    backend
        .write(&[Op::Put(b"", b"empty key"), Op::Put(b"k", b"")], &mark(1))
        .unwrap();
    backend.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    let ops = [
        Op::Put(b"b", b"1"),
        Op::DeleteRange(b"a", b"c"),
        Op::Put(b"b", b"2"),
        Op::DeleteRange(b"z", b"a"),
    ];
    backend.write(&ops, &mark(1)).unwrap();
    backend.close().unwrap();
    let backend = open(dir.path()).unwrap();
    assert_eq!(backend.mark().unwrap(), mark(1));
    let entries: Vec<_> = Model::of(&backend).entries.into_iter().collect();
    let expected = [(&b""[..], &b"empty key"[..]), (b"b", b"2"), (b"k", b"")];
    assert_eq!(
        entries,
        expected.map(|(key, value)| (key.to_vec(), value.to_vec()))
    );
}

#[test]
fn range_over_everything_leaves_room_for_later_changes() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path()).unwrap();
    (1..=20).for_each(|index| write(&backend, index));
    let view = backend.view().unwrap();
    let ops = [Op::DeleteRange(b"", b"\xff"), Op::Put(b"only", b"one")];
    backend.write(&ops, &mark(21)).unwrap();
    assert_eq!(Model::of(&backend).entries.len(), 1);
    let mut entries = 0;
    let all = kvd_plugin_api::Range {
        from: b"",
        to: None,
        reverse: true,
    };
    view.scan(all, &mut |_, _| {
        entries += 1;
        kvd_plugin_api::Flow::Continue
    })
    .unwrap();
    assert_eq!(entries, Model::at(20).entries.len());
}

/// A disk in memory that remembers every request, to be cut off after any of them.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    image: Vec<u8>,
    requests: Vec<Request>,
    /// Whether it takes nothing more.
    is_full: bool,
}

#[derive(Debug, Clone)]
enum Request {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// Not a request: the engine has returned from writing the batch with this index.
    Written(u64),
    /// Not a request: the engine has returned from `sync` with this index.
    Synced(u64),
}

impl Request {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Request::Write(offset, data) => {
                let from = *offset as usize;
                image.resize(image.len().max(from + data.len()), 0);
                image[from..from + data.len()].copy_from_slice(data);
            }
            Request::SetLen(length) => image.resize(*length as usize, 0),
            Request::Sync | Request::Written(_) | Request::Synced(_) => {}
        }
    }
}

impl Disk {
    fn with_image(image: Vec<u8>) -> Self {
        Disk(Arc::new(Mutex::new(DiskState {
            image,
            ..DiskState::default()
        })))
    }

    fn request(&self, request: Request) {
        let mut state = self.0.lock().unwrap();
        request.apply(&mut state.image);
        state.requests.push(request);
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let state = self.0.lock().unwrap();
        let from = offset as usize;
        let data = state.image.get(from..from + out.len());
        out.copy_from_slice(data.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> std::io::Result<()> {
        self.request(Request::SetLen(length));
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.request(Request::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        if self.0.lock().unwrap().is_full {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.request(Request::Write(offset, data.to_vec()));
        Ok(())
    }
}

fn store(disk: &Disk) -> Arc<Store> {
    let db = Builder::new()
        .set_cache_size(1 << 20)
        .create_with_backend(disk.clone())
        .unwrap();
    Arc::new(Store::with_database(db, Path::new("memory")).unwrap())
}

#[test]
fn failed_sync_is_not_followed_by_a_successful_one() {
    let disk = Disk::default();
    let running = store(&disk);
    let put = |key: &[u8], index: u64| running.write(&[Op::Put(key, b"x")], Some(&mark(index)));
    put(b"first", 1).unwrap();
    running.sync().unwrap();
    put(b"second", 2).unwrap();
    disk.0.lock().unwrap().is_full = true;
    assert_eq!(running.sync().unwrap_err().kind(), ErrorKind::NoSpace);
    disk.0.lock().unwrap().is_full = false;
    assert!(running.sync().is_err());
    assert!(put(b"third", 3).is_err());
    drop(running);
    let image = disk.0.lock().unwrap().image.clone();
    let state = store(&Disk::with_image(image)).read().unwrap();
    assert_eq!(state.mark(), &mark(1));
    assert!(get(&state, b"first").is_some() && get(&state, b"second").is_none());
}

/// What a disk holds after losing power once it had taken `requests`: all up to the last sync,
/// and of the others a random part, in any order as far as sectors are concerned, some torn.
fn after_power_loss(requests: &[Request], random: &mut Random) -> Vec<u8> {
    let mut image = Vec::new();
    let synced = requests
        .iter()
        .rposition(|request| matches!(request, Request::Sync));
    let (durable, pending) = requests.split_at(synced.unwrap_or(0));
    durable.iter().for_each(|request| request.apply(&mut image));
    let prefix = random.below(2) == 0;
    let kept = random.below(pending.len() as u64 + 1) as usize;
    for (at, request) in pending.iter().enumerate() {
        let is_kept = if prefix {
            at < kept
        } else {
            random.below(2) == 0
        };
        match request {
            Request::Write(offset, data) if is_kept && random.below(4) == 0 => {
                for (sector, data) in data.chunks(512).enumerate() {
                    if random.below(2) == 0 {
                        let offset = offset + sector as u64 * 512;
                        Request::Write(offset, data.to_vec()).apply(&mut image);
                    }
                }
            }
            // A file's length is not cut by one write's loss: only growth can be missing.
            Request::SetLen(length) if !is_kept && *length as usize >= image.len() => {}
            Request::SetLen(_) => request.apply(&mut image),
            _ if is_kept => request.apply(&mut image),
            _ => {}
        }
    }
    image
}

/// Power is lost at any moment of a run, in the middle of commits as well: the engine must open
/// with the state after one whole batch, not older than what it had promised.
#[test]
fn power_loss_leaves_a_whole_batch_not_older_than_the_last_sync() {
    for seed in 0..6 {
        let mut random = Random::new(seed + 1000);
        let disk = Disk::default();
        let running = store(&disk);
        let ready = disk.0.lock().unwrap().requests.len();
        for index in 1..=60 {
            let changes = batch(index);
            let ops: Vec<Op<'_>> = changes.iter().map(Change::op).collect();
            running.write(&ops, Some(&mark(index))).unwrap();
            disk.request(Request::Written(index));
            if random.below(6) == 0 {
                running.sync().unwrap();
                disk.request(Request::Synced(index));
            }
        }
        drop(running);
        let requests = disk.0.lock().unwrap().requests.clone();
        for round in 0..16 {
            // Half of them just around a sync, where the commit itself is cut.
            let mut cut = ready + random.below((requests.len() - ready) as u64) as usize;
            if round % 2 == 0 {
                let sync = requests[cut..]
                    .iter()
                    .position(|it| matches!(it, Request::Sync));
                cut = (cut + sync.unwrap_or(0) + random.below(3) as usize).min(requests.len());
            }
            let seen = &requests[..cut];
            let promised = last(seen, |it| {
                if let Request::Synced(at) = it {
                    Some(*at)
                } else {
                    None
                }
            });
            let written = last(seen, |it| {
                if let Request::Written(at) = it {
                    Some(*at)
                } else {
                    None
                }
            });
            let image = after_power_loss(seen, &mut random);
            let state = store(&Disk::with_image(image)).read().unwrap();
            let found = state.mark().clone();
            let context = format!(
                "seed {seed}, round {round}, cut {cut}, found {}",
                found.index
            );
            assert_eq!(found, mark(found.index), "{context}");
            // The batch that was being written when the power went may have made it.
            assert!(
                (promised..=written + 1).contains(&found.index),
                "{context}: {promised}"
            );
            let mut model = Model::default();
            let all = kvd_plugin_api::Range {
                from: b"",
                to: None,
                reverse: false,
            };
            state
                .scan(all, &mut |key, value| {
                    model.entries.insert(key.to_vec(), value.to_vec());
                    kvd_plugin_api::Flow::Continue
                })
                .unwrap();
            assert!(model == Model::at(found.index), "{context}");
        }
    }
}

fn last(requests: &[Request], index: impl Fn(&Request) -> Option<u64>) -> u64 {
    requests.iter().rev().find_map(index).unwrap_or(0)
}

#[test]
fn options_are_checked_when_opening() {
    let right: &[&[(&str, &str)]] = &[&[], &[("cache_size", "8MiB"), ("check_on_open", "yes")]];
    let wrong = &[
        ("cache_size", "1KiB"),
        ("cache_size", "much"),
        ("cache", "1GiB"),
    ];
    fixture::options_are_checked::<RedbBackend>(right, wrong);
}
