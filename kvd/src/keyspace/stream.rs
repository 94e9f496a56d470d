//! The keyspace as an engine-neutral stream: what a snapshot is made of.
//!
//! Format 1, numbers little-endian:
//!
//! ```text
//! header    "KVDSNAP1" | format u32 | mark index u64 | length u32 | mark data | crc32 of all before
//! block     1 u8 | length u32 | entries | crc32 of all before in this block
//!   entry   key length u32 | value length u32 | key | value
//! trailer   2 u8 | entries u64 | sha256 of all before
//! ```
//!
//! The entries are the engine's, in strictly ascending key order: the meta keys and everything of
//! the current epoch. A block ends with the entry that takes it beyond 64 KiB. Nothing follows the
//! trailer. [`verify`] reads all of it before [`Entries`] feeds an engine.

use std::io::{self, Read as _};

use sha2::{Digest, Sha256};

use super::record::{self, State};
use super::{Failure, encoding};
use crate::storage::{self, ErrorKind, Feed, Flow, Mark, Range, Read};

const MAGIC: &[u8; 8] = b"KVDSNAP1";
const FORMAT: u32 = 1;
const BLOCK: u8 = 1;
const TRAILER: u8 = 2;
/// A block is closed once it is this long.
const BLOCK_BYTES: usize = 64 << 10;
/// No block is longer: one entry with a value of the protocol's largest size, and room.
const BLOCK_BYTES_MAX: u32 = 600 << 20;
/// What an engine accepts as a mark's data.
const MARK_BYTES_MAX: u32 = 64 << 10;

/// What a verified stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The mark of the state, for [`Engine::replace`](storage::Engine::replace).
    pub mark: Mark,
    /// The number of engine entries.
    pub entries: u64,
    /// The length of the stream.
    pub bytes: u64,
}

/// Why a stream was not written or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream's own file or socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The engine that is read failed.
    #[error(transparent)]
    Engine(#[from] storage::Error),
    /// The stream is not one, has another format, or is damaged.
    #[error("snapshot is refused at byte {offset}: {reason}")]
    Refused {
        /// Where, in bytes from the start.
        offset: u64,
        /// Why.
        reason: &'static str,
    },
}

impl From<StreamError> for storage::Error {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Io(error) => error.into(),
            StreamError::Engine(error) => error,
            refused @ StreamError::Refused { .. } => {
                storage::Error::new(ErrorKind::Corruption, refused.to_string())
            }
        }
    }
}

