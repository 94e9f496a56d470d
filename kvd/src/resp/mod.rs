//! Bytes to values and back: the Redis protocol, versions 2 and 3, without IO.
//!
//! A request travels from [`RequestParser`] as slices of the connection's buffer, and its answer
//! travels as a [`Reply`] through [`write`] into an [`OutputBuffer`].
//! Everything here is a pure function of the bytes it is given, whatever the pieces in which they
//! arrive, and uses memory only for bytes that have come.

pub mod number;
pub mod reply;
pub mod writer;

pub use reply::Reply;
pub use writer::{OutputBuffer, Protocol, write};
/// Patterns of keys.
pub mod glob {
    /// Whether `text` matches `pattern`, where `*` stands for anything.
    pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
            Some((byte, rest)) => text.first() == Some(byte) && matches(rest, &text[1..]),
        }
    }
}
