//! The exit codes of the process; they follow sysexits(3) where it has one.

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
