//! Raft's messages as bodies of frames. The receiving side checks what openraft only asserts.

use bytes::{Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::frame::{Burst, HEAD_BYTES, WireError, parse};
use super::handshake::decode_hello;
use crate::raft::codec::{
    Malformed, Reader, put_log_id, put_log_id_option, put_payload, put_stored_membership, put_vote,
    read_log_id, read_log_id_option, read_payload, read_stored_membership, read_vote,
};
use crate::raft::spool::SnapshotMeta;
use crate::raft::{Entry, LogId, NodeId, TypeConfig, Vote};

/// Still there, nothing to say.
pub(super) const KEEPALIVE: u8 = 8;
/// Entries to append.
pub(super) const APPEND: u8 = 16;
/// A request for a vote.
pub(super) const VOTE: u8 = 32;
/// The question whether a vote would be given.
pub(super) const PRE_VOTE: u8 = 33;
/// Leadership is handed over.
pub(super) const TRANSFER: u8 = 34;
/// A request that only the node understands.
pub(super) const CALL: u8 = 48;
/// A snapshot begins.
pub(super) const SNAPSHOT_BEGIN: u8 = 64;
/// A piece of a snapshot.
pub(super) const SNAPSHOT_CHUNK: u8 = 65;
/// A snapshot ends.
pub(super) const SNAPSHOT_END: u8 = 66;

pub(super) type Append = AppendEntriesRequest<TypeConfig>;
pub(super) type Appended = StreamAppendResult<TypeConfig>;
pub(super) type Transfer = TransferLeaderRequest<TypeConfig>;
pub(super) type Transferred = TransferLeaderResponse<TypeConfig>;
type Result<T> = std::result::Result<T, Malformed>;

/// A request on its way out. It is encoded by the connection's own task.
pub(super) enum Message {
    Append(Append),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(Transfer),
    Call(Bytes),
}

impl Message {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Message::Append(_) => APPEND,
            Message::Vote(_) => VOTE,
            Message::PreVote(_) => PRE_VOTE,
            Message::Transfer(_) => TRANSFER,
            Message::Call(_) => CALL,
        }
    }

    /// About how much memory it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Message::Append(append) => append.entries.iter().map(entry_bytes).sum::<usize>() + 64,
            Message::Call(bytes) => bytes.len() + 64,
            _ => 64,
        }
    }

    pub(super) fn encode(&self, out: &mut Burst) {
        match self {
            Message::Append(append) => put_append(out, append),
            Message::Vote(vote) | Message::PreVote(vote) => put_vote_request(out.own(), vote),
            Message::Transfer(transfer) => {
                let out = out.own();
                put_vote(out, transfer.from_leader());
                out.extend_from_slice(&transfer.to_node_id().to_le_bytes());
                put_log_id_option(out, transfer.last_log_id());
            }
            Message::Call(bytes) => out.put(bytes),
        }
    }
}

/// About how many bytes an entry takes.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Blank => 32,
        openraft::EntryPayload::Normal(proposal) => proposal.bytes.len() + 32,
        // Members are few and memberships rare: an estimate does.
        openraft::EntryPayload::Membership(membership) => 256 * membership.nodes().count() + 32,
    }
}

pub(super) fn put_append(out: &mut Burst, append: &Append) {
    let head = out.own();
    put_vote(head, &append.vote);
    put_log_id_option(head, append.prev_log_id.as_ref());
    put_log_id_option(head, append.leader_commit.as_ref());
    head.extend_from_slice(&(append.entries.len() as u32).to_le_bytes());
    for entry in &append.entries {
        let head = out.own();
        put_log_id(head, &entry.log_id);
        let at = head.len();
        head.extend_from_slice(&[0; 4]);
        let (len, shared) = match &entry.payload {
            openraft::EntryPayload::Normal(proposal) => {
                // What precedes any proposal, then the proposal from where it is.
                put_payload(head, &proposal_head());
                (
                    head.len() - at - 4 + proposal.bytes.len(),
                    Some(&proposal.bytes),
                )
            }
            payload => {
                put_payload(head, payload);
                (head.len() - at - 4, None)
            }
        };
        head[at..at + 4].copy_from_slice(&(len as u32).to_le_bytes());
        if let Some(proposal) = shared {
            out.put(proposal);
        }
    }
}

/// A proposal of no bytes: what precedes the bytes of any proposal.
fn proposal_head() -> crate::raft::codec::Payload {
    openraft::EntryPayload::Normal(crate::raft::Proposal::new(Bytes::new()))
}

