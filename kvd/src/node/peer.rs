//! What nodes ask each other beyond Raft's own messages.
//!
//! ```text
//! request  = kind u8 | fields        response = kind u8 | fields
//! ```
//!
//! Integers are little-endian, as everywhere between nodes.

use bytes::Bytes;

use super::types::JoinRequest;
use crate::raft::codec::{self, Malformed, Reader};
use crate::raft::entry::Group;
use crate::raft::reply_codec::{put_reply, read_reply};
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

/// A request to another node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// Append these groups, but only as the leader of `term`.
    Forward { term: u64, groups: Vec<Group> },
    /// Confirm the leadership, and say from which entry on a read is linearizable. The asking
    /// member has voted for no term behind this one.
    Barrier { term: u64 },
    /// Say whether you have voted for no term behind this one.
    Stand { term: u64 },
    /// Take a node in.
    Join(JoinRequest),
    /// Take a member out.
    Leave { id: NodeId, name: String },
    /// Become a member of this cluster; to a node of another one.
    Adopt { cluster: u128, name: String },
    /// You were taken out.
    Removed,
    /// Wait until so many members besides the leader hold an entry.
    Replicas {
        index: u64,
        wanted: u64,
        patience_ms: u64,
    },
    /// Note this node's start, and tell your clock; or that it was taken out, if it says that it has
    /// been a member.
    Greet { member: bool },
    /// The asking member is at these addresses now.
    Announce {
        raft_addr: String,
        client_addr: String,
    },
    /// Tell the digest of the contents behind this entry, which asked for it.
    Digest { index: u64 },
    /// Hand leadership to this member; 0: to whichever is best placed.
    Transfer { to: NodeId },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Response {
    /// The groups were carried out by the entries at these indices, with these replies.
    Done(Vec<(u64, Vec<Reply>)>),
    /// Nothing of it was or will be done.
    Refused,
    /// Nobody knows what became of it.
    Unknown,
    /// The asked member has voted for no term behind the asked one.
    Stands,
    /// Reads are linearizable from this entry on; the leader's time.
    Barrier { index: u64, time_ms: u64 },
    /// The answer for the client.
    Reply(Reply),
    /// The node waits to be taken in.
    Adopted {
        id: NodeId,
        member: Member,
        level: u16,
        /// It has been a member already.
        was_member: bool,
    },
    /// The wall clock.
    Greeting { wall_ms: u64 },
    /// The asking node was taken out.
    TakenOut,
    /// The asked member does not lead; where it finds the members, by their identities.
    Whereabouts(Vec<(NodeId, String)>),
}

const FORWARD: u8 = 1;
const BARRIER: u8 = 2;
const JOIN: u8 = 3;
const LEAVE: u8 = 4;
const ADOPT: u8 = 5;
const REMOVED: u8 = 6;
const REPLICAS: u8 = 7;
const GREET: u8 = 8;
const TRANSFER: u8 = 9;
const ANNOUNCE: u8 = 10;
const DIGEST: u8 = 11;
const STAND: u8 = 12;

