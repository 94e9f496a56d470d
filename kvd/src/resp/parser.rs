//! Requests from bytes.

use super::number::parse_int;

/// What one request may be. The defaults are Redis's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Arguments of one request.
    pub args_max: usize,
    /// Bytes of one argument.
    pub bulk_len_max: usize,
    /// Bytes of an inline request, and of a line that holds a length.
    pub inline_len_max: usize,
    /// Bytes of one request with all its arguments, at most 4 GiB; it bounds what a connection
    /// has to buffer.
    pub request_len_max: usize,
    /// Arguments of one request before the client has authenticated.
    pub unauthenticated_args_max: usize,
    /// Bytes of one argument before the client has authenticated.
    pub unauthenticated_bulk_len_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            args_max: 1024 * 1024,
            bulk_len_max: 512 * 1024 * 1024,
            inline_len_max: 64 * 1024,
            request_len_max: 1024 * 1024 * 1024,
            unauthenticated_args_max: 10,
            unauthenticated_bulk_len_max: 16 * 1024,
        }
    }
}

/// Bytes that are no request. The connection answers with the error and closes, because where the
/// next request would begin is not known.
///
/// The texts are Redis's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is no number, or too large.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// The length of an argument is no number, negative, or too large.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// An inline request without an end in sight.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// A number of arguments without an end in sight.
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// The length of an argument without an end in sight.
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// An argument that does not begin with `$`; what it begins with, made printable.
    #[error("Protocol error: expected '$', got '{0}'")]
    ExpectedBulk(char),
    /// Quotes of an inline request that do not close, or close inside a word.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// More arguments than a client may send before it has authenticated.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// A longer argument than a client may send before it has authenticated.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// More bytes than one request may have. Redis closes without a word.
    #[error("Protocol error: too big request")]
    TooBigRequest,
}

impl ProtocolError {
    /// The error as the client is told it.
    pub fn to_reply(self) -> super::Reply {
        super::Reply::error(format!("ERR {self}"))
    }
}

/// What the front of the buffer is.
#[derive(Debug, PartialEq)]
pub enum Parsed<'a> {
    /// A whole request with at least one argument.
    Command {
        /// Its arguments, the name first.
        args: Args<'a>,
        /// How many bytes it takes at the front of the buffer.
        consumed: usize,
    },
    /// Bytes that ask for nothing: empty lines and empty arrays. They are to be dropped.
    Nothing {
        /// How many bytes they take at the front of the buffer.
        consumed: usize,
    },
    /// The request has not come in full.
    Incomplete {
        /// At least so many bytes are missing, one or more. It is a promise of the client's:
        /// reserve from it only up to a bound.
        needed: usize,
    },
    /// The bytes are no request, and nothing after them can be read.
    Error(ProtocolError),
}

/// Where an argument lies, as offsets. Requests are limited to what 32 bits can count.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Span {
            start: start as u32,
            end: end as u32,
        }
    }
}

/// The arguments of one request, as slices of the connection's buffer.
///
/// An inline request's are slices of the parser's memory instead, since quotes and escapes had to
/// be resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Args<'a> {
    base: &'a [u8],
    spans: &'a [Span],
    inline: bool,
}

impl<'a> Args<'a> {
    /// How many there are, the command's name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none; never so for a parsed command.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The argument at `index`, the name at 0.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.spans
            .get(index)
            .map(|span| &self.base[span.start as usize..span.end as usize])
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let base = self.base;
        self.spans
            .iter()
            .map(move |span| &base[span.start as usize..span.end as usize])
    }

    /// Where the arguments lie in the buffer that was parsed, for a caller that shares it; nothing
    /// for an inline request, whose arguments lie elsewhere.
    pub fn ranges(&self) -> Option<impl ExactSizeIterator<Item = std::ops::Range<usize>> + 'a> {
        let range = |span: &Span| span.start as usize..span.end as usize;
        (!self.inline).then(|| self.spans.iter().map(range))
    }
}

