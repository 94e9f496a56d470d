//! Random requests to kvd and to redis-server 7: the replies are the same, to the error's text.
//!
//! What differs by design is left out: the 512 MiB that Redis lets SETRANGE create, databases other
//! than the first, cursors that no server gave, more than a million arguments, inline requests with
//! a zero byte (Redis waits for their end for ever), and what kvd does not have.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use kvd::resp::Reply;
use kvd_tests::{Client, Node, Redis, alone};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Requests of one test run, unless `KVD_REQUESTS` says otherwise.
const REQUESTS: usize = 4000;

fn requests() -> usize {
    std::env::var("KVD_REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number"))
}

const KEYS: &[&str] = &["a", "b", "c", "d", "{t}1", "{t}2", "", "k\0\r\n"];
const VALUES: &[&str] = &[
    "",
    "0",
    "10",
    "-5",
    "3.5",
    "abc",
    " 1",
    "1 ",
    "9223372036854775807",
    "-9223372036854775808",
    "1e3",
    "0x1F",
    "+5",
    "007",
    "inf",
    "-inf",
    "nan",
    "-0",
    "1e-5",
    "5.0e3",
    "1e400",
    "\x01\r\n",
    "the quick brown fox",
    "0.1",
    "3.00",
    ".5",
    "5.",
    "1_000",
];
const INTEGERS: &[&str] = &[
    "-1",
    "0",
    "1",
    "5",
    "100",
    "-100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "abc",
    "",
    "1.5",
    " 1",
    "+1",
    "01",
    "-0",
    "3",
    "-3",
];
/// Times far enough away that the two servers' clocks do not matter.
const SECONDS: &[&str] = &[
    "-1",
    "0",
    "1000",
    "5000",
    "100000",
    "9223372036854775807",
    "9223372036854776",
    "abc",
    "1.5",
    "",
];
const PATTERNS: &[&str] = &[
    "*", "a", "[ab]", "[^a]", "?", "{t}*", "[a-c]", "\\a", "nothing", "",
];

struct Generator(StdRng);

