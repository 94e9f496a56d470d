use proptest::prelude::*;

use super::*;

fn all(stream: &[u8]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let (found, error, _) = requests(stream, stream.len().max(1), &Limits::default(), true);
    (found, error)
}

fn one(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut found, error) = all(stream);
    assert_eq!(error, None);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn error_of(stream: &[u8], authenticated: bool) -> String {
    let (_, error, _) = requests(stream, 3, &Limits::default(), authenticated);
    error.map_or_else(|| "none".to_owned(), |error| error.to_string())
}

#[test]
fn errors_have_redis_texts() {
    let long = |start: &str| [start.as_bytes(), &vec![b'1'; 65 * 1024]].concat();
    let table: Vec<(Vec<u8>, bool, &str)> = vec![
        (
            b"*a\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*+1\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*01\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*1048577\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*99999999999999999999\r\n".to_vec(),
            true,
            "Protocol error: invalid multibulk length",
        ),
        (
            b"*11\r\n".to_vec(),
            false,
            "Protocol error: unauthenticated multibulk length",
        ),
        (b"*10\r\n".to_vec(), false, "none"),
        (
            b"*1\r\n$16385\r\n".to_vec(),
            false,
            "Protocol error: unauthenticated bulk length",
        ),
        (b"*1\r\n$16384\r\n".to_vec(), false, "none"),
        (
            b"*1\r\n$-1\r\n".to_vec(),
            true,
            "Protocol error: invalid bulk length",
        ),
        (
            b"*1\r\n$x\r\n".to_vec(),
            true,
            "Protocol error: invalid bulk length",
        ),
        (
            b"*1\r\n$536870913\r\n".to_vec(),
            true,
            "Protocol error: invalid bulk length",
        ),
        (b"*1\r\n$536870912\r\n".to_vec(), true, "none"),
        (
            b"*1\r\n:5\r\n".to_vec(),
            true,
            "Protocol error: expected '$', got ':'",
        ),
        (
            b"*1\r\n\r\n".to_vec(),
            true,
            "Protocol error: expected '$', got ' '",
        ),
        (
            b"*1\r\n\xff5\r\n".to_vec(),
            true,
            "Protocol error: expected '$', got '?'",
        ),
        (
            long("*"),
            true,
            "Protocol error: too big mbulk count string",
        ),
        (
            long("*1\r\n$"),
            true,
            "Protocol error: too big bulk count string",
        ),
        (
            long("PING "),
            true,
            "Protocol error: too big inline request",
        ),
        (
            b"GET \"a\r\n".to_vec(),
            true,
            "Protocol error: unbalanced quotes in request",
        ),
        (
            b"GET \"a\"b\r\n".to_vec(),
            true,
            "Protocol error: unbalanced quotes in request",
        ),
        (
            b"GET 'a\r\n".to_vec(),
            true,
            "Protocol error: unbalanced quotes in request",
        ),
    ];
    for (stream, authenticated, text) in table {
        let shown = String::from_utf8_lossy(&stream[..stream.len().min(40)]).into_owned();
        assert_eq!(error_of(&stream, authenticated), text, "{shown:?}");
    }
    assert_eq!(
        ProtocolError::InvalidBulkLength.to_reply(),
        crate::resp::Reply::error("ERR Protocol error: invalid bulk length")
    );
}

#[test]
fn inline_words_follow_redis_quoting() {
    let table: Vec<(&[u8], Vec<&[u8]>)> = vec![
        (b"PING\r\n", vec![b"PING"]),
        (b"PING\n", vec![b"PING"]),
        (b"  set  a\tb \r\n", vec![b"set", b"a", b"b"]),
        (b"set k \"a b\"\r\n", vec![b"set", b"k", b"a b"]),
        (b"set k \"\"\r\n", vec![b"set", b"k", b""]),
        (b"set k '' x\r\n", vec![b"set", b"k", b"", b"x"]),
        (
            b"set k \"\\x00\\xfF\\n\\r\\t\\a\\b\\q\\\"\"\r\n",
            vec![b"set", b"k", b"\x00\xff\n\r\t\x07\x08q\""],
        ),
        (b"set k \"\\xg1\"\r\n", vec![b"set", b"k", b"xg1"]),
        (b"set k 'a\\'b\\n'\r\n", vec![b"set", b"k", b"a'b\\n"]),
        (b"set k foo\"bar\"\r\n", vec![b"set", b"k", b"foobar"]),
        (b"get a\0b c\r\n", vec![b"get", b"a"]),
        (b"get a\x0bb \x0b c\r\n", vec![b"get", b"a\x0bb", b"c"]),
    ];
    for (line, words) in table {
        assert_eq!(one(line), words, "{:?}", String::from_utf8_lossy(line));
    }
}

#[test]
fn what_asks_for_nothing_is_passed_over() {
    let (found, error) = all(b"\r\n\n*0\r\n*-1\r\n  \r\n*1\r\n$4\r\nPING\r\n\r\n");
    assert_eq!((found, error), (vec![vec![b"PING".to_vec()]], None));
}

#[test]
fn arguments_are_slices_of_the_buffer() {
    let buffer = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n";
    let mut parser = RequestParser::new(Limits::default());
    let Parsed::Command { args, consumed } = parser.parse(buffer) else {
        panic!("not whole")
    };
    assert_eq!(consumed, 20);
    assert_eq!(args.get(1).unwrap().as_ptr(), buffer[17..].as_ptr());
    assert_eq!(args.ranges().unwrap().collect::<Vec<_>>(), [8..11, 17..18]);
    assert_eq!(args.get(2), None);
    assert_eq!(
        parser.parse(&buffer[20..]),
        Parsed::Incomplete { needed: 1 }
    );
}

