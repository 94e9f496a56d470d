//! A sum over all entries and the mark, kept with every batch: what sled recovers after a loss of
//! power can lack a part that it had, and does not say so.

use kvd_plugin_api::Mark;

/// FNV-1a with 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>), and a last mixing, so that
/// sums of hashes do not cancel out. It meets accidents, not adversaries.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The sum over some entries, in whatever order they came and went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// An entry came, by the key that sled has.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash(key, value));
    }

    /// An entry went.
    pub(crate) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(key, value));
    }

    /// What is stored: the entries, and the mark that belongs to them.
    pub(crate) fn with(self, mark: &Mark) -> [u8; 8] {
        self.0
            .wrapping_add(hash(b"", &mark.to_bytes()))
            .to_le_bytes()
    }
}

fn hash(key: &[u8], value: &[u8]) -> u64 {
    let length = (key.len() as u64).to_le_bytes();
    let bytes = length.iter().chain(key).chain(value);
    let mut hash = bytes.fold(BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
