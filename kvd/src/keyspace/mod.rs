//! What keys and values mean over raw bytes: types, expiry, ordered encoding.
//!
//! A [`View`] reads at a replicated time; a [`Txn`] reads and writes, and ends as one batch of
//! [`Changes`]. Both see the latest epoch only, and a key whose expiry is due is absent for both,
//! whether or not its record is still there.
//!
//! The order of engine keys is laid down in [`encoding`].

pub mod encoding;
mod limits;
mod record;
pub mod stream;
mod sweep;
#[cfg(test)]
mod tests;
mod txn;
mod view;

pub use encoding::{hash48, slot};
pub use limits::{Limits, Misfit};
pub use record::{Kind, RecordMeta, State, Version};
pub use sweep::{Leftovers, sweep};
pub use txn::{Changes, Expire, Savepoint, Txn};
pub use view::View;

use crate::storage;

/// What has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A key.
    Key,
    /// A value.
    Value,
}

/// Why a read or a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The key holds another type. An answer, the same on every node.
    #[error("key holds another type")]
    WrongType,
    /// The key or value is above its limit. An answer, the same on every node.
    #[error("{what:?} is longer than {limit} bytes")]
    TooLarge {
        /// What is too long.
        what: What,
        /// Its limit in bytes.
        limit: u64,
    },
    /// The engine failed or holds what cannot be. Never an answer: this node stops.
    #[error(transparent)]
    Engine(#[from] storage::Error),
}

impl Failure {
    pub(crate) fn corrupt(message: &str) -> Self {
        Failure::Engine(corruption(message))
    }
}

pub(crate) fn corruption(message: &str) -> storage::Error {
    storage::Error::new(storage::ErrorKind::Corruption, message)
}
