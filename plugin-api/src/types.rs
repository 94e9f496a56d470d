//! The plain data of the interface: errors, capabilities, limits, options.

use std::collections::BTreeMap;

use crate::Op;

/// The result of an engine's call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. The set is open: a host meets unknown codes as [`ErrorKind::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing files failed.
    Io,
    /// The disk is full.
    NoSpace,
    /// Stored data is damaged.
    Corruption,
    /// Something else has the directory open.
    Locked,
    /// Stored data has a format this engine does not read.
    Incompatible,
    /// An option is unknown or has a bad value.
    InvalidOption,
    /// A key, value or batch is above the engine's limits.
    TooLarge,
    /// The engine does not offer this.
    Unsupported,
    /// The engine was closed.
    Closed,
    /// The engine panicked; it must not be used any more.
    Panic,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// The number that crosses the interface.
    pub const fn code(self) -> u32 {
        match self {
            ErrorKind::Io => 1,
            ErrorKind::NoSpace => 2,
            ErrorKind::Corruption => 3,
            ErrorKind::Locked => 4,
            ErrorKind::Incompatible => 5,
            ErrorKind::InvalidOption => 6,
            ErrorKind::TooLarge => 7,
            ErrorKind::Unsupported => 8,
            ErrorKind::Closed => 9,
            ErrorKind::Panic => 10,
            ErrorKind::Other => 255,
        }
    }

    /// The kind behind a number; unknown numbers are [`ErrorKind::Other`].
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => ErrorKind::Io,
            2 => ErrorKind::NoSpace,
            3 => ErrorKind::Corruption,
            4 => ErrorKind::Locked,
            5 => ErrorKind::Incompatible,
            6 => ErrorKind::InvalidOption,
            7 => ErrorKind::TooLarge,
            8 => ErrorKind::Unsupported,
            9 => ErrorKind::Closed,
            10 => ErrorKind::Panic,
            _ => ErrorKind::Other,
        }
    }
}

/// An engine's failure: a kind that the host decides by, and a message for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind` with a message: lower case, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }

    /// `Unsupported`, naming the call.
    pub fn unsupported(call: &str) -> Self {
        Error::new(
            ErrorKind::Unsupported,
            format!("{call} is not supported by this engine"),
        )
    }

    /// `Closed`: a call after [`Backend::close`](crate::Backend::close).
    pub fn closed() -> Self {
        Error::new(ErrorKind::Closed, "the engine is closed")
    }

    /// What the host decides by.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Io,
        };
        Error::new(kind, error.to_string())
    }
}

/// What an engine can do beyond the minimum, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps(u64);

impl Caps {
    /// `sync` makes writes survive a crash of the machine.
    pub const DURABLE: Caps = Caps(1);
    /// `view` gives a consistent read that outlives later writes.
    pub const VIEW: Caps = Caps(1 << 1);
    /// A point read usually takes a few microseconds and may run on a thread that serves sockets.
    pub const FAST_READ: Caps = Caps(1 << 2);
    /// `DeleteRange` costs much less than deleting each key.
    pub const FAST_DELETE_RANGE: Caps = Caps(1 << 3);
    /// `compact` is offered.
    pub const COMPACT: Caps = Caps(1 << 4);
    /// `verify` checks more than that everything can be read.
    pub const VERIFY: Caps = Caps(1 << 5);
    /// `reconfigure` takes new values of options while the engine is open. Since 1.1.
    pub const RECONFIGURE: Caps = Caps(1 << 6);

    /// No capability.
    pub const fn empty() -> Self {
        Caps(0)
    }

    /// The set with these bits; unknown bits are kept.
    pub const fn from_bits(bits: u64) -> Self {
        Caps(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Caps) -> Self {
        Caps(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Caps) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the known capabilities in this set, in the order of their bits.
    pub fn names(self) -> Vec<&'static str> {
        [
            (Caps::DURABLE, "durable"),
            (Caps::VIEW, "view"),
            (Caps::FAST_READ, "fast-read"),
            (Caps::FAST_DELETE_RANGE, "fast-delete-range"),
            (Caps::COMPACT, "compact"),
            (Caps::VERIFY, "verify"),
            (Caps::RECONFIGURE, "reconfigure"),
        ]
        .into_iter()
        .filter(|(cap, _)| self.contains(*cap))
        .map(|(_, name)| name)
        .collect()
    }
}

/// The largest things an engine can store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest key.
    pub key_bytes_max: u64,
    /// Longest value.
    pub value_bytes_max: u64,
    /// Largest sum of keys and values of one batch.
    pub batch_bytes_max: u64,
}

impl Limits {
    /// No limit of the engine's own.
    pub const UNBOUNDED: Limits = Limits {
        key_bytes_max: u64::MAX,
        value_bytes_max: u64::MAX,
        batch_bytes_max: u64::MAX,
    };

    /// Whether the key and the value of a change are within them, for engines that look for
    /// themselves: a host has looked before.
    ///
    /// # Errors
    ///
    /// `TooLarge`.
    pub fn check(&self, op: &Op<'_>) -> Result<()> {
        let Op::Put(key, value) = op else {
            return Ok(());
        };
        for (what, found, max) in [
            ("key", key.len(), self.key_bytes_max),
            ("value", value.len(), self.value_bytes_max),
        ] {
            if found as u64 > max {
                let message = format!("{what} of {found} bytes, at most {max} are possible");
                return Err(Error::new(ErrorKind::TooLarge, message));
            }
        }
        Ok(())
    }
}

/// What an option's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionKind {
    /// A number of bytes: `1048576`, `64MiB`, `1GiB`.
    Size,
    /// A span of time: `250ms`, `5s`, `2m`.
    Duration,
    /// `yes`, `no`, `true`, `false`.
    Bool,
    /// A non-negative whole number.
    Int,
    /// One of the words in the option's help text, checked by the engine.
    Enum,
    /// Any text.
    String,
}

impl OptionKind {
    /// The number that crosses the interface.
    pub const fn code(self) -> u32 {
        match self {
            OptionKind::Size => 1,
            OptionKind::Duration => 2,
            OptionKind::Bool => 3,
            OptionKind::Int => 4,
            OptionKind::Enum => 5,
            OptionKind::String => 6,
        }
    }

    /// The kind behind a number; unknown numbers are texts.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => OptionKind::Size,
            2 => OptionKind::Duration,
            3 => OptionKind::Bool,
            4 => OptionKind::Int,
            5 => OptionKind::Enum,
            _ => OptionKind::String,
        }
    }

    /// The word that help texts use.
    pub const fn name(self) -> &'static str {
        match self {
            OptionKind::Size => "size",
            OptionKind::Duration => "duration",
            OptionKind::Bool => "bool",
            OptionKind::Int => "int",
            OptionKind::Enum => "enum",
            OptionKind::String => "string",
        }
    }
}

/// One option of an engine, as data: `kvd plugin info` prints it, and typing errors are found.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// The name, as in `--backend-opt name=value`.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: OptionKind,
    /// The value in force when none is given, in the same notation.
    pub default: &'static str,
    /// One sentence on what it does, with the unit.
    pub help: &'static str,
}

/// The parsed options of one engine; every option of its specification has a value.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub(crate) values: BTreeMap<String, String>,
}
