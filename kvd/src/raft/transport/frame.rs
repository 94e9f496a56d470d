//! Frames: how messages are cut out of a stream of bytes.
//!
//! ```text
//! len u32 | crc u32 | kind u8 | flags u8 | 0 u16 | group u32 | request u32 | body
//! ```
//!
//! `len` counts the bytes behind it. The CRC-32 covers everything but itself, the length too.
//! Integers are little-endian.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::raft::codec::Malformed;

/// Bytes of a frame before its body.
pub(super) const HEAD_BYTES: usize = 20;

/// Least room that is made for a read: most frames of a busy connection come many at a time.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Most room that is made before bytes for it have come, whatever a length field promises.
const READ_BYTES_MAX: usize = 256 * 1024;

/// Payloads from this size on are written from where they are instead of being copied.
const SHARED_BYTES_MIN: usize = 4 * 1024;

/// Slices handed to one vectored write.
const SLICES_MAX: usize = 64;

/// The sender answers the request with this number.
pub(super) const FLAG_RESPONSE: u8 = 1;

/// The response is a failure: a code and a text.
pub(super) const FLAG_FAILED: u8 = 2;

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection between two frames.
    #[error("closed by the peer")]
    Closed,
    /// The peer closed the connection within a frame.
    #[error("closed by the peer in the middle of a frame")]
    Truncated,
    /// A frame is longer than this connection allows.
    #[error("frame of {bytes} bytes, limit {limit}")]
    TooLong {
        /// What the frame's length field says.
        bytes: u64,
        /// The limit of the connection.
        limit: usize,
    },
    /// A frame is shorter than its own header.
    #[error("frame of {0} bytes is shorter than its header")]
    TooShort(u32),
    /// The checksum does not match.
    #[error("frame checksum mismatch")]
    Checksum,
    /// The frame is whole, but its contents are not what they should be.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// A frame of a kind that has no place here.
    #[error("unexpected frame of kind {0}")]
    Unexpected(u8),
    /// Nothing came for too long, although something was due.
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    /// The peer does not take what is sent to it.
    #[error("peer takes no bytes for {0:?}")]
    Stalled(Duration),
    /// This side ends the connection.
    #[error("{0}")]
    Ended(&'static str),
}

impl WireError {
    /// Whether the peer sent something it must not send.
    pub fn is_violation(&self) -> bool {
        matches!(
            self,
            WireError::TooLong { .. }
                | WireError::TooShort(_)
                | WireError::Checksum
                | WireError::Malformed(_)
                | WireError::Unexpected(_)
        )
    }
}

/// One frame that came in whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) group: u32,
    pub(super) request: u32,
    /// A slice of the bytes that were read.
    pub(super) body: Bytes,
}

/// Cuts frames out of a stream. Memory grows with what has come, never with what is promised.
pub(super) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    /// Longest frame, header included.
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R, limit: usize) -> Self {
        FrameReader {
            io,
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Allows longer or shorter frames from now on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The next frame. May be dropped and called again without losing bytes.
    pub(super) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = parse(&mut self.buffer, self.limit)? {
                return Ok(frame);
            }
            let missing = promised(&self.buffer).map_or(0, |len| 4 + len - self.buffer.len());
            self.buffer
                .reserve(missing.clamp(READ_BYTES_MIN, READ_BYTES_MAX));
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(match self.buffer.is_empty() {
                    true => WireError::Closed,
                    false => WireError::Truncated,
                });
            }
        }
    }
}

fn promised(buffer: &BytesMut) -> Option<usize> {
    let len = buffer.get(..4)?.try_into().expect("four bytes were taken");
    Some(u32::from_le_bytes(len) as usize)
}

/// Takes a whole frame off the front of `buffer`, if there is one.
pub(super) fn parse(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, WireError> {
    let Some(len) = promised(buffer) else {
        return Ok(None);
    };
    if len < HEAD_BYTES - 4 {
        return Err(WireError::TooShort(len as u32));
    }
    if len > limit.saturating_sub(4) {
        return Err(WireError::TooLong {
            bytes: len as u64 + 4,
            limit,
        });
    }
    if buffer.len() < 4 + len {
        return Ok(None);
    }
    let mut bytes = buffer.split_to(4 + len).freeze();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..4]);
    crc.update(&bytes[8..]);
    if crc.finalize() != word(4) {
        return Err(WireError::Checksum);
    }
    if bytes[10..12] != [0, 0] {
        return Err(Malformed("frame header").into());
    }
    let (kind, flags, group, request) = (bytes[8], bytes[9], word(12), word(16));
    Ok(Some(Frame {
        kind,
        flags,
        group,
        request,
        body: bytes.split_off(HEAD_BYTES),
    }))
}

