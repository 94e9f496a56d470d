//! Bytes to values and back: the Redis protocol, versions 2 and 3, without IO.
//!
//! A request travels from [`RequestParser`] as slices of the connection's buffer, and its answer
//! travels as a [`Reply`] through [`write()`] into an [`OutputBuffer`].
//! On the other side of the connection, a [`ReplyDecoder`] makes replies of those bytes again.
//! Everything here is a pure function of the bytes it is given, whatever the pieces in which they
//! arrive, and uses memory only for bytes that have come.

pub mod decode;
pub mod glob;
pub mod number;
pub mod parser;
pub mod reply;
pub mod writer;

#[doc(hidden)]
pub use decode::fuzz_replies;
pub use decode::{DecodeError, ReplyDecoder};
#[doc(hidden)]
pub use parser::fuzz_requests;
pub use parser::{Args, Limits, Parsed, ProtocolError, RequestParser};
pub use reply::Reply;
pub use writer::{OutputBuffer, Protocol, write};
