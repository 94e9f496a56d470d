use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt as _;

use super::super::journal::{Flushed, MemoryDisk, MemoryJournal, SyncJob, Visit};
use super::*;
use crate::raft::types::{Proposal, log_id};

fn entry(term: u64, index: u64) -> Entry {
    let payload = EntryPayload::Normal(Proposal::new(Bytes::from(vec![index as u8; 1000])));
    Entry {
        log_id: log_id(term, index),
        payload,
    }
}

fn ignore() -> OnFatal {
    Arc::new(|_| {})
}

fn identity() -> Identity {
    Identity {
        cluster: 7,
        group: 0,
        node: 9,
    }
}

fn open(dir: &Path) -> Result<LogStore, OpenError> {
    LogStore::open(dir, identity(), ignore())
}

async fn fill(log: &mut LogStore, entries: u64) {
    log.save_vote(&Vote::new_committed(1, 9)).await.unwrap();
    for index in 0..entries {
        log.blocking_append([entry(1, index)]).await.unwrap();
    }
}

/// The files of a log with some entries, as a crash would leave them.
async fn files(entries: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    fill(&mut log, entries).await;
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join(CHUNKS)).unwrap();
    for folder in ["", CHUNKS] {
        for file in std::fs::read_dir(dir.path().join(folder)).unwrap() {
            let file = file.unwrap().path();
            if file.is_file() {
                let name = file.file_name().unwrap();
                std::fs::copy(&file, copy.path().join(folder).join(name)).unwrap();
            }
        }
    }
    copy
}

fn damage(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let chunks = super::super::scan::chunks(&dir.join(CHUNKS)).unwrap();
    let (_, chunk) = chunks.last().expect("a log has a chunk");
    let mut bytes = std::fs::read(chunk).unwrap();
    change(&mut bytes);
    std::fs::write(chunk, bytes).unwrap();
}

/// Where the payload of an entry begins in a chunk.
fn payload_of(bytes: &[u8], index: u8) -> usize {
    let pattern = [index; 200];
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
        .expect("the entry is there")
}

#[tokio::test]
async fn entries_votes_and_purges_survive_a_restart() {
    let dir = files(20).await;
    let mut log = open(dir.path()).unwrap();
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(Vote::new_committed(1, 9))
    );
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 20);
    log.set_purge_floor(10);
    log.truncate_after(Some(log_id(1, 15))).await.unwrap();
    log.purge(log_id(1, 10)).await.unwrap();
    log.sync().await.unwrap();
    drop(log);
    let mut log = open(dir.path()).unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, 10)));
    assert_eq!(state.last_log_id, Some(log_id(1, 15)));
    assert_eq!(
        log.try_get_log_entries(11..).await.unwrap(),
        (11..16).map(|i| entry(1, i)).collect::<Vec<_>>()
    );
}

/// Whoever waited for the close may open the files before the flush's own thread runs on.
#[tokio::test]
async fn a_closed_log_can_be_opened_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..100 {
        let log = open(dir.path()).unwrap();
        log.sync().await.unwrap();
        drop(log);
    }
}

#[tokio::test]
async fn a_second_opening_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path()).unwrap();
    assert!(open(dir.path()).is_err());
}

#[tokio::test]
async fn a_log_of_another_cluster_or_node_is_refused() {
    let dir = files(1).await;
    let other = Identity {
        cluster: 8,
        ..identity()
    };
    let error = LogStore::open(dir.path(), other, ignore())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cluster is"), "{error}");
    let other = Identity {
        node: 10,
        ..identity()
    };
    let error = LogStore::open(dir.path(), other, ignore())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("node is"), "{error}");
}