const DONE: u8 = 1;
const REFUSED: u8 = 2;
const UNKNOWN: u8 = 3;
const BARRIER_AT: u8 = 4;
const REPLY: u8 = 5;
const ADOPTED: u8 = 6;
const GREETING: u8 = 7;
const WHEREABOUTS: u8 = 8;
const TAKEN_OUT: u8 = 9;
const STANDS: u8 = 10;

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Request::Forward { term, groups } => {
                out.push(FORWARD);
                out.extend_from_slice(&term.to_le_bytes());
                out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
                for group in groups {
                    group.encode(&mut out);
                }
            }
            Request::Barrier { term } => {
                out.push(BARRIER);
                out.extend_from_slice(&term.to_le_bytes());
            }
            Request::Stand { term } => {
                out.push(STAND);
                out.extend_from_slice(&term.to_le_bytes());
            }
            Request::Join(JoinRequest {
                name,
                raft_addr,
                voter,
            }) => {
                out.push(JOIN);
                codec::put_text(&mut out, name);
                codec::put_text(&mut out, raft_addr);
                out.push(u8::from(*voter));
            }
            Request::Leave { id, name } => {
                out.push(LEAVE);
                out.extend_from_slice(&id.to_le_bytes());
                codec::put_text(&mut out, name);
            }
            Request::Adopt { cluster, name } => {
                out.push(ADOPT);
                out.extend_from_slice(&cluster.to_le_bytes());
                codec::put_text(&mut out, name);
            }
            Request::Removed => out.push(REMOVED),
            Request::Greet { member } => out.extend_from_slice(&[GREET, u8::from(*member)]),
            Request::Announce {
                raft_addr,
                client_addr,
            } => {
                out.push(ANNOUNCE);
                codec::put_text(&mut out, raft_addr);
                codec::put_text(&mut out, client_addr);
            }
            Request::Transfer { to } => {
                out.push(TRANSFER);
                out.extend_from_slice(&to.to_le_bytes());
            }
            Request::Digest { index } => {
                out.push(DIGEST);
                out.extend_from_slice(&index.to_le_bytes());
            }
            Request::Replicas {
                index,
                wanted,
                patience_ms,
            } => {
                out.push(REPLICAS);
                for field in [index, wanted, patience_ms] {
                    out.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
        out.into()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let request = match r.u8("request")? {
            FORWARD => {
                let (term, count) = (r.u64("request")?, r.u32("request")?);
                let mut groups = Vec::new();
                for _ in 0..count {
                    groups.push(Group::decode(&mut r)?);
                }
                Request::Forward { term, groups }
            }
            BARRIER => Request::Barrier {
                term: r.u64("request")?,
            },
            STAND => Request::Stand {
                term: r.u64("request")?,
            },
            JOIN => Request::Join(JoinRequest {
                name: r.text("request")?,
                raft_addr: r.text("request")?,
                voter: r.u8("request")? != 0,
            }),
            LEAVE => Request::Leave {
                id: r.u64("request")?,
                name: r.text("request")?,
            },
            ADOPT => {
                let (low, high) = (r.u64("request")?, r.u64("request")?);
                let cluster = u128::from(high) << 64 | u128::from(low);
                Request::Adopt {
                    cluster,
                    name: r.text("request")?,
                }
            }
            REMOVED => Request::Removed,
            GREET => Request::Greet {
                member: r.u8("request")? != 0,
            },
            ANNOUNCE => Request::Announce {
                raft_addr: r.text("request")?,
                client_addr: r.text("request")?,
            },
            TRANSFER => Request::Transfer {
                to: r.u64("request")?,
            },
            DIGEST => Request::Digest {
                index: r.u64("request")?,
            },
            REPLICAS => Request::Replicas {
                index: r.u64("request")?,
                wanted: r.u64("request")?,
                patience_ms: r.u64("request")?,
            },
            _ => return Err(Malformed("request: unknown kind")),
        };
        r.finish("request")?;
        Ok(request)
    }
}

impl Response {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Response::Done(groups) => {
                out.push(DONE);
                out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
                for (index, replies) in groups {
                    out.extend_from_slice(&index.to_le_bytes());
                    out.extend_from_slice(&(replies.len() as u32).to_le_bytes());
                    for reply in replies {
                        put_reply(&mut out, reply);
                    }
                }
            }
            Response::Refused => out.push(REFUSED),
            Response::Unknown => out.push(UNKNOWN),
            Response::Stands => out.push(STANDS),
            Response::Barrier { index, time_ms } => {
                out.push(BARRIER_AT);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&time_ms.to_le_bytes());
            }
            Response::Reply(reply) => {
                out.push(REPLY);
                put_reply(&mut out, reply);
            }
            Response::Adopted {
                id,
                member,
                level,
                was_member,
            } => {
                out.push(ADOPTED);
                out.extend_from_slice(&id.to_le_bytes());
                codec::put_member(&mut out, member);
                out.extend_from_slice(&level.to_le_bytes());
                out.push(u8::from(*was_member));
            }
            Response::TakenOut => out.push(TAKEN_OUT),
            Response::Greeting { wall_ms } => {
                out.push(GREETING);
                out.extend_from_slice(&wall_ms.to_le_bytes());
            }
            Response::Whereabouts(members) => {
                out.push(WHEREABOUTS);
                out.extend_from_slice(&(members.len() as u32).to_le_bytes());
                for (id, addr) in members {
                    out.extend_from_slice(&id.to_le_bytes());
                    codec::put_text(&mut out, addr);
                }
            }
        }
        out.into()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        match r.u8("response")? {
            DONE => {
                let mut groups = Vec::new();
                for _ in 0..r.u32("response")? {
                    let index = r.u64("response")?;
                    let mut replies = Vec::new();
                    for _ in 0..r.u32("response")? {
                        replies.push(read_reply(&mut r)?);
                    }
                    groups.push((index, replies));
                }
                r.finish("response")?;
                Ok(Response::Done(groups))
            }
            REFUSED => r.finish("response").map(|()| Response::Refused),
            UNKNOWN => r.finish("response").map(|()| Response::Unknown),
            STANDS => r.finish("response").map(|()| Response::Stands),
            BARRIER_AT => {
                let (index, time_ms) = (r.u64("response")?, r.u64("response")?);
                r.finish("response")
                    .map(|()| Response::Barrier { index, time_ms })
            }
            REPLY => {
                let reply = read_reply(&mut r)?;
                r.finish("response").map(|()| Response::Reply(reply))
            }
            ADOPTED => {
                let id = r.u64("response")?;
                let member = codec::read_member(&mut r)?;
                let level = r.u16("response")?;
                let was_member = r.u8("response")? != 0;
                r.finish("response").map(|()| Response::Adopted {
                    id,
                    member,
                    level,
                    was_member,
                })
            }
            TAKEN_OUT => r.finish("response").map(|()| Response::TakenOut),
            GREETING => {
                let wall_ms = r.u64("response")?;
                r.finish("response")
                    .map(|()| Response::Greeting { wall_ms })
            }
            WHEREABOUTS => {
                let mut members = Vec::new();
                for _ in 0..r.u32("response")? {
                    members.push((r.u64("response")?, r.text("response")?));
                }
                r.finish("response")
                    .map(|()| Response::Whereabouts(members))
            }
            _ => Err(Malformed("response: unknown kind")),
        }
    }
}

