//! The exit codes of the process; they follow sysexits(3) where it has one.

use crate::data_dir::DataDirError;
use crate::node::StartError;
use crate::raft::executor::Stop;
use crate::raft::log::OpenError;
use crate::storage::{self, ErrorKind};

/// Done.
pub const OK: i32 = 0;

/// A log that ends with an unfinished record: `kvd log verify` and its like say so.
pub const TORN: i32 = 1;

/// A wrong flag, key or subcommand.
pub const USAGE: i32 = 2;

/// An address is in use or cannot be bound.
pub const ADDRESS: i32 = 69;

/// A bug: something panicked, or Raft stopped by itself.
pub const PANIC: i32 = 70;

/// The log or the engine could not be read or written.
pub const IO: i32 = 74;

/// Another process uses the data directory.
pub const LOCKED: i32 = 75;

/// The plugin or the data directory cannot be used as it is.
pub const CONFIG: i32 = 78;

/// Nobody read on what a command printed; a shell says the same of a tool that SIGPIPE ended.
pub const UNREAD: i32 = 141;

/// For an engine that cannot be opened or read: a disk that fails says nothing of what is on it.
pub fn of_engine(error: &storage::Error) -> i32 {
    match error.kind() {
        ErrorKind::Io | ErrorKind::NoSpace => IO,
        _ => CONFIG,
    }
}

/// For a log that cannot be opened.
pub fn of_log(error: &OpenError) -> i32 {
    match error {
        OpenError::Io { .. } => IO,
        OpenError::Damaged { .. } | OpenError::Foreign { .. } => CONFIG,
    }
}

/// For a data directory that cannot be used.
pub fn of_data_dir(error: &DataDirError) -> i32 {
    match error {
        DataDirError::Locked(_) => LOCKED,
        DataDirError::Io { .. } => IO,
        DataDirError::Foreign { .. }
        | DataDirError::Absent(_)
        | DataDirError::HalfRebuilt(_)
        | DataDirError::HalfMigrated(_)
        | DataDirError::Backend { .. } => CONFIG,
    }
}

/// For a node that does not start, or cannot go on as what it has become.
pub fn of_start(error: &StartError) -> i32 {
    match error {
        StartError::DataDir(error) => of_data_dir(error),
        StartError::Engine(error) | StartError::State(Stop::Engine(error)) => of_engine(error),
        StartError::Log(error) => of_log(error),
        StartError::Restart(_) | StartError::State(Stop::Entry { .. }) => CONFIG,
        StartError::Io(_) => IO,
        StartError::Raft(_) => PANIC,
    }
}