enum Segment {
    Own(Vec<u8>),
    Shared(Bytes),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Own(bytes) => bytes,
            Segment::Shared(bytes) => bytes,
        }
    }
}

/// Frames that go out with one write. Large payloads stay where they are.
#[derive(Default)]
pub(super) struct Burst {
    segments: Vec<Segment>,
    /// Segment and offset where the frame that is being written begins.
    start: (usize, usize),
    bytes: usize,
}

impl Burst {
    /// How many bytes wait to be written.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a frame whose body `fill` writes.
    ///
    /// # Errors
    ///
    /// It would be longer than `limit`; nothing was appended then.
    pub(super) fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        group: u32,
        request: u32,
        limit: usize,
        fill: impl FnOnce(&mut Burst),
    ) -> Result<(), WireError> {
        let out = self.own();
        let offset = out.len();
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&[kind, flags, 0, 0]);
        out.extend_from_slice(&group.to_le_bytes());
        out.extend_from_slice(&request.to_le_bytes());
        self.start = (self.segments.len() - 1, offset);
        fill(self);
        self.seal(limit)
    }

    /// The buffer to which small fields of the current frame are appended.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.last(), Some(Segment::Own(_))) {
            self.segments.push(Segment::Own(Vec::new()));
        }
        match self.segments.last_mut() {
            Some(Segment::Own(bytes)) => bytes,
            _ => unreachable!("an own segment was just made sure of"),
        }
    }

    /// Appends a payload to the current frame.
    pub(super) fn put(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_BYTES_MIN {
            self.own().extend_from_slice(bytes);
        } else {
            self.segments.push(Segment::Shared(bytes.clone()));
        }
    }

    fn seal(&mut self, limit: usize) -> Result<(), WireError> {
        let (first, offset) = self.start;
        let total = self.segments[first..]
            .iter()
            .map(|s| s.bytes().len())
            .sum::<usize>()
            - offset;
        if total > limit {
            self.segments.truncate(first + 1);
            self.own().truncate(offset);
            return Err(WireError::TooLong {
                bytes: total as u64,
                limit,
            });
        }
        let len = u32::try_from(total - 4)
            .expect("limits keep frames below 4 GiB")
            .to_le_bytes();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&len);
        crc.update(&self.segments[first].bytes()[offset + 8..]);
        for segment in &self.segments[first + 1..] {
            crc.update(segment.bytes());
        }
        let crc = crc.finalize().to_le_bytes();
        let Segment::Own(head) = &mut self.segments[first] else {
            unreachable!("a frame begins in an own segment");
        };
        head[offset..offset + 4].copy_from_slice(&len);
        head[offset + 4..offset + 8].copy_from_slice(&crc);
        self.bytes += total;
        Ok(())
    }

    /// Writes everything and becomes empty. `stall` bounds the wait for each bit of progress, not
    /// for the whole.
    pub(super) async fn write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        stall: Duration,
    ) -> Result<(), WireError> {
        let (mut at, mut skip) = (0, 0);
        while at < self.segments.len() {
            if self.segments[at].bytes().len() == skip {
                (at, skip) = (at + 1, 0);
                continue;
            }
            let mut slices = Vec::with_capacity(SLICES_MAX.min(self.segments.len() - at));
            slices.push(IoSlice::new(&self.segments[at].bytes()[skip..]));
            slices.extend(
                self.segments[at + 1..]
                    .iter()
                    .take(SLICES_MAX - 1)
                    .map(|segment| IoSlice::new(segment.bytes())),
            );
            let write = poll_fn(|cx| Pin::new(&mut *io).poll_write_vectored(cx, &slices));
            let mut n = match timeout(stall, write).await {
                Ok(n) => n?,
                Err(_) => return Err(WireError::Stalled(stall)),
            };
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            while n > 0 {
                let left = self.segments[at].bytes().len() - skip;
                if n < left {
                    skip += n;
                    break;
                }
                n -= left;
                (at, skip) = (at + 1, 0);
            }
        }
        self.clear();
        match timeout(stall, io.flush()).await {
            Ok(flushed) => Ok(flushed?),
            Err(_) => Err(WireError::Stalled(stall)),
        }
    }

    fn clear(&mut self) {
        // The first buffer is kept for the next burst, unless an unusual frame made it large.
        self.segments.truncate(1);
        match self.segments.first_mut() {
            Some(Segment::Own(bytes)) if bytes.capacity() <= READ_BYTES_MAX => bytes.clear(),
            _ => self.segments.clear(),
        }
        self.bytes = 0;
    }

    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.segments
            .iter()
            .flat_map(|segment| segment.bytes().to_vec())
            .collect()
    }
}