/// Decodes `data` as a request and as a response; what is understood is written as something that
/// reads the same. For fuzzing.
#[doc(hidden)]
pub fn fuzz_requests(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    if let Ok(request) = Request::decode(data.clone()) {
        assert_eq!(Request::decode(request.encode()), Ok(request));
    }
    if let Ok(response) = Response::decode(data) {
        // A number that is none is not equal to itself, but its bytes are.
        let written = response.encode();
        let again = Response::decode(written.clone()).expect("what was written is read");
        assert_eq!(again.encode(), written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::{GroupBuilder, Rule};

    #[test]
    fn requests_survive_the_round_trip() {
        let mut group = GroupBuilder::new(Rule::Each);
        group.command(&["INCR", "a"]);
        let mut group = group.finish();
        (group.origin, group.sequence) = (3, 4);
        for request in [
            Request::Forward {
                term: 7,
                groups: vec![group.clone(), group],
            },
            Request::Barrier { term: 3 },
            Request::Stand { term: 4 },
            Request::Join(JoinRequest {
                name: "node1".to_owned(),
                raft_addr: "h:1".to_owned(),
                voter: false,
            }),
            Request::Leave {
                id: 7,
                name: "node1".to_owned(),
            },
            Request::Adopt {
                cluster: u128::MAX - 5,
                name: "node1".to_owned(),
            },
            Request::Removed,
            Request::Greet { member: true },
            Request::Transfer { to: 7 },
            Request::Digest { index: 12 },
            Request::Announce {
                raft_addr: "h:1".to_owned(),
                client_addr: "h:2".to_owned(),
            },
            Request::Replicas {
                index: 9,
                wanted: 2,
                patience_ms: 1000,
            },
        ] {
            assert_eq!(Request::decode(request.encode()), Ok(request));
        }
    }

    #[test]
    fn responses_survive_the_round_trip() {
        let replies = vec![
            Reply::Ok,
            Reply::Int(-3),
            Reply::Null,
            Reply::error("ERR no"),
        ];
        for response in [
            Response::Done(vec![
                (9, replies),
                (10, vec![Reply::NullArray]),
                (11, vec![]),
            ]),
            Response::Refused,
            Response::Unknown,
            Response::Stands,
            Response::Barrier {
                index: 4,
                time_ms: 5,
            },
            Response::Reply(Reply::bulk("value")),
            Response::Adopted {
                id: 3,
                member: Member::default(),
                level: 1,
                was_member: true,
            },
            Response::TakenOut,
            Response::Greeting { wall_ms: 7 },
            Response::Whereabouts(vec![(7, "h:1".to_owned()), (8, "h:2".to_owned())]),
        ] {
            assert_eq!(Response::decode(response.encode()), Ok(response));
        }
    }

    #[test]
    fn truncated_messages_are_refused() {
        let request = Request::Join(JoinRequest {
            name: "n".to_owned(),
            raft_addr: "h:1".to_owned(),
            voter: true,
        })
        .encode();
        let response = Response::Done(vec![(9, vec![Reply::Ok, Reply::bulk("v")])]).encode();
        for len in 0..request.len() {
            assert!(Request::decode(request.slice(..len)).is_err());
        }
        for len in 0..response.len() {
            assert!(Response::decode(response.slice(..len)).is_err());
        }
    }
}
