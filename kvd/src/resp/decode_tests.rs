use proptest::prelude::*;

use super::super::number::format_double;
use super::*;

/// The only reply of a stream, whatever the pieces.
fn one(stream: &[u8]) -> Reply {
    let (mut found, error) = replies(stream, stream.len());
    assert_eq!(error, None);
    assert_eq!(found.len(), 1, "{found:?}");
    for step in 1..stream.len().min(9) {
        assert_eq!(replies(stream, step).0, found, "step {step}");
    }
    found.remove(0)
}

fn error_of(stream: &[u8]) -> DecodeError {
    let (found, error) = replies(stream, stream.len());
    assert_eq!(found, [], "{:?}", stream.escape_ascii().to_string());
    assert_eq!(replies(stream, 1), (found, error));
    error.unwrap_or_else(|| panic!("{} is a reply", stream.escape_ascii()))
}

/// What becomes of a reply when it is written and read again.
fn as_read(reply: &Reply, protocol: Protocol) -> Reply {
    let all = |items: &[Reply]| items.iter().map(|item| as_read(item, protocol)).collect();
    let resp2 = protocol == Protocol::Resp2;
    match reply {
        Reply::Simple(text) if text == "OK" => Reply::Ok,
        Reply::NullArray if !resp2 => Reply::Null,
        Reply::Array(items) => Reply::Array(all(items)),
        Reply::Set(items) | Reply::Push(items) if resp2 => Reply::Array(all(items)),
        Reply::Set(items) => Reply::Set(all(items)),
        Reply::Push(items) => Reply::Push(all(items)),
        Reply::Map(pairs) if resp2 => {
            let both = |(key, value): &(Reply, Reply)| [key.clone(), value.clone()];
            Reply::Array(all(&pairs.iter().flat_map(both).collect::<Vec<_>>()))
        }
        Reply::Map(pairs) => {
            let both =
                |(key, value): &(Reply, Reply)| (as_read(key, protocol), as_read(value, protocol));
            Reply::Map(pairs.iter().map(both).collect())
        }
        Reply::Double(value) if resp2 => Reply::bulk(format_double(*value)),
        Reply::Bool(value) if resp2 => Reply::Int((*value).into()),
        Reply::BigNumber(digits) if resp2 => Reply::bulk(digits.clone()),
        Reply::Verbatim { text, .. } if resp2 => Reply::Bulk(text.clone()),
        other => other.clone(),
    }
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let line = "[^\r\n]{0,12}";
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    let leaf = prop_oneof![
        Just(Reply::Ok),
        Just(Reply::Null),
        Just(Reply::NullArray),
        Just(Reply::simple("OK")),
        line.prop_map(Reply::simple),
        line.prop_map(Reply::error),
        any::<i64>().prop_map(Reply::Int),
        bytes().prop_map(Reply::bulk),
        Just(Reply::bulk(vec![b'\r'; 20_000])),
        any::<f64>()
            .prop_filter("NaN is unequal to itself", |value| !value.is_nan())
            .prop_map(Reply::Double),
        Just(Reply::Double(f64::NEG_INFINITY)),
        any::<bool>().prop_map(Reply::Bool),
        "[-+]?[0-9]{1,40}".prop_map(Reply::BigNumber),
        (any::<[u8; 3]>(), bytes()).prop_map(|(format, text)| Reply::Verbatim {
            format,
            text: text.into()
        }),
    ];
    leaf.prop_recursive(5, 40, 5, |item| {
        let items = proptest::collection::vec(item.clone(), 0..5);
        prop_oneof![
            items.clone().prop_map(Reply::Array),
            items.clone().prop_map(Reply::Set),
            items.prop_map(Reply::Push),
            proptest::collection::vec((item.clone(), item), 0..4).prop_map(Reply::Map),
        ]
    })
}