#[tokio::test]
async fn a_damaged_payload_is_refused() {
    let dir = files(20).await;
    damage(dir.path(), |bytes| {
        let at = payload_of(bytes, 5);
        bytes[at + 3] ^= 1;
    });
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn a_damaged_length_is_refused_and_not_taken_for_the_end() {
    let dir = files(20).await;
    damage(dir.path(), |bytes| {
        // Before the payload stand its kind, the version, the checksum and the length.
        let length = payload_of(bytes, 5) - 1 - 1 - 4 - 4;
        assert_eq!(bytes[length..length + 4], 1001u32.to_be_bytes());
        bytes[length] ^= 0x01;
    });
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn a_torn_end_is_cut_off() {
    for longer in [false, true] {
        let dir = files(20).await;
        damage(dir.path(), |bytes| {
            let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            if longer {
                bytes[last - 500..].fill(0);
            } else {
                bytes.truncate(last - 500);
            }
        });
        let mut log = open(dir.path()).unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 19);
    }
}

#[tokio::test]
async fn a_hole_is_refused_where_the_entry_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    fill(&mut log, 3).await;
    let error = log
        .blocking_append([entry(1, 4)])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("entry 4 was given to a log that ends at 2"),
        "{error}"
    );
}

#[tokio::test]
async fn purging_above_the_floor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    fill(&mut log, 10).await;
    log.set_purge_floor(4);
    assert!(log.purge(log_id(1, 5)).await.is_err());
    log.purge(log_id(1, 4)).await.unwrap();
}

#[tokio::test]
async fn reads_stop_at_their_budget_but_give_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    for index in 0..5 {
        let payload = EntryPayload::Normal(Proposal::new(Bytes::from(vec![7; 600 * 1024])));
        log.blocking_append([Entry {
            log_id: log_id(1, index),
            payload,
        }])
        .await
        .unwrap();
    }
    assert_eq!(log.limited_get_log_entries(0, 5).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(0..5).await.unwrap().len(), 5);
    let streamed: Vec<_> = futures_util::StreamExt::collect(log.entries_stream(0..5).await).await;
    assert_eq!(streamed.len(), 5);
    assert!(streamed.iter().all(Result::is_ok));
}

/// A journal whose flushes end when the test says so.
struct Held {
    inner: MemoryJournal,
    flushes: mpsc::Sender<Flushed>,
}

impl Journal for Held {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        self.inner.append(id, body)
    }
    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.inner.truncate_after(last)
    }
    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.inner.purge(upto)
    }
    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.inner.save_vote(vote)
    }
    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.inner.save_committed(committed)
    }
    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        self.flushes
            .send(done)
            .map_err(|_| io::Error::other("the test has ended"))
    }
    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        self.inner.read(from, to, visit)
    }
    fn state(&self) -> JournalState {
        self.inner.state()
    }
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

pub(crate) fn held() -> (LogStore, mpsc::Receiver<Flushed>) {
    let (flushes, begun) = mpsc::channel();
    let journal = Held {
        inner: MemoryJournal::open(MemoryDisk::default()),
        flushes,
    };
    (LogStore::over(Box::new(journal), ignore()), begun)
}

#[tokio::test]
async fn nothing_is_reported_before_its_flush_has_ended() {
    let (log, begun) = held();
    let mut own = log.clone();
    let vote = crate::doors::spawn(async move { own.save_vote(&Vote::new(1, 9)).await });
    tokio::task::yield_now().await;
    let flush = begun.recv().unwrap();
    tokio::task::yield_now().await;
    assert!(!vote.is_finished());
    flush(Ok(()));
    vote.await.unwrap().unwrap();

    let mut own = log.clone();
    let append = crate::doors::spawn(async move { own.blocking_append([entry(1, 0)]).await });
    tokio::task::yield_now().await;
    let flush = begun.recv().unwrap();
    tokio::task::yield_now().await;
    assert!(!append.is_finished());
    flush(Ok(()));
    append.await.unwrap().unwrap();
    log.wait_flushed(0).await.unwrap();

    let mut own = log.clone();
    let truncate = crate::doors::spawn(async move { own.truncate_after(None).await });
    tokio::task::yield_now().await;
    let flush = begun.recv().unwrap();
    tokio::task::yield_now().await;
    assert!(!truncate.is_finished());
    flush(Ok(()));
    truncate.await.unwrap().unwrap();
}

#[tokio::test]
async fn appends_during_a_flush_share_the_next_one() {
    let (mut log, begun) = held();
    log.append([entry(1, 0)], IOFlushed::noop()).await.unwrap();
    let first = begun.recv().unwrap();
    for index in 1..50 {
        log.append([entry(1, index)], IOFlushed::noop())
            .await
            .unwrap();
    }
    assert!(begun.try_recv().is_err(), "only one flush is outstanding");
    first(Ok(()));
    let second = begun.recv().unwrap();
    second(Ok(()));
    assert!(
        begun.try_recv().is_err(),
        "one flush covers all that waited"
    );
    log.wait_flushed(49).await.unwrap();
}

