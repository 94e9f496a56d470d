use std::sync::mpsc;

use bytes::Bytes;
use raft_log::api::raft_log_writer::RaftLogWriter as _;
use raft_log::{ChunkId, RaftLog};

use super::super::chunk::CACHE_BYTES;
use super::super::record::Callback;
use super::*;
use crate::raft::types::log_id;

fn body(of: u64, len: usize) -> Body {
    Body(Bytes::from(vec![of as u8; len]))
}

fn sync(journal: &mut FileJournal) {
    let (done, wait) = mpsc::channel();
    let done = Box::new(move |result| done.send(result).unwrap());
    journal.flush(done).unwrap();
    wait.recv().unwrap().unwrap();
}

fn entries(journal: &FileJournal) -> Vec<(LogId, Body)> {
    let mut entries = Vec::new();
    journal
        .read(0, u64::MAX, &mut |id, body| {
            entries.push((id, body.clone()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    entries
}

/// The crate's own log over the same files.
fn crates(dir: &Path) -> RaftLog<LogTypes> {
    let mut config = raft_log::Config::new(dir.display());
    config.wal.chunk_max_size = Some(CHUNK_BYTES as usize);
    RaftLog::open(Arc::new(config)).unwrap()
}

fn crates_state(log: &RaftLog<LogTypes>) -> JournalState {
    let state = log.log_state();
    JournalState {
        vote: state.vote().map(|vote| vote.0),
        last: state.last().map(|id| id.0),
        committed: state.committed().map(|id| id.0),
        purged: state.purged().map(|id| id.0),
    }
}

fn crates_entries(log: &RaftLog<LogTypes>) -> Vec<(LogId, Body)> {
    log.read(0, u64::MAX)
        .map(|entry| entry.map(|(id, body)| (id.0, body)).unwrap())
        .collect()
}

/// What a node may do to its log, several chunks of it.
fn history(journal: &mut FileJournal) {
    journal.save_vote(Vote::new(1, 7)).unwrap();
    for index in 1..=40 {
        journal
            .append(log_id(1, index), body(index, 1 << 20))
            .unwrap();
        if index % 7 == 0 {
            journal.save_committed(log_id(1, index)).unwrap();
            sync(journal);
        }
    }
    journal.truncate_after(Some(log_id(1, 36))).unwrap();
    journal.save_vote(Vote::new_committed(2, 8)).unwrap();
    for index in 37..=45 {
        journal.append(log_id(2, index), body(index, 100)).unwrap();
    }
    journal.purge(log_id(1, 20)).unwrap();
    sync(journal);
}

#[test]
fn the_crate_reads_what_is_written_here() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    history(&mut journal);
    let (state, held) = (journal.state(), entries(&journal));
    assert_eq!(state.purged, Some(log_id(1, 20)));
    assert_eq!(held.len(), 25);
    drop(journal);
    let files = chunks(temp.path()).unwrap();
    assert_eq!(files.len(), 2, "the first chunk is purged: {files:?}");
    let log = crates(temp.path());
    assert_eq!(crates_state(&log), state);
    assert_eq!(crates_entries(&log), held);
    drop(log);
    let journal = FileJournal::open(temp.path()).unwrap();
    assert_eq!(journal.state(), state);
    assert_eq!(entries(&journal), held);
}

#[test]
fn what_the_crate_wrote_is_read_and_gone_on_with() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = crates(temp.path());
    log.save_vote(StoredVote(Vote::new(1, 7))).unwrap();
    for index in 1..=20 {
        let entry = (Id(log_id(1, index)), body(index, 1 << 20));
        log.append([entry]).unwrap();
    }
    log.commit(Id(log_id(1, 18))).unwrap();
    log.truncate(20).unwrap();
    let (done, wait) = mpsc::channel();
    let done = Callback(Box::new(move |result| done.send(result).unwrap()));
    log.flush(true, Some(done)).unwrap();
    wait.recv().unwrap().unwrap();
    let (state, held) = (crates_state(&log), crates_entries(&log));
    drop(log);

    let mut journal = FileJournal::open(temp.path()).unwrap();
    assert_eq!(journal.state(), state);
    assert_eq!(entries(&journal), held);
    for index in 20..=40 {
        journal
            .append(log_id(2, index), body(index, 1 << 20))
            .unwrap();
    }
    sync(&mut journal);
    let (state, held) = (journal.state(), entries(&journal));
    drop(journal);
    let log = crates(temp.path());
    assert_eq!(crates_state(&log), state);
    assert_eq!(crates_entries(&log), held);
}

#[test]
fn entries_that_are_not_in_memory_any_more_are_read_from_their_files() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    for index in 1..=100 {
        journal
            .append(log_id(1, index), body(index, 1 << 20))
            .unwrap();
    }
    let in_memory = |journal: &FileJournal| {
        let held = journal.entries.iter().filter(|slot| slot.body.is_some());
        held.map(|slot| slot.len as usize).sum::<usize>()
    };
    assert!(in_memory(&journal) <= CACHE_BYTES);
    assert_eq!(in_memory(&journal), journal.cache.bytes);
    let held = entries(&journal);
    assert_eq!(held.len(), 100);
    for (n, (id, found)) in held.iter().enumerate() {
        assert_eq!(id.index, n as u64 + 1);
        assert_eq!(found, &body(id.index, 1 << 20));
    }
    sync(&mut journal);
    drop(journal);
    let mut journal = FileJournal::open(temp.path()).unwrap();
    assert!(in_memory(&journal) <= CACHE_BYTES);
    assert_eq!(entries(&journal), held);
    journal.truncate_after(Some(log_id(1, 2))).unwrap();
    assert_eq!((journal.cache.entries, journal.cache.bytes), (0, 0));
    assert_eq!(entries(&journal), held[..2]);
}

#[test]
fn what_is_written_is_what_a_sync_in_place_makes_durable() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    journal.append(log_id(1, 1), body(1, 1000)).unwrap();
    assert!(journal.write_out(100).unwrap().is_none(), "that is longer");
    let job = journal.write_out(10_000).unwrap().expect("that is not");
    job().unwrap();
    let (_, file) = chunks(temp.path()).unwrap().pop().unwrap();
    let written = fs::read(file).unwrap();
    let (records, zeros) = written.split_at(journal.bytes() as usize);
    assert!(records.windows(1000).any(|bytes| bytes == [1; 1000]));
    assert!(zeros.iter().all(|byte| *byte == 0));
}

