//! Reads the files of a log record by record without changing anything: for a stopped node.
//!
//! Opening a log cuts an unfinished record off its end. What looks at a log that may be damaged
//! must not, so this reads the files itself, with the decoders that opening uses.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use codeq::Decode as _;
use raft_log::{RaftLogAction, RaftLogRecord, WALRecord};

use super::ahead::{FileEnd, end_of, without_zeros};
use super::journal::JournalState;
use super::record::{Body, LogTypes};
use crate::raft::codec::Payload;
use crate::raft::entry;
use crate::raft::types::{LogId, Vote};

/// One record of a log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The file that holds it.
    pub file: PathBuf,
    /// Where it begins in that file.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// What it says.
    pub change: Change,
}

/// What a record says.
#[derive(Debug, Clone)]
pub enum Change {
    /// The node voted.
    Vote(Vote),
    /// An entry was added behind the last one.
    Append(LogId, Body),
    /// Entries up to here are known to be committed.
    Commit(LogId),
    /// The entries behind this one were dropped.
    Truncate(Option<LogId>),
    /// The entries up to here were purged.
    Purge(LogId),
    /// What held where a file begins.
    State(JournalState),
}

/// How a log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With a whole record.
    Whole,
    /// With a flush of records that is there in part: it was being written when the node died, so
    /// nobody was promised anything of it.
    Torn {
        /// The last file.
        file: PathBuf,
        /// Where the last whole record ends.
        offset: u64,
        /// How many bytes follow, without the zeros at the end.
        bytes: u64,
    },
    /// Something that was durable cannot be read any more.
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
}

/// What a log holds.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The number of files.
    pub files: usize,
    /// Their length together, without the zeros behind the last record.
    pub bytes: u64,
    /// The number of records that could be read, in order, before any damage.
    pub records: u64,
    /// What the log remembers beside its entries, after those records.
    pub state: JournalState,
    /// The entries that are in force, by index.
    pub entries: BTreeMap<u64, (LogId, Body)>,
    /// The highest vote of any record that can be read, also behind a damage.
    pub highest_vote: Option<Vote>,
    /// How it ends.
    pub end: End,
}

/// Reads the log in `dir`, and shows `visit` each record up to the first damage.
///
/// # Errors
///
/// A file could not be read.
pub fn scan(dir: &Path, visit: &mut dyn FnMut(&Record)) -> io::Result<Scan> {
    let files = chunks(&dir.join(super::store::CHUNKS))?;
    let mut scan = Scan::empty(files.len());
    let mut expected = None;
    for (n, (start, file)) in files.iter().enumerate() {
        let bytes = fs::read(file)?;
        let last = n + 1 == files.len();
        let mut unread = &bytes[..];
        let fits = expected.is_none_or(|expected| expected == *start);
        if scan.end == End::Whole && fits {
            unread = scan.file(file, &bytes, last, visit);
        } else {
            scan.bytes += bytes.len() as u64;
        }
        if scan.end == End::Whole && !fits {
            scan.end = End::Damaged {
                file: file.clone(),
                offset: 0,
                reason: "the file before it is missing or has another length".to_owned(),
            };
        }
        scan.look_for_votes(unread);
        expected = Some(start + bytes.len() as u64);
    }
    Ok(scan)
}

/// The files of a log in order, each with the offset in the whole log at which it begins.
pub(super) fn chunks(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?.path();
        let name = file.file_name().and_then(|name| name.to_str());
        if let Some(start) =
            name.and_then(|name| raft_log::chunked_wal::Config::parse_chunk_file_name(name).ok())
        {
            files.push((start, file));
        }
    }
    files.sort();
    Ok(files)
}

impl Scan {
    fn empty(files: usize) -> Self {
        Scan {
            files,
            bytes: 0,
            records: 0,
            state: JournalState::default(),
            entries: BTreeMap::new(),
            highest_vote: None,
            end: End::Whole,
        }
    }