#[tokio::test]
async fn a_short_append_can_be_durable_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.append([entry(1, 0)], IOFlushed::noop()).await.unwrap();
    log.wait_flushed(0).await.unwrap();
    log.sync_in_place(64 << 10);
    for index in 1..10 {
        // Whatever else the disk is busy with.
        log.inner.slow.store(false, Ordering::Relaxed);
        log.append([entry(1, index)], IOFlushed::noop())
            .await
            .unwrap();
        assert_eq!(log.flushed(), index + 1);
    }
    let long = Entry {
        log_id: log_id(1, 10),
        payload: EntryPayload::Normal(Proposal::new(Bytes::from(vec![1; 64 << 10]))),
    };
    log.blocking_append([long]).await.unwrap();
    assert_eq!(log.phases().fsync.count(), 11);
    drop(log);
    let mut log = open(dir.path()).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 11);
}

/// A journal whose syncs in place end like this, and that counts its flushes.
struct InPlace(MemoryJournal, fn() -> io::Result<()>, Arc<AtomicUsize>);

impl Journal for InPlace {
    fn append(&mut self, id: LogId, body: Body) -> io::Result<()> {
        self.0.append(id, body)
    }
    fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.0.truncate_after(last)
    }
    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.0.purge(upto)
    }
    fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.0.save_vote(vote)
    }
    fn save_committed(&mut self, committed: LogId) -> io::Result<()> {
        self.0.save_committed(committed)
    }
    fn flush(&mut self, done: Flushed) -> io::Result<()> {
        self.2.fetch_add(1, Ordering::Relaxed);
        self.0.flush(done)
    }
    fn write_out(&mut self, _bytes_max: usize) -> io::Result<Option<SyncJob>> {
        Ok(Some(Box::new(self.1)))
    }
    fn read(&self, from: u64, to: u64, visit: Visit<'_>) -> io::Result<()> {
        self.0.read(from, to, visit)
    }
    fn state(&self) -> JournalState {
        self.0.state()
    }
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