#[test]
fn no_sync_succeeds_after_one_that_failed() {
    let disk = Disk::default();
    let file = tempfile::tempfile().unwrap();
    disk.sync(&file).unwrap();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    let no_file = File::from(std::os::fd::OwnedFd::from(socket));
    assert!(disk.sync(&no_file).is_err());
    assert!(disk.sync(&file).is_err());
}

#[test]
fn a_chunk_without_its_first_record_was_not_begun() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    journal.append(log_id(1, 1), body(1, 1000)).unwrap();
    sync(&mut journal);
    let end = journal.bytes();
    drop(journal);
    let next = temp.path().join(Config::chunk_file_name(ChunkId(end)));
    for contents in [&[][..], &[0; 100], &[0, 0, 0, 5, 1]] {
        fs::write(&next, contents).unwrap();
        let journal = FileJournal::open(temp.path()).unwrap();
        assert!(!next.exists());
        assert_eq!(entries(&journal).len(), 1);
    }
    fs::write(&next, [7; 100]).unwrap();
    assert!(FileJournal::open(temp.path()).is_err());
}

#[test]
fn records_that_contradict_the_log_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    journal.save_vote(Vote::new(3, 1)).unwrap();
    for index in 5..=9 {
        journal.append(log_id(2, index), body(index, 10)).unwrap();
    }
    journal.save_committed(log_id(2, 7)).unwrap();
    let before = (journal.state(), journal.bytes());
    assert!(journal.save_vote(Vote::new(2, 1)).is_err());
    assert!(journal.append(log_id(2, 9), body(9, 1)).is_err());
    assert!(journal.append(log_id(2, 11), body(11, 1)).is_err());
    assert!(journal.append(log_id(1, 10), body(10, 1)).is_err());
    assert!(journal.save_committed(log_id(2, 10)).is_err());
    assert!(journal.save_committed(log_id(2, 6)).is_err());
    assert!(journal.truncate_after(Some(log_id(2, 6))).is_err());
    assert!(journal.truncate_after(Some(log_id(1, 8))).is_err());
    assert_eq!((journal.state(), journal.bytes()), before);
    journal.truncate_after(Some(log_id(2, 8))).unwrap();
    assert_eq!(entries(&journal).len(), 4);
}
