//! Arguments: numbers, options, and the errors that Redis gives for them.

use crate::command::Spec;
use crate::resp::{Reply, number};

/// The longest string, whatever the limits of the cluster: Redis's own.
pub(super) const STRING_BYTES_MAX: u64 = 512 << 20;

/// The error reply with this text.
pub(super) fn error<T>(text: impl Into<String>) -> Result<T, Reply> {
    Err(Reply::error(text.into()))
}

/// `ERR syntax error`
pub(super) fn syntax_error() -> Reply {
    Reply::error("ERR syntax error")
}

/// A 64-bit integer, spelled as Redis spells it: no plus sign, no leading zeros, no space.
pub(super) fn integer(arg: &[u8]) -> Result<i64, Reply> {
    number::parse_int(arg)
        .ok_or_else(|| Reply::error("ERR value is not an integer or out of range"))
}

/// Whether `arg` is this word, in any case.
pub(super) fn is_word(arg: &[u8], word: &str) -> bool {
    arg.eq_ignore_ascii_case(word.as_bytes())
}

/// The error for a wrong number of arguments.
pub(super) fn wrong_arity(spec: &Spec) -> Reply {
    Reply::error(format!(
        "ERR wrong number of arguments for '{}' command",
        spec.name
    ))
}

/// Redis shows at most this much of what it did not understand.
const SHOWN_BYTES_MAX: usize = 128;

/// The error for a name that is not in the table.
pub(super) fn unknown_command(args: &[&[u8]]) -> Reply {
    let mut shown = Vec::new();
    for arg in &args[1..] {
        if shown.len() >= SHOWN_BYTES_MAX {
            break;
        }
        let room = SHOWN_BYTES_MAX - shown.len();
        shown.push(b'\'');
        shown.extend_from_slice(cut(arg, room));
        shown.extend_from_slice(b"' ");
    }
    Reply::error(format!(
        "ERR unknown command '{}', with args beginning with: {}",
        printable(cut(args[0], SHOWN_BYTES_MAX)),
        printable(&shown)
    ))
}

/// The error for a subcommand that its container does not have.
pub(super) fn unknown_subcommand(container: &Spec, name: &[u8]) -> Reply {
    let name = printable(cut(name, SHOWN_BYTES_MAX));
    let container = container.name.to_ascii_uppercase();
    Reply::error(if container == "DEBUG" {
        // Redis checks the subcommands of DEBUG elsewhere, with words of their own.
        format!(
            "ERR unknown subcommand or wrong number of arguments for '{name}'. \
             Try {container} HELP."
        )
    } else {
        format!("ERR unknown subcommand '{name}'. Try {container} HELP.")
    })
}

/// The first `room` bytes, and none from the first NUL on, where Redis's formatting stops.
fn cut(bytes: &[u8], room: usize) -> &[u8] {
    let bytes = &bytes[..bytes.len().min(room)];
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Text for an error line, which must not hold a line's end.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(['\r', '\n'], " ")
}

/// The same for the end of the line: line ends there go, as in Redis.
pub(super) fn printable_at_end(bytes: &[u8]) -> String {
    let kept = bytes
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'));
    printable(&bytes[..kept.map_or(0, |last| last + 1)])
}

/// When a key shall expire, as an argument says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// So long from now, in milliseconds.
    After(i64),
    /// At this time, in milliseconds since the epoch.
    At(i64),
}

/// The unit and the origin of an expiry's argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Seconds from now.
    Ex,
    /// Milliseconds from now.
    Px,
    /// Seconds since the epoch.
    ExAt,
    /// Milliseconds since the epoch.
    PxAt,
}

impl Unit {
    /// The option of SET and GETEX that this word is.
    pub(super) fn from_option(arg: &[u8]) -> Option<Unit> {
        [
            ("EX", Unit::Ex),
            ("PX", Unit::Px),
            ("EXAT", Unit::ExAt),
            ("PXAT", Unit::PxAt),
        ]
        .into_iter()
        .find_map(|(word, unit)| is_word(arg, word).then_some(unit))
    }

    pub(super) fn is_seconds(self) -> bool {
        matches!(self, Unit::Ex | Unit::ExAt)
    }

    pub(super) fn is_relative(self) -> bool {
        matches!(self, Unit::Ex | Unit::Px)
    }
}

/// Reads the expiry of a value that is being written, which must be positive; `command` is the
/// name in the error.
pub(super) fn deadline(arg: &[u8], unit: Unit, command: &str) -> Result<Deadline, Reply> {
    let value = integer(arg)?;
    let ms = if unit.is_seconds() {
        value.checked_mul(1000)
    } else {
        Some(value)
    };
    match ms {
        Some(ms) if ms > 0 && unit.is_relative() => Ok(Deadline::After(ms)),
        Some(ms) if ms > 0 => Ok(Deadline::At(ms)),
        _ => Err(invalid_expire(command)),
    }
}

impl Deadline {
    /// The time in milliseconds since the epoch; an error if there is no such time.
    pub(super) fn resolve(self, now_ms: u64, command: &str) -> Result<u64, Reply> {
        match self {
            Deadline::At(ms) => Some(ms),
            Deadline::After(ms) => i64::try_from(now_ms)
                .ok()
                .and_then(|now| now.checked_add(ms)),
        }
        .and_then(|at| u64::try_from(at).ok())
        .ok_or_else(|| invalid_expire(command))
    }
}

/// `ERR invalid expire time in '...' command`
pub(super) fn invalid_expire(command: &str) -> Reply {
    Reply::error(format!("ERR invalid expire time in '{command}' command"))
}
