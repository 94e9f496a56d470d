//! Bytes to requests, and replies to bytes.

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use kvd::resp::{self, Limits, OutputBuffer, Parsed, Protocol, Reply, ReplyDecoder, RequestParser};

use super::key;

/// A pipeline of SETs with values of so many bytes.
fn pipeline(requests: u64, value_bytes: usize) -> Vec<u8> {
    let value = "v".repeat(value_bytes);
    (0..requests)
        .map(|number| {
            let key = key(number);
            format!(
                "*3\r\n$3\r\nSET\r\n$16\r\n{key}\r\n${}\r\n{value}\r\n",
                value.len()
            )
        })
        .collect::<String>()
        .into_bytes()
}

#[divan::bench(args = [(1, 3), (16, 3), (1, 1024), (1, 65536)])]
fn parse_requests(bencher: Bencher<'_, '_>, (requests, value_bytes): (u64, usize)) {
    let bytes = pipeline(requests, value_bytes);
    let mut parser = RequestParser::new(Limits::default());
    parser.set_authenticated(true);
    bencher
        .counter(BytesCount::new(bytes.len()))
        .counter(ItemsCount::new(requests))
        .bench_local(|| {
            let (mut at, mut args_len) = (0, 0);
            while at < bytes.len() {
                match parser.parse(black_box(&bytes[at..])) {
                    Parsed::Command { args, consumed } => {
                        args_len += args.iter().map(<[u8]>::len).sum::<usize>();
                        at += consumed;
                    }
                    other => panic!("a whole request was parsed as {other:?}"),
                }
            }
            args_len
        });
}

fn replies(value_bytes: usize) -> Vec<Reply> {
    match value_bytes {
        0 => vec![Reply::Ok; 16],
        _ => vec![Reply::bulk(Bytes::from(vec![b'v'; value_bytes])); 16],
    }
}

/// Sixteen replies: `+OK`, or values.
#[divan::bench(args = [0, 3, 100, 65536])]
fn write_replies(bencher: Bencher<'_, '_>, value_bytes: usize) {
    let replies = replies(value_bytes);
    let mut out = OutputBuffer::new();
    bencher
        .counter(ItemsCount::new(replies.len()))
        .bench_local(|| {
            out.clear();
            for reply in black_box(&replies) {
                resp::write(reply, Protocol::Resp2, &mut out);
            }
            out.len()
        });
}

#[divan::bench(args = [0, 100])]
fn decode_replies(bencher: Bencher<'_, '_>, value_bytes: usize) {
    let replies = replies(value_bytes);
    let mut out = OutputBuffer::new();
    for reply in &replies {
        resp::write(reply, Protocol::Resp2, &mut out);
    }
    let bytes: Vec<u8> = out.chunks().flatten().copied().collect();
    bencher
        .counter(ItemsCount::new(replies.len()))
        .bench_local(|| {
            let mut decoder = ReplyDecoder::default();
            decoder.feed(black_box(&bytes));
            let mut count = 0;
            while decoder.next().expect("they are replies").is_some() {
                count += 1;
            }
            count
        });
}
