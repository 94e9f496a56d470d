//! A file of records, one for each write: its checksum, its length, and as many bytes.
//!
//! The bytes are the mark and the changes. All numbers are eight bytes of little endian, but for the
//! kind of a change, which is one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use kvd_plugin_api::{Error, ErrorKind, Mark, Op, Result};

/// Checksum and length.
const HEAD: usize = 16;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;

/// Where the values of keys lie.
pub(crate) type Index = BTreeMap<Vec<u8>, Place>;

/// Where a value lies in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    offset: u64,
    pub(crate) len: u64,
}

/// A record that is being put together.
pub(crate) struct Record(Vec<u8>);

impl Record {
    pub(crate) fn new(mark: &Mark) -> Self {
        let mut record = Record(vec![0; HEAD]);
        record.number(mark.index);
        record.bytes(&mark.data);
        record
    }

    pub(crate) fn change(&mut self, op: &Op<'_>) {
        let (kind, a, b) = match *op {
            Op::Put(key, value) => (PUT, key, value),
            Op::Delete(key) => (DELETE, key, &[][..]),
            Op::DeleteRange(from, to) => (DELETE_RANGE, from, to),
        };
        self.0.push(kind);
        self.bytes(a);
        self.bytes(b);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole record, as it goes to the file.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = (self.0.len() - HEAD) as u64;
        self.0[8..HEAD].copy_from_slice(&len.to_le_bytes());
        let sum = checksum(&self.0[8..]);
        self.0[..8].copy_from_slice(&sum.to_le_bytes());
        self.0
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

/// An open file of records.
pub(crate) struct Log {
    file: File,
    /// Where the next record begins.
    end: u64,
}

impl Log {
    /// A new file, without records.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Log { file, end: 0 })
    }

    /// Opens a file, tells `take` each whole record, with where it begins, and cuts off what comes
    /// behind the last one: it was never promised.
    pub(crate) fn open(
        path: &Path,
        mut take: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut log = Log { file, end: 0 };
        while let Some(record) = log.record(log.end)? {
            take(&record, log.end)?;
            log.end += record.len() as u64;
        }
        if log.file.metadata()?.len() > log.end {
            log.file.set_len(log.end)?;
            // The next record must not come to stand before what was there once.
            log.file.sync_all()?;
        }
        Ok(log)
    }

    /// The record at `at`; none where there is no whole one.
    pub(crate) fn record(&self, at: u64) -> Result<Option<Vec<u8>>> {
        let room = self.file.metadata()?.len().saturating_sub(at);
        if room < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, at)?;
        let mut rest = &head[..];
        let (sum, len) = (number(&mut rest)?, number(&mut rest)?);
        if len > room - HEAD as u64 {
            return Ok(None);
        }
        let mut record = vec![0; HEAD + len as usize];
        self.file.read_exact_at(&mut record, at)?;
        Ok((checksum(&record[8..]) == sum).then_some(record))
    }

    /// Hands a record to the system, behind the last one; [`grow`](Self::grow) makes it one of them.
    pub(crate) fn write(&self, record: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(record, self.end)?)
    }

    pub(crate) fn grow(&mut self, record: &[u8]) {
        self.end += record.len() as u64;
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Makes everything durable that was written.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// Reads a value into `room`.
    pub(crate) fn read(&self, place: Place, room: &mut Vec<u8>) -> Result<()> {
        room.resize(place.len as usize, 0);
        let read = self.file.read_exact_at(room, place.offset);
        read.map_err(|error| match error.kind() {
            // It was there when its record was read or written.
            std::io::ErrorKind::UnexpectedEof => Error::new(
                ErrorKind::Corruption,
                "the file ends before a value that was in it",
            ),
            _ => error.into(),
        })
    }
}

/// Carries out a record that begins at `at`, and returns its mark.
pub(crate) fn carry_out(record: &[u8], at: u64, index: &mut Index) -> Result<Mark> {
    let mut rest = record.get(HEAD..).ok_or_else(senseless)?;
    let mark = Mark {
        index: number(&mut rest)?,
        data: bytes(&mut rest)?.to_vec(),
    };
    while let Some((kind, behind)) = rest.split_first() {
        rest = behind;
        let key = bytes(&mut rest)?;
        let value = bytes(&mut rest)?;
        match *kind {
            PUT => {
                let behind = (rest.len() + value.len()) as u64;
                let offset = at + record.len() as u64 - behind;
                let len = value.len() as u64;
                index.insert(key.to_vec(), Place { offset, len });
            }
            DELETE => drop(index.remove(key)),
            DELETE_RANGE if key < value => {
                let mut tail = index.split_off(key);
                index.append(&mut tail.split_off(value));
            }
            DELETE_RANGE => {}
            _ => return Err(senseless()),
        }
    }
    Ok(mark)
}

fn number(rest: &mut &[u8]) -> Result<u64> {
    let (number, behind) = rest.split_first_chunk().ok_or_else(senseless)?;
    *rest = behind;
    Ok(u64::from_le_bytes(*number))
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let len = usize::try_from(number(rest)?).map_err(|_| senseless())?;
    let (bytes, behind) = rest.split_at_checked(len).ok_or_else(senseless)?;
    *rest = behind;
    Ok(bytes)
}

fn senseless() -> Error {
    Error::new(ErrorKind::Corruption, "a whole record makes no sense")
}

/// Enough to tell a record that was torn or never came from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut sum = PRIME ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
        sum ^= sum >> 29;
    }
    sum
}
