//! How log ids, votes, memberships and payloads become bytes, on disk and on the wire alike.
//!
//! All integers are little-endian; strings and lists carry their length in front. openraft's own
//! serialisation is not a stable format, so none of it is used.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{EntryPayload, Membership};

use super::types::{LogId, Member, NodeId, Proposal, StoredMembership, Vote, log_id};

/// A payload of the log: blank, a proposal, or a membership.
pub type Payload = EntryPayload<Proposal, NodeId, Member>;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_NORMAL: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// Longest name or address of a member, in bytes.
pub const MEMBER_TEXT_BYTES_MAX: usize = 4096;

/// Reads fixed-width fields from the front of a buffer; values are slices of it, not copies.
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    /// Reads `bytes` from its start.
    pub fn new(bytes: Bytes) -> Self {
        Reader { bytes }
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    ///
    /// Fewer are left.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes> {
        if self.bytes.len() < n {
            return Err(Malformed(what));
        }
        Ok(self.bytes.split_to(n))
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(bytes
            .as_ref()
            .try_into()
            .expect("exactly N bytes were taken"))
    }

    /// One byte.
    ///
    /// # Errors
    ///
    /// Nothing is left.
    pub fn u8(&mut self, what: &'static str) -> Result<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A 16-bit number.
    ///
    /// # Errors
    ///
    /// Fewer than two bytes are left.
    pub fn u16(&mut self, what: &'static str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// A 32-bit number.
    ///
    /// # Errors
    ///
    /// Fewer than four bytes are left.
    pub fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit number.
    ///
    /// # Errors
    ///
    /// Fewer than eight bytes are left.
    pub fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A value with a 32-bit length in front.
    ///
    /// # Errors
    ///
    /// Fewer bytes are left than promised.
    pub fn blob(&mut self, what: &'static str) -> Result<Bytes> {
        let len = self.u32(what)? as usize;
        self.take(len, what)
    }

    /// UTF-8 text with a 16-bit length in front.
    ///
    /// # Errors
    ///
    /// Fewer bytes are left than promised, or they are not UTF-8.
    pub fn text(&mut self, what: &'static str) -> Result<String> {
        let len = self.u16(what)? as usize;
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed(what))
    }

    /// All that is left.
    pub fn rest(self) -> Bytes {
        self.bytes
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing may be left.
    ///
    /// # Errors
    ///
    /// Something is.
    pub fn finish(self, what: &'static str) -> Result<()> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(Malformed(what))
        }
    }
}

/// Writes a value with a 32-bit length in front.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("limits keep values below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Writes text with a 16-bit length in front; it must be at most [`MEMBER_TEXT_BYTES_MAX`] long.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("limits keep names and addresses short");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Writes a log id: term and index.
pub fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

/// Reads a log id.
///
/// # Errors
///
/// The bytes end too early.
pub fn read_log_id(r: &mut Reader) -> Result<LogId> {
    Ok(log_id(r.u64("log id")?, r.u64("log id")?))
}

/// Writes a log id that may be absent.
pub fn put_log_id_option(out: &mut Vec<u8>, id: Option<&LogId>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

/// Reads a log id that may be absent.
///
/// # Errors
///
/// The bytes end too early, or the flag is neither 0 nor 1.
pub fn read_log_id_option(r: &mut Reader) -> Result<Option<LogId>> {
    match r.u8("log id")? {
        0 => Ok(None),
        1 => Ok(Some(read_log_id(r)?)),
        _ => Err(Malformed("log id")),
    }
}

/// Writes a vote: term, node, whether it is committed.
pub fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    out.push(u8::from(vote.committed));
}

/// Reads a vote.
///
/// # Errors
///
/// The bytes end too early, or the flag is neither 0 nor 1.
pub fn read_vote(r: &mut Reader) -> Result<Vote> {
    let (term, node) = (r.u64("vote")?, r.u64("vote")?);
    match r.u8("vote")? {
        0 => Ok(Vote::new(term, node)),
        1 => Ok(Vote::new_committed(term, node)),
        _ => Err(Malformed("vote")),
    }
}

/// Writes what the membership says of a member.
pub fn put_member(out: &mut Vec<u8>, member: &Member) {
    put_text(out, &member.name);
    put_text(out, &member.raft_addr);
    put_text(out, &member.client_addr);
}

/// Reads what the membership says of a member.
///
/// # Errors
///
/// The bytes end too early, or a text is not UTF-8.
pub fn read_member(r: &mut Reader) -> Result<Member> {
    Ok(Member {
        name: r.text("member")?,
        raft_addr: r.text("member")?,
        client_addr: r.text("member")?,
    })
}

