//! What keys and values mean over raw bytes: types, expiry, ordered encoding.
//!
//! A [`View`] reads at a replicated time; a [`Txn`] reads and writes, and ends as one batch of
//! [`Changes`]. Both see the latest epoch only, and a key whose expiry is due is absent for both,
//! whether or not its record is still there.
//!
//! The order of engine keys is laid down in [`encoding`].

pub mod encoding;
mod record;
pub mod stream;
mod sweep;
#[cfg(test)]
mod tests;
mod txn;
mod view;

pub use encoding::{hash48, slot};
pub use record::{Kind, RecordMeta, State, Version};
pub use sweep::{Leftovers, sweep};
pub use txn::{Changes, Expire, Savepoint, Txn};
pub use view::View;

use crate::storage;

/// The largest things a command may store, in bytes; the same on every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest key.
    pub key_bytes_max: u64,
    /// Longest value of one key.
    pub value_bytes_max: u64,
}

impl Default for Limits {
    /// Keys up to 64 KiB, which every engine of ours stores; values up to 64 MiB, the size of the
    /// largest entry of the log.
    fn default() -> Self {
        Limits {
            key_bytes_max: 64 << 10,
            value_bytes_max: 64 << 20,
        }
    }
}

impl Limits {
    /// Whether an engine with limits of its own can hold the largest key with the largest value.
    pub fn fit(&self, engine: &storage::Limits) -> bool {
        let key = self.key_bytes_max.checked_add(encoding::KEY_BYTES_ADDED);
        let value = self.value_bytes_max.checked_add(record::HEADER_BYTES_MAX);
        key.is_some_and(|key| key <= engine.key_bytes_max)
            && value.is_some_and(|value| value <= engine.value_bytes_max)
    }
}

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
