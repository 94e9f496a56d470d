//! Agreement: kvd's openraft types, its log, state machine, snapshots and transport.

pub mod codec;
mod digests;
pub mod entry;
pub mod executor;
pub mod log;
mod pace;
pub mod phases;
pub mod position;
pub mod replay;
pub mod reply_codec;
pub mod snapshot;
pub mod spool;
mod standing;
pub mod state_machine;
mod storing;
pub mod transport;
pub mod types;

pub use standing::Standing;
pub use types::{
    Applied, Entry, LogId, Member, NodeId, NodeRuntime, Proposal, ReplySlot, StoredMembership,
    TypeConfig, Vote, log_id,
};

/// Raft over kvd's own state machine.
pub type Raft = openraft::Raft<TypeConfig, state_machine::StateMachine>;

#[cfg(test)]
mod storing_tests;
#[cfg(test)]
mod suite_tests;