/// Reads an append and makes sure that its entries follow on each other, and that `sender` is the
/// leader whose append this is.
pub(super) fn read_append(body: Bytes, sender: NodeId) -> Result<Append> {
    let mut r = Reader::new(body);
    let vote = read_vote(&mut r)?;
    if !vote.committed || vote.leader_id.voted_for != sender {
        return Err(Malformed("append: not from the leader of the vote"));
    }
    let prev_log_id = read_log_id_option(&mut r)?;
    let leader_commit = read_log_id_option(&mut r)?;
    let count = r.u32("append")? as usize;
    // An entry takes at least this much, so that a wrong count asks for no memory.
    const ENTRY_BYTES_MIN: usize = 21;
    if count > r.remaining() / ENTRY_BYTES_MIN {
        return Err(Malformed("append: count of entries"));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let mut last = prev_log_id;
    for _ in 0..count {
        let log_id = read_log_id(&mut r)?;
        let follows = match &last {
            None => log_id.index == 0,
            Some(last) => {
                Some(log_id.index) == last.index.checked_add(1)
                    && log_id.leader_id.term >= last.leader_id.term
            }
        };
        if !follows || log_id.leader_id.term > vote.leader_id.term {
            return Err(Malformed("append: entries do not follow on each other"));
        }
        last = Some(log_id);
        let payload = read_payload(r.blob("entry")?)?;
        entries.push(Entry { log_id, payload });
    }
    r.finish("append")?;
    Ok(Append {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

const APPENDED_OK: u8 = 0;
const APPENDED_CONFLICT: u8 = 1;
const APPENDED_HIGHER_VOTE: u8 = 2;

pub(super) fn put_appended(out: &mut Vec<u8>, appended: &Appended) {
    match appended {
        Ok(matched) => {
            out.push(APPENDED_OK);
            put_log_id_option(out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.push(APPENDED_CONFLICT);
            put_log_id(out, id);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.push(APPENDED_HIGHER_VOTE);
            put_vote(out, vote);
        }
    }
}

/// Reads the answer to an append of `(prev, last]`, and makes sure that it is one to that.
pub(super) fn read_appended(
    body: Bytes,
    prev: Option<&LogId>,
    last: Option<&LogId>,
) -> Result<Appended> {
    let mut r = Reader::new(body);
    let appended = match r.u8("append response")? {
        APPENDED_OK => {
            let matched = read_log_id_option(&mut r)?;
            if matched.as_ref() > last {
                return Err(Malformed("append response: matches what was not sent"));
            }
            Ok(matched)
        }
        APPENDED_CONFLICT => {
            let id = read_log_id(&mut r)?;
            if Some(&id) != prev {
                return Err(Malformed("append response: conflict elsewhere"));
            }
            Err(StreamAppendError::Conflict(id))
        }
        APPENDED_HIGHER_VOTE => Err(StreamAppendError::HigherVote(read_vote(&mut r)?)),
        _ => return Err(Malformed("append response")),
    };
    r.finish("append response")?;
    Ok(appended)
}

fn put_vote_request(out: &mut Vec<u8>, request: &VoteRequest<TypeConfig>) {
    put_vote(out, &request.vote);
    put_log_id_option(out, request.last_log_id.as_ref());
    out.push(u8::from(request.leadership_transfer));
}

pub(super) fn read_vote_request(body: Bytes, sender: NodeId) -> Result<VoteRequest<TypeConfig>> {
    let mut r = Reader::new(body);
    let mut request =
        VoteRequest::<TypeConfig>::new(read_vote(&mut r)?, read_log_id_option(&mut r)?);
    request.leadership_transfer = flag(&mut r, "vote request")?;
    r.finish("vote request")?;
    if request.vote.committed || request.vote.leader_id.voted_for != sender {
        return Err(Malformed("vote request: not from its candidate"));
    }
    Ok(request)
}

pub(super) fn put_vote_response(out: &mut Vec<u8>, response: &VoteResponse<TypeConfig>) {
    put_vote(out, &response.vote);
    put_log_id_option(out, response.last_log_id.as_ref());
    out.push(u8::from(response.vote_granted));
}

pub(super) fn read_vote_response(body: Bytes) -> Result<VoteResponse<TypeConfig>> {
    let mut r = Reader::new(body);
    let (vote, last) = (read_vote(&mut r)?, read_log_id_option(&mut r)?);
    let granted = flag(&mut r, "vote response")?;
    r.finish("vote response")?;
    Ok(VoteResponse::new(vote, last, granted))
}

pub(super) fn read_transfer(body: Bytes, sender: NodeId) -> Result<Transfer> {
    let mut r = Reader::new(body);
    let (from, to) = (read_vote(&mut r)?, r.u64("transfer")?);
    let last = read_log_id_option(&mut r)?;
    r.finish("transfer")?;
    if from.leader_id.voted_for != sender {
        return Err(Malformed("transfer: not from the leader of the vote"));
    }
    Ok(Transfer::new(from, to, last))
}

const TRANSFERRED_OK: u8 = 0;
const TRANSFERRED_VOTE: u8 = 1;
const TRANSFERRED_LOG: u8 = 2;

pub(super) fn put_transferred(out: &mut Vec<u8>, transferred: &Transferred) {
    match transferred {
        Ok(()) => out.push(TRANSFERRED_OK),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.push(TRANSFERRED_VOTE);
            put_vote(out, expected);
            put_vote(out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.push(TRANSFERRED_LOG);
            put_log_id_option(out, expected.as_ref());
            put_log_id_option(out, actual.as_ref());
        }
    }
}

pub(super) fn read_transferred(body: Bytes) -> Result<Transferred> {
    let mut r = Reader::new(body);
    let transferred = match r.u8("transfer response")? {
        TRANSFERRED_OK => Ok(()),
        TRANSFERRED_VOTE => Err(TransferLeaderError::VoteChanged {
            expected: read_vote(&mut r)?,
            actual: read_vote(&mut r)?,
        }),
        TRANSFERRED_LOG => Err(TransferLeaderError::LogNotFlushed {
            expected: read_log_id_option(&mut r)?,
            actual: read_log_id_option(&mut r)?,
        }),
        _ => return Err(Malformed("transfer response")),
    };
    r.finish("transfer response")?;
    Ok(transferred)
}

/// The beginning of a snapshot: the leader's vote, the snapshot's meta, its length in bytes.
pub(super) fn put_snapshot_begin(out: &mut Vec<u8>, vote: &Vote, meta: &SnapshotMeta, bytes: u64) {
    put_vote(out, vote);
    out.extend_from_slice(&bytes.to_le_bytes());
    put_log_id_option(out, meta.last_log_id.as_ref());
    put_stored_membership(out, &meta.last_membership);
}

pub(super) fn read_snapshot_begin(
    body: Bytes,
    sender: NodeId,
) -> Result<(Vote, SnapshotMeta, u64)> {
    let mut r = Reader::new(body);
    let (vote, bytes) = (read_vote(&mut r)?, r.u64("snapshot")?);
    let last_log_id = read_log_id_option(&mut r)?;
    let last_membership = read_stored_membership(&mut r)?;
    r.finish("snapshot")?;
    if !vote.committed || vote.leader_id.voted_for != sender {
        return Err(Malformed("snapshot: not from the leader of the vote"));
    }
    if last_membership.log_id().as_ref() > last_log_id.as_ref()
        || last_log_id
            .as_ref()
            .is_some_and(|id| id.leader_id.term > vote.leader_id.term)
    {
        return Err(Malformed("snapshot: inconsistent meta"));
    }
    Ok((
        vote,
        SnapshotMeta {
            last_log_id,
            last_membership,
        },
        bytes,
    ))
}

fn flag(r: &mut Reader, what: &'static str) -> Result<bool> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(what)),
    }
}

/// Decodes `data` as frames, and each body as every message. For fuzzing: it must never panic.
pub fn fuzz_frames(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = parse(&mut buffer, 1 << 20) {
        fuzz_body(&frame.body);
    }
    // Checksums keep random bytes out: bodies are tried without them too.
    fuzz_body(&Bytes::copy_from_slice(data));
    if data.len() >= HEAD_BYTES {
        fuzz_body(&Bytes::copy_from_slice(&data[HEAD_BYTES..]));
    }
}

fn fuzz_body(body: &Bytes) {
    for sender in [0, 1] {
        if let Ok(append) = read_append(body.clone(), sender) {
            let mut out = Burst::default();
            let fits: std::result::Result<(), WireError> =
                out.frame(APPEND, 0, 0, 0, usize::MAX, |out| put_append(out, &append));
            assert!(fits.is_ok());
        }
        let _ = read_vote_request(body.clone(), sender);
        let _ = read_transfer(body.clone(), sender);
        let _ = read_snapshot_begin(body.clone(), sender);
    }
    let _ = read_appended(body.clone(), None, None);
    let _ = read_vote_response(body.clone());
    let _ = read_transferred(body.clone());
    let _ = decode_hello(body.clone());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Where fuzzing begins: what no seed has is hardly found by chance.
    #[test]
    fn the_seeds_of_fuzzing_hold_every_kind_of_message() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/peer_frames");
        let mut read = [false; 8];
        for file in std::fs::read_dir(folder).unwrap() {
            let body = Bytes::from(std::fs::read(file.unwrap().path()).unwrap());
            let understood = [
                read_append(body.clone(), 1).is_ok_and(|append| append.entries.len() > 2),
                read_vote_request(body.clone(), 1).is_ok(),
                read_transfer(body.clone(), 1).is_ok(),
                read_snapshot_begin(body.clone(), 1).is_ok(),
                read_appended(body.clone(), None, None).is_ok(),
                read_vote_response(body.clone()).is_ok(),
                read_transferred(body.clone()).is_ok(),
                decode_hello(body).is_ok(),
            ];
            for (read, understood) in read.iter_mut().zip(understood) {
                *read |= understood;
            }
        }
        assert_eq!(read, [true; 8]);
    }
}
