//! How replies travel between nodes: every kind as it is, whatever protocol the client speaks.
//!
//! ```text
//! reply = kind u8 | number u64 or length u32 + bytes or count u32 + replies
//! ```

use std::borrow::Cow;

use super::codec::{Malformed, Reader, put_blob};
use crate::resp::Reply;

const OK: u8 = 0;
const SIMPLE: u8 = 1;
const ERROR: u8 = 2;
const INT: u8 = 3;
const BULK: u8 = 4;
const NULL: u8 = 5;
const NULL_ARRAY: u8 = 6;
const ARRAY: u8 = 7;
const MAP: u8 = 8;
const SET: u8 = 9;
const PUSH: u8 = 10;
const DOUBLE: u8 = 11;
const BOOL: u8 = 12;
const BIG_NUMBER: u8 = 13;
const VERBATIM: u8 = 14;

/// Deepest nesting that is read; no command's reply comes near it.
const DEPTH_MAX: usize = 16;

/// Writes a reply.
pub fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Ok => out.push(OK),
        Reply::Simple(text) => put(out, SIMPLE, text.as_bytes()),
        Reply::Error(text) => put(out, ERROR, text.as_bytes()),
        Reply::Int(number) => {
            out.push(INT);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Reply::Bulk(bytes) => put(out, BULK, bytes),
        Reply::Null => out.push(NULL),
        Reply::NullArray => out.push(NULL_ARRAY),
        Reply::Array(items) => put_list(out, ARRAY, items),
        Reply::Set(items) => put_list(out, SET, items),
        Reply::Push(items) => put_list(out, PUSH, items),
        Reply::Map(pairs) => {
            out.push(MAP);
            out.extend_from_slice(&(pairs.len() as u32).to_le_bytes());
            for (key, value) in pairs {
                put_reply(out, key);
                put_reply(out, value);
            }
        }
        Reply::Double(number) => {
            out.push(DOUBLE);
            out.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        Reply::Bool(truth) => out.extend_from_slice(&[BOOL, u8::from(*truth)]),
        Reply::BigNumber(digits) => put(out, BIG_NUMBER, digits.as_bytes()),
        Reply::Verbatim { format, text } => {
            out.push(VERBATIM);
            out.extend_from_slice(format);
            put_blob(out, text);
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    put_blob(out, bytes);
}

fn put_list(out: &mut Vec<u8>, kind: u8, items: &[Reply]) {
    out.push(kind);
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    for item in items {
        put_reply(out, item);
    }
}

/// Reads a reply; its strings stay slices of the buffer.
///
/// # Errors
///
/// The bytes are not a reply, or are nested too deeply.
pub fn read_reply(r: &mut Reader) -> Result<Reply, Malformed> {
    read(r, DEPTH_MAX)
}

fn read(r: &mut Reader, depth: usize) -> Result<Reply, Malformed> {
    let depth = depth
        .checked_sub(1)
        .ok_or(Malformed("reply: nested too deeply"))?;
    Ok(match r.u8("reply")? {
        OK => Reply::Ok,
        SIMPLE => Reply::Simple(text(r)?),
        ERROR => Reply::Error(text(r)?),
        INT => Reply::Int(r.u64("reply")? as i64),
        BULK => Reply::Bulk(r.blob("reply")?),
        NULL => Reply::Null,
        NULL_ARRAY => Reply::NullArray,
        ARRAY => Reply::Array(list(r, depth)?),
        SET => Reply::Set(list(r, depth)?),
        PUSH => Reply::Push(list(r, depth)?),
        MAP => {
            let mut pairs = Vec::new();
            for _ in 0..r.u32("reply")? {
                pairs.push((read(r, depth)?, read(r, depth)?));
            }
            Reply::Map(pairs)
        }
        DOUBLE => Reply::Double(f64::from_bits(r.u64("reply")?)),
        BOOL => Reply::Bool(r.u8("reply")? != 0),
        BIG_NUMBER => Reply::BigNumber(text(r)?.into_owned()),
        VERBATIM => {
            let format = r.take(3, "reply")?[..]
                .try_into()
                .expect("three bytes were taken");
            Reply::Verbatim {
                format,
                text: r.blob("reply")?,
            }
        }
        _ => return Err(Malformed("reply: unknown kind")),
    })
}

fn text(r: &mut Reader) -> Result<Cow<'static, str>, Malformed> {
    let bytes = r.blob("reply")?;
    String::from_utf8(bytes.to_vec())
        .map(Cow::Owned)
        .map_err(|_| Malformed("reply"))
}

fn list(r: &mut Reader, depth: usize) -> Result<Vec<Reply>, Malformed> {
    let mut items = Vec::new();
    for _ in 0..r.u32("reply")? {
        items.push(read(r, depth)?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn sample() -> Reply {
        Reply::Array(vec![
            Reply::Ok,
            Reply::simple("QUEUED"),
            Reply::error("ERR no"),
            Reply::Int(-3),
            Reply::bulk(&b"\0\xff"[..]),
            Reply::Null,
            Reply::NullArray,
            Reply::Set(vec![Reply::Bool(true)]),
            Reply::Push(vec![]),
            Reply::Map(vec![(Reply::Int(1), Reply::Double(0.5))]),
            Reply::BigNumber("123".to_owned()),
            Reply::text("long"),
        ])
    }

    #[test]
    fn every_kind_of_reply_survives_the_round_trip() {
        let mut out = Vec::new();
        put_reply(&mut out, &sample());
        let mut r = Reader::new(out.into());
        assert_eq!(read_reply(&mut r), Ok(sample()));
        r.finish("end").unwrap();
    }

    #[test]
    fn truncated_and_deeply_nested_replies_are_refused() {
        let mut out = Vec::new();
        put_reply(&mut out, &sample());
        for len in 0..out.len() {
            assert!(read_reply(&mut Reader::new(Bytes::copy_from_slice(&out[..len]))).is_err());
        }
        let mut deep = Reply::Ok;
        for _ in 0..=DEPTH_MAX {
            deep = Reply::Array(vec![deep]);
        }
        let mut out = Vec::new();
        put_reply(&mut out, &deep);
        assert!(read_reply(&mut Reader::new(out.into())).is_err());
    }
}
