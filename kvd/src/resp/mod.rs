//! Bytes to values and back: the Redis protocol, versions 2 and 3, without IO.

pub mod number;
pub mod reply;

pub use reply::Reply;

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