impl Generator {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.0.random_range(0..from.len())]
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.0.random_range(0..one_in) == 0
    }

    fn key(&mut self) -> String {
        self.pick(KEYS).to_owned()
    }

    fn value(&mut self) -> String {
        self.pick(VALUES).to_owned()
    }

    fn integer(&mut self) -> String {
        self.pick(INTEGERS).to_owned()
    }

    /// A time for one of the options or commands of expiry.
    fn time(&mut self, unit: &str) -> String {
        let odd = self.pick(SECONDS).to_owned();
        let far = 4_000_000_000u64 + self.0.random_range(0..1000);
        match unit {
            // What expires while the test runs still counts in Redis's DBSIZE for a while.
            "EXAT" if matches!(&odd[..], "1000" | "5000" | "100000") => far.to_string(),
            "PXAT" if matches!(&odd[..], "1000" | "5000" | "100000" | "9223372036854776") => {
                (far * 1000).to_string()
            }
            "PX" if matches!(&odd[..], "1000" | "5000" | "100000") => "5000000".to_owned(),
            _ if self.chance(4) => odd,
            "EXAT" => far.to_string(),
            "PXAT" => (far * 1000).to_string(),
            "PX" => self.0.random_range(1_000_000..2_000_000).to_string(),
            _ => self.0.random_range(1000..100_000).to_string(),
        }
    }

    fn options(&mut self, out: &mut Vec<String>, flags: &[&str], times: &[&str]) {
        while self.chance(2) {
            if !times.is_empty() && self.chance(2) {
                let unit = self.pick(times);
                out.push(unit.to_owned());
                if !self.chance(12) {
                    out.push(self.time(unit));
                }
            } else {
                out.push(self.pick(flags).to_owned());
            }
        }
    }

    fn keys(&mut self, out: &mut Vec<String>) {
        for _ in 0..self.0.random_range(1..4) {
            out.push(self.key());
        }
    }

    fn pairs(&mut self, out: &mut Vec<String>) {
        for _ in 0..self.0.random_range(1..4) {
            out.extend([self.key(), self.value()]);
        }
    }

    fn command(&mut self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let name = self.pick(&[
            "GET",
            "GET",
            "SET",
            "SET",
            "SET",
            "SETNX",
            "SETEX",
            "PSETEX",
            "GETSET",
            "GETEX",
            "GETDEL",
            "MGET",
            "MSET",
            "MSETNX",
            "APPEND",
            "STRLEN",
            "GETRANGE",
            "SUBSTR",
            "SETRANGE",
            "INCR",
            "DECR",
            "INCRBY",
            "DECRBY",
            "INCRBYFLOAT",
            "DEL",
            "UNLINK",
            "EXISTS",
            "TOUCH",
            "TYPE",
            "KEYS",
            "SCAN",
            "RANDOMKEY",
            "RENAME",
            "RENAMENX",
            "EXPIRE",
            "PEXPIRE",
            "EXPIREAT",
            "PEXPIREAT",
            "TTL",
            "PTTL",
            "EXPIRETIME",
            "PEXPIRETIME",
            "PERSIST",
            "FLUSHDB",
            "FLUSHALL",
            "DBSIZE",
            "MULTI",
            "MULTI",
            "EXEC",
            "EXEC",
            "EXEC",
            "DISCARD",
            "WATCH",
            "UNWATCH",
            "PING",
            "ECHO",
            "HELLO",
            "RESET",
            "SELECT",
            "CLIENT",
            "COMMAND",
            "NOSUCH",
            "COPY",
            "OBJECT",
            "OBJECT_",
            "AUTH",
            "READONLY_",
        ]);
        out.push(name.to_owned());
        match name {
            "GET" | "GETDEL" | "STRLEN" | "INCR" | "DECR" | "TYPE" | "TTL" | "PTTL"
            | "EXPIRETIME" | "PEXPIRETIME" | "PERSIST" => out.push(self.key()),
            "SET" => {
                out.extend([self.key(), self.value()]);
                let flags = ["NX", "XX", "GET", "KEEPTTL", "JUNK", "PERSIST"];
                self.options(&mut out, &flags, &["EX", "PX", "EXAT", "PXAT"]);
            }
            "GETEX" => {
                out.push(self.key());
                let flags = ["PERSIST", "JUNK", "KEEPTTL"];
                self.options(&mut out, &flags, &["EX", "PX", "EXAT", "PXAT"]);
            }
            "SETNX" | "GETSET" | "APPEND" | "INCRBYFLOAT" => {
                out.extend([self.key(), self.value()]);
            }
            "SETEX" => out.extend([self.key(), self.time("EX"), self.value()]),
            "PSETEX" => out.extend([self.key(), self.time("PX"), self.value()]),
            "MGET" | "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "WATCH" => self.keys(&mut out),
            "MSET" | "MSETNX" => self.pairs(&mut out),
            "GETRANGE" | "SUBSTR" => {
                out.extend([self.key(), self.integer(), self.integer()]);
            }
            "SETRANGE" => {
                let offset = self.pick(&["-1", "0", "1", "7", "100", "abc", "4294967296"]);
                out.extend([self.key(), offset.to_owned(), self.value()]);
            }
            "INCRBY" | "DECRBY" => out.extend([self.key(), self.integer()]),
            "KEYS" => out.push(self.pick(PATTERNS).to_owned()),
            "SCAN" => {
                out.push(self.pick(&["0", "0", "0", "abc"]).to_owned());
                let count = self.pick(&["COUNT", "MATCH", "TYPE", "JUNK"]);
                out.extend(["COUNT".to_owned(), "1000".to_owned()]);
                if self.chance(2) {
                    out.push(count.to_owned());
                    out.push(match count {
                        "COUNT" => self.pick(&["1000", "0", "-1", "abc"]).to_owned(),
                        "MATCH" => self.pick(PATTERNS).to_owned(),
                        _ => self.pick(&["string", "hash", "nothing"]).to_owned(),
                    });
                }
            }
            "COPY" => {
                out.extend([self.key(), self.key()]);
                self.options(&mut out, &["REPLACE", "JUNK"], &[]);
                if self.chance(4) {
                    out.extend(["DB".to_owned(), self.pick(&["0", "1", "abc"]).to_owned()]);
                }
            }
            "OBJECT" => {
                out.push(self.pick(&["FREQ", "NOSUCH"]).to_owned());
                out.push(self.key());
            }
            "RENAME" | "RENAMENX" => out.extend([self.key(), self.key()]),
            "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
                let unit = match name {
                    "EXPIRE" => "EX",
                    "PEXPIRE" => "PX",
                    "EXPIREAT" => "EXAT",
                    _ => "PXAT",
                };
                out.extend([self.key(), self.time(unit)]);
                self.options(&mut out, &["NX", "XX", "GT", "LT", "JUNK"], &[]);
            }
            "FLUSHDB" | "FLUSHALL" if self.chance(2) => {
                out.push(self.pick(&["ASYNC", "SYNC", "JUNK"]).to_owned());
            }
            "PING" if self.chance(2) => out.push(self.value()),
            "ECHO" => out.push(self.value()),
            "HELLO" => {
                if !self.chance(4) {
                    out.push(self.pick(&["2", "3", "3", "4", "abc", "-1"]).to_owned());
                }
                if self.chance(4) {
                    out.extend(["SETNAME".to_owned(), self.value()]);
                }
            }
            "SELECT" => out.push(self.pick(&["0", "0", "abc"]).to_owned()),
            "AUTH" => {
                out.push(self.value());
                if self.chance(2) {
                    out.push(self.value());
                }
            }
            "CLIENT" => match self.pick(&["SETNAME", "GETNAME", "NOSUCH", ""]) {
                "SETNAME" => out.extend(["SETNAME".to_owned(), self.value()]),
                "" => {}
                other => out.push(other.to_owned()),
            },
            "COMMAND" => {
                let sub = self.pick(&["GETKEYS", "INFO_", "NOSUCH"]);
                out.push(sub.to_owned());
                if sub == "GETKEYS" {
                    let inner = self.command();
                    // Its container has no keys of its own in either server.
                    if inner[0].eq_ignore_ascii_case("COMMAND") {
                        out.push("GET".to_owned());
                    }
                    out.extend(inner);
                }
            }
            _ => {}
        }
        // The wrong number of arguments now and then, and any case.
        if self.chance(25) && out.len() > 1 {
            out.pop();
        }
        if self.chance(25) {
            out.push(self.value());
        }
        // All commands there are: not the same ones.
        if out == ["COMMAND"] {
            out.push("NOSUCH".to_owned());
        }
        if self.chance(3) {
            out[0] = out[0].to_lowercase();
        }
        out
    }
}

