//! kvd: a distributed key-value server that speaks the Redis protocol, replicated by Raft.

// First: its macro is known to what follows.
#[macro_use]
pub mod failpoints;

pub mod clock;
pub mod command;
pub mod config;
pub mod data_dir;
pub mod doors;
pub mod exit;
mod hex;
pub mod incarnation;
pub mod keyspace;
pub mod metrics;
pub mod net;
pub mod node;
pub mod offline;
pub mod outcome;
pub mod raft;
pub mod resp;
pub mod server;
pub mod storage;
pub mod timing;