/// Cuts requests off a stream of bytes.
///
/// It remembers how far it got, so the cost is linear in the bytes whatever the pieces. Until a
/// call returns something other than [`Parsed::Incomplete`], each call must be given the same
/// bytes as the one before, with more behind them; after a command, the bytes behind it.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    authenticated: bool,
    /// Everything before this offset has been understood.
    at: usize,
    /// No line end lies between `at` and this offset.
    scanned: usize,
    /// How many arguments are still to come, once the request has said how many it has.
    args_left: Option<usize>,
    /// The length of the argument that is coming, once it has been said.
    bulk_len: Option<usize>,
    spans: Vec<Span>,
    /// The arguments of an inline request, resolved.
    inline: Vec<u8>,
    failed: Option<ProtocolError>,
    /// The last call returned a whole request, whose arguments were lent until now.
    finished: bool,
}

/// What is kept of the argument table and the inline text between requests, so that one long
/// request does not cost memory for as long as its connection lives.
const SPANS_KEPT_MAX: usize = 1024;
const INLINE_KEPT_MAX: usize = 4096;

enum Step {
    Done,
    Missing(usize),
}

enum Line {
    /// Where its carriage return stands.
    EndsAt(usize),
    Incomplete,
    TooLong,
}

impl RequestParser {
    /// A parser at the start of a stream, for a client that needs no authentication.
    pub fn new(mut limits: Limits) -> Self {
        limits.request_len_max = limits.request_len_max.min(u32::MAX as usize);
        RequestParser {
            limits,
            authenticated: true,
            at: 0,
            scanned: 0,
            args_left: None,
            bulk_len: None,
            spans: Vec::new(),
            inline: Vec::new(),
            failed: None,
            finished: false,
        }
    }

    /// Says whether the client may use the full limits or only those before authentication.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Reads what stands at the front of `buffer`. After an error it repeats the error.
    pub fn parse<'a>(&'a mut self, buffer: &'a [u8]) -> Parsed<'a> {
        if let Some(error) = self.failed {
            return Parsed::Error(error);
        }
        if self.finished {
            self.reset();
        }
        assert!(
            buffer.len() >= self.at,
            "the buffer lost bytes of an unfinished request"
        );
        let inline = match self.args_left {
            Some(_) => false,
            None => match buffer.first() {
                Some(byte) => *byte != b'*',
                None => return Parsed::Incomplete { needed: 1 },
            },
        };
        let step = if inline {
            self.inline_request(buffer)
        } else {
            self.multibulk(buffer)
        };
        match step {
            Ok(Step::Missing(needed)) => {
                debug_assert!(needed > 0);
                Parsed::Incomplete { needed }
            }
            Ok(Step::Done) => {
                self.finished = true;
                let consumed = self.at;
                if self.spans.is_empty() {
                    return Parsed::Nothing { consumed };
                }
                let base = if inline { &self.inline[..] } else { buffer };
                Parsed::Command {
                    args: Args {
                        base,
                        spans: &self.spans,
                        inline,
                    },
                    consumed,
                }
            }
            Err(error) => {
                self.failed = Some(error);
                Parsed::Error(error)
            }
        }
    }

    fn reset(&mut self) {
        self.at = 0;
        self.scanned = 0;
        self.args_left = None;
        self.bulk_len = None;
        self.spans.clear();
        self.spans.shrink_to(SPANS_KEPT_MAX);
        self.inline.clear();
        self.inline.shrink_to(INLINE_KEPT_MAX);
        self.finished = false;
    }

    fn multibulk(&mut self, buffer: &[u8]) -> Result<Step, ProtocolError> {
        let mut left = match self.args_left {
            Some(left) => left,
            None => {
                let count = match header(buffer, self.at) {
                    Some((count, next)) => {
                        self.at = next;
                        Some(count)
                    }
                    None => match self.line(buffer) {
                        Line::Incomplete => return Ok(Step::Missing(1)),
                        Line::TooLong => return Err(ProtocolError::TooBigMultibulkCount),
                        Line::EndsAt(end) => {
                            let count = parse_int(&buffer[self.at + 1..end]);
                            self.at = end + 2;
                            count
                        }
                    },
                };
                let count = count.ok_or(ProtocolError::InvalidMultibulkLength)?;
                let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
                if count > self.limits.args_max {
                    return Err(ProtocolError::InvalidMultibulkLength);
                }
                if count > self.limits.unauthenticated_args_max && !self.authenticated {
                    return Err(ProtocolError::UnauthenticatedMultibulkLength);
                }
                self.scanned = self.at;
                self.args_left = Some(count);
                count
            }
        };
        while left > 0 {
            let len = match self.bulk_len {
                Some(len) => len,
                None => match self.bulk_header(buffer)? {
                    Some(len) => len,
                    None => return Ok(Step::Missing(1)),
                },
            };
            let end = self.at + len;
            // Redis, too, skips the two bytes after an argument without looking at them.
            if buffer.len() < end + 2 {
                self.bulk_len = Some(len);
                return Ok(Step::Missing(end + 2 - buffer.len()));
            }
            self.spans.push(Span::new(self.at, end));
            self.at = end + 2;
            self.scanned = self.at;
            self.bulk_len = None;
            left -= 1;
            self.args_left = Some(left);
        }
        Ok(Step::Done)
    }

