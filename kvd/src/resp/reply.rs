//! What a command answers.

use std::borrow::Cow;

use bytes::Bytes;

/// What each part of a reply counts for beside its text.
const PART_BYTES: usize = 40;

/// An answer to one command, independent of the protocol version it is written in.
///
/// The common answers and those made of static text do not allocate.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The simple string `OK`.
    Ok,
    /// A short text without line ends.
    Simple(Cow<'static, str>),
    /// A refusal or failure; its first word is the prefix that clients act on, as in `ERR` or
    /// `WRONGTYPE`. There is no leading `-`.
    Error(Cow<'static, str>),
    /// A signed integer.
    Int(i64),
    /// A binary-safe string.
    Bulk(Bytes),
    /// No value where a string would be (`$-1` in RESP2).
    Null,
    /// No value where an array would be (`*-1` in RESP2).
    NullArray,
    /// An ordered list.
    Array(Vec<Reply>),
    /// Pairs; a flat array in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// Members without an order; an array in RESP2.
    Set(Vec<Reply>),
    /// A message that answers no command; an array in RESP2.
    Push(Vec<Reply>),
    /// A double; a bulk string in RESP2.
    Double(f64),
    /// A truth value; `0` or `1` in RESP2.
    Bool(bool),
    /// An integer of any size, in decimal; a bulk string in RESP2.
    BigNumber(String),
    /// A text with a three-letter format such as `txt`; a bulk string in RESP2.
    Verbatim {
        /// The three letters.
        format: [u8; 3],
        /// The text itself, without the format.
        text: Bytes,
    },
}

impl Reply {
    /// The answer to a bare PING.
    pub const fn pong() -> Self {
        Reply::Simple(Cow::Borrowed("PONG"))
    }

    /// The answer to a command that waits for EXEC.
    pub const fn queued() -> Self {
        Reply::Simple(Cow::Borrowed("QUEUED"))
    }

    /// A simple string; static text is kept without a copy.
    pub fn simple(text: impl Into<Cow<'static, str>>) -> Self {
        Reply::Simple(text.into())
    }

    /// An error whose first word is its prefix; static text is kept without a copy.
    pub fn error(text: impl Into<Cow<'static, str>>) -> Self {
        Reply::Error(text.into())
    }

    /// A bulk string that shares or takes over `bytes`.
    pub fn bulk(bytes: impl Into<Bytes>) -> Self {
        Reply::Bulk(bytes.into())
    }

    /// A bulk string with a copy of `bytes`.
    pub fn bulk_from(bytes: impl AsRef<[u8]>) -> Self {
        Reply::Bulk(Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// A verbatim string of plain text (`txt`).
    pub fn text(text: impl Into<Bytes>) -> Self {
        Reply::Verbatim {
            format: *b"txt",
            text: text.into(),
        }
    }

    /// Whether this is an error, and so a refusal or a failure of the whole command.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// About how many bytes of memory it takes. Whether a write is carried out can depend on it, so
    /// it is the same on every machine and for every build.
    pub fn bytes(&self) -> usize {
        let all = |items: &[Reply]| items.iter().map(Reply::bytes).sum();
        PART_BYTES
            + match self {
                Reply::Simple(text) | Reply::Error(text) => text.len(),
                Reply::Bulk(bytes) | Reply::Verbatim { text: bytes, .. } => bytes.len(),
                Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => all(items),
                Reply::Map(pairs) => pairs.iter().map(|(k, v)| k.bytes() + v.bytes()).sum(),
                Reply::BigNumber(digits) => digits.len(),
                Reply::Ok
                | Reply::Int(_)
                | Reply::Null
                | Reply::NullArray
                | Reply::Double(_)
                | Reply::Bool(_) => 0,
            }
    }

    /// The first word of an error, such as `ERR` or `MOVED`; nothing for other replies.
    pub fn error_prefix(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => text.split(' ').next(),
            _ => None,
        }
    }
}

impl From<i64> for Reply {
    fn from(value: i64) -> Self {
        Reply::Int(value)
    }
}

impl From<Bytes> for Reply {
    fn from(bytes: Bytes) -> Self {
        Reply::Bulk(bytes)
    }
}

impl From<Option<Bytes>> for Reply {
    fn from(bytes: Option<Bytes>) -> Self {
        bytes.map_or(Reply::Null, Reply::Bulk)
    }
}

impl From<Vec<Reply>> for Reply {
    fn from(items: Vec<Reply>) -> Self {
        Reply::Array(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_stay_small() {
        assert!(size_of::<Reply>() <= 40, "{} bytes", size_of::<Reply>());
    }

    #[test]
    fn static_text_is_borrowed() {
        assert!(matches!(
            Reply::error("ERR syntax error"),
            Reply::Error(Cow::Borrowed(_))
        ));
        assert!(matches!(
            Reply::simple("list"),
            Reply::Simple(Cow::Borrowed(_))
        ));
    }

    #[test]
    fn an_errors_prefix_is_its_first_word() {
        assert_eq!(Reply::error("MOVED 1 a:1").error_prefix(), Some("MOVED"));
        assert_eq!(Reply::error("TIMEOUT").error_prefix(), Some("TIMEOUT"));
        assert_eq!(Reply::Ok.error_prefix(), None);
        assert!(Reply::error("ERR").is_error());
        assert!(!Reply::Null.is_error());
    }
}
