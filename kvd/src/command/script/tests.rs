//! The scripts, on the commands' functions.

use std::sync::Arc;

use super::*;
use crate::command::{self, Call, Effect, Kind, Spec, TABLE};
use crate::keyspace::{Limits, Txn, View};
use crate::storage::{Mark, MemoryEngine, Store};

/// When the scripts begin, in milliseconds since the Unix epoch.
const START_MS: u64 = 1_700_000_000_000;

/// What everything random is drawn from.
const SEED: u64 = 0x1234_5678_9abc_def0;

fn arguments(args: &[Vec<u8>]) -> Vec<&[u8]> {
    args.iter().map(Vec::as_slice).collect()
}

/// Finds and checks a command; the outer answer is the reply if that is all there is to do.
fn prepared(args: &[&[u8]]) -> Result<&'static Spec, Reply> {
    let spec = command::lookup(args)?;
    command::validate(spec, args, &Limits::default())?;
    match command::session(spec, args) {
        None => Ok(spec),
        Some(Ok(Effect::Reply(reply)) | Err(reply)) => Err(reply),
        Some(Ok(effect)) => Err(Reply::simple(format!("effect {effect:?}"))),
    }
}

/// Runs a script with an entry and an engine write for each command.
fn run_in_entries(script: &Script) -> Script {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    let (mut index, mut now_ms) = (0, START_MS);
    script.run(&mut |step| {
        let args = match step {
            Step::Advance(duration) => {
                now_ms += duration.as_millis() as u64;
                return Reply::Ok;
            }
            Step::Command(args) => arguments(args),
        };
        let spec = match prepared(&args) {
            Ok(spec) => spec,
            Err(reply) => return reply,
        };
        let call = Call::new(&args, SEED);
        if spec.is_read() {
            let base = store.read().expect("memory is readable");
            let view = View::new(&base, now_ms, now_ms).expect("memory is readable");
            return command::run_read(spec, &call, &view).expect("memory is readable");
        }
        index += 1;
        let base = store.read().expect("memory is readable");
        let mut txn =
            Txn::new(&base, index, now_ms, SEED, Limits::default()).expect("memory is readable");
        let reply = command::run_write(spec, &call, &mut txn).expect("memory is readable");
        let changes = txn.finish();
        drop(base);
        assert!(!reply.is_error() || changes.is_empty(), "{args:?}");
        let mark = Mark {
            index,
            ..Mark::default()
        };
        store
            .write(&changes.ops(), &mark)
            .expect("memory is writable");
        reply
    })
}

/// Runs a script with all its commands, reads too, inside one transaction.
fn run_in_one_transaction(script: &Script) -> Script {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    let base = store.read().expect("memory is readable");
    let (mut index, mut now_ms) = (1, START_MS);
    let mut txn =
        Txn::new(&base, index, now_ms, SEED, Limits::default()).expect("memory is readable");
    script.run(&mut |step| {
        let args = match step {
            Step::Advance(duration) => {
                now_ms += duration.as_millis() as u64;
                index += 1;
                txn.begin_entry(index, now_ms, SEED);
                return Reply::Ok;
            }
            Step::Command(args) => arguments(args),
        };
        let spec = match prepared(&args) {
            Ok(spec) => spec,
            Err(reply) => return reply,
        };
        let call = Call::new(&args, SEED);
        command::run_write(spec, &call, &mut txn).expect("memory is readable")
    })
}

fn scripts() -> Vec<Script> {
    Script::load(Path::new(FOLDER))
}

#[test]
fn commands_answer_as_their_scripts_say() {
    let update = std::env::var_os("KVD_UPDATE_SCRIPTS").is_some();
    for script in scripts().iter().filter(|script| !script.live) {
        let got = run_in_entries(script).to_text();
        if update {
            let path = Path::new(FOLDER).join(format!("{}.txt", script.name));
            std::fs::write(path, got).expect("a script is writable");
            continue;
        }
        assert_eq!(
            got,
            script.to_text(),
            "{}: KVD_UPDATE_SCRIPTS=1 rewrites the scripts",
            script.name
        );
    }
}

#[test]
fn commands_answer_the_same_inside_one_transaction() {
    for script in scripts().iter().filter(|script| !script.live) {
        let (apart, together) = (run_in_entries(script), run_in_one_transaction(script));
        assert_eq!(apart.to_text(), together.to_text(), "{}", script.name);
    }
}

