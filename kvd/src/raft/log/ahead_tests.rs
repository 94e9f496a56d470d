use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::raft::log::journal::Journal as _;
use crate::raft::log::record::Body;
use crate::raft::log::scan::chunks;
use crate::raft::log::{End, FileJournal, scan};
use crate::raft::types::log_id;

fn body(of: u64, len: usize) -> Body {
    Body(Bytes::from(vec![of as u8 | 1; len]))
}

fn sync(journal: &mut FileJournal) {
    let (done, wait) = mpsc::channel();
    let done = Box::new(move |result| done.send(result).unwrap());
    journal.flush(done).unwrap();
    wait.recv().unwrap().unwrap();
}

fn add(journal: &mut FileJournal, indexes: std::ops::RangeInclusive<u64>, len: usize) {
    for index in indexes {
        journal.append(log_id(1, index), body(index, len)).unwrap();
    }
    sync(journal);
}

/// The last entry, when all before it are what they were.
fn last(journal: &FileJournal) -> u64 {
    let mut next = 1;
    journal
        .read(0, u64::MAX, &mut |id, found| {
            assert_eq!((id.index, found.0[0]), (next, next as u8 | 1));
            next += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    next - 1
}

fn file(dir: &Path) -> PathBuf {
    chunks(dir).unwrap().pop().unwrap().1
}

/// The files as a process that is killed leaves them.
fn killed(journal: &FileJournal, dir: &Path) -> (tempfile::TempDir, Vec<u8>) {
    let bytes = fs::read(file(dir)).unwrap();
    assert!(bytes.len() as u64 >= journal.bytes());
    (left(dir, &bytes), bytes)
}

fn left(dir: &Path, bytes: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join(file(dir).file_name().unwrap()), bytes).unwrap();
    copy
}

fn length(dir: &Path) -> u64 {
    fs::metadata(file(dir)).unwrap().len()
}

#[test]
fn short_flushes_leave_the_length_of_the_file_alone() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    add(&mut journal, 1..=1, 100);
    let long = length(temp.path());
    assert!(long >= STEP);
    for index in 2..=50 {
        add(&mut journal, index..=index, 100);
    }
    assert_eq!(length(temp.path()), long);
    add(&mut journal, 51..=51, SHORT_MAX);
    assert_eq!(length(temp.path()), journal.bytes(), "that one was long");
    add(&mut journal, 52..=52, 100);
    assert_eq!(length(temp.path()), journal.bytes(), "another may follow");
    for index in 53..53 + u64::from(CALM) {
        add(&mut journal, index..=index, 10);
    }
    assert!(length(temp.path()) > journal.bytes());
    let end = journal.bytes();
    drop(journal);
    assert_eq!(length(temp.path()), end);
}

#[test]
fn a_killed_process_leaves_zeros_that_are_written_over_later() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    add(&mut journal, 1..=9, 300);
    let (copy, bytes) = killed(&journal, temp.path());
    assert!(bytes.ends_with(&[0; 100_000]));
    let mut again = FileJournal::open(copy.path()).unwrap();
    assert_eq!((last(&again), again.bytes()), (9, journal.bytes()));
    add(&mut again, 10..=12, 300);
    assert_eq!(length(copy.path()), bytes.len() as u64);
    let (copy, _) = killed(&again, copy.path());
    assert_eq!(last(&FileJournal::open(copy.path()).unwrap()), 12);
}

#[test]
fn a_flush_that_is_there_in_part_is_cut_off_in_whichever_order_it_came() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    add(&mut journal, 1..=5, 333);
    let (_, before) = killed(&journal, temp.path());
    let from = journal.bytes() as usize / SECTOR;
    add(&mut journal, 6..=20, 333);
    let (_, after) = killed(&journal, temp.path());
    let to = (journal.bytes() as usize).div_ceil(SECTOR);
    let mut random = StdRng::seed_from_u64(7);
    let (mut lasts, mut cut) = ([false; 21], false);
    for _ in 0..300 {
        let mut bytes = before.clone();
        for sector in from..to {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if random.next_u64().is_multiple_of(4) {
                continue;
            }
            bytes[range.clone()].copy_from_slice(&after[range]);
        }
        let copy = left(temp.path(), &bytes);
        let found = FileJournal::open(copy.path()).unwrap();
        lasts[last(&found) as usize] = true;
        cut |= chunks(copy.path()).unwrap().len() > 1;
        drop(found);
        // What was cut off stays so.
        FileJournal::open(copy.path()).unwrap();
    }
    assert!(cut && !lasts[..5].contains(&true));
    assert!(lasts[5..].iter().filter(|found| **found).count() > 3);
}

#[test]
fn a_record_whose_end_is_missing_within_a_sector_is_cut_off() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    add(&mut journal, 1..=3, 50);
    let (from, to) = (journal.bytes() as usize, {
        add(&mut journal, 4..=4, 50);
        journal.bytes() as usize
    });
    let (_, bytes) = killed(&journal, temp.path());
    let whole = without_zeros(&bytes).len();
    for end in from + 4..whole.min(to) {
        let mut bytes = bytes.clone();
        bytes[end..].fill(0);
        let copy = left(temp.path(), &bytes);
        assert_eq!(last(&FileJournal::open(copy.path()).unwrap()), 3, "{end}");
    }
}

#[test]
fn damage_of_what_was_synced_is_not_taken_for_an_unfinished_flush() {
    let temp = tempfile::tempdir().unwrap();
    let mut journal = FileJournal::open(temp.path()).unwrap();
    add(&mut journal, 1..=40, 333);
    let used = journal.bytes() as usize;
    let (_, bytes) = killed(&journal, temp.path());
    // The very last byte may be flipped to zero.
    for at in (used - 3000..used - 1).step_by(7) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let copy = left(temp.path(), &bytes);
        assert!(FileJournal::open(copy.path()).is_err(), "{at}");
    }
    // What is no record says nothing of records that were before it.
    let mut foreign = bytes.clone();
    foreign.extend([7; 100]);
    let copy = left(temp.path(), &foreign);
    assert_eq!(last(&FileJournal::open(copy.path()).unwrap()), 40);
    // A sector that is lost is damage where more follows than a flush may have.
    add(&mut journal, 41..=100, 333);
    let (_, mut bytes) = killed(&journal, temp.path());
    bytes[SECTOR..2 * SECTOR].fill(0);
    let copy = left(temp.path(), &bytes);
    assert!(FileJournal::open(copy.path()).is_err());
}

#[test]
fn a_scan_reads_zeros_as_the_end_and_counts_none_of_them() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join(crate::raft::log::store::CHUNKS);
    fs::create_dir(&folder).unwrap();
    let mut journal = FileJournal::open(&folder).unwrap();
    journal
        .save_vote(crate::raft::types::Vote::new(1, 1))
        .unwrap();
    sync(&mut journal);
    let end = |journal: &FileJournal| {
        assert!(length(&folder) > journal.bytes());
        scan(temp.path(), &mut |_| {}).unwrap().end
    };
    assert_eq!(end(&journal), End::Whole);
    let torn = File::options().write(true).open(file(&folder)).unwrap();
    torn.write_all_at(&[0, 0, 0, 1, 7, 7, 7], journal.bytes())
        .unwrap();
    let found = end(&journal);
    assert!(matches!(found, End::Torn { offset, bytes: 7, .. } if offset == journal.bytes()));
}
