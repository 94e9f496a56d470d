//! Replies to bytes.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::{Reply, number};

/// A bulk value of at least this many bytes is chained into the output rather than copied: below
/// it a copy costs less than another slice in a vectored write.
pub const CHAIN_LEN_MIN: usize = 16 * 1024;

/// An empty buffer keeps at most this many bytes of its allocation for the next reply, so that an
/// idle connection that once got a long answer does not hold its memory.
const IDLE_CAPACITY_MAX: usize = 64 * 1024;

/// The protocol version that a connection has agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// What `HELLO 3` asks for.
    Resp3,
}

impl Protocol {
    /// The version's number, as HELLO names it.
    pub const fn version(self) -> i64 {
        match self {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }
}

/// Bytes on their way to a client: short replies side by side in one allocation, long values
/// chained between them without a copy.
///
/// It is a [`Buf`], so a socket can be given [`Buf::chunks_vectored`] and then told how much it
/// took with [`Buf::advance`].
#[derive(Debug, Default)]
pub struct OutputBuffer {
    /// What precedes the tail, in order; no element is empty.
    chained: VecDeque<Bytes>,
    chained_len: usize,
    tail: BytesMut,
}

/// A place in an output.
#[derive(Debug)]
pub struct Mark {
    chained: usize,
    tail: usize,
}

impl OutputBuffer {
    /// An empty buffer, without an allocation.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes wait to be sent.
    pub fn len(&self) -> usize {
        self.chained_len + self.tail.len()
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all that waits is one slice.
    pub fn is_one_piece(&self) -> bool {
        self.chained.len() + usize::from(!self.tail.is_empty()) == 1
    }

    /// Forgets what was not sent yet, as for a connection that is closed.
    pub fn clear(&mut self) {
        self.chained.clear();
        self.chained_len = 0;
        self.tail.clear();
        self.shrink_when_empty();
    }

    /// The waiting bytes in order, in non-empty pieces.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        self.chained.iter().map(|chunk| &chunk[..]).chain(tail)
    }

    /// Appends a copy of `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Appends `bytes`, sharing them when they are long.
    pub fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < CHAIN_LEN_MIN {
            return self.put(bytes);
        }
        if !self.tail.is_empty() {
            let before = self.tail.split().freeze();
            self.chained_len += before.len();
            self.chained.push_back(before);
        }
        self.chained_len += bytes.len();
        self.chained.push_back(bytes.clone());
    }

    /// Appends a bulk string: one copy of `value`, whatever its length.
    pub fn put_value(&mut self, value: &[u8]) {
        self.put_header(b'$', value.len());
        if value.len() < CHAIN_LEN_MIN {
            self.put(value);
        } else {
            self.put_shared(&Bytes::copy_from_slice(value));
        }
        self.put(b"\r\n");
    }

    /// Where the output ends now, for [`Self::roll_back`].
    pub fn mark(&self) -> Mark {
        Mark {
            chained: self.chained.len(),
            tail: self.tail.len(),
        }
    }

    /// Takes back what was appended since `mark`; nothing may have been sent in between.
    pub fn roll_back(&mut self, mark: &Mark) {
        // What was the tail then may have been chained since.
        if let Some(then) = self.chained.get(mark.chained) {
            self.tail = BytesMut::from(&then[..mark.tail]);
            self.chained.truncate(mark.chained);
            self.chained_len = self.chained.iter().map(Bytes::len).sum();
        } else {
            self.tail.truncate(mark.tail);
        }
    }

    fn put_header(&mut self, kind: u8, value: impl itoa::Integer) {
        let mut digits = itoa::Buffer::new();
        self.tail.extend_from_slice(&[kind]);
        self.tail.extend_from_slice(digits.format(value).as_bytes());
        self.put(b"\r\n");
    }

    fn put_line(&mut self, kind: &[u8], text: &str) {
        self.put(kind);
        // A line end inside the text would let it forge the replies that follow.
        let mut rest = text.as_bytes();
        while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
            self.put(&rest[..at]);
            self.put(b" ");
            rest = &rest[at + 1..];
        }
        self.put(rest);
        self.put(b"\r\n");
    }

    fn put_bulk(&mut self, bytes: &[u8]) {
        self.put_header(b'$', bytes.len());
        self.put(bytes);
        self.put(b"\r\n");
    }

    fn shrink_when_empty(&mut self) {
        if self.is_empty() && self.tail.capacity() > IDLE_CAPACITY_MAX {
            self.tail = BytesMut::new();
        }
    }
}

