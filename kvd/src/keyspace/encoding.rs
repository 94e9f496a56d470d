//! The order of engine keys.
//!
//! This layout is on disk and in snapshots: it never changes, it only grows by first bytes.
//! Numbers in keys are big-endian, so that their order is the order of bytes.
//!
//! | first byte | then | value |
//! | --- | --- | --- |
//! | `0x01` meta | `0x00` | the [`State`](super::State) of the keyspace |
//! | `0x01` meta | `0x01`, name | an entry of the node's own (see [`View::system`](super::View::system)) |
//! | `0x10` record | epoch u32, slot u16, hash 48 bits, key | header and payload (see `record`) |
//! | `0x20` expiry | epoch u32, expires at ms u64, slot u16, hash 48 bits, key | empty |
//! | `0x30` element | epoch u32, slot u16, hash 48 bits, key length u32, key, version (index u64, ordinal u32, zero u32), element | of the type |
//! | `0x40` removal | epoch u32, slot u16 | index u64, little-endian: the last entry that removed a key of the slot |
//!
//! The slot is Redis Cluster's: CRC-16/XMODEM of the key, or of its hash tag, modulo 16384.
//! The hash is [`hash48`]. Together they are the place of a key, of 62 bits: a SCAN cursor.

/// First byte of meta keys.
pub const META: u8 = 0x01;
/// First byte of records.
pub const RECORD: u8 = 0x10;
/// First byte of the expiry index.
pub const EXPIRY: u8 = 0x20;
/// First byte of the elements of collections.
pub const ELEMENT: u8 = 0x30;

/// First byte of the slots' last removals.
pub const REMOVAL: u8 = 0x40;
/// What belongs to an epoch, in order.
pub const OF_EPOCHS: [u8; 4] = [RECORD, EXPIRY, ELEMENT, REMOVAL];

/// The key of the keyspace's state.
pub const STATE_KEY: &[u8] = &[META, 0x00];
/// What the keys of the node's own entries begin with.
pub const SYSTEM_PREFIX: &[u8] = &[META, 0x01];

/// The number of slots.
pub const SLOTS: u16 = 16384;
/// The bits of a hash.
const HASH_BITS: u32 = 48;
/// All hashes.
const HASH_MASK: u64 = (1 << HASH_BITS) - 1;

/// The most that an engine key of ours adds to a Redis key: that of the expiry index.
pub const KEY_BYTES_ADDED: u64 = 1 + 4 + 8 + 8;

/// Where a key is: its slot and hash in one number that orders as the engine keys do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    /// The place of `key`.
    pub fn of(key: &[u8]) -> Self {
        Place(u64::from(slot(key)) << HASH_BITS | hash48(key))
    }

    /// The first place of a slot; of [`SLOTS`], the place after all.
    pub fn first_of(slot: u16) -> Self {
        Place(u64::from(slot) << HASH_BITS)
    }

    /// A place from its 62 bits, `None` beyond the last one.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits < u64::from(SLOTS) << HASH_BITS).then_some(Place(bits))
    }

    /// The 62 bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The slot.
    pub fn slot(self) -> u16 {
        (self.0 >> HASH_BITS) as u16
    }

    /// The same slot at another hash, of which the low 48 bits count.
    pub fn with_hash(self, hash: u64) -> Self {
        Place(self.0 & !HASH_MASK | hash & HASH_MASK)
    }
}

/// An engine key, on the stack when it is short.
pub struct KeyBuf {
    inline: [u8; KeyBuf::INLINE],
    len: usize,
    heap: Vec<u8>,
}

impl KeyBuf {
    /// Engine keys up to this many bytes need no allocation.
    const INLINE: usize = 120;

    /// The parts one after the other.
    #[inline]
    fn of<const N: usize>(parts: [&[u8]; N]) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut key = KeyBuf {
            inline: [0; Self::INLINE],
            len,
            heap: Vec::new(),
        };
        if len > Self::INLINE {
            key.heap = parts.concat();
        } else {
            let mut at = 0;
            for part in parts {
                key.inline[at..][..part.len()].copy_from_slice(part);
                at += part.len();
            }
        }
        key
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        if self.len > Self::INLINE {
            &self.heap
        } else {
            &self.inline[..self.len]
        }
    }

    /// The bytes, owned.
    pub fn into_vec(self) -> Vec<u8> {
        if self.len > Self::INLINE {
            self.heap
        } else {
            self.inline[..self.len].to_vec()
        }
    }
}

