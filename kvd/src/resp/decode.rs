//! Replies from bytes.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};

use super::number::{parse_double, parse_int};
use super::{OutputBuffer, Protocol, Reply, write};

/// How many arrays, maps, sets and pushes may lie within one another. It bounds what dropping,
/// comparing or writing a decoded reply takes of the stack.
pub const DEPTH_MAX: usize = 64;

/// Bytes of a line: a simple string, an error, a number, a length.
pub const LINE_LEN_MAX: usize = 1024 * 1024;

/// Bytes of one bulk string, verbatim string or blob error: twice what Redis lets a value be, so
/// that a serialized value with its frame fits.
pub const BLOB_LEN_MAX: usize = 1024 * 1024 * 1024;

/// Items of one array, or pairs of one map: what Redis counts a collection's members with.
pub const ITEMS_MAX: usize = u32::MAX as usize;

/// The decoder keeps at most this many bytes of an allocation that has been read to its end.
const IDLE_CAPACITY_MAX: usize = 64 * 1024;

/// Bytes that are no reply. Where the next reply would begin is not known, so the connection they
/// came from is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A reply begins with a byte that names no kind; the byte.
    #[error("no kind of reply begins with the byte {0:#04x}")]
    UnknownKind(u8),
    /// A line ends in something other than a carriage return and a line feed.
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// A line of more than [`LINE_LEN_MAX`] bytes.
    #[error("a line is too long")]
    LineTooLong,
    /// A bulk string, verbatim string or blob error is followed by something other than a
    /// carriage return and a line feed.
    #[error("a bulk string does not end in CR LF")]
    BlobEnd,
    /// A length or a number of items that is no number, negative or above its limit.
    #[error("invalid length")]
    Length,
    /// An integer, double, big number, truth value or null that is none.
    #[error("invalid value")]
    Value,
    /// A verbatim string without its three-letter format.
    #[error("verbatim string without a format")]
    Verbatim,
    /// More than [`DEPTH_MAX`] levels of nesting.
    #[error("nested too deeply")]
    TooDeep,
}

/// Cuts replies off a stream of bytes, in RESP2 and RESP3 alike.
///
/// It remembers how far it got, so the cost is linear in the bytes whatever the pieces in which
/// they come. Memory is taken only for bytes that have come, never for a length that was promised.
///
/// ```
/// use kvd::resp::{Reply, ReplyDecoder};
///
/// let mut decoder = ReplyDecoder::default();
/// decoder.feed(b"$5\r\nhel");
/// assert_eq!(decoder.next(), Ok(None));
/// decoder.feed(b"lo\r\n");
/// assert_eq!(decoder.next(), Ok(Some(Reply::bulk("hello"))));
/// ```
#[derive(Debug, Default)]
pub struct ReplyDecoder {
    /// What has come and was not understood yet.
    buffer: BytesMut,
    /// No line end lies before this offset.
    scanned: usize,
    /// The blob that is coming, once its length has been said.
    blob: Option<(Blob, usize)>,
    /// The aggregates that are coming, the outermost first; each still lacks an item.
    open: Vec<Aggregate>,
    failed: Option<DecodeError>,
}

#[derive(Debug, Clone, Copy)]
enum Blob {
    Bulk,
    Error,
    Verbatim,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Array,
    Map,
    Set,
    Push,
}

#[derive(Debug)]
struct Aggregate {
    kind: Kind,
    /// How many items are still to come; a pair of a map is two.
    left: usize,
    items: Vec<Reply>,
}

impl Aggregate {
    fn into_reply(self) -> Reply {
        debug_assert_eq!(self.left, 0);
        match self.kind {
            Kind::Array => Reply::Array(self.items),
            Kind::Set => Reply::Set(self.items),
            Kind::Push => Reply::Push(self.items),
            Kind::Map => {
                let mut pairs = Vec::with_capacity(self.items.len() / 2);
                let mut items = self.items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    pairs.push((key, value));
                }
                Reply::Map(pairs)
            }
        }
    }
}

/// What stands at the front of the buffer.
enum Token {
    /// A reply that holds no others.
    Value(Reply),
    /// The head of a blob, whose bytes follow.
    Blob(Blob, usize),
    /// The head of an aggregate, whose items follow.
    Open(Kind, usize),
}

