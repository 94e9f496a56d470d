//! The files of a log, and what is known of them in memory.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codeq::{Decode as _, Encode as _};
use raft_log::chunked_wal::Config;
use raft_log::{ChunkId, RaftLogAction, RaftLogRecord, RaftWalTypes, WalTypes};

use super::ahead::{FileEnd, end_of, without_zeros};
use super::journal::JournalState;
use super::record::{Body, Id, LogTypes, Nothing, StoredVote};
use crate::data_dir::sync_dir;
use crate::raft::types::{LogId, Vote};

/// Recent entries stay in memory for replication and apply.
pub(super) const CACHE_BYTES: usize = 16 << 20;

/// Many small entries must not make the cache much larger than its bytes.
const CACHE_ENTRIES: usize = 256 * 1024;

pub(super) type Record = RaftLogRecord<LogTypes>;
pub(super) type Action = RaftLogAction<LogTypes>;

/// An entry, and where it is.
pub(super) struct Slot {
    pub(super) id: LogId,
    /// Where its record begins, counted from the beginning of the whole log.
    pub(super) at: u64,
    pub(super) len: u32,
    /// Absent once it is only in its file.
    pub(super) body: Option<Body>,
}

/// How much of the end of the log is in memory.
#[derive(Default)]
pub(super) struct Cache {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// One file.
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    /// The last entry of the log when the chunk was closed.
    pub(super) last: Option<LogId>,
}

impl Cache {
    /// Adds an entry; what is older than the cache has room for stays in the files, which have the
    /// log up to `written`.
    pub(super) fn push(&mut self, entries: &mut VecDeque<Slot>, slot: Slot, written: u64) {
        self.entries += 1;
        self.bytes += slot.len as usize;
        entries.push_back(slot);
        while self.entries > CACHE_ENTRIES || self.bytes > CACHE_BYTES {
            let oldest = entries.len() - self.entries;
            let slot = &mut entries[oldest];
            if slot.at + u64::from(slot.len) > written {
                break;
            }
            slot.body = None;
            self.entries -= 1;
            self.bytes -= slot.len as usize;
        }
    }

    fn forget(&mut self, slot: &Slot) {
        if slot.body.is_some() {
            self.entries -= 1;
            self.bytes -= slot.len as usize;
        }
    }

    pub(super) fn drop_from(&mut self, entries: &mut VecDeque<Slot>, from: usize) {
        for slot in entries.drain(from..) {
            self.forget(&slot);
        }
    }

    pub(super) fn drop_first(&mut self, entries: &mut VecDeque<Slot>, count: usize) {
        for slot in entries.drain(..count) {
            self.forget(&slot);
        }
    }
}

impl Chunk {
    pub(super) fn create(dir: &Path, start: u64) -> io::Result<Self> {
        let path = dir.join(Config::chunk_file_name(ChunkId(start)));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        // Its name must be there before anything in it counts.
        sync_dir(dir)?;
        Ok(Chunk {
            start,
            end: start,
            file: Arc::new(file),
            path,
            last: None,
        })
    }
}

/// Reads the chunks of a log in order.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) state: JournalState,
    pub(super) entries: VecDeque<Slot>,
    pub(super) cache: Cache,
    expected: Option<u64>,
}

