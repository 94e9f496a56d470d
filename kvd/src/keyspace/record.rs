//! The values of engine keys: records and the keyspace's state.
//!
//! A record is `type u8 | flags u8 | modified index u64 | modified ordinal u32`, then `expires at
//! ms u64` with flag 1, then `created index u64 | created ordinal u32` with flag 2, then the
//! payload: for a string its bytes. Numbers are little-endian. An unknown type or flag is an error.

use super::{Failure, corruption};
use crate::storage;

/// The type of a value, as TYPE says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A byte string.
    String,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::String => 1,
        }
    }

    /// The word that TYPE answers.
    pub fn name(self) -> &'static str {
        match self {
            Kind::String => "string",
        }
    }
}

/// Which write of which log entry: never the same for two writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Version {
    /// The log index of the entry.
    pub index: u64,
    /// The number of the write within the entry, from 1.
    pub ordinal: u32,
}

/// What a record says besides its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMeta {
    /// The type.
    pub kind: Kind,
    /// When the key expires, in milliseconds since the Unix epoch; `None` is never.
    pub expires_at_ms: Option<u64>,
    /// The log index of the entry that changed the key last; for OBJECT and WATCH.
    pub modified: u64,
    /// Which write of that entry did.
    pub ordinal: u32,
    /// The bytes of the payload: for a string its length.
    pub payload_len: usize,
}

impl RecordMeta {
    /// The last change: two states of a key with the same version are the same.
    pub fn version(&self) -> Version {
        Version {
            index: self.modified,
            ordinal: self.ordinal,
        }
    }

    /// Whether the key is gone at `time_ms`.
    pub(crate) fn due(&self, time_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= time_ms)
    }
}

const FLAG_EXPIRES: u8 = 1;
const FLAG_CREATED: u8 = 2;

/// The most bytes of a record before its payload.
pub(crate) const HEADER_BYTES_MAX: u64 = 2 + 12 + 8 + 12;

/// Writes a record.
pub(crate) fn encode(
    kind: Kind,
    version: Version,
    expires_at_ms: Option<u64>,
    payload: &[u8],
) -> Vec<u8> {
    // Exact, so that the vector becomes shared bytes without another allocation.
    let header_bytes = 2 + 12 + if expires_at_ms.is_some() { 8 } else { 0 };
    let mut record = Vec::with_capacity(header_bytes + payload.len());
    record.push(kind.code());
    record.push(if expires_at_ms.is_some() {
        FLAG_EXPIRES
    } else {
        0
    });
    record.extend_from_slice(&version.index.to_le_bytes());
    record.extend_from_slice(&version.ordinal.to_le_bytes());
    if let Some(at) = expires_at_ms {
        record.extend_from_slice(&at.to_le_bytes());
    }
    record.extend_from_slice(payload);
    debug_assert_eq!(record.len(), header_bytes + payload.len());
    record
}

/// Reads a record: what it says, and its payload.
pub(crate) fn decode(record: &[u8]) -> storage::Result<(RecordMeta, &[u8])> {
    decode_known(record).ok_or_else(|| corruption("a record has an unknown type, flag or length"))
}

fn decode_known(record: &[u8]) -> Option<(RecordMeta, &[u8])> {
    let (&[kind, flags], rest) = record.split_first_chunk()?;
    let kind = match kind {
        1 => Kind::String,
        _ => return None,
    };
    if flags & !(FLAG_EXPIRES | FLAG_CREATED) != 0 {
        return None;
    }
    let (modified, rest) = rest.split_first_chunk()?;
    let (ordinal, mut rest) = rest.split_first_chunk()?;
    let mut expires_at_ms = None;
    if flags & FLAG_EXPIRES != 0 {
        let (at, after) = rest.split_first_chunk()?;
        expires_at_ms = Some(u64::from_le_bytes(*at));
        rest = after;
    }
    if flags & FLAG_CREATED != 0 {
        rest = rest.split_first_chunk::<12>()?.1;
    }
    let meta = RecordMeta {
        kind,
        expires_at_ms,
        modified: u64::from_le_bytes(*modified),
        ordinal: u32::from_le_bytes(*ordinal),
        payload_len: rest.len(),
    };
    Some((meta, rest))
}

/// What the keyspace keeps of itself; it changes in the same batch as the keys it counts.
///
/// Stored as `format u8 = 1 | flags u8 | epoch u32 | keys u64 | expiring u64`, little-endian; flag
/// 1 is `used`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Only records of this epoch exist; what earlier ones left is removed in small steps.
    pub epoch: u32,
    /// The records of the epoch, with those that are due and not removed yet.
    pub keys: u64,
    /// Those of them that have an expiry.
    pub expiring: u64,
    /// Whether a client's entry was ever applied: a node without is blank.
    pub used: bool,
}

const STATE_FORMAT: u8 = 1;
const STATE_BYTES: usize = 1 + 1 + 4 + 8 + 8;

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STATE_BYTES);
        bytes.push(STATE_FORMAT);
        bytes.push(u8::from(self.used));
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.keys.to_le_bytes());
        bytes.extend_from_slice(&self.expiring.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[format, used], rest) = bytes.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (keys, rest) = rest.split_first_chunk()?;
        let expiring = rest.try_into().ok()?;
        (format == STATE_FORMAT && used <= 1).then_some(State {
            epoch: u32::from_le_bytes(*epoch),
            keys: u64::from_le_bytes(*keys),
            expiring: u64::from_le_bytes(expiring),
            used: used == 1,
        })
    }

    /// Reads it; an empty engine has the default.
    ///
    /// # Errors
    ///
    /// The engine's own failure, or a state of an unknown format.
    pub fn read(read: &dyn storage::Read) -> Result<Self, Failure> {
        let mut state = Some(State::default());
        read.get(super::encoding::STATE_KEY, &mut |bytes| {
            state = State::decode(bytes);
        })?;
        state.ok_or_else(|| Failure::corrupt("the keyspace's state has an unknown format"))
    }
}