impl Buf for OutputBuffer {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.chunks().next().unwrap_or(&[])
    }

    fn advance(&mut self, mut count: usize) {
        assert!(
            count <= self.len(),
            "cannot send {count} of {} bytes",
            self.len()
        );
        while let Some(first) = self.chained.front_mut() {
            if count < first.len() {
                first.advance(count);
                self.chained_len -= count;
                return;
            }
            count -= first.len();
            self.chained_len -= first.len();
            self.chained.pop_front();
        }
        self.tail.advance(count);
        self.shrink_when_empty();
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(self.chunks()) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }
}

/// Appends `reply` to `out` in the given version of the protocol.
///
/// What RESP2 cannot say becomes what Redis makes of it: a map a flat array, a set an array, a
/// double, a big number or a verbatim text a bulk string, a truth value an integer.
/// Line ends in simple strings and errors become spaces.
pub fn write(reply: &Reply, protocol: Protocol, out: &mut OutputBuffer) {
    let resp3 = protocol == Protocol::Resp3;
    match reply {
        Reply::Ok => out.put(b"+OK\r\n"),
        Reply::Simple(text) => out.put_line(b"+", text),
        // As in Redis: line ends at the end go, and others become blanks.
        Reply::Error(text) => out.put_line(b"-", text.trim_end_matches(['\r', '\n'])),
        Reply::Int(value) => out.put_header(b':', *value),
        Reply::Bulk(bytes) => {
            out.put_header(b'$', bytes.len());
            out.put_shared(bytes);
            out.put(b"\r\n");
        }
        Reply::Null | Reply::NullArray if resp3 => out.put(b"_\r\n"),
        Reply::Null => out.put(b"$-1\r\n"),
        Reply::NullArray => out.put(b"*-1\r\n"),
        Reply::Array(items) => write_items(b'*', items, protocol, out),
        Reply::Set(items) => write_items(if resp3 { b'~' } else { b'*' }, items, protocol, out),
        Reply::Push(items) => write_items(if resp3 { b'>' } else { b'*' }, items, protocol, out),
        Reply::Map(pairs) => {
            if resp3 {
                out.put_header(b'%', pairs.len());
            } else {
                out.put_header(b'*', pairs.len() * 2);
            }
            for (key, value) in pairs {
                write(key, protocol, out);
                write(value, protocol, out);
            }
        }
        Reply::Double(value) => {
            let text = number::format_double(*value);
            if resp3 {
                out.put_line(b",", &text)
            } else {
                out.put_bulk(text.as_bytes())
            }
        }
        Reply::Bool(value) if resp3 => out.put(if *value { b"#t\r\n" } else { b"#f\r\n" }),
        Reply::Bool(value) => out.put(if *value { b":1\r\n" } else { b":0\r\n" }),
        Reply::BigNumber(digits) if resp3 => out.put_line(b"(", digits),
        Reply::BigNumber(digits) => out.put_bulk(digits.as_bytes()),
        Reply::Verbatim { format, text } => {
            if resp3 {
                out.put_header(b'=', text.len() + format.len() + 1);
                out.put(format);
                out.put(b":");
            } else {
                out.put_header(b'$', text.len());
            }
            out.put_shared(text);
            out.put(b"\r\n");
        }
    }
}

