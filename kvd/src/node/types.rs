//! What a node tells the server, and what it is asked.

use crate::keyspace;
use crate::raft::Member;
use crate::raft::NodeId;
use crate::resp::Reply;
use crate::storage::ReadView;

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLevel {
    /// Sees every write that was acknowledged before the read began.
    Linearizable,
    /// Whatever this node has applied, but at least the connection's own writes.
    Local,
}

/// What a node does with a write that another one must lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectMode {
    /// `MOVED` for connections that know of clusters, forwarding for the others.
    Auto,
    /// Always forward.
    Forward,
    /// Always `MOVED`.
    Redirect,
}

/// A node's part in its cluster at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Leads, and has committed an entry of its own term.
    Leader,
    /// Votes and follows; `leader` is known or not.
    Follower,
    /// Receives without a vote.
    Learner,
    /// Belongs to no cluster yet, or no more.
    Outside,
}

/// One member, as this node knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberStatus {
    /// Its identity.
    pub id: NodeId,
    /// Its name and addresses.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// Known on the leader only: the last entry that it is known to hold.
    pub matched: Option<u64>,
    /// Known on the leader only: milliseconds since it was last heard.
    pub heard_ms: Option<u64>,
    /// For how many milliseconds this node has been connected to it; none when it is not.
    pub connected_ms: Option<u64>,
}

/// A node's state for INFO, ROLE and CLUSTER.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// This node's identity.
    pub id: NodeId,
    /// The cluster's identity.
    pub cluster: u128,
    /// This node's name and addresses.
    pub member: Member,
    /// Its part in the cluster.
    pub role: Role,
    /// The leader, where one is known.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// All members in ascending order of id.
    pub members: Vec<MemberStatus>,
    /// Last entry in this node's log.
    pub last_log: u64,
    /// Last committed entry that this node knows of.
    pub committed: u64,
    /// Last entry carried out.
    pub applied: u64,
    /// Last entry covered by a snapshot or by the engine's durable mark.
    pub snapshot: u64,
    /// Last entry dropped from the log.
    pub purged: u64,
    /// Whether committed entries from before the last restart are still being carried out.
    pub loading: bool,
}

/// A consistent read: contents and times.
pub struct Reading {
    /// The contents.
    pub view: ReadView,
    /// Replicated time: existence is judged by it.
    pub replicated_ms: u64,
    /// The time that TTLs are computed with; never below `replicated_ms`.
    pub now_ms: u64,
    /// For what is random and only reads.
    pub seed: u64,
}

/// The outcome of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// One reply for each command of the group; a single `NullArray` when a precondition failed.
    pub replies: Vec<Reply>,
    /// The index of the entry, for the connection's own later local reads.
    pub index: u64,
}

/// The arguments of JOIN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The name the member will have.
    pub name: String,
    /// Where its Raft port is, `host:port`.
    pub raft_addr: String,
    /// Whether it shall vote; one that does not holds the data and serves reads.
    pub voter: bool,
}

/// Sizes that are checked before a command enters the log, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigLimits {
    /// Longest key.
    pub key_bytes_max: usize,
    /// Longest value.
    pub value_bytes_max: usize,
    /// Largest group of commands.
    pub group_bytes_max: usize,
}

impl ConfigLimits {
    /// Those of keys and values, as commands know them.
    pub fn keyspace(&self) -> keyspace::Limits {
        keyspace::Limits {
            key_bytes_max: self.key_bytes_max as u64,
            value_bytes_max: self.value_bytes_max as u64,
        }
    }
}

/// Is shown the replies of a group by the thread that has them, ahead of the outcome; dropped
/// uncalled where that would keep others waiting.
pub type Early = Box<dyn FnOnce(&[Reply]) + Send>;