/// Bytes that look like replies more often than chance would have it.
fn near_replies() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        "[-+:$*_,#(=%~>!|][-+]?[0-9a-z.]{0,3}\r\n".prop_map(String::into_bytes),
        "[-+:$*_,#(=%~>!][0-9]\r\n[a-z:]{0,9}\r\n".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_is_written_is_read_again_in_any_pieces(
        sent in proptest::collection::vec(any_reply(), 1..6),
        sizes in proptest::collection::vec(1..30usize, 1..10),
        resp3 in any::<bool>(),
    ) {
        let protocol = if resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
        let mut out = OutputBuffer::new();
        for reply in &sent {
            write(reply, protocol, &mut out);
        }
        let stream = out.copy_to_bytes(out.remaining());
        let expected: Vec<Reply> = sent.iter().map(|reply| as_read(reply, protocol)).collect();

        let mut decoder = ReplyDecoder::new();
        let mut found = Vec::new();
        let mut rest = &stream[..];
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at(rest.len().min(*size));
            decoder.feed(piece);
            while let Some(reply) = decoder.next().unwrap() {
                found.push(reply);
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&found, &expected);
        prop_assert!(decoder.is_between_replies());
        prop_assert_eq!(replies(&stream, stream.len()), (expected, None));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz_replies(&bytes);
    }

    #[test]
    fn near_replies_never_panic(seed in any::<u8>(), stream in near_replies()) {
        fuzz_replies(&[&[seed], &stream[..]].concat());
    }
}

#[test]
fn each_kind_is_read() {
    let table: Vec<(&[u8], Reply)> = vec![
        (b"+OK\r\n", Reply::Ok),
        (b"+PONG\r\n", Reply::pong()),
        (b"+\r\n", Reply::simple("")),
        (b"-ERR no\r\n", Reply::error("ERR no")),
        (b":-9223372036854775808\r\n", Reply::Int(i64::MIN)),
        (b":+7\r\n", Reply::Int(7)),
        (b"$0\r\n\r\n", Reply::bulk("")),
        (b"$4\r\na\r\nb\r\n", Reply::bulk("a\r\nb")),
        (b"$-1\r\n", Reply::Null),
        (b"*-1\r\n", Reply::NullArray),
        (b"_\r\n", Reply::Null),
        (b",1.5\r\n", Reply::Double(1.5)),
        (b",10\r\n", Reply::Double(10.0)),
        (b",inf\r\n", Reply::Double(f64::INFINITY)),
        (b",-inf\r\n", Reply::Double(f64::NEG_INFINITY)),
        (b"#t\r\n", Reply::Bool(true)),
        (b"#f\r\n", Reply::Bool(false)),
        (b"(-123\r\n", Reply::BigNumber("-123".into())),
        (b"!6\r\nERR\r\nx\r\n", Reply::error("ERR\r\nx")),
        (b"=8\r\ntxt:Some\r\n", Reply::text("Some")),
        (b"*0\r\n", Reply::Array(vec![])),
        (b"%0\r\n", Reply::Map(vec![])),
        (
            b"*2\r\n*1\r\n:1\r\n*0\r\n",
            Reply::Array(vec![
                Reply::Array(vec![Reply::Int(1)]),
                Reply::Array(vec![]),
            ]),
        ),
        (
            b"%2\r\n+a\r\n:1\r\n+b\r\n~1\r\n#t\r\n",
            Reply::Map(vec![
                (Reply::simple("a"), Reply::Int(1)),
                (Reply::simple("b"), Reply::Set(vec![Reply::Bool(true)])),
            ]),
        ),
        (
            b">2\r\n$7\r\nmessage\r\n*-1\r\n",
            Reply::Push(vec![Reply::bulk("message"), Reply::NullArray]),
        ),
    ];
    for (stream, reply) in table {
        assert_eq!(one(stream), reply);
    }
    let (nan, _) = replies(b",nan\r\n", 1);
    assert!(matches!(nan[..], [Reply::Double(value)] if value.is_nan()));
}