    /// The length of the argument at `at`, which then stands at its first byte.
    fn bulk_header(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let (len, next) = match header(buffer, self.at) {
            Some((len, next)) if buffer[self.at] == b'$' => (Some(len), next),
            _ => match self.line(buffer) {
                Line::Incomplete => return Ok(None),
                Line::TooLong => return Err(ProtocolError::TooBigBulkCount),
                Line::EndsAt(end) => {
                    let kind = buffer[self.at];
                    if kind != b'$' {
                        return Err(ProtocolError::ExpectedBulk(printable(kind)));
                    }
                    (parse_int(&buffer[self.at + 1..end]), end + 2)
                }
            },
        };
        let len = len
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| *len <= self.limits.bulk_len_max)
            .ok_or(ProtocolError::InvalidBulkLength)?;
        if len > self.limits.unauthenticated_bulk_len_max && !self.authenticated {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        if len.saturating_add(next) > self.limits.request_len_max - 2 {
            return Err(ProtocolError::TooBigRequest);
        }
        self.at = next;
        Ok(Some(len))
    }

    /// The line at `at`, which ends at a carriage return and the byte after it, whatever it is.
    fn line(&mut self, buffer: &[u8]) -> Line {
        let from = self.scanned.max(self.at);
        // Looking no further than the limit makes the answer independent of how much has come.
        let until = buffer.len().min(self.at + self.limits.inline_len_max + 1);
        match memchr::memchr(b'\r', &buffer[from..until]) {
            Some(found) => {
                self.scanned = from + found;
                let end = self.scanned;
                if end + 1 < buffer.len() {
                    Line::EndsAt(end)
                } else {
                    Line::Incomplete
                }
            }
            None => {
                self.scanned = until;
                if until - self.at > self.limits.inline_len_max {
                    Line::TooLong
                } else {
                    Line::Incomplete
                }
            }
        }
    }

    fn inline_request(&mut self, buffer: &[u8]) -> Result<Step, ProtocolError> {
        let until = buffer.len().min(self.limits.inline_len_max + 1);
        let Some(found) = memchr::memchr(b'\n', &buffer[self.scanned..until]) else {
            self.scanned = until;
            if until > self.limits.inline_len_max {
                return Err(ProtocolError::TooBigInline);
            }
            return Ok(Step::Missing(1));
        };
        let end = self.scanned + found;
        self.at = end + 1;
        let line = &buffer[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        split_inline(line, &mut self.inline, &mut self.spans)?;
        if self.spans.len() > self.limits.args_max {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        Ok(Step::Done)
    }
}

/// The number in a header such as `*3\r\n` at `at` and the offset behind it, for the spelling that
/// every client uses; anything else is left to the slower way.
fn header(buffer: &[u8], at: usize) -> Option<(i64, usize)> {
    let digits = buffer.get(at + 1..)?;
    let mut value = i64::from(digits.first()?.wrapping_sub(b'0'));
    if !(1..=9).contains(&value) {
        return None;
    }
    for (index, &byte) in digits.iter().enumerate().take(12).skip(1) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let whole = byte == b'\r' && index + 1 < digits.len();
            return whole.then_some((value, at + 1 + index + 2));
        }
        value = value * 10 + i64::from(digit);
    }
    None
}

