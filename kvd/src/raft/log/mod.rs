//! The Raft log: openraft's storage traits over a [`Journal`], with group commit and fail-stop.
//!
//! Exactly one flush is outstanding at any time. Whatever arrives while it runs shares the next
//! one, which begins the moment the first has ended; so an idle log answers one writer as fast as
//! one sync allows, and a busy one syncs once for all who wait. Entries, votes and truncations are
//! records of one sequence, reported only when the flush that covers them has ended.
//!
//! After a failed write or sync nothing is written any more: everyone who waits gets the error,
//! and the process is told to end. The operating system may already have dropped the pages that
//! it failed to write, so a second sync would report success for data that is gone.

mod ahead;
mod chunk;
mod copy;
mod files;
mod format;
mod hold;
mod journal;
mod rebuild;
mod record;
mod restart;
mod scan;
mod store;

pub use copy::{copy, exists};
pub use files::FileJournal;
pub use format::{Identity, OpenError};
pub use hold::{HELD_LOGS_MAX, HELD_TIME_MAX, Hold};
pub use journal::{Flushed, Journal, JournalState, MemoryDisk, MemoryJournal, SyncJob, Visit};
pub use rebuild::{Contents, rebuild};
pub use record::Body;
pub use restart::{RestartError, RestartState, check_restart};
#[doc(hidden)]
pub use scan::fuzz_log;
pub use scan::{Change, End, Record, Scan, scan};
pub use store::{LogStats, LogStore, OnFatal};

#[cfg(test)]
pub(super) use store::tests::held;

#[cfg(test)]
mod suite_tests;