/// The key of the record of `key`.
pub fn record_key(epoch: u32, key: &[u8]) -> KeyBuf {
    record_key_at(epoch, Place::of(key), key)
}

/// The key of the record of `key`, whose place is known.
pub fn record_key_at(epoch: u32, place: Place, key: &[u8]) -> KeyBuf {
    KeyBuf::of([&[RECORD], &epoch.to_be_bytes(), &place.0.to_be_bytes(), key])
}

/// What the keys of all records at `place` and later are not less than. With the place after the
/// last one it is the end of the epoch's records.
pub fn record_from(epoch: u32, place: Place) -> KeyBuf {
    record_key_at(epoch, place, b"")
}

/// The key of the expiry index for `key` at `place`.
pub fn expiry_key(epoch: u32, expires_at_ms: u64, place: Place, key: &[u8]) -> KeyBuf {
    KeyBuf::of([
        &[EXPIRY],
        &epoch.to_be_bytes(),
        &expires_at_ms.to_be_bytes(),
        &place.0.to_be_bytes(),
        key,
    ])
}

/// What the index keys of `expires_at_ms` and later are not less than.
pub fn expiry_at(epoch: u32, expires_at_ms: u64) -> KeyBuf {
    KeyBuf::of([
        &[EXPIRY],
        &epoch.to_be_bytes(),
        &expires_at_ms.to_be_bytes(),
    ])
}

/// The first key of an epoch under one first byte; with `None` the end of that first byte's keys.
pub fn epoch_from(first: u8, epoch: Option<u32>) -> KeyBuf {
    match epoch {
        Some(epoch) => KeyBuf::of([&[first], &epoch.to_be_bytes()]),
        None => KeyBuf::of([&[first + 1]]),
    }
}

/// The key of an entry of the node's own.
pub fn system_key(name: &str) -> KeyBuf {
    KeyBuf::of([SYSTEM_PREFIX, name.as_bytes()])
}

/// The key of the last removal in the slot of `place`.
pub fn removal_key(epoch: u32, place: Place) -> KeyBuf {
    KeyBuf::of([
        &[REMOVAL],
        &epoch.to_be_bytes(),
        &place.slot().to_be_bytes(),
    ])
}