    /// Reads one file up to the first damage; returns what it did not read.
    fn file<'a>(
        &mut self,
        file: &Path,
        bytes: &'a [u8],
        last: bool,
        visit: &mut dyn FnMut(&Record),
    ) -> &'a [u8] {
        self.bytes += bytes.len() as u64;
        let mut rest = bytes;
        let damaged = |offset: u64, reason: String| End::Damaged {
            file: file.to_owned(),
            offset,
            reason,
        };
        while !rest.is_empty() {
            let offset = (bytes.len() - rest.len()) as u64;
            let before = rest;
            let change = match decode(&mut rest) {
                Ok(change) => change,
                Err(error) => {
                    let read = bytes.len() - rest.len();
                    let end = end_of(bytes, offset as usize, read, &error);
                    if last && end == FileEnd::Zeros {
                        self.bytes -= before.len() as u64;
                        return &[];
                    }
                    let torn = end == FileEnd::Unfinished || !holds_a_record(&before[1..]);
                    self.end = if last && torn {
                        End::Torn {
                            file: file.to_owned(),
                            offset,
                            bytes: without_zeros(before).len() as u64,
                        }
                    } else {
                        damaged(offset, error.to_string())
                    };
                    return before;
                }
            };
            let record = Record {
                file: file.to_owned(),
                offset,
                bytes: (before.len() - rest.len()) as u64,
                change,
            };
            if let Err(reason) = self.take(&record) {
                self.end = damaged(offset, reason);
                return before;
            }
            visit(&record);
            self.records += 1;
        }
        rest
    }

    /// Carries out one record, as opening the log does, and checks that it may stand there.
    fn take(&mut self, record: &Record) -> Result<(), String> {
        let state = &mut self.state;
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        match &record.change {
            Change::Vote(vote) => {
                if state.vote.is_some_and(|earlier| *vote < earlier) {
                    return Err(format!("the vote of term {} falls", vote.leader_id.term));
                }
                state.vote = Some(*vote);
                self.voted(*vote);
            }
            Change::Append(id, body) => {
                let last = state.last.max(state.purged);
                if last.is_some() && id.index != index(last) + 1 {
                    return Err(format!("entry {} follows entry {}", id.index, index(last)));
                }
                if last.is_some_and(|last| id.leader_id < last.leader_id) {
                    return Err(format!("the term of entry {} falls", id.index));
                }
                let payload = body
                    .payload()
                    .map_err(|error| format!("entry {}: {error}", id.index))?;
                if let Payload::Normal(proposal) = payload {
                    entry::decode(proposal.bytes)
                        .map_err(|error| format!("entry {}: {error}", id.index))?;
                }
                self.entries.insert(id.index, (*id, body.clone()));
                state.last = Some(*id);
            }
            Change::Commit(id) => {
                if index(state.last.max(state.purged)) < id.index {
                    return Err(format!("entry {} is committed, but is not there", id.index));
                }
                state.committed = Some(*id);
            }
            Change::Truncate(last) => {
                if state.committed > *last {
                    return Err(format!(
                        "entries behind {} are dropped, up to {} they are committed",
                        index(*last),
                        index(state.committed)
                    ));
                }
                self.entries.split_off(&(index(*last) + 1));
                state.last = state.last.min(*last);
            }
            Change::Purge(id) => {
                self.entries = self.entries.split_off(&(id.index + 1));
                state.purged = state.purged.max(Some(*id));
                state.last = state.last.max(Some(*id));
            }
            Change::State(found) => {
                // The first file repeats what the purged ones before it said.
                if self.records > 0 && *found != *state {
                    return Err(format!(
                        "the file begins with {found:?}, expected {state:?}"
                    ));
                }
                *state = *found;
                if let Some(vote) = found.vote {
                    self.voted(vote);
                }
            }
        }
        Ok(())
    }

    fn voted(&mut self, vote: Vote) {
        if self.highest_vote.is_none_or(|highest| highest < vote) {
            self.highest_vote = Some(vote);
        }
    }

    /// Looks for votes behind a damage: a node must not forget one.
    fn look_for_votes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = rest;
            match decode(&mut rest) {
                Ok(
                    Change::Vote(vote)
                    | Change::State(JournalState {
                        vote: Some(vote), ..
                    }),
                ) => self.voted(vote),
                Ok(_) => {}
                Err(_) => match next_record(&before[1..]) {
                    Some(at) => rest = &before[1 + at..],
                    None => return,
                },
            }
        }
    }
}

fn decode(rest: &mut &[u8]) -> io::Result<Change> {
    Ok(match RaftLogRecord::<LogTypes>::decode(rest)? {
        WALRecord::Action(RaftLogAction::SaveVote(vote)) => Change::Vote(vote.0),
        WALRecord::Action(RaftLogAction::Append(id, body)) => Change::Append(id.0, body),
        WALRecord::Action(RaftLogAction::Commit(id)) => Change::Commit(id.0),
        WALRecord::Action(RaftLogAction::TruncateAfter(id)) => Change::Truncate(id.map(|id| id.0)),
        WALRecord::Action(RaftLogAction::PurgeUpto(id)) => Change::Purge(id.0),
        WALRecord::Checkpoint(state) => Change::State(JournalState {
            vote: state.vote().map(|vote| vote.0),
            last: state.last().map(|id| id.0),
            committed: state.committed().map(|id| id.0),
            purged: state.purged().map(|id| id.0),
        }),
    })
}

/// Whether a whole record begins anywhere in `bytes`: then what stands before it is no torn tail.
pub(super) fn holds_a_record(bytes: &[u8]) -> bool {
    next_record(bytes).is_some()
}

fn next_record(bytes: &[u8]) -> Option<usize> {
    // Each kind of record begins with a small number of four bytes.
    (0..bytes.len()).find(|at| {
        let rest = &bytes[*at..];
        rest.starts_with(&[0, 0, 0]) && decode(&mut { rest }).is_ok()
    })
}