/// Writes the keyspace in `read`, which must be one consistent read, with the mark it has. Flushes
/// `out`, and leaves it to the caller to make a file durable.
///
/// # Errors
///
/// `Io` or `Engine`; what was written until then is no stream.
pub fn write(read: &dyn Read, mark: &Mark, out: &mut dyn io::Write) -> Result<Header, StreamError> {
    let state = State::read(read).map_err(|failure| match failure {
        Failure::Engine(error) => error,
        answer => storage::Error::new(ErrorKind::Other, answer.to_string()),
    })?;
    let mut writer = Writer {
        out,
        hash: Sha256::new(),
        block: Vec::with_capacity(BLOCK_BYTES + 4096),
        entries: 0,
        bytes: 0,
    };
    writer.header(mark)?;
    for first_byte in std::iter::once(encoding::META).chain(encoding::OF_EPOCHS) {
        let (from, to) = match first_byte {
            encoding::META => (vec![first_byte], vec![first_byte + 1]),
            _ => {
                let end = state.epoch.checked_add(1);
                (
                    encoding::epoch_from(first_byte, Some(state.epoch)).into_vec(),
                    encoding::epoch_from(first_byte, end).into_vec(),
                )
            }
        };
        let range = Range {
            from: &from,
            to: Some(&to),
            reverse: false,
        };
        let mut failed = None;
        read.scan(range, &mut |key, value| match writer.entry(key, value) {
            Ok(()) => Flow::Continue,
            Err(error) => {
                failed = Some(error);
                Flow::Stop
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    writer.trailer()?;
    Ok(Header {
        mark: mark.clone(),
        entries: writer.entries,
        bytes: writer.bytes,
    })
}

struct Writer<'a> {
    out: &'a mut dyn io::Write,
    hash: Sha256,
    /// The block that gathers: its first five bytes are its kind and length.
    block: Vec<u8>,
    entries: u64,
    bytes: u64,
}

impl Writer<'_> {
    fn header(&mut self, mark: &Mark) -> Result<(), StreamError> {
        let mut header = Vec::with_capacity(32 + mark.data.len());
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&FORMAT.to_le_bytes());
        header.extend_from_slice(&mark.index.to_le_bytes());
        let length = u32::try_from(mark.data.len()).unwrap_or(u32::MAX);
        if length > MARK_BYTES_MAX {
            return Err(too_long("a mark"));
        }
        header.extend_from_slice(&length.to_le_bytes());
        header.extend_from_slice(&mark.data);
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        self.put(&header)
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(), StreamError> {
        if self.block.is_empty() {
            self.block.extend_from_slice(&[BLOCK, 0, 0, 0, 0]);
        }
        let length = 8 + key.len() as u64 + value.len() as u64;
        if self.block.len() as u64 + length > u64::from(BLOCK_BYTES_MAX) {
            return Err(too_long("an entry"));
        }
        // Both fit: their sum is below the largest block.
        self.block
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.block
            .extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.entries += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.close_block()?;
        }
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), StreamError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.block);
        let length = (block.len() - 5) as u32;
        block[1..5].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&block);
        block.extend_from_slice(&crc.to_le_bytes());
        self.put(&block)?;
        block.clear();
        self.block = block;
        Ok(())
    }

    fn trailer(&mut self) -> Result<(), StreamError> {
        self.close_block()?;
        let mut trailer = vec![TRAILER];
        trailer.extend_from_slice(&self.entries.to_le_bytes());
        self.put(&trailer)?;
        let hash = std::mem::take(&mut self.hash).finalize();
        self.out.write_all(&hash)?;
        self.bytes += hash.len() as u64;
        self.out.flush()?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)?;
        Ok(())
    }
}

fn too_long(what: &str) -> StreamError {
    let message = format!("{what} is too long for a snapshot");
    StreamError::Engine(storage::Error::new(ErrorKind::TooLarge, message))
}

/// Reads a whole stream and checks everything: checksums, order, that each entry is of a known
/// kind and of the current epoch, and that the counters are right.
///
/// # Errors
///
/// `Refused`, with the offset of the block; `Io`.
pub fn verify(input: &mut dyn io::Read) -> Result<Header, StreamError> {
    let mut blocks = Blocks::open(io::BufReader::with_capacity(BLOCK_BYTES, input))?;
    let mut state = None;
    let mut counted = Counted::default();
    let mut last = Vec::new();
    while blocks.next_block()? {
        let offset = blocks.block_offset;
        let refused = |reason| StreamError::Refused { offset, reason };
        while let Some((key, value)) = blocks.next_entry()? {
            if key <= &last[..] {
                return Err(refused("keys are not in ascending order"));
            }
            if key == encoding::STATE_KEY {
                let read = State::decode(value);
                state = Some(read.ok_or_else(|| refused("the state has an unknown format"))?);
            }
            check_entry(key, value, &state.unwrap_or_default(), &mut counted).map_err(refused)?;
            last.clear();
            last.extend_from_slice(key);
        }
    }
    let header = blocks.header()?;
    let state = state.unwrap_or_default();
    let expected = Counted {
        keys: state.keys,
        expiring: state.expiring,
        indexed: state.expiring,
    };
    if counted != expected {
        return Err(StreamError::Refused {
            offset: header.bytes,
            reason: "the counters do not fit the entries",
        });
    }
    Ok(header)
}

/// What a stream holds of the current epoch.
#[derive(Default, PartialEq, Eq)]
struct Counted {
    keys: u64,
    expiring: u64,
    indexed: u64,
}