/// Writes a membership: its configurations, then its nodes, both in ascending order.
pub fn put_membership(out: &mut Vec<u8>, membership: &Membership<NodeId, Member>) {
    let configs = membership.get_joint_config();
    out.extend_from_slice(&(configs.len() as u16).to_le_bytes());
    for config in configs {
        out.extend_from_slice(&(config.len() as u16).to_le_bytes());
        for id in config {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.extend_from_slice(&(nodes.len() as u16).to_le_bytes());
    for (id, member) in nodes {
        out.extend_from_slice(&id.to_le_bytes());
        put_member(out, member);
    }
}

/// Reads a membership.
///
/// # Errors
///
/// The bytes end too early, or name a voter that is not among the nodes.
pub fn read_membership(r: &mut Reader) -> Result<Membership<NodeId, Member>> {
    let mut configs = Vec::new();
    for _ in 0..r.u16("membership")? {
        let mut config = BTreeSet::new();
        for _ in 0..r.u16("membership")? {
            config.insert(r.u64("membership")?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..r.u16("membership")? {
        nodes.insert(r.u64("membership")?, read_member(r)?);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

/// Writes a membership with the log id of its entry.
pub fn put_stored_membership(out: &mut Vec<u8>, stored: &StoredMembership) {
    put_log_id_option(out, stored.log_id().as_ref());
    put_membership(out, stored.membership());
}

/// Reads a membership with the log id of its entry.
///
/// # Errors
///
/// As for its parts.
pub fn read_stored_membership(r: &mut Reader) -> Result<StoredMembership> {
    let id = read_log_id_option(r)?;
    Ok(StoredMembership::new(id, read_membership(r)?))
}

/// Writes a payload; it has no length of its own and ends where its container ends.
pub fn put_payload(out: &mut Vec<u8>, payload: &Payload) {
    match payload {
        EntryPayload::Blank => out.push(PAYLOAD_BLANK),
        EntryPayload::Normal(proposal) => {
            out.push(PAYLOAD_NORMAL);
            out.extend_from_slice(&proposal.bytes);
        }
        EntryPayload::Membership(membership) => {
            out.push(PAYLOAD_MEMBERSHIP);
            put_membership(out, membership);
        }
    }
}

/// How many bytes [`put_payload`] writes for a proposal of this many bytes.
pub const fn proposal_payload_bytes(proposal: usize) -> usize {
    proposal + 1
}

/// Reads a payload that fills `bytes`; a proposal stays a slice of them.
///
/// # Errors
///
/// The kind is unknown or the body is not what the kind promises.
pub fn read_payload(bytes: Bytes) -> Result<Payload> {
    let mut r = Reader::new(bytes);
    match r.u8("payload")? {
        PAYLOAD_BLANK => r.finish("payload").map(|()| EntryPayload::Blank),
        PAYLOAD_NORMAL => Ok(EntryPayload::Normal(Proposal::new(r.rest()))),
        PAYLOAD_MEMBERSHIP => {
            let membership = read_membership(&mut r)?;
            r.finish("payload")?;
            Ok(EntryPayload::Membership(membership))
        }
        _ => Err(Malformed("payload")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership<NodeId, Member> {
        let member = |n: &str| Member {
            name: n.to_owned(),
            raft_addr: format!("{n}:19000"),
            client_addr: format!("{n}:6379"),
        };
        Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            BTreeMap::from([
                (1, member("a")),
                (2, member("b")),
                (3, member("c")),
                (9, member("d")),
            ]),
        )
        .unwrap()
    }

    #[test]
    fn payloads_survive_the_round_trip() {
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal::new(Bytes::from_static(b"\0commands"))),
            EntryPayload::Normal(Proposal::new(Bytes::new())),
            EntryPayload::Membership(membership()),
        ] {
            let mut out = Vec::new();
            put_payload(&mut out, &payload);
            assert_eq!(read_payload(out.into()), Ok(payload));
        }
    }

    #[test]
    fn stored_membership_and_votes_survive_the_round_trip() {
        for stored in [
            StoredMembership::default(),
            StoredMembership::new(Some(log_id(3, 7)), membership()),
        ] {
            let mut out = Vec::new();
            put_stored_membership(&mut out, &stored);
            let mut r = Reader::new(out.into());
            assert_eq!(read_stored_membership(&mut r), Ok(stored));
            r.finish("end").unwrap();
        }
        for vote in [Vote::new(4, 8), Vote::new_committed(5, 9)] {
            let mut out = Vec::new();
            put_vote(&mut out, &vote);
            assert_eq!(read_vote(&mut Reader::new(out.into())), Ok(vote));
        }
    }

    #[test]
    fn every_truncation_of_a_membership_is_refused() {
        let mut out = Vec::new();
        put_payload(&mut out, &EntryPayload::Membership(membership()));
        for len in 0..out.len() {
            assert!(
                read_payload(Bytes::copy_from_slice(&out[..len])).is_err(),
                "{len}"
            );
        }
        out.push(0);
        assert!(read_payload(out.into()).is_err());
    }
}