impl ReplyDecoder {
    /// A decoder at the start of a stream, without an allocation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a copy of the bytes that come next. After an error they are dropped.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let len = self.buffer.len();
        if self.buffer.capacity() - len < bytes.len() {
            // While replies share the allocation, making room copies what is left in it: doubling
            // keeps the copies linear in what comes.
            self.buffer.reserve(bytes.len().max(len));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next reply, or nothing until more bytes have come.
    ///
    /// Bulk strings share the memory of the bytes they came in. Simple strings and errors that are
    /// no UTF-8 have their odd bytes replaced.
    ///
    /// # Errors
    /// When the bytes are no reply; it repeats the error from then on.
    #[expect(
        clippy::should_implement_trait,
        reason = "nothing means not yet, where an iterator's would mean never"
    )]
    pub fn next(&mut self) -> Result<Option<Reply>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.advance();
        if let Err(error) = result {
            *self = ReplyDecoder {
                failed: Some(error),
                ..Self::default()
            };
        }
        result
    }

    /// Whether the bytes so far end where a reply ends, as they should when a connection closes.
    /// Nothing can be said before [`next`](Self::next) has returned nothing.
    pub fn is_between_replies(&self) -> bool {
        self.failed.is_none()
            && self.buffer.is_empty()
            && self.blob.is_none()
            && self.open.is_empty()
    }

    fn advance(&mut self) -> Result<Option<Reply>, DecodeError> {
        loop {
            let mut reply = if let Some((kind, len)) = self.blob {
                match self.take_blob(kind, len)? {
                    Some(reply) => reply,
                    None => return Ok(None),
                }
            } else {
                match self.take_token()? {
                    None => return Ok(None),
                    Some(Token::Value(reply)) => reply,
                    Some(Token::Blob(kind, len)) => {
                        self.blob = Some((kind, len));
                        continue;
                    }
                    Some(Token::Open(kind, left)) => {
                        if self.open.len() == DEPTH_MAX {
                            return Err(DecodeError::TooDeep);
                        }
                        let opened = Aggregate {
                            kind,
                            left,
                            items: Vec::new(),
                        };
                        if left > 0 {
                            self.open.push(opened);
                            continue;
                        }
                        opened.into_reply()
                    }
                }
            };
            // A reply may be the last that the aggregates around it wait for.
            loop {
                let Some(mut around) = self.open.pop() else {
                    return Ok(Some(reply));
                };
                around.items.push(reply);
                around.left -= 1;
                if around.left > 0 {
                    self.open.push(around);
                    break;
                }
                reply = around.into_reply();
            }
        }
    }

    /// Reads the line at the front, unless it has not come in full.
    fn take_token(&mut self) -> Result<Option<Token>, DecodeError> {
        let Some(&kind) = self.buffer.first() else {
            return Ok(None);
        };
        // What no reply begins with is refused at once: its line may never end.
        if !b"+-:$*_,#(=%~>!".contains(&kind) {
            return Err(DecodeError::UnknownKind(kind));
        }
        // Looking no further than the limit makes the answer independent of how much has come.
        let until = self.buffer.len().min(1 + LINE_LEN_MAX + 1);
        let Some(found) = memchr::memchr2(b'\r', b'\n', &self.buffer[self.scanned..until]) else {
            self.scanned = until;
            if until > 1 + LINE_LEN_MAX {
                return Err(DecodeError::LineTooLong);
            }
            return Ok(None);
        };
        let end = self.scanned + found;
        self.scanned = end;
        match self.buffer[end..] {
            [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => {}
            _ => return Err(DecodeError::LineEnd),
        }
        let token = token(kind, &self.buffer[1..end])?;
        self.buffer.advance(end + 2);
        self.scanned = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_CAPACITY_MAX {
            self.buffer = BytesMut::new();
        }
        Ok(Some(token))
    }

    /// Reads the blob at the front, unless it has not come in full.
    fn take_blob(&mut self, kind: Blob, len: usize) -> Result<Option<Reply>, DecodeError> {
        if self.buffer.len() < len + 2 {
            return Ok(None);
        }
        if self.buffer[len..len + 2] != *b"\r\n" {
            return Err(DecodeError::BlobEnd);
        }
        self.blob = None;
        let bytes = self.buffer.split_to(len).freeze();
        self.buffer.advance(2);
        if self.buffer.is_empty() && len + self.buffer.capacity() > IDLE_CAPACITY_MAX {
            // Even an empty rest would keep the blob's memory after its last reader.
            self.buffer = BytesMut::new();
        }
        match kind {
            Blob::Bulk => Ok(Some(Reply::Bulk(bytes))),
            Blob::Error => Ok(Some(Reply::Error(text(&bytes)))),
            Blob::Verbatim => verbatim(bytes).map(Some),
        }
    }
}