#[test]
fn what_is_no_reply_is_refused() {
    let table: Vec<(&[u8], DecodeError)> = vec![
        (b"PONG", DecodeError::UnknownKind(b'P')),
        (b"\r\n", DecodeError::UnknownKind(b'\r')),
        (b"|1\r\n", DecodeError::UnknownKind(b'|')),
        (b"+a\n", DecodeError::LineEnd),
        (b"+a\rb", DecodeError::LineEnd),
        (b"$1\r\nabc", DecodeError::BlobEnd),
        (b"$\r\n", DecodeError::Length),
        (b"$-2\r\n", DecodeError::Length),
        (b"$+1\r\n", DecodeError::Length),
        (b"$?\r\n", DecodeError::Length),
        (b"$1073741825\r\n", DecodeError::Length),
        (b"$18446744073709551615\r\n", DecodeError::Length),
        (b"*-2\r\n", DecodeError::Length),
        (b"*4294967296\r\n", DecodeError::Length),
        (b"%-1\r\n", DecodeError::Length),
        (b"!-1\r\n", DecodeError::Length),
        (b":\r\n", DecodeError::Value),
        (b":+-1\r\n", DecodeError::Value),
        (b":9223372036854775808\r\n", DecodeError::Value),
        (b",x\r\n", DecodeError::Value),
        (b"#x\r\n", DecodeError::Value),
        (b"_x\r\n", DecodeError::Value),
        (b"(\r\n", DecodeError::Value),
        (b"(-\r\n", DecodeError::Value),
        (b"(1a\r\n", DecodeError::Value),
        (b"=3\r\ntxt\r\n", DecodeError::Verbatim),
        (b"=5\r\nabcde\r\n", DecodeError::Verbatim),
    ];
    for (stream, error) in table {
        assert_eq!(error_of(stream), error, "{}", stream.escape_ascii());
    }
}

#[test]
fn an_error_is_final() {
    let mut decoder = ReplyDecoder::new();
    decoder.feed(b"+OK\r\n?");
    assert_eq!(decoder.next(), Ok(Some(Reply::Ok)));
    assert_eq!(decoder.next(), Err(DecodeError::UnknownKind(b'?')));
    decoder.feed(b"\r\n+OK\r\n");
    assert_eq!(decoder.next(), Err(DecodeError::UnknownKind(b'?')));
    assert!(!decoder.is_between_replies());
}

#[test]
fn nesting_has_a_limit() {
    let nested = |depth: usize| [&b"*1\r\n".repeat(depth)[..], b":1\r\n"].concat();
    one(&nested(DEPTH_MAX));
    assert_eq!(error_of(&nested(DEPTH_MAX + 1)), DecodeError::TooDeep);
    // The limit is one of depth, not of how many have been opened.
    let siblings = [&b"*1000\r\n"[..], &b"*1\r\n*0\r\n".repeat(1000)].concat();
    one(&siblings);
}

#[test]
fn a_line_without_an_end_is_refused() {
    let line = |len: usize| [b"+", &vec![b'x'; len][..]].concat();
    for step in [1000, 1 << 20, usize::MAX] {
        let whole = [&line(LINE_LEN_MAX)[..], b"\r\n"].concat();
        let (found, error) = replies(&whole, step);
        assert_eq!((found.len(), error), (1, None), "step {step}");
        let endless = replies(&line(LINE_LEN_MAX + 1), step);
        assert_eq!(endless, (vec![], Some(DecodeError::LineTooLong)));
        let longer = [&line(LINE_LEN_MAX + 1)[..], b"\r\n"].concat();
        let refused = (vec![], Some(DecodeError::LineTooLong));
        assert_eq!(replies(&longer, step), refused, "step {step}");
    }
}

