//! How large keys and values may be, and what an engine must therefore store.

use super::{encoding, record};
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

/// An engine stores less than its node may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Its keys are too short.
    #[error("takes keys of {found} bytes at most (key_bytes_max), and kvd needs {needed}")]
    Key {
        /// Its longest key.
        found: u64,
        /// The longest that kvd gives to an engine.
        needed: u64,
    },
    /// Its values are too short.
    #[error("takes values of {found} bytes at most (value_bytes_max), and kvd needs {needed}")]
    Value {
        /// Its longest value.
        found: u64,
        /// The longest that kvd gives to an engine.
        needed: u64,
    },
    /// Its batches have a limit. What entries of the log change goes into an engine together with
    /// the mark of the last one, and nothing bounds it: a short command may make a long value, or
    /// copy one, and a transaction holds many of them.
    #[error(
        "takes batches of {found} bytes at most (batch_bytes_max), and kvd needs {} (no limit): \
         what one transaction changes is one batch, however much it is",
        u64::MAX
    )]
    Batch {
        /// Its largest batch.
        found: u64,
    },
}

impl Limits {
    /// Whether an engine with limits of its own can hold the largest key with the largest value,
    /// and whatever a transaction changes.
    ///
    /// # Errors
    ///
    /// The limit that is too low.
    pub fn fit(&self, engine: &storage::Limits) -> Result<(), Misfit> {
        if engine.batch_bytes_max < u64::MAX {
            let found = engine.batch_bytes_max;
            return Err(Misfit::Batch { found });
        }
        let needed = self.key_bytes_max.saturating_add(encoding::KEY_BYTES_ADDED);
        if needed > engine.key_bytes_max {
            let found = engine.key_bytes_max;
            return Err(Misfit::Key { found, needed });
        }
        let needed = { self.value_bytes_max }.saturating_add(record::HEADER_BYTES_MAX);
        if needed > engine.value_bytes_max {
            let found = engine.value_bytes_max;
            return Err(Misfit::Value { found, needed });
        }
        Ok(())
    }

    /// The longest key and value that fit into an engine.
    pub fn within(engine: &storage::Limits) -> Limits {
        let key = engine.key_bytes_max;
        let value = engine.value_bytes_max;
        Limits {
            key_bytes_max: key.saturating_sub(encoding::KEY_BYTES_ADDED),
            value_bytes_max: value.saturating_sub(record::HEADER_BYTES_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_stores_less_is_told_which_limit_and_what_is_needed() {
        let limits = Limits::default();
        let engine = storage::Limits {
            key_bytes_max: limits.key_bytes_max + encoding::KEY_BYTES_ADDED,
            value_bytes_max: limits.value_bytes_max + record::HEADER_BYTES_MAX,
            ..storage::Limits::UNBOUNDED
        };
        assert_eq!(limits.fit(&engine), Ok(()));
        assert_eq!(Limits::within(&engine), limits);
        let said = |change: fn(&mut storage::Limits)| {
            let mut less = engine;
            change(&mut less);
            limits.fit(&less).unwrap_err().to_string()
        };
        for (said, expected) in [
            (
                said(|engine| engine.key_bytes_max -= 1),
                "takes keys of 65556 bytes at most (key_bytes_max), and kvd needs 65557",
            ),
            (
                said(|engine| engine.value_bytes_max -= 1),
                "takes values of 67108897 bytes at most (value_bytes_max), and kvd needs 67108898",
            ),
            (
                said(|engine| engine.batch_bytes_max = 1 << 30),
                "takes batches of 1073741824 bytes at most (batch_bytes_max), and kvd needs \
                 18446744073709551615 (no limit): what one transaction changes is one batch, \
                 however much it is",
            ),
        ] {
            assert_eq!(said, expected);
        }
    }
}