/// What the line `rest` after the byte `kind` says.
fn token(kind: u8, rest: &[u8]) -> Result<Token, DecodeError> {
    let value = match kind {
        b'$' if rest == b"-1" => Reply::Null,
        b'*' if rest == b"-1" => Reply::NullArray,
        b'$' => return Ok(Token::Blob(Blob::Bulk, length(rest, BLOB_LEN_MAX)?)),
        b'!' => return Ok(Token::Blob(Blob::Error, length(rest, BLOB_LEN_MAX)?)),
        b'=' => {
            let len = length(rest, BLOB_LEN_MAX)?;
            return Ok(Token::Blob(Blob::Verbatim, len));
        }
        b'*' => return Ok(Token::Open(Kind::Array, length(rest, ITEMS_MAX)?)),
        b'~' => return Ok(Token::Open(Kind::Set, length(rest, ITEMS_MAX)?)),
        b'>' => return Ok(Token::Open(Kind::Push, length(rest, ITEMS_MAX)?)),
        b'%' => {
            let pairs = length(rest, ITEMS_MAX)?;
            let items = pairs.checked_mul(2).ok_or(DecodeError::Length)?;
            return Ok(Token::Open(Kind::Map, items));
        }
        b'+' if rest == b"OK" => Reply::Ok,
        b'+' => Reply::Simple(text(rest)),
        b'-' => Reply::Error(text(rest)),
        b':' => Reply::Int(integer(rest).ok_or(DecodeError::Value)?),
        b',' => Reply::Double(double(rest).ok_or(DecodeError::Value)?),
        b'(' => Reply::BigNumber(big_number(rest).ok_or(DecodeError::Value)?),
        b'#' if rest == b"t" => Reply::Bool(true),
        b'#' if rest == b"f" => Reply::Bool(false),
        b'_' if rest.is_empty() => Reply::Null,
        b'#' | b'_' => return Err(DecodeError::Value),
        _ => return Err(DecodeError::UnknownKind(kind)),
    };
    Ok(Token::Value(value))
}

fn length(digits: &[u8], max: usize) -> Result<usize, DecodeError> {
    parse_int(digits)
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| *len <= max)
        .ok_or(DecodeError::Length)
}

fn integer(text: &[u8]) -> Option<i64> {
    match text {
        // The protocol allows the sign, though Redis never writes it.
        [b'+', digits @ ..] if digits.first() != Some(&b'-') => parse_int(digits),
        _ => parse_int(text),
    }
}

fn double(text: &[u8]) -> Option<f64> {
    match text {
        b"nan" | b"-nan" => Some(f64::NAN),
        _ => parse_double(text),
    }
}

fn big_number(text: &[u8]) -> Option<String> {
    let digits = match text {
        [b'+' | b'-', digits @ ..] => digits,
        digits => digits,
    };
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    valid.then(|| String::from_utf8_lossy(text).into_owned())
}

fn verbatim(bytes: Bytes) -> Result<Reply, DecodeError> {
    match bytes[..] {
        [a, b, c, b':', ..] => Ok(Reply::Verbatim {
            format: [a, b, c],
            text: bytes.slice(4..),
        }),
        _ => Err(DecodeError::Verbatim),
    }
}

fn text(bytes: &[u8]) -> Cow<'static, str> {
    Cow::Owned(String::from_utf8_lossy(bytes).into_owned())
}

/// Decodes `data` as a server's stream in pieces whose size comes from its first byte, and checks
/// what must hold for any bytes at all. For fuzzing.
#[doc(hidden)]
pub fn fuzz_replies(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else {
        return;
    };
    let (whole, ended) = replies(stream, stream.len().max(1));
    let (pieces, pieces_ended) = replies(stream, usize::from(seed) % 7 + 1);
    // The written form is compared because NaN is unequal to itself.
    let written = written(&whole);
    assert_eq!(
        (&written, ended),
        (&self::written(&pieces), pieces_ended),
        "the pieces in which bytes came changed their meaning"
    );
    let (again, ended) = replies(&written, written.len().max(1));
    assert_eq!(ended, None);
    assert_eq!(again.len(), whole.len());
    assert_eq!(self::written(&again), written, "writing changed a reply");
}

/// The replies of a stream that comes in pieces of `step` bytes, and the error it ended in.
fn replies(stream: &[u8], step: usize) -> (Vec<Reply>, Option<DecodeError>) {
    let mut decoder = ReplyDecoder::default();
    let mut found = Vec::new();
    for piece in stream.chunks(step) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(reply)) => found.push(reply),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn written(replies: &[Reply]) -> Vec<u8> {
    let mut out = OutputBuffer::new();
    for reply in replies {
        write(reply, Protocol::Resp3, &mut out);
    }
    out.copy_to_bytes(out.remaining()).to_vec()
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