/// Makes comparable what may differ: orders, and the moment of an expiry.
fn settled(name: &str, reply: Reply) -> Reply {
    let slack = match name {
        "ttl" | "expiretime" => 2,
        "pttl" | "pexpiretime" => 2000,
        _ => 1,
    };
    match (name, reply) {
        ("keys", Reply::Array(mut keys)) => {
            keys.sort_by_key(|key| format!("{key:?}"));
            Reply::Array(keys)
        }
        ("scan", Reply::Array(mut parts)) => {
            if let Some(Reply::Array(keys)) = parts.get_mut(1) {
                keys.sort_by_key(|key| format!("{key:?}"));
            }
            Reply::Array(parts)
        }
        ("randomkey", Reply::Bulk(_)) => Reply::bulk("some key"),
        ("hello", Reply::Map(mut fields)) => {
            fields.retain(|(name, _)| *name == Reply::bulk("proto"));
            Reply::Map(fields)
        }
        // In RESP2 the fields lie flat.
        ("hello", Reply::Array(fields)) => Reply::Int(fields.len() as i64),
        ("ttl" | "pttl" | "expiretime" | "pexpiretime", Reply::Int(time)) if time > 0 => {
            // Rounded, with an overlap that `alike` bridges.
            Reply::Int(time / slack)
        }
        (_, reply) => reply,
    }
}

fn alike(name: &str, ours: &Reply, theirs: &Reply) -> bool {
    match (settled(name, ours.clone()), settled(name, theirs.clone())) {
        (Reply::Int(ours), Reply::Int(theirs))
            if name.ends_with("ttl") || name.ends_with("time") =>
        {
            ours.abs_diff(theirs) <= 1 && (ours < 0) == (theirs < 0)
        }
        (ours, theirs) => ours == theirs,
    }
}

/// Whether two replies of EXEC say the same of every queued command.
fn exec_alike(queued: &[String], ours: &Reply, theirs: &Reply) -> bool {
    match (ours, theirs) {
        (Reply::Array(ours), Reply::Array(theirs)) if ours.len() == queued.len() => {
            ours.len() == theirs.len()
                && queued
                    .iter()
                    .zip(ours.iter().zip(theirs))
                    .all(|(name, (ours, theirs))| alike(name, ours, theirs))
        }
        (ours, theirs) => ours == theirs,
    }
}