fn check_entry(
    key: &[u8],
    value: &[u8],
    state: &State,
    counted: &mut Counted,
) -> Result<(), &'static str> {
    let epoch = match key.first() {
        Some(&encoding::META) => return Ok(()),
        Some(&encoding::RECORD) => {
            let (epoch, place, name) = encoding::split_record(key).ok_or("a key is too short")?;
            if place != encoding::Place::of(name) {
                return Err("a key is in a wrong place");
            }
            let (meta, _) = record::decode(value).map_err(|_| "a record is not readable")?;
            counted.keys += 1;
            counted.expiring += u64::from(meta.expires_at_ms.is_some());
            epoch
        }
        Some(&encoding::EXPIRY) => {
            counted.indexed += 1;
            encoding::split_expiry(key).ok_or("a key is too short")?.0
        }
        Some(&encoding::ELEMENT) => match key[1..].first_chunk() {
            Some(epoch) => u32::from_be_bytes(*epoch),
            None => return Err("a key is too short"),
        },
        Some(&encoding::REMOVAL) => {
            if value.len() != 8 {
                return Err("a removal is not readable");
            }
            encoding::split_removal(key).ok_or("a key is too short")?
        }
        _ => return Err("a key of an unknown kind"),
    };
    if epoch != state.epoch {
        return Err("a key of another epoch");
    }
    Ok(())
}

/// The entries of a stream, for [`Engine::replace`](storage::Engine::replace).
///
/// It checks the blocks' checksums again, but only [`verify`] checks everything before the first
/// entry is out.
pub struct Entries<R> {
    blocks: Blocks<io::BufReader<R>>,
    ended: bool,
}

impl<R: io::Read> Entries<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// `Refused` or `Io`.
    pub fn open(input: R) -> Result<Self, StreamError> {
        Ok(Entries {
            blocks: Blocks::open(io::BufReader::with_capacity(BLOCK_BYTES, input))?,
            ended: false,
        })
    }

    /// The mark in the header.
    pub fn mark(&self) -> &Mark {
        &self.blocks.mark
    }
}

impl<R: io::Read> Feed for Entries<R> {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> storage::Result<bool> {
        while !self.ended {
            if let Some((key, value)) = self.blocks.next_entry()? {
                out(key, value);
                return Ok(true);
            }
            self.ended = !self.blocks.next_block()?;
        }
        Ok(false)
    }
}

/// A stream that is read block by block.
struct Blocks<R> {
    input: R,
    hash: Sha256,
    offset: u64,
    mark: Mark,
    /// The entries of the current block, and how far they are read.
    block: Vec<u8>,
    at: usize,
    block_offset: u64,
    entries: u64,
    ended: bool,
}