impl Reader {
    /// Reads one chunk; `false` when an unfinished flush was cut off its end.
    pub(super) fn chunk(
        &mut self,
        start: u64,
        path: PathBuf,
        newest: bool,
    ) -> io::Result<(Chunk, bool)> {
        if self.expected.is_some_and(|expected| expected != start) {
            let name = path.display();
            return Err(damaged(format!(
                "the file before {name} is missing or has another length"
            )));
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let bytes = fs::read(&path)?;
        let (mut rest, mut whole) = (&bytes[..], true);
        self.expected = Some(start);
        while !rest.is_empty() {
            let offset = bytes.len() - rest.len();
            let at = |what: &dyn std::fmt::Display| {
                damaged(format!("{what}, at offset {offset} of {}", path.display()))
            };
            let record = match Record::decode(&mut rest) {
                Ok(record) => record,
                Err(error) => {
                    let read = bytes.len() - rest.len();
                    match end_of(&bytes, offset, read, &error) {
                        FileEnd::Zeros if newest => break,
                        FileEnd::Unfinished if newest => {}
                        _ => return Err(at(&error)),
                    }
                    tracing::warn!(
                        file = %path.display(),
                        bytes = without_zeros(&bytes[offset..]).len(),
                        last = self.state.last.map_or(0, |id| id.index),
                        "an unfinished write at the end of the log was cut off"
                    );
                    file.set_len(offset as u64)?;
                    file.sync_all()?;
                    whole = false;
                    break;
                }
            };
            let end = start + (bytes.len() - rest.len()) as u64;
            self.take(record, start + offset as u64, end)
                .map_err(|reason| at(&reason))?;
            self.expected = Some(end);
        }
        let chunk = Chunk {
            start,
            end: self.expected.unwrap_or(start),
            file: Arc::new(file),
            path,
            last: self.state.last,
        };
        Ok((chunk, whole))
    }

    /// Carries out one record.
    fn take(&mut self, record: Record, at: u64, end: u64) -> Result<(), String> {
        match record {
            Record::Action(Action::SaveVote(StoredVote(vote))) => {
                check_vote(&self.state, vote)?;
                self.state.vote = Some(vote);
            }
            Record::Action(Action::Append(Id(id), body)) => {
                check_append(&self.state, id)?;
                let slot = Slot {
                    id,
                    at,
                    len: (end - at) as u32,
                    body: Some(body),
                };
                self.cache.push(&mut self.entries, slot, end);
                self.state.last = Some(id);
            }
            Record::Action(Action::Commit(Id(id))) => {
                check_commit(&self.state, id)?;
                self.state.committed = Some(id);
            }
            Record::Action(Action::TruncateAfter(last)) => {
                let last = last.map(|last| last.0);
                check_truncate(&self.state, last)?;
                let kept = last.map_or(0, |last| {
                    self.entries
                        .partition_point(|slot| slot.id.index <= last.index)
                });
                self.cache.drop_from(&mut self.entries, kept);
                self.state.last = self.state.last.min(last);
            }
            Record::Action(Action::PurgeUpto(Id(upto))) => {
                let gone = self
                    .entries
                    .partition_point(|slot| slot.id.index <= upto.index);
                self.cache.drop_first(&mut self.entries, gone);
                purge(&mut self.state, upto);
            }
            Record::Checkpoint(state) => {
                self.state = JournalState {
                    vote: state.vote().map(|vote| vote.0),
                    last: state.last().map(|id| id.0),
                    committed: state.committed().map(|id| id.0),
                    purged: state.purged().map(|id| id.0),
                }
            }
        }
        Ok(())
    }
}

/// Whether a chunk's first record is there: it is written once its predecessor is durable, and may
/// have come to the disk as a length without contents.
pub(super) fn is_begun(path: &Path) -> io::Result<bool> {
    let bytes = fs::read(path)?;
    let mut rest = &bytes[..];
    let Err(error) = Record::decode(&mut rest) else {
        return Ok(true);
    };
    match end_of(&bytes, 0, bytes.len() - rest.len(), &error) {
        FileEnd::Zeros | FileEnd::Unfinished => Ok(false),
        FileEnd::Damaged => Err(damaged(format!(
            "{error}, at the beginning of {}",
            path.display()
        ))),
    }
}

/// The record with which a chunk begins. The crate makes its type from bytes only.
pub(super) fn checkpoint_of(
    state: &JournalState,
) -> io::Result<<RaftWalTypes<LogTypes> as WalTypes>::Checkpoint> {
    let mut bytes = Vec::new();
    1u8.encode(&mut bytes)?;
    state.vote.map(StoredVote).encode(&mut bytes)?;
    for id in [state.last, state.committed, state.purged] {
        id.map(Id).encode(&mut bytes)?;
    }
    None::<Nothing>.encode(&mut bytes)?;
    codeq::Decode::decode(&bytes[..])
}

pub(super) fn check_append(state: &JournalState, id: LogId) -> Result<(), String> {
    match state.last {
        // An empty log may begin anywhere.
        None => Ok(()),
        Some(last) if id.index == last.index + 1 && id > last => Ok(()),
        Some(last) => Err(format!("entry {id} does not follow entry {last}")),
    }
}

pub(super) fn check_commit(state: &JournalState, id: LogId) -> Result<(), String> {
    match (state.committed, state.last) {
        (Some(committed), _) if id < committed => {
            Err(format!("what is committed falls from {committed} to {id}"))
        }
        (_, last) if last < Some(id) => Err(format!("entry {id} is committed, but is not there")),
        _ => Ok(()),
    }
}

pub(super) fn check_truncate(state: &JournalState, last: Option<LogId>) -> Result<(), String> {
    match state.committed {
        Some(committed) if last < Some(committed) => Err(format!(
            "entries are dropped that are committed up to {committed}"
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_vote(state: &JournalState, vote: Vote) -> Result<(), String> {
    match state.vote {
        Some(earlier) if vote < earlier => Err(format!("the vote falls from {earlier} to {vote}")),
        _ => Ok(()),
    }
}

pub(super) fn purge(state: &mut JournalState, upto: LogId) {
    state.purged = state.purged.max(Some(upto));
    state.last = state.last.max(Some(upto));
}

pub(super) fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

pub(super) fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
