//! Agreement: kvd's openraft types, its log, state machine, snapshots and transport.

pub mod codec;
pub mod entry;
pub mod executor;
pub mod log;
pub mod position;
pub mod reply_codec;
pub mod spool;
pub mod transport;
pub mod types;

pub use types::{
    Applied, Entry, LogId, Member, NodeId, NodeRuntime, Proposal, ReplySlot, StoredMembership,
    TypeConfig, Vote, log_id,
};