#[test]
fn random_requests_are_answered_as_redis_answers_them() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(temp.path()) else {
        return;
    };
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let seed = std::env::var("KVD_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    let mut generator = Generator(StdRng::seed_from_u64(seed));
    let connect = || {
        let mut pair = [node.addr(), redis.addr.clone()].map(|a| Client::connect(&a).unwrap());
        for client in &mut pair {
            assert_eq!(client.call(&["FLUSHALL"]), Reply::Ok);
        }
        pair
    };
    let [mut ours, mut theirs] = connect();
    let mut queued: Option<Vec<String>> = None;
    let (mut watched, mut retries) = (false, 0);
    let (mut recent, mut differences) = (Vec::new(), Vec::new());
    for _ in 0..requests() {
        let request = generator.command();
        let name = request[0].to_lowercase();
        // In a transaction Redis changes the protocol between two of EXEC's replies.
        if queued.is_some() && name == "hello" {
            continue;
        }
        recent.push(request.join(" "));
        let (mine, yours) = (ours.call(&request), theirs.call(&request));
        let same = match (&mut queued, name.as_str()) {
            (Some(names), "exec") => exec_alike(names, &mine, &yours),
            _ => alike(&name, &mine, &yours),
        };
        match &mut queued {
            Some(names) if mine == Reply::queued() => names.push(name.clone()),
            Some(_)
                if ["exec", "discard", "reset"].contains(&name.as_str()) && !is_arity(&mine) =>
            {
                queued = None;
            }
            None if name == "multi" && mine == Reply::Ok => queued = Some(Vec::new()),
            _ => {}
        }
        // A key that was watched while it was absent may seem changed when another of its slot was
        // removed, or all were flushed: clients try again. The other way round is an error.
        let retry = name == "exec" && matches!(mine, Reply::Null | Reply::NullArray) && watched;
        if same || retry {
            watched = match name.as_str() {
                "watch" => watched || mine == Reply::Ok,
                "exec" | "discard" | "reset" => watched && mine.is_error(),
                "unwatch" => watched && mine != Reply::Ok,
                _ => watched,
            };
        }
        if retry && !same {
            (queued, watched, [ours, theirs]) = (None, false, connect());
            retries += 1;
        } else if !same {
            watched = false;
            let before = recent.len().saturating_sub(6);
            differences.push(format!(
                "{:?}\n   kvd:   {mine:?}\n   redis: {yours:?}",
                &recent[before..]
            ));
            (queued, [ours, theirs]) = (None, connect());
            recent.clear();
            if differences.len() == 30 {
                break;
            }
        }
    }
    assert!(retries <= requests() / 500, "{retries} needless retries");
    assert!(
        differences.is_empty(),
        "seed {seed}:\n{}",
        differences.join("\n")
    );
}

fn is_arity(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(text) if text.contains("wrong number of arguments"))
}

/// Sends bytes as they are, and returns all that comes until the server closes.
fn exchange(addr: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // The server may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn broken_requests_are_answered_as_redis_answers_them() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(temp.path()) else {
        return;
    };
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let mut rng = StdRng::seed_from_u64(11);
    let pieces: &[&str] = &[
        "*1\r\n$4\r\nPING\r\n",
        "*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n",
        "PING\r\n",
        "ECHO \"a b\"\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n",
        "GET a\r\n",
        "*0\r\n",
        "*-1\r\n",
        "\r\n",
        "*",
        "$",
        "1",
        "-",
        "\r\n",
        "\n",
        "\"",
        "'",
        "abc",
        " ",
        "*1\r\n",
        "$3\r\n",
        "$536870913\r\n",
        "*abc\r\n",
        "$-1\r\n",
        "*2147483648\r\n",
        ":1\r\n",
        "\\x41",
        "ECHO 'a\\'b'\r\n",
        "ECHO \"\\x41\\n\"\r\n",
        "ECHO \"a\"b\r\n",
        "*01\r\n",
        "* 1\r\n",
        "*+1\r\n",
        "$+4\r\nPING\r\n",
    ];
    let mut differences = Vec::new();
    for _ in 0..requests() / 10 {
        let count = rng.random_range(1..6);
        let request: String = (0..count)
            .map(|_| pieces[rng.random_range(0..pieces.len())])
            .collect();
        let ours = exchange(&node.addr(), request.as_bytes());
        let theirs = exchange(&redis.addr, request.as_bytes());
        if ours != theirs {
            differences.push(format!(
                "{request:?}\n   kvd:   {ours:?}\n   redis: {theirs:?}"
            ));
            if differences.len() == 20 {
                break;
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