#[test]
fn a_request_that_would_outgrow_the_buffer_is_refused_when_it_is_promised() {
    let limits = Limits {
        request_len_max: 1000,
        ..Limits::default()
    };
    let stream = b"*2\r\n$500\r\n".iter().copied().chain([b'x'; 500]);
    let stream: Vec<u8> = stream.chain(*b"\r\n$500\r\n").collect();
    let (found, error, _) = requests(&stream, 64, &limits, true);
    assert_eq!((found, error), (vec![], Some(ProtocolError::TooBigRequest)));
}

#[test]
fn an_error_is_final_and_earlier_requests_stand() {
    let mut parser = RequestParser::new(Limits::default());
    assert!(matches!(parser.parse(b"*x\r\n"), Parsed::Error(_)));
    assert!(matches!(parser.parse(b"PING\r\n"), Parsed::Error(_)));
    let (found, error) = all(b"PING\r\n*x\r\nPING\r\n");
    assert_eq!(found.len(), 1);
    assert_eq!(error, Some(ProtocolError::InvalidMultibulkLength));
}

#[test]
fn the_hint_counts_the_bytes_of_a_large_argument() {
    let mut parser = RequestParser::new(Limits::default());
    let mut buffer = b"*1\r\n$100000\r\n".to_vec();
    assert_eq!(
        parser.parse(&buffer),
        Parsed::Incomplete { needed: 100_002 }
    );
    buffer.extend(vec![b'x'; 1000]);
    assert_eq!(parser.parse(&buffer), Parsed::Incomplete { needed: 99_002 });
}

#[test]
fn a_promise_costs_no_memory() {
    let mut parser = RequestParser::new(Limits::default());
    let promised = b"*1048576\r\n$536870912\r\n";
    assert_eq!(
        parser.parse(promised),
        Parsed::Incomplete {
            needed: 536_870_914
        }
    );
    assert_eq!((parser.spans.capacity(), parser.inline.capacity()), (0, 0));
}

#[test]
fn a_long_request_in_pieces_is_read_once() {
    // Each piece would cost as much as all before it if the parser began again; with a hundred
    // thousand arguments that would be billions of steps.
    let mut stream = b"*100000\r\n".to_vec();
    for _ in 0..100_000 {
        stream.extend_from_slice(b"$1\r\nx\r\n");
    }
    let mut parser = RequestParser::new(Limits::default());
    let mut calls = 0;
    for come in (0..stream.len()).step_by(5) {
        assert!(matches!(
            parser.parse(&stream[..come]),
            Parsed::Incomplete { .. }
        ));
        assert!(
            parser.at + 8 >= come || come < 10,
            "{} of {come}",
            parser.at
        );
        calls += 1;
    }
    assert!(calls > 100_000);
    let Parsed::Command { args, consumed } = parser.parse(&stream) else {
        panic!("not whole")
    };
    assert_eq!((args.len(), consumed), (100_000, stream.len()));
    parser.parse(b"");
    assert!(parser.spans.capacity() <= SPANS_KEPT_MAX);
}

fn encoded(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

proptest! {
    #[test]
    fn any_pieces_give_the_same_commands(
        commands in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 1..5),
        step in 1usize..50,
    ) {
        let stream: Vec<u8> = commands.iter().flat_map(|args| encoded(args)).collect();
        let (found, error, from) = requests(&stream, step, &Limits::default(), true);
        prop_assert_eq!(error, None);
        prop_assert_eq!(from, stream.len());
        prop_assert_eq!(found, commands);
    }

    #[test]
    fn any_bytes_mean_the_same_in_any_pieces(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_requests(&data);
    }

    #[test]
    fn bytes_of_the_protocol_mean_the_same_in_any_pieces(
        data in prop::collection::vec(prop::sample::select(b"*$\r\n\n0123-\"'\\x a\0".to_vec()), 0..80),
        seed in any::<u8>(),
    ) {
        fuzz_requests(&[vec![seed], data].concat());
    }
}

#[test]
fn mutated_requests_never_break_the_parser() {
    let corpus: [&[u8]; 5] = [
        b"\x05*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhello\r\n*1\r\n$4\r\nPING\r\n",
        b"\x00PING\r\nset k \"a\\x00b\" 'c'\r\n\r\n",
        b"\x09*0\r\n*-1\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        b"\x03*1\r\n$16385\r\n",
        b"\x02*11\r\n$1\r\na\r\n$1\r\nb\r\n",
    ];
    // A multiplicative generator: the run is the same each time.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 33) as usize) % below.max(1)
    };
    for _ in 0..30_000 {
        let mut data = corpus[random(corpus.len())].to_vec();
        for _ in 0..=random(6) {
            let at = random(data.len());
            match random(4) {
                0 => data[at] = random(256) as u8,
                1 => data.insert(at, b"*$\r\n0189-\"'\\x"[random(13)]),
                2 if data.len() > 1 => drop(data.remove(at)),
                _ => {
                    let other = corpus[random(corpus.len())];
                    data.splice(at..at, other[..random(other.len())].iter().copied());
                }
            }
        }
        fuzz_requests(&data);
    }
}