/// The epoch of a removal.
pub fn split_removal(engine_key: &[u8]) -> Option<u32> {
    match engine_key {
        [REMOVAL, a, b, c, d, _, _] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// The epoch, place and Redis key of a record's key.
pub fn split_record(engine_key: &[u8]) -> Option<(u32, Place, &[u8])> {
    let (&first, rest) = engine_key.split_first()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (place, key) = rest.split_first_chunk()?;
    (first == RECORD).then_some((
        u32::from_be_bytes(*epoch),
        Place(u64::from_be_bytes(*place)),
        key,
    ))
}

/// The epoch, expiry time, place and Redis key of a key of the expiry index.
pub fn split_expiry(engine_key: &[u8]) -> Option<(u32, u64, Place, &[u8])> {
    let (&first, rest) = engine_key.split_first()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (time, rest) = rest.split_first_chunk()?;
    let (place, key) = rest.split_first_chunk()?;
    (first == EXPIRY).then_some((
        u32::from_be_bytes(*epoch),
        u64::from_be_bytes(*time),
        Place(u64::from_be_bytes(*place)),
        key,
    ))
}

/// The slot of a key: of what stands between its first `{` and the next `}`, where that is not
/// empty, and of the whole key otherwise.
pub fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        match memchr::memchr(b'}', rest) {
            None | Some(0) => None,
            Some(close) => Some(&rest[..close]),
        }
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        crc << 8 ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                crc << 1 ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * u128::from(MULTIPLIER);
    ((product >> 64) as u64 ^ product as u64).wrapping_add(SEED)
}

/// The hash of a key, of 48 bits. It is on disk: it is the same for ever.
///
/// Starting from `SEED ^ length * MULTIPLIER`, each eight bytes (little-endian, the last ones
/// filled up with zeros) are mixed in by a multiplication to 128 bits whose halves are xored, plus
/// `SEED`; the 64-bit finaliser of MurmurHash3 follows, and the upper 48 bits are the hash.
pub fn hash48(key: &[u8]) -> u64 {
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, tail) = key.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    if !tail.is_empty() {
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        hash = mix(hash, u64::from_le_bytes(word));
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    hash >> (64 - HASH_BITS)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"bar"), 5061);
        assert_eq!(slot(b""), 0);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot(b"foo{{bar}}zap"), crc16(b"{bar") % SLOTS);
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        assert_eq!(slot(b"foo{bar"), crc16(b"foo{bar") % SLOTS);
    }

    #[test]
    fn hashes_never_change() {
        // Computed by another program from the description of `hash48`.
        let hashes: Vec<String> = ["", "a", "foo", "12345678", "123456789", "\0", "\0\0"]
            .iter()
            .map(|key| format!("{:012x}", hash48(key.as_bytes())))
            .collect();
        assert_eq!(hashes, HASHES);
    }

    const HASHES: [&str; 7] = [
        "9ca066f1a4ab",
        "5c142c4caefa",
        "880ba203bf1d",
        "2fe46b1cf6ea",
        "ae2e48a85ab8",
        "cf7071599742",
        "9067ab5bdffc",
    ];

    #[test]
    fn hashes_spread_evenly() {
        let mut buckets = [0_u32; 256];
        for number in 0..256 * 100 {
            let hash = hash48(format!("key:{number}").as_bytes());
            buckets[(hash >> 40) as usize] += 1;
        }
        let (least, most) = (buckets.iter().min(), buckets.iter().max());
        assert!(least > Some(&55) && most < Some(&150), "{least:?} {most:?}");
    }

    /// Another key with the same tag, and so slot, and the same hash: the second word undoes the
    /// difference that the first one made.
    pub(crate) fn colliding(tag: u8, number: u8) -> [u8; 16] {
        let first = |number: u8| [b'{', tag, b'}', b'-', number, b'x', b'y', b'z'];
        let after = |number: u8| {
            let length = SEED ^ 16_u64.wrapping_mul(MULTIPLIER);
            mix(length, u64::from_le_bytes(first(number)))
        };
        let second = after(number) ^ after(0) ^ u64::from_le_bytes(*b"abcdefgh");
        let mut key = [0; 16];
        key[..8].copy_from_slice(&first(number));
        key[8..].copy_from_slice(&second.to_le_bytes());
        key
    }

    #[test]
    fn colliding_keys_have_one_place() {
        assert_ne!(colliding(b'a', 1), colliding(b'a', 2));
        assert_eq!(
            Place::of(&colliding(b'a', 1)),
            Place::of(&colliding(b'a', 2))
        );
    }

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        for key in [&b""[..], b"k", &[7; 500]] {
            let place = Place::of(key);
            let record = record_key(9, key);
            let longest = expiry_key(9, 1, place, key).as_slice().len() - key.len();
            assert_eq!(longest as u64, KEY_BYTES_ADDED);
            assert_eq!(split_record(record.as_slice()), Some((9, place, key)));
            let expiry = expiry_key(9, 1234, place, key);
            assert_eq!(split_expiry(expiry.as_slice()), Some((9, 1234, place, key)));
            assert_eq!(split_record(expiry.as_slice()), None);
            assert_eq!(split_expiry(record.as_slice()), None);
        }
    }

    #[test]
    fn the_last_place_ends_the_epoch() {
        let end = record_from(3, Place::first_of(SLOTS));
        assert!(record_key(3, &[0xff; 40]).as_slice() < end.as_slice());
        assert!(end.as_slice() < record_from(4, Place::first_of(0)).as_slice());
        assert!(Place::from_bits(end.as_slice().len() as u64).is_some());
        assert!(Place::from_bits(Place::first_of(SLOTS).bits()).is_none());
    }
}