#[test]
fn promised_lengths_take_no_memory() {
    for promise in ["$1073741824\r\n", "*4294967295\r\n", "%4294967295\r\n"] {
        let mut decoder = ReplyDecoder::new();
        decoder.feed(promise.as_bytes());
        assert_eq!(decoder.next(), Ok(None));
        assert!(!decoder.is_between_replies());
        let items: usize = decoder.open.iter().map(|open| open.items.capacity()).sum();
        assert_eq!(items, 0);
        assert!(decoder.buffer.capacity() < 1024);
    }
}

#[test]
fn a_bulk_shares_the_memory_it_came_in() {
    let mut decoder = ReplyDecoder::new();
    decoder.feed(b"$3\r\nabc\r\n+OK\r\n");
    let start = decoder.buffer.as_ptr() as usize;
    let Ok(Some(Reply::Bulk(bytes))) = decoder.next() else {
        panic!("a bulk has come");
    };
    assert_eq!(bytes, "abc");
    assert_eq!(bytes.as_ptr() as usize - start, 4);
}

#[test]
fn a_long_bulk_leaves_no_memory_behind() {
    let mut decoder = ReplyDecoder::new();
    let len = 1 << 20;
    decoder.feed(format!("${len}\r\n").as_bytes());
    decoder.feed(&vec![b'x'; len]);
    decoder.feed(b"\r\n");
    assert!(decoder.next().unwrap().is_some());
    assert_eq!(decoder.buffer.capacity(), 0);
}

/// Feeds `piece` and says how many bytes that had come before were moved to make room for it.
fn moved_by(decoder: &mut ReplyDecoder, piece: &[u8]) -> usize {
    let (before, len) = (decoder.buffer.as_ptr(), decoder.buffer.len());
    decoder.feed(piece);
    if decoder.buffer.as_ptr() == before {
        0
    } else {
        len
    }
}

#[test]
fn a_long_bulk_in_small_pieces_is_seldom_moved() {
    let len = 8 << 20;
    let mut decoder = ReplyDecoder::new();
    decoder.feed(format!("${len}\r\n").as_bytes());
    let mut moved = 0;
    for _ in 0..len / 64 {
        moved += moved_by(&mut decoder, &[b'x'; 64]);
        assert_eq!(decoder.next(), Ok(None));
    }
    decoder.feed(b"\r\n");
    assert!(decoder.next().unwrap().is_some());
    assert!(moved <= 2 * len, "{moved} bytes moved for {len}");
}

#[test]
fn a_reader_that_lags_behind_does_not_make_feeding_slow() {
    let backlog = b"$10\r\n0123456789\r\n".repeat(100_000);
    let mut decoder = ReplyDecoder::new();
    decoder.feed(&backlog);
    // The replies are kept, so that the allocation is shared whenever room is made.
    let mut kept = Vec::new();
    let mut moved = 0;
    for piece in backlog.chunks(17) {
        moved += moved_by(&mut decoder, piece);
        kept.extend(decoder.next().unwrap());
    }
    while let Some(reply) = decoder.next().unwrap() {
        kept.push(reply);
    }
    assert_eq!(kept.len(), 200_000);
    assert!(kept.iter().all(|reply| *reply == Reply::bulk("0123456789")));
    let fed = 2 * backlog.len();
    assert!(moved <= 2 * fed, "{moved} bytes moved for {fed}");
}

#[test]
fn a_line_in_small_pieces_is_searched_once() {
    let mut decoder = ReplyDecoder::new();
    decoder.feed(b"+");
    for len in 1..1000 {
        assert_eq!(decoder.next(), Ok(None));
        assert_eq!(decoder.scanned, len);
        decoder.feed(b"x");
    }
    decoder.feed(b"\r");
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.scanned, 1000);
    decoder.feed(b"\n+OK\r\n");
    assert_eq!(decoder.next(), Ok(Some(Reply::simple("x".repeat(999)))));
    assert_eq!(decoder.next(), Ok(Some(Reply::Ok)));
}