fn write_items(kind: u8, items: &[Reply], protocol: Protocol, out: &mut OutputBuffer) {
    out.put_header(kind, items.len());
    for item in items {
        write(item, protocol, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(reply: &Reply, protocol: Protocol) -> String {
        let mut out = OutputBuffer::new();
        write(reply, protocol, &mut out);
        let bytes = out.copy_to_bytes(out.remaining());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn what_was_put_since_a_mark_can_be_taken_back() {
        let long = vec![b'x'; CHAIN_LEN_MIN];
        for before in [&b""[..], b"before", &long] {
            for values in [&[&b"short"[..]][..], &[&long[..], b"short", &long], &[]] {
                let mut out = OutputBuffer::new();
                out.put_value(b"first");
                out.put_value(before);
                let kept: Vec<u8> = out.chunks().collect::<Vec<_>>().concat();
                let mark = out.mark();
                for value in values {
                    out.put_value(value);
                }
                out.roll_back(&mark);
                assert_eq!(out.chunks().collect::<Vec<_>>().concat(), kept);
                assert_eq!(out.len(), kept.len());
                out.put_value(b"next");
                let end = [&kept[..], b"$4\r\nnext\r\n"].concat();
                assert_eq!(out.chunks().collect::<Vec<_>>().concat(), end);
            }
        }
    }

    #[test]
    fn each_reply_has_its_text_in_both_protocols() {
        let table: Vec<(Reply, &str, &str)> = vec![
            (Reply::Ok, "+OK\r\n", "+OK\r\n"),
            (Reply::pong(), "+PONG\r\n", "+PONG\r\n"),
            (Reply::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
            (
                Reply::Int(i64::MIN),
                ":-9223372036854775808\r\n",
                ":-9223372036854775808\r\n",
            ),
            (
                Reply::bulk("a\r\nb"),
                "$4\r\na\r\nb\r\n",
                "$4\r\na\r\nb\r\n",
            ),
            (Reply::bulk(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![]), "*0\r\n", "*0\r\n"),
            (
                Reply::Array(vec![Reply::Null, Reply::NullArray]),
                "*2\r\n$-1\r\n*-1\r\n",
                "*2\r\n_\r\n_\r\n",
            ),
            (
                Reply::Map(vec![(Reply::bulk("k"), Reply::Int(1))]),
                "*2\r\n$1\r\nk\r\n:1\r\n",
                "%1\r\n$1\r\nk\r\n:1\r\n",
            ),
            (
                Reply::Set(vec![Reply::Int(1)]),
                "*1\r\n:1\r\n",
                "~1\r\n:1\r\n",
            ),
            (
                Reply::Push(vec![Reply::Int(1)]),
                "*1\r\n:1\r\n",
                ">1\r\n:1\r\n",
            ),
            (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (
                Reply::Double(f64::NEG_INFINITY),
                "$4\r\n-inf\r\n",
                ",-inf\r\n",
            ),
            (Reply::Bool(true), ":1\r\n", "#t\r\n"),
            (Reply::Bool(false), ":0\r\n", "#f\r\n"),
            (Reply::BigNumber("123".into()), "$3\r\n123\r\n", "(123\r\n"),
            (
                Reply::text("Some text"),
                "$9\r\nSome text\r\n",
                "=13\r\ntxt:Some text\r\n",
            ),
        ];
        for (reply, resp2, resp3) in table {
            assert_eq!(written(&reply, Protocol::Resp2), resp2, "{reply:?}");
            assert_eq!(written(&reply, Protocol::Resp3), resp3, "{reply:?}");
        }
    }

    #[test]
    fn line_ends_never_leave_a_line() {
        assert_eq!(
            written(&Reply::error("ERR a\r\n+OK\nx\r"), Protocol::Resp2),
            "-ERR a  +OK x\r\n"
        );
        assert_eq!(written(&Reply::simple("a\nb"), Protocol::Resp3), "+a b\r\n");
        assert_eq!(
            written(&Reply::BigNumber("1\r\n2".into()), Protocol::Resp3),
            "(1  2\r\n"
        );
    }

    #[test]
    fn long_values_are_shared_and_short_ones_copied() {
        let long = Bytes::from(vec![b'x'; CHAIN_LEN_MIN]);
        let mut out = OutputBuffer::new();
        write(&Reply::Ok, Protocol::Resp2, &mut out);
        write(&Reply::Bulk(long.clone()), Protocol::Resp2, &mut out);
        write(&Reply::bulk("s"), Protocol::Resp2, &mut out);
        let chunks: Vec<&[u8]> = out.chunks().collect();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[0], b"+OK\r\n$16384\r\n");
        assert_eq!(chunks[1].as_ptr(), long.as_ptr());
        assert_eq!(chunks[2], b"\r\n$1\r\ns\r\n");
    }

    #[test]
    fn any_pace_of_sending_sends_the_same_bytes() {
        for step in [1, 2, 7, 100, 5000, 100_000] {
            let mut out = OutputBuffer::new();
            let mut expected = Vec::new();
            for i in 0..4u8 {
                let long = vec![b'a' + i; CHAIN_LEN_MIN + usize::from(i)];
                expected.extend_from_slice(format!("${}\r\n", long.len()).as_bytes());
                expected.extend_from_slice(&long);
                expected.extend_from_slice(b"\r\n:7\r\n");
                write(&Reply::bulk(long), Protocol::Resp3, &mut out);
                write(&Reply::Int(7), Protocol::Resp3, &mut out);
            }
            assert_eq!(out.len(), expected.len());
            let mut sent = Vec::new();
            while !out.is_empty() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = out.chunks_vectored(&mut slices);
                let mut left = step;
                for slice in &slices[..filled] {
                    let take = left.min(slice.len());
                    sent.extend_from_slice(&slice[..take]);
                    left -= take;
                }
                out.advance(step - left);
            }
            assert!(sent == expected, "step {step}");
            assert_eq!(out.chunks().count(), 0);
        }
    }
}
