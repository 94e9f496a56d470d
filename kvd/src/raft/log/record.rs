//! What the log's files hold, and how.
//!
//! The code of `raft-log` frames each record and guards it with a checksum, but its length fields are
//! guarded only by what follows them: a damaged length that points past the end of the file looks
//! like a torn tail, and everything after it would be cut off in silence. So an entry begins with
//! a checksum of its length:
//!
//! ```text
//! entry payload = length u32 | crc32 of the length u32 | version u8 | payload (see raft::codec)
//! ```

use std::io::{self, Read, Write};

use bytes::Bytes;

use crate::raft::codec::{self, Payload};
use crate::raft::types::{LogId, Vote, log_id};

/// The version of an entry's payload that is written, and the only one that is read.
const VERSION: u8 = 1;

/// Longest payload that a record may claim: far above what may enter the log, far below what a
/// damaged length could ask for.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 1 << 30;

/// The types that `raft-log` stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogTypes;

impl raft_log::Types for LogTypes {
    type LogId = Id;
    type LogPayload = Body;
    type Vote = StoredVote;
    type Callback = Callback;
    type UserData = Nothing;

    fn log_index(id: &Id) -> u64 {
        id.0.index
    }

    fn payload_size(body: &Body) -> u64 {
        body.0.len() as u64
    }
}

/// Called once when a flush has ended.
pub(super) struct Callback(pub Box<dyn FnOnce(io::Result<()>) + Send>);

impl raft_log::Callback for Callback {
    fn send(self, result: Result<(), io::Error>) {
        (self.0)(result);
    }
}

/// A log id: term u64, index u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(pub LogId);

impl codeq::Encode for Id {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        w.write_all(&self.0.leader_id.term.to_be_bytes())?;
        w.write_all(&self.0.index.to_be_bytes())?;
        Ok(16)
    }
}

impl codeq::Decode for Id {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let (term, index) = (read_u64(&mut r)?, read_u64(&mut r)?);
        Ok(Id(log_id(term, index)))
    }
}

/// A vote: term u64, node u64, committed u8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct StoredVote(pub Vote);

impl codeq::Encode for StoredVote {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        w.write_all(&self.0.leader_id.term.to_be_bytes())?;
        w.write_all(&self.0.leader_id.voted_for.to_be_bytes())?;
        w.write_all(&[u8::from(self.0.committed)])?;
        Ok(17)
    }
}

impl codeq::Decode for StoredVote {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let (term, node) = (read_u64(&mut r)?, read_u64(&mut r)?);
        let mut committed = [0];
        r.read_exact(&mut committed)?;
        match committed[0] {
            0 => Ok(StoredVote(Vote::new(term, node))),
            1 => Ok(StoredVote(Vote::new_committed(term, node))),
            _ => Err(damaged("a vote")),
        }
    }
}

/// No data of our own beside the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Nothing;

impl codeq::Encode for Nothing {
    fn encode<W: Write>(&self, _w: W) -> io::Result<usize> {
        Ok(0)
    }
}

impl codeq::Decode for Nothing {
    fn decode<R: Read>(_r: R) -> io::Result<Self> {
        Ok(Nothing)
    }
}

/// The encoded payload of an entry; a clone shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body(pub Bytes);

impl Body {
    /// Encodes a payload.
    pub fn of(payload: &Payload) -> Self {
        let mut out = Vec::new();
        codec::put_payload(&mut out, payload);
        Body(out.into())
    }

    /// Decodes the payload.
    ///
    /// # Errors
    ///
    /// It is damaged.
    pub fn payload(&self) -> io::Result<Payload> {
        codec::read_payload(self.0.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }
}

impl codeq::Encode for Body {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let len = u32::try_from(self.0.len())
            .ok()
            .filter(|len| *len <= PAYLOAD_BYTES_MAX)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the entry is too long"))?
            .to_be_bytes();
        w.write_all(&len)?;
        w.write_all(&crc32fast::hash(&len).to_be_bytes())?;
        w.write_all(&[VERSION])?;
        w.write_all(&self.0)?;
        Ok(9 + self.0.len())
    }
}

impl codeq::Decode for Body {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let (mut len, mut crc, mut version) = ([0; 4], [0; 4], [0]);
        r.read_exact(&mut len)?;
        r.read_exact(&mut crc)?;
        if crc32fast::hash(&len) != u32::from_be_bytes(crc) {
            return Err(damaged("the length of an entry"));
        }
        let len = u32::from_be_bytes(len);
        if len > PAYLOAD_BYTES_MAX {
            return Err(damaged("the length of an entry"));
        }
        r.read_exact(&mut version)?;
        if version[0] != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("entry of version {} (this kvd reads {VERSION})", version[0]),
            ));
        }
        let mut body = vec![0; len as usize];
        r.read_exact(&mut body)?;
        Ok(Body(body.into()))
    }
}

fn read_u64<R: Read>(r: &mut R) -> io::Result<u64> {
    let mut bytes = [0; 8];
    r.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged"))
}