impl<R: io::Read> Blocks<R> {
    fn open(input: R) -> Result<Self, StreamError> {
        let mut blocks = Blocks {
            input,
            hash: Sha256::new(),
            offset: 0,
            mark: Mark::default(),
            block: Vec::new(),
            at: 0,
            block_offset: 0,
            entries: 0,
            ended: false,
        };
        let fixed: [u8; 24] = blocks.array()?;
        if fixed[..8] != MAGIC[..] {
            return Err(blocks.refused("it does not begin as a snapshot does"));
        }
        if fixed[8..12] != FORMAT.to_le_bytes() {
            return Err(blocks.refused("it has a format that this version does not read"));
        }
        let mut index = [0; 8];
        index.copy_from_slice(&fixed[12..20]);
        let mut length = [0; 4];
        length.copy_from_slice(&fixed[20..]);
        let length = u32::from_le_bytes(length);
        if length > MARK_BYTES_MAX {
            return Err(blocks.refused("its mark is too long"));
        }
        let mut data = Vec::new();
        blocks.bytes(length, &mut data)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&fixed);
        crc.update(&data);
        if blocks.array()? != crc.finalize().to_le_bytes() {
            return Err(blocks.refused("its header is damaged"));
        }
        blocks.mark = Mark {
            index: u64::from_le_bytes(index),
            data,
        };
        Ok(blocks)
    }

    /// Goes to the next block; `false` after the trailer, which is checked with the end.
    fn next_block(&mut self) -> Result<bool, StreamError> {
        if self.ended {
            return Ok(false);
        }
        self.block_offset = self.offset;
        match self.array()? {
            [BLOCK] => {
                let length: [u8; 4] = self.array()?;
                if u32::from_le_bytes(length) > BLOCK_BYTES_MAX {
                    return Err(self.refused("a block is too long"));
                }
                let mut block = std::mem::take(&mut self.block);
                block.clear();
                self.bytes(u32::from_le_bytes(length), &mut block)?;
                self.block = block;
                self.at = 0;
                let mut crc = crc32fast::Hasher::new();
                crc.update(&[BLOCK]);
                crc.update(&length);
                crc.update(&self.block);
                if self.array()? != crc.finalize().to_le_bytes() {
                    return Err(self.refused("a block is damaged"));
                }
                Ok(true)
            }
            [TRAILER] => {
                if u64::from_le_bytes(self.array()?) != self.entries {
                    return Err(self.refused("the number of entries is wrong"));
                }
                let hash = std::mem::take(&mut self.hash).finalize();
                let stored: [u8; 32] = self.array()?;
                if stored[..] != hash[..] {
                    return Err(self.refused("the checksum of the whole is wrong"));
                }
                let mut more = Vec::new();
                if (&mut self.input).take(1).read_to_end(&mut more)? != 0 {
                    return Err(self.refused("something follows its end"));
                }
                self.ended = true;
                self.block.clear();
                self.at = 0;
                Ok(false)
            }
            _ => Err(self.refused("a block of an unknown kind")),
        }
    }

    /// The next entry of the current block.
    fn next_entry(&mut self) -> Result<Option<(&[u8], &[u8])>, StreamError> {
        if self.at == self.block.len() {
            return Ok(None);
        }
        let split = |rest: &[u8]| {
            let (key_length, rest) = rest.split_first_chunk()?;
            let (value_length, rest) = rest.split_first_chunk()?;
            let key = u32::from_le_bytes(*key_length) as usize;
            let length = key.checked_add(u32::from_le_bytes(*value_length) as usize)?;
            (length <= rest.len()).then_some((key, length))
        };
        let Some((key, length)) = split(&self.block[self.at..]) else {
            return Err(self.refused("an entry is longer than its block"));
        };
        let start = self.at + 8;
        self.at = start + length;
        self.entries += 1;
        Ok(Some(self.block[start..self.at].split_at(key)))
    }

    /// What the stream was; only after its end.
    fn header(self) -> Result<Header, StreamError> {
        debug_assert!(self.ended);
        Ok(Header {
            mark: self.mark,
            entries: self.entries,
            bytes: self.offset,
        })
    }

    fn refused(&self, reason: &'static str) -> StreamError {
        StreamError::Refused {
            offset: self.block_offset,
            reason,
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => {
                self.read(&bytes);
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.refused("it ends too early"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads `length` bytes; memory grows only with what is really there.
    fn bytes(&mut self, length: u32, into: &mut Vec<u8>) -> Result<(), StreamError> {
        let read = (&mut self.input)
            .take(u64::from(length))
            .read_to_end(into)?;
        if read < length as usize {
            return Err(self.refused("it ends too early"));
        }
        self.read(into);
        Ok(())
    }

    fn read(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
    }
}

/// Feeds any bytes to the reader, which must neither panic nor take more memory than they justify.
#[doc(hidden)]
pub fn fuzz_stream(bytes: &[u8]) {
    let verified = verify(&mut &bytes[..]);
    let mut drained = 0;
    let entries = Entries::open(bytes).map_err(storage::Error::from);
    let result = entries.and_then(|mut entries| {
        while entries.next(&mut |_, _| drained += 1)? {}
        Ok(())
    });
    if let Ok(header) = verified {
        assert!(result.is_ok() && header.entries == drained);
    }
}