/// Reads `data` as the last file of a log. For fuzzing.
#[doc(hidden)]
pub fn fuzz_log(data: &[u8]) {
    let file = Path::new("r.wal");
    let mut scan = Scan::empty(1);
    let mut read = 0;
    let unread = scan.file(file, data, true, &mut |record| {
        assert_eq!(record.offset, read);
        read += record.bytes;
    });
    scan.look_for_votes(unread);
    match scan.end {
        End::Whole => assert!(data[read as usize..].iter().all(|byte| *byte == 0)),
        End::Torn { offset, bytes, .. } => {
            let used = without_zeros(data).len() as u64;
            assert_eq!((offset, offset + bytes), (read, used));
        }
        End::Damaged { offset, .. } => assert_eq!(offset, read),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::{GroupBuilder, Rule, Stamp};
    use crate::raft::log::{FileJournal, Journal as _};
    use crate::raft::types::{Proposal, log_id};

    fn body(bytes: usize) -> Body {
        let mut group = GroupBuilder::new(Rule::Each);
        group.command(&[&b"SET"[..], b"key", &vec![b'x'; bytes]]);
        let stamp = Stamp {
            level: 1,
            time_ms: 1,
            seed: 1,
        };
        let bytes = entry::encode(stamp, &[group.finish()]);
        Body::of(&Payload::Normal(Proposal::new(bytes)))
    }

    /// A log of three files with forty entries of term 2, the last four dropped and written again
    /// in term 3, and the first two purged.
    fn log() -> (tempfile::TempDir, Vec<PathBuf>) {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join(super::super::store::CHUNKS);
        fs::create_dir(&folder).unwrap();
        let mut journal = FileJournal::open(&folder).unwrap();
        journal.save_vote(Vote::new(2, 7)).unwrap();
        for index in 1..=40 {
            journal.append(log_id(2, index), body(1 << 20)).unwrap();
        }
        journal.save_committed(log_id(2, 36)).unwrap();
        journal.truncate_after(Some(log_id(2, 36))).unwrap();
        journal.save_vote(Vote::new(3, 8)).unwrap();
        for index in 37..=40 {
            journal.append(log_id(3, index), body(10)).unwrap();
        }
        journal.purge(log_id(2, 2)).unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        journal
            .flush(Box::new(move |result| done.send(result).unwrap()))
            .unwrap();
        wait.recv().unwrap().unwrap();
        drop(journal);
        let files = chunks(&folder).unwrap();
        (temp, files.into_iter().map(|(_, file)| file).collect())
    }

    fn end(temp: &tempfile::TempDir) -> End {
        scan(temp.path(), &mut |_| {}).unwrap().end
    }

    #[test]
    fn what_a_log_holds_is_what_its_records_say() {
        let (temp, files) = log();
        assert_eq!(files.len(), 3);
        let mut appended = 0;
        let scan = scan(temp.path(), &mut |record| {
            appended += usize::from(matches!(record.change, Change::Append(..)));
        });
        let scan = scan.unwrap();
        assert_eq!((&scan.end, appended), (&End::Whole, 44));
        assert_eq!(
            scan.state,
            JournalState {
                vote: Some(Vote::new(3, 8)),
                last: Some(log_id(3, 40)),
                committed: Some(log_id(2, 36)),
                purged: Some(log_id(2, 2)),
            }
        );
        assert_eq!(scan.highest_vote, scan.state.vote);
        let terms = |term| {
            let ids = scan.entries.values().map(|(id, _)| id);
            ids.filter(|id| id.leader_id.term == term).count()
        };
        assert_eq!((terms(2), terms(3)), (34, 4));
    }

    #[test]
    fn only_an_unfinished_record_at_the_very_end_is_a_torn_tail() {
        let (temp, files) = log();
        let [first, middle, last] = [0, 1, 2].map(|n| fs::read(&files[n]).unwrap());
        let damaged = |file: &Path, bytes: &[u8]| {
            fs::write(file, bytes).unwrap();
            let end = end(&temp);
            assert!(
                matches!(&end, End::Damaged { file: found, .. } if found == file),
                "{end:?}"
            );
        };

        fs::write(&files[2], &last[..last.len() - 1]).unwrap();
        assert!(matches!(end(&temp), End::Torn { .. }), "{:?}", end(&temp));
        fs::write(&files[2], [&last[..], &[0; 4096]].concat()).unwrap();
        assert_eq!(end(&temp), End::Whole, "a file is longer than its records");
        let mut flipped = last.clone();
        flipped[last.len() / 2] ^= 1;
        damaged(&files[2], &flipped);
        fs::write(&files[2], &last).unwrap();

        let mut flipped = first.clone();
        flipped[first.len() / 2] ^= 1;
        damaged(&files[0], &flipped);
        // Votes behind a damage still count.
        let scan = scan(temp.path(), &mut |_| {}).unwrap();
        assert_eq!(scan.highest_vote, Some(Vote::new(3, 8)));
        assert_eq!(scan.state.vote, Some(Vote::new(2, 7)));
        fs::write(&files[0], &first).unwrap();

        fs::write(&files[1], &middle[..middle.len() - 1]).unwrap();
        assert!(matches!(end(&temp), End::Damaged { .. }));
        fs::remove_file(&files[1]).unwrap();
        assert!(
            matches!(end(&temp), End::Damaged { file, reason, .. } if file == files[2] && reason.contains("missing"))
        );
    }
}