#[tokio::test]
async fn a_failed_sync_in_place_ends_the_log() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let fatal: OnFatal = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let flushes = Arc::new(AtomicUsize::new(0));
    let journal = InPlace(
        MemoryJournal::open(MemoryDisk::default()),
        || Err(io::Error::other("no such luck")),
        flushes.clone(),
    );
    let mut log = LogStore::over(Box::new(journal), fatal);
    log.sync_in_place(64 << 10);
    assert!(log.blocking_append([entry(1, 0)]).await.is_err());
    assert_eq!(log.flushed(), 0);
    assert!(log.save_vote(&Vote::new(2, 9)).await.is_err());
    assert!(log.wait_flushed(0).await.is_err());
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(flushes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn who_appends_does_not_wait_for_a_disk_that_was_slow_just_before() {
    let flushes = Arc::new(AtomicUsize::new(0));
    let journal = InPlace(
        MemoryJournal::open(MemoryDisk::default()),
        || Ok(()),
        flushes.clone(),
    );
    let mut log = LogStore::over(Box::new(journal), ignore());
    log.sync_in_place(64 << 10);
    log.blocking_append([entry(1, 0)]).await.unwrap();
    assert_eq!(flushes.load(Ordering::Relaxed), 0);
    log.inner
        .end(1, Instant::now() - 2 * SYNCED_IN_PLACE_WITHIN);
    log.blocking_append([entry(1, 1)]).await.unwrap();
    assert_eq!(flushes.load(Ordering::Relaxed), 1);
    // That one was quick.
    log.blocking_append([entry(1, 2)]).await.unwrap();
    assert_eq!(flushes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_failed_flush_ends_the_log() {
    let told = Arc::new(AtomicUsize::new(0));
    let (flushes, begun) = mpsc::channel();
    let journal = Held {
        inner: MemoryJournal::open(MemoryDisk::default()),
        flushes,
    };
    let count = told.clone();
    let fatal: OnFatal = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut log = LogStore::over(Box::new(journal), fatal);
    let mut own = log.clone();
    let append = crate::doors::spawn(async move { own.blocking_append([entry(1, 0)]).await });
    tokio::task::yield_now().await;
    let flush = begun.recv().unwrap();
    let mut own = log.clone();
    let second = crate::doors::spawn(async move { own.blocking_append([entry(1, 1)]).await });
    tokio::task::yield_now().await;
    flush(Err(io::Error::other("no such luck")));
    assert!(append.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err());
    assert!(log.save_vote(&Vote::new(2, 9)).await.is_err());
    assert!(log.wait_flushed(0).await.is_err());
    assert!(
        begun.try_recv().is_err(),
        "nothing is flushed after a failure"
    );
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_memory_log_forgets_what_was_not_flushed() {
    let disk = MemoryDisk::default();
    let mut log = LogStore::over(Box::new(MemoryJournal::open(disk.clone())), ignore());
    log.blocking_append([entry(1, 0)]).await.unwrap();
    drop(log);
    let mut log = LogStore::over(Box::new(MemoryJournal::open(disk)), ignore());
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_tail_that_a_snapshot_contradicts_is_dropped_down_to_what_is_committed() {
    let dir = files(20).await;
    let mut log = open(dir.path()).unwrap();
    log.save_committed(Some(log_id(1, 7))).await.unwrap();
    log.drop_contradicted(log_id(1, 12)).await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last, Some(log_id(1, 19)), "nothing contradicts");
    log.save_vote(&Vote::new_committed(3, 9)).await.unwrap();
    log.drop_contradicted(log_id(3, 12)).await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last, Some(log_id(1, 7)));
    log.check_restart(Some(log_id(3, 12)), Some(12), true)
        .unwrap();
}

/// Entries of a megabyte each, so that the log's cache is soon full.
fn large(term: u64, index: u64) -> Entry {
    let payload = EntryPayload::Normal(Proposal::new(Bytes::from(vec![index as u8; 1 << 20])));
    Entry {
        log_id: log_id(term, index),
        payload,
    }
}

#[tokio::test]
async fn a_tail_longer_than_the_cache_is_truncated_and_written_anew() {
    let count = (super::super::chunk::CACHE_BYTES >> 20) as u64 + 10;
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.save_vote(&Vote::new_committed(1, 9)).await.unwrap();
    for index in 0..count {
        log.blocking_append([large(1, index)]).await.unwrap();
    }
    log.truncate_after(Some(log_id(1, 2))).await.unwrap();
    log.save_vote(&Vote::new_committed(2, 9)).await.unwrap();
    for index in 3..6 {
        log.blocking_append([large(2, index)]).await.unwrap();
    }
    let expected: Vec<Entry> = (0..6)
        .map(|index| large(if index < 3 { 1 } else { 2 }, index))
        .collect();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected);
    drop(log);
    let mut log = open(dir.path()).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected);
}

#[tokio::test]
async fn vote_and_commit_outlive_the_chunks_that_they_were_written_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    let oldest = || {
        let files = std::fs::read_dir(dir.path().join(CHUNKS)).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".wal")).min().unwrap()
    };
    log.save_vote(&Vote::new_committed(7, 9)).await.unwrap();
    log.blocking_append([large(7, 0)]).await.unwrap();
    log.save_committed(Some(log_id(7, 0))).await.unwrap();
    let first = oldest();
    for index in 1..40 {
        log.blocking_append([large(7, index)]).await.unwrap();
    }
    log.set_purge_floor(30);
    log.purge(log_id(7, 30)).await.unwrap();
    log.sync().await.unwrap();
    drop(log);
    assert_ne!(oldest(), first, "the first chunk is gone");
    let mut log = open(dir.path()).unwrap();
    let vote = log.read_vote().await.unwrap();
    assert_eq!(vote, Some(Vote::new_committed(7, 9)));
    assert!(log.read_committed().await.unwrap() >= Some(log_id(7, 0)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(7, 30)));
    assert_eq!(state.last_log_id, Some(log_id(7, 39)));
}