fn printable(byte: u8) -> char {
    match byte {
        b'\r' | b'\n' => ' ',
        b' '..=b'~' => char::from(byte),
        _ => '?',
    }
}

/// Splits a line into words as Redis does: blanks part words; double quotes know the escapes `\n`,
/// `\r`, `\t`, `\a`, `\b` and `\xHH`, single quotes only `\'`; a closing quote ends its word and
/// must be followed by a blank; a zero byte ends the line.
///
/// Appends the words to `text` and their places in it to `spans`.
fn split_inline(
    line: &[u8],
    text: &mut Vec<u8>,
    spans: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    let line = &line[..memchr::memchr(0, line).unwrap_or(line.len())];
    let mut at = 0;
    loop {
        while line.get(at).copied().is_some_and(is_blank) {
            at += 1;
        }
        if at == line.len() {
            return Ok(());
        }
        let start = text.len();
        at = match word(line, at, text) {
            Some(next) => next,
            None => return Err(ProtocolError::UnbalancedQuotes),
        };
        spans.push(Span::new(start, text.len()));
    }
}

/// Resolves the word at `at` and says where it ends, unless its quotes do not close.
fn word(line: &[u8], mut at: usize, text: &mut Vec<u8>) -> Option<usize> {
    while let Some(&byte) = line.get(at) {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => break,
            b'"' | b'\'' => {
                let next = quoted(line, at + 1, byte, text)?;
                let ended = line.get(next).copied().is_none_or(is_blank);
                return ended.then_some(next);
            }
            _ => text.push(byte),
        }
        at += 1;
    }
    Some(at)
}

/// Resolves what stands between quotes, and says where the closing one has been passed.
fn quoted(line: &[u8], mut at: usize, quote: u8, text: &mut Vec<u8>) -> Option<usize> {
    loop {
        match &line[at..] {
            [byte, ..] if *byte == quote => return Some(at + 1),
            [b'\\', b'\'', ..] if quote == b'\'' => {
                text.push(b'\'');
                at += 2;
            }
            [b'\\', b'x', high, low, ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                text.push(hex(*high) << 4 | hex(*low));
                at += 4;
            }
            [b'\\', escaped, ..] if quote == b'"' => {
                text.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                at += 2;
            }
            [byte, ..] => {
                text.push(*byte);
                at += 1;
            }
            [] => return None,
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// Parses `data` as a client's stream in pieces whose sizes come from its first byte, and checks
/// what must hold for any bytes at all. For fuzzing.
#[doc(hidden)]
pub fn fuzz_requests(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else {
        return;
    };
    let limits = Limits {
        args_max: 64,
        inline_len_max: 64,
        ..Limits::default()
    };
    let whole = requests(stream, stream.len().max(1), &limits, seed & 1 == 0);
    let pieces = requests(
        stream,
        usize::from(seed >> 1) % 7 + 1,
        &limits,
        seed & 1 == 0,
    );
    assert_eq!(
        whole, pieces,
        "the pieces in which bytes came changed their meaning"
    );
}

/// The requests of a stream that comes in pieces of `step` bytes, and how it ended.
fn requests(
    stream: &[u8],
    step: usize,
    limits: &Limits,
    authenticated: bool,
) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>, usize) {
    let mut parser = RequestParser::new(limits.clone());
    parser.set_authenticated(authenticated);
    let (mut found, mut from, mut come) = (Vec::new(), 0, 0);
    loop {
        match parser.parse(&stream[from..come]) {
            Parsed::Command { args, consumed } => {
                assert!(!args.is_empty() && consumed > 0 && from + consumed <= come);
                assert!(args.iter().map(<[u8]>::len).sum::<usize>() <= consumed);
                found.push(args.iter().map(<[u8]>::to_vec).collect());
                from += consumed;
            }
            Parsed::Nothing { consumed } => {
                assert!(consumed > 0 && from + consumed <= come);
                from += consumed;
            }
            Parsed::Incomplete { needed } => {
                assert!(needed > 0);
                assert!(parser.spans.capacity() <= 4 + 2 * stream.len());
                if come == stream.len() {
                    return (found, None, from);
                }
                come = stream.len().min(come + step);
            }
            Parsed::Error(error) => return (found, Some(error), from),
        }
    }
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