#[test]
fn every_command_has_a_script() {
    let scripts = scripts();
    let mut run: Vec<&str> = scripts
        .iter()
        .flat_map(Script::commands)
        .filter_map(|args| {
            let args = arguments(args);
            let spec = command::lookup(&args).ok()?;
            spec.accepts(args.len()).then_some(spec.name)
        })
        .collect();
    run.sort_unstable();
    for spec in TABLE {
        let name = format!("{}/{}", spec.group.name(), spec.name);
        assert!(
            scripts.iter().any(|script| script.name == name),
            "there is no script {name}"
        );
        let is_container = !spec.subcommands.is_empty();
        for row in std::iter::once(spec).chain(spec.subcommands) {
            assert!(
                run.binary_search(&row.name).is_ok() || (is_container && row.name == spec.name),
                "no script runs {}",
                row.name
            );
        }
    }
}

#[test]
fn a_script_that_is_not_answered_as_it_says_fails() {
    let script = Script::parse("x", "> PING\n+PONG\n> ECHO a\n\"b\"\n");
    let error = script
        .replay(&mut |step| match step {
            Step::Command(args) if args.len() == 1 => Reply::pong(),
            _ => Reply::bulk_from("a"),
        })
        .expect_err("the script wants something else");
    assert_eq!(error, "x: ECHO a\nexpected:\n\"b\"\ngot:\n\"a\"\n");
}

#[test]
fn scripts_are_read_and_written_as_they_are() {
    let text =
        "!kvd-only\n# why\n\n> KEYS *\n*0\n@advance 20ms\n@sorted\n> KEYS \"a b\"\n*1\n  :1\n";
    let script = Script::parse("x", text);
    assert!(script.kvd_only && !script.offline && !script.live);
    assert_eq!(script.to_text(), text);
    let commands: Vec<_> = script.commands().map(<[Vec<u8>]>::to_vec).collect();
    assert_eq!(
        commands,
        [
            vec![b"KEYS".to_vec(), b"*".to_vec()],
            vec![b"KEYS".to_vec(), b"a b".to_vec()]
        ]
    );
}

#[test]
fn sorting_reaches_the_innermost_lists_only() {
    let list = |items: &[&str]| Reply::Array(items.iter().map(Reply::bulk_from).collect());
    let reply = Reply::Array(vec![Reply::bulk_from("9"), list(&["b", "a"])]);
    assert_eq!(
        rendered(reply, true),
        "*2\n  \"9\"\n  *2\n    \"a\"\n    \"b\"\n"
    );
}

/// A function that panics on purpose.
fn broken(_: &Call<'_>, txn: &mut Txn<'_>) -> Result<Reply, command::Failure> {
    txn.set_string(b"half", b"done", crate::keyspace::Expire::Clear)?;
    panic!("on purpose");
}

/// A function that changes something before it finds that it cannot go on.
fn refusing(_: &Call<'_>, txn: &mut Txn<'_>) -> Result<Reply, command::Failure> {
    txn.set_string(b"half", b"done", crate::keyspace::Expire::Clear)?;
    Err(Reply::error("ERR no").into())
}

#[test]
fn a_command_that_panics_or_fails_answers_and_changes_nothing() {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    let base = store.read().expect("memory is readable");
    let mut txn =
        Txn::new(&base, 1, START_MS, SEED, Limits::default()).expect("memory is readable");
    let call = Call::new(&[b"broken"], SEED);
    for (spec, text) in [
        (Spec::write("broken", 1, broken), "ERR internal error"),
        (Spec::write("refusing", 1, refusing), "ERR no"),
    ] {
        let reply = command::run_write(&spec, &call, &mut txn).expect("memory is readable");
        assert_eq!(reply, Reply::error(text));
        assert!(!txn.view().exists(b"half").expect("memory is readable"));
        assert!(!command::panic_is_contained());
    }
    assert!(txn.finish().is_empty());
}

#[test]
fn sizes_are_checked_before_an_append() {
    let limits = Limits {
        key_bytes_max: 4,
        value_bytes_max: 8,
    };
    let check = |args: &[&[u8]]| {
        let spec = command::lookup(args).expect("the command exists");
        command::validate(spec, args, &limits)
    };
    assert_eq!(check(&[b"SET", b"four", b"12345678"]), Ok(()));
    assert_eq!(
        check(&[b"SET", b"fives", b"1"]),
        Err(Reply::error("ERR key is longer than 4 bytes"))
    );
    assert_eq!(
        check(&[b"SET", b"four", b"123456789"]),
        Err(Reply::error("ERR value is longer than 8 bytes"))
    );
    // What is only read cannot make anything grow.
    assert_eq!(check(&[b"GET", b"fives"]), Ok(()));
}

#[test]
fn what_is_costly_stays_off_the_sockets() {
    let cheap = |args: &[&[u8]]| {
        let spec = command::lookup(args).expect("the command exists");
        spec.is_cheap(args.len())
    };
    assert!(cheap(&[b"GET", b"a"]));
    assert!(cheap(&[b"MGET", b"a", b"b"]));
    assert!(!cheap(&[b"KEYS", b"*"]));
    assert!(!cheap(&[b"SCAN", b"0"]));
    assert!(!cheap(&[b"DEBUG", b"DIGEST"]));
    assert!(!cheap(&vec![b"MGET".as_slice(); 1000]));
}

#[test]
fn kinds_route_by_what_functions_do() {
    let kind = |args: &[&[u8]]| command::lookup(args).expect("the command exists").kind;
    assert!(matches!(kind(&[b"get", b"a"]), Kind::Read(_)));
    assert!(matches!(kind(&[b"SET", b"a", b"1"]), Kind::Write(_)));
    assert!(matches!(kind(&[b"Config", b"gEt", b"*"]), Kind::Session(_)));
}

/// Arguments that commands tend to treat in ways of their own.
const WORDS: &[&str] = &[
    "",
    "a",
    "b",
    "0",
    "1",
    "-1",
    "3",
    "x",
    "NX",
    "XX",
    "GET",
    "GT",
    "LT",
    "EX",
    "PX",
    "EXAT",
    "PXAT",
    "KEEPTTL",
    "PERSIST",
    "MATCH",
    "COUNT",
    "TYPE",
    "string",
    "*",
    "[",
    "ASYNC",
    "1.5",
    "-0",
    "1e300",
    "inf",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "4102444800",
    "\0\u{ff}",
    "AUTH",
    "SETNAME",
    "ID",
    "host:1",
    "FILTERBY",
    "PATTERN",
];

fn rows() -> Vec<&'static Spec> {
    TABLE
        .iter()
        .flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
        .collect()
}

proptest::proptest! {
    /// Whatever a client sends, no function panics, and what is refused changes nothing.
    #[test]
    fn no_arguments_break_a_command(
        calls in proptest::collection::vec(
            (0..rows().len(), proptest::collection::vec(0..WORDS.len(), 0..7)),
            1..40,
        )
    ) {
        let store = Store::new(Arc::new(MemoryEngine::new()));
        let base = store.read().expect("memory is readable");
        let mut txn =
            Txn::new(&base, 1, START_MS, SEED, Limits::default()).expect("memory is readable");
        for (row, words) in calls {
            let mut args: Vec<&[u8]> = rows()[row].name.split('|').map(str::as_bytes).collect();
            args.extend(words.iter().map(|word| WORDS[*word].as_bytes()));
            let Ok(spec) = prepared(&args) else { continue };
            let before = txn.view().digest().expect("memory is readable");
            let call = Call::new(&args, SEED);
            let reply = command::run_write(spec, &call, &mut txn).expect("memory is readable");
            proptest::prop_assert_ne!(&reply, &Reply::error("ERR internal error"), "{:?}", args);
            if reply.is_error() || spec.is_read() {
                let after = txn.view().digest().expect("memory is readable");
                proptest::prop_assert_eq!(before, after, "{:?}", args);
            }
        }
    }
}

#[test]
fn a_reply_without_room_is_an_error_and_its_command_changes_nothing() {
    let store = Store::new(Arc::new(MemoryEngine::new()));
    let base = store.read().expect("memory is readable");
    let mut txn =
        Txn::new(&base, 1, START_MS, SEED, Limits::default()).expect("memory is readable");
    let mut run = |line: &str, room: usize| {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let call = Call {
            room,
            ..Call::new(&args, SEED)
        };
        let spec = command::lookup(&args).expect("a known command");
        command::run_write(spec, &call, &mut txn).expect("memory is readable")
    };
    let value = "v".repeat(500);
    assert_eq!(run(&format!("SET a {value}"), 1000), Reply::Ok);
    assert_eq!(run("GET a", 1000), Reply::bulk(value.clone()));
    for line in [
        "GET a",
        "GETSET a other",
        "GETDEL a",
        "MGET a a",
        "KEYS *",
        "SCAN 0",
    ] {
        assert_eq!(run(line, 50), command::too_long(), "{line}");
    }
    assert_eq!(run("MGET a a", 800), command::too_long());
    assert_eq!(run("GET a", 1000), Reply::bulk(value));
}
