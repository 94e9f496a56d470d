//! Engines that panic, lie and fail, linked in and used through the border as a library's would be.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use abi_stable::std_types::{RSlice, RStr, RVec, Tuple2};

use super::{Engine, load};
use crate::abi::v1::{self, AbiError, AbiMark, AbiOp, AbiRange, EntrySink, EntrySource, ValueSink};
use crate::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, Mark, Op, OpenContext, OptionKind, OptionSpec,
    Range, Result, View,
};

/// How often engines were entered, by their directory: what a poisoned engine cannot be asked.
static ENTERED: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());

fn entered(dir: &Path) -> u64 {
    ENTERED.lock().unwrap().get(dir).copied().unwrap_or(0)
}

/// An engine that holds one entry, and misbehaves as its option says.
struct Rogue {
    dir: PathBuf,
    fault: String,
    mark: Mutex<Mark>,
}

struct RogueView {
    dir: PathBuf,
    fault: String,
    mark: Mark,
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload's destructor");
    }
}

fn enter(dir: &Path, fault: &str, call: &str) -> Result<()> {
    *ENTERED.lock().unwrap().entry(dir.to_owned()).or_default() += 1;
    if fault == call {
        panic!("fault in {call}");
    }
    if fault == format!("{call} bomb") {
        panic_any(Bomb);
    }
    match fault.strip_prefix(&format!("{call} error ")) {
        Some(code) => {
            let kind = ErrorKind::from_code(code.parse().unwrap());
            Err(Error::new(kind, format!("{call} failed")))
        }
        None => Ok(()),
    }
}

impl Rogue {
    fn enter(&self, call: &str) -> Result<()> {
        enter(&self.dir, &self.fault, call)
    }
}

impl Backend for Rogue {
    const NAME: &'static str = "rogue";
    const VERSION: &'static str = "6.6.6";
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::from_bits(1 << 60));
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "fault",
        kind: OptionKind::String,
        default: "",
        help: "what goes wrong",
    }];
    type View = RogueView;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let fault = cx.options.str("fault").to_owned();
        enter(cx.dir, &fault, "open")?;
        Ok(Rogue {
            dir: cx.dir.to_owned(),
            fault,
            mark: Mutex::default(),
        })
    }

    fn mark(&self) -> Result<Mark> {
        self.enter("mark")?;
        Ok(self.mark.lock().unwrap().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.enter("get")?;
        match self.fault.as_str() {
            "get gives nothing" => return Ok(true),
            "get gives twice" => out(b"a"),
            "get denies" => {
                out(b"a");
                return Ok(false);
            }
            _ => {}
        }
        if key != b"k" {
            return Ok(false);
        }
        out(b"v");
        Ok(true)
    }

    fn scan(&self, _range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.enter("scan")?;
        if self.fault == "scan goes on" {
            let _ = out(b"a", b"1");
            let _ = out(b"b", b"2");
        }
        if out(b"k", b"v") == Flow::Stop && self.fault == "scan panics at a stop" {
            panic!("it stopped");
        }
        Ok(())
    }

    fn write(&self, _batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.enter("write")?;
        *self.mark.lock().unwrap() = mark.clone();
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        self.enter("sync")?;
        self.mark()
    }

    fn view(&self) -> Result<RogueView> {
        self.enter("view")?;
        Ok(RogueView {
            dir: self.dir.clone(),
            fault: self.fault.clone(),
            mark: self.mark()?,
        })
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.enter("replace")?;
        match self.fault.as_str() {
            "replace reads nothing" => return Ok(()),
            "replace swallows" => {
                for _ in 0..5 {
                    let _ = feed.next(&mut |_, _| {});
                }
                return Ok(());
            }
            "replace unwraps" => while feed.next(&mut |_, _| {}).unwrap() {},
            "replace panics in its callback" => {
                let mut next = || feed.next(&mut |_, _| panic!("in the callback"));
                let first = catch_unwind(AssertUnwindSafe(&mut next));
                assert!(first.is_err());
                // Having caught that, it asks for more.
                return next().map(drop);
            }
            _ => while feed.next(&mut |_, _| {})? {},
        }
        *self.mark.lock().unwrap() = mark.clone();
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        self.enter("property").ok()?;
        (name == "rogue.fault").then(|| self.fault.clone())
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["rogue.fault"]
    }

    fn compact(&self) -> Result<()> {
        self.enter("compact")
    }

    fn verify(&self) -> Result<()> {
        self.enter("verify")
    }

    fn close(&self) -> Result<()> {
        self.enter("close")
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        let _ = self.enter("drop");
    }
}

impl View for RogueView {
    fn mark(&self) -> &Mark {
        let _ = enter(&self.dir, &self.fault, "view mark");
        &self.mark
    }

    fn get(&self, _key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        enter(&self.dir, &self.fault, "view get")?;
        out(b"v");
        Ok(true)
    }

    fn scan(&self, _range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        enter(&self.dir, &self.fault, "view scan")?;
        out(b"k", b"v");
        Ok(())
    }
}

impl Drop for RogueView {
    fn drop(&mut self) {
        let _ = enter(&self.dir, &self.fault, "view drop");
    }
}

const ALL: Range<'static> = Range {
    from: &[],
    to: None,
    reverse: false,
};

/// Entries, then an end, an error or a panic; counts how often it is asked.
struct Script {
    entries: usize,
    then: Then,
    asked: usize,
}

#[derive(Clone, Copy)]
enum Then {
    End,
    Fail,
    Panic,
}

impl Script {
    fn new(entries: usize, then: Then) -> Self {
        Script {
            entries,
            then,
            asked: 0,
        }
    }
}

impl Feed for Script {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        self.asked += 1;
        if self.asked <= self.entries {
            out(&[self.asked as u8], b"v");
            return Ok(true);
        }
        match self.then {
            Then::End => Ok(false),
            Then::Fail => Err(Error::new(ErrorKind::Io, "the spool is gone")),
            Then::Panic => panic!("the feed"),
        }
    }
}

fn try_open(dir: &Path, fault: &str) -> Result<Engine> {
    let options = [("fault".to_owned(), fault.to_owned())];
    load::open(load::Root::Rust(v1::plugin::<Rogue>()), dir, &options)
}

fn open(fault: &str) -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let engine = try_open(dir.path(), fault).unwrap();
    (dir, engine)
}

fn get(engine: &Engine, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = None;
    engine.get(key, &mut |bytes| value = Some(bytes.to_vec()))?;
    Ok(value)
}

type Call = fn(&Engine) -> Result<()>;

/// Every call that returns a result.
const CALLS: &[(&str, Call)] = &[
    ("mark", |engine| engine.mark().map(drop)),
    ("get", |engine| get(engine, b"k").map(drop)),
    ("scan", |engine| {
        engine.scan(ALL, &mut |_, _| Flow::Continue)
    }),
    ("write", |engine| {
        engine.write(&[Op::Put(b"k", b"v")], &Mark::default())
    }),
    ("sync", |engine| engine.sync().map(drop)),
    ("view", |engine| engine.view().map(drop)),
    ("replace", |engine| {
        engine.replace(&mut Script::new(2, Then::End), &Mark::default())
    }),
    ("compact", Engine::compact),
    ("verify", Engine::verify),
    ("close", Engine::close),
];

/// Every call returns an error of this kind, and none enters the engine.
fn assert_ended(engine: &Engine, dir: &Path, kind: ErrorKind) {
    let before = entered(dir);
    for (name, call) in CALLS {
        assert_eq!(call(engine).unwrap_err().kind(), kind, "{name}");
    }
    assert_eq!(engine.property("rogue.fault"), None);
    assert!(engine.properties().is_empty());
    assert_eq!(entered(dir), before, "the engine was entered");
}

#[test]
fn an_engine_that_behaves_passes_everything_through() {
    let (dir, engine) = open("");
    let mark = Mark {
        index: 7,
        data: b"term".to_vec(),
    };
    for (name, call) in CALLS.iter().filter(|(name, _)| *name != "close") {
        assert!(call(&engine).is_ok(), "{name}");
    }
    engine.write(&[], &mark).unwrap();
    assert_eq!(engine.mark().unwrap(), mark);
    assert_eq!(engine.sync().unwrap(), mark);
    assert_eq!(engine.view().unwrap().mark(), &mark);
    assert_eq!(get(&engine, b"k").unwrap(), Some(b"v".to_vec()));
    assert_eq!(get(&engine, b"other").unwrap(), None);
    assert_eq!(engine.property("rogue.fault").as_deref(), Some(""));
    assert_eq!(engine.property("other"), None);
    assert_eq!(engine.properties(), ["rogue.fault"]);
    // A capability that this host does not know is kept, and means nothing.
    assert_eq!(engine.caps(), Rogue::CAPS);
    assert_eq!(engine.caps().names(), ["durable", "view"]);
    assert_eq!((engine.name(), engine.version()), ("rogue", "6.6.6"));
    let before = entered(dir.path());
    drop(engine);
    assert_eq!(entered(dir.path()), before + 1);
}

#[test]
fn a_panic_in_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = try_open(dir.path(), "open").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert_eq!(error.to_string(), "the plugin panicked: fault in open");
}

#[test]
fn a_wrong_option_does_not_reach_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let options = [("falut".to_owned(), "x".to_owned())];
    let opened = load::open(
        load::Root::Rust(v1::plugin::<Rogue>()),
        dir.path(),
        &options,
    );
    assert_eq!(
        opened.map(drop).unwrap_err().kind(),
        ErrorKind::InvalidOption
    );
    assert_eq!(entered(dir.path()), 0);
}

#[test]
fn after_a_panic_in_any_call_the_engine_is_left_alone() {
    for (name, call) in CALLS.iter().filter(|(name, _)| *name != "close") {
        for fault in [(*name).to_owned(), format!("{name} bomb")] {
            let (dir, engine) = open(&fault);
            let error = call(&engine).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panic, "{fault}: {error}");
            assert_ended(&engine, dir.path(), ErrorKind::Panic);
        }
    }
    let (dir, engine) = open("property");
    assert_eq!(engine.property("rogue.fault"), None);
    assert_ended(&engine, dir.path(), ErrorKind::Panic);
}

#[test]
fn a_panic_in_a_destructor_goes_no_further() {
    for fault in ["drop", "drop bomb"] {
        let (dir, engine) = open(fault);
        let before = entered(dir.path());
        drop(engine);
        assert_eq!(entered(dir.path()), before + 1, "{fault}");
    }
    for fault in ["view drop", "view drop bomb"] {
        let (dir, engine) = open(fault);
        drop(engine.view().unwrap());
        // The engine itself has not failed.
        assert_eq!(get(&engine, b"k").unwrap(), Some(b"v".to_vec()), "{fault}");
        drop(dir);
    }
}

#[test]
fn a_panic_in_a_view_ends_the_engine_and_all_its_views() {
    let (dir, engine) = open("view mark");
    assert_eq!(
        engine.view().map(drop).unwrap_err().kind(),
        ErrorKind::Panic
    );
    assert_ended(&engine, dir.path(), ErrorKind::Panic);

    for fault in ["view get", "view scan"] {
        let (dir, engine) = open(fault);
        let (first, second) = (engine.view().unwrap(), engine.view().unwrap());
        let failed = match fault {
            "view get" => first.get(b"k", &mut |_| {}).map(drop),
            _ => first.scan(ALL, &mut |_, _| Flow::Continue),
        };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Panic);
        assert_ended(&engine, dir.path(), ErrorKind::Panic);
        let before = entered(dir.path());
        let error = second.get(b"k", &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic);
        let error = second.scan(ALL, &mut |_, _| Flow::Continue).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert_eq!(entered(dir.path()), before);
    }
}

#[test]
fn error_kinds_cross_the_border_as_themselves() {
    let kinds = [
        ErrorKind::Io,
        ErrorKind::NoSpace,
        ErrorKind::Corruption,
        ErrorKind::Locked,
        ErrorKind::Incompatible,
        ErrorKind::InvalidOption,
        ErrorKind::TooLarge,
        ErrorKind::Unsupported,
        ErrorKind::Closed,
        ErrorKind::Panic,
        ErrorKind::Other,
    ];
    for kind in kinds {
        assert_eq!(ErrorKind::from_code(kind.code()), kind);
        let dir = tempfile::tempdir().unwrap();
        let fault = format!("open error {}", kind.code());
        let error = try_open(dir.path(), &fault).map(drop).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (kind, "open failed".to_owned())
        );

        let (dir, engine) = open(&format!("write error {}", kind.code()));
        let error = engine.write(&[], &Mark::default()).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (kind, "write failed".to_owned())
        );
        match kind {
            ErrorKind::Corruption | ErrorKind::Panic => {
                assert_ended(&engine, dir.path(), kind);
            }
            _ => assert_eq!(get(&engine, b"k").unwrap(), Some(b"v".to_vec())),
        }
    }
    // A code of a later interface.
    let unknown = AbiError {
        code: 77,
        message: "new".into(),
    };
    let error = Error::from(unknown);
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Other, "new".to_owned())
    );
}

#[test]
fn a_get_that_contradicts_itself_is_damage() {
    for fault in ["get gives nothing", "get gives twice", "get denies"] {
        let (dir, engine) = open(fault);
        let mut given = 0;
        let error = engine.get(b"k", &mut |_| given += 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{fault}");
        assert!(given <= 1, "{fault}");
        assert_ended(&engine, dir.path(), ErrorKind::Corruption);
    }
}

#[test]
fn a_visitor_is_not_called_after_it_said_stop() {
    let (_dir, engine) = open("scan goes on");
    let mut seen = Vec::new();
    let visit = &mut |key: &[u8], _: &[u8]| {
        seen.push(key.to_vec());
        Flow::Stop
    };
    engine.scan(ALL, visit).unwrap();
    assert_eq!(seen, [b"a"]);
}

#[test]
fn a_callback_that_panics_is_not_called_again_and_its_panic_goes_on() {
    let (_dir, engine) = open("scan goes on");
    let mut calls = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.scan(ALL, &mut |_, _| {
            calls += 1;
            panic!("the host's own")
        })
    }));
    assert_eq!(
        panicked.unwrap_err().downcast_ref(),
        Some(&"the host's own")
    );
    assert_eq!(calls, 1);
    // It was not the engine's fault.
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.get(b"k", &mut |_| panic!("again"))
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"again"));
    assert_eq!(get(&engine, b"k").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn a_panic_of_the_engine_behind_one_of_the_host_still_ends_it() {
    let (dir, engine) = open("scan panics at a stop");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.scan(ALL, &mut |_, _| panic!("the host's own"))
    }));
    assert_eq!(
        panicked.unwrap_err().downcast_ref(),
        Some(&"the host's own")
    );
    assert_ended(&engine, dir.path(), ErrorKind::Panic);
}

#[test]
fn a_failed_feed_is_reported_and_the_engine_goes_on() {
    let (_dir, engine) = open("");
    let mut feed = Script::new(2, Then::Fail);
    let error = engine.replace(&mut feed, &Mark::default()).unwrap_err();
    assert_eq!(error.to_string(), "the spool is gone");
    assert_eq!((error.kind(), feed.asked), (ErrorKind::Io, 3));

    let mut feed = Script::new(2, Then::Panic);
    let replaced = || engine.replace(&mut feed, &Mark::default());
    let panicked = catch_unwind(AssertUnwindSafe(replaced)).unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"the feed"));
    assert!(engine.mark().is_ok());
}

#[test]
fn an_engine_that_panics_over_a_failed_feed_is_left_alone() {
    let (dir, engine) = open("replace unwraps");
    let error = engine
        .replace(&mut Script::new(1, Then::Fail), &Mark::default())
        .unwrap_err();
    assert_eq!(error.to_string(), "the spool is gone");
    assert_ended(&engine, dir.path(), ErrorKind::Panic);

    let (dir, engine) = open("replace unwraps");
    let mut feed = Script::new(1, Then::Panic);
    let replaced = || engine.replace(&mut feed, &Mark::default());
    let panicked = catch_unwind(AssertUnwindSafe(replaced)).unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"the feed"));
    assert_ended(&engine, dir.path(), ErrorKind::Panic);
}

#[test]
fn a_feed_is_not_asked_again_after_it_failed_or_ended() {
    for (then, kind) in [(Then::Fail, ErrorKind::Io), (Then::Panic, ErrorKind::Panic)] {
        let (dir, engine) = open("replace swallows");
        let mut feed = Script::new(1, then);
        let replaced = || engine.replace(&mut feed, &Mark::default());
        match catch_unwind(AssertUnwindSafe(replaced)) {
            Ok(result) => assert_eq!(result.unwrap_err().kind(), kind),
            Err(payload) => assert_eq!(payload.downcast_ref(), Some(&"the feed")),
        }
        assert_eq!(feed.asked, 2);
        // It said that all went well.
        assert_ended(&engine, dir.path(), ErrorKind::Corruption);
    }
    let (_dir, engine) = open("replace swallows");
    let mut feed = Script::new(1, Then::End);
    engine.replace(&mut feed, &Mark::default()).unwrap();
    assert_eq!(feed.asked, 2);

    let (_dir, engine) = open("replace panics in its callback");
    let mut feed = Script::new(3, Then::End);
    assert!(engine.replace(&mut feed, &Mark::default()).is_err());
    assert_eq!(feed.asked, 1);
}

#[test]
fn a_replace_that_reads_nothing_is_damage() {
    let (dir, engine) = open("replace reads nothing");
    let error = engine
        .replace(&mut Script::new(1, Then::End), &Mark::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert_ended(&engine, dir.path(), ErrorKind::Corruption);
}

#[test]
fn a_closed_engine_is_not_entered() {
    for fault in ["", "close", "close error 1"] {
        let (dir, engine) = open(fault);
        let view = engine.view().unwrap();
        let before = entered(dir.path());
        assert_eq!(engine.close().is_ok(), fault.is_empty());
        assert_eq!(entered(dir.path()), before + 1);
        assert_ended(&engine, dir.path(), ErrorKind::Closed);
        let error = view.get(b"k", &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
}

/// The engine as the interface gives it, without the host's wrapper.
fn raw(dir: &Path, fault: &str) -> v1::EngineBox {
    let dir = dir.to_str().unwrap();
    let options: RVec<_> = vec![Tuple2("fault".into(), fault.into())].into();
    let opened = (v1::plugin::<Rogue>().open())(RStr::from_str(dir), options, load::context());
    opened.into_result().map_err(Error::from).unwrap()
}

extern "C" fn ignore_value(_context: *mut (), _value: RSlice<'_, u8>) {}

fn no_value() -> ValueSink<'static> {
    ValueSink {
        context: std::ptr::null_mut(),
        call: ignore_value,
        _life: std::marker::PhantomData,
    }
}

#[test]
fn changes_and_calls_of_a_later_interface_are_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let engine = raw(dir.path(), "");
    let before = entered(dir.path());
    let mark = AbiMark {
        index: 1,
        data: RSlice::EMPTY,
    };
    for kind in [0, 4, 255] {
        let ops = [AbiOp {
            kind,
            a: RSlice::from_slice(b"k"),
            b: RSlice::EMPTY,
        }];
        let error = engine.write(RSlice::from_slice(&ops), mark).unwrap_err();
        assert_eq!(error.code, ErrorKind::Unsupported.code());
    }
    let error = engine.ext(1, RSlice::EMPTY, no_value()).unwrap_err();
    assert_eq!(error.code, ErrorKind::Unsupported.code());
    assert_eq!(entered(dir.path()), before);
}

#[test]
fn flags_of_a_later_interface_do_not_disturb_a_range() {
    let range = Range {
        from: b"a",
        to: Some(b""),
        reverse: true,
    };
    let mut crossed = AbiRange::from(range);
    crossed.flags |= 1 << 7;
    assert_eq!(crossed.range(), range);
    assert_eq!(AbiRange::from(ALL).range(), ALL);
}

#[test]
fn a_feed_code_of_a_later_interface_is_a_failure() {
    extern "C" fn next(_context: *mut (), _sink: EntrySink<'_>) -> u8 {
        9
    }
    let dir = tempfile::tempdir().unwrap();
    let engine = raw(dir.path(), "");
    let source = EntrySource {
        context: std::ptr::null_mut(),
        next,
        _life: std::marker::PhantomData,
    };
    let mark = AbiMark {
        index: 1,
        data: RSlice::EMPTY,
    };
    let error = engine.replace(source, mark).unwrap_err();
    assert_eq!(error.code, ErrorKind::Other.code());
    assert_eq!(engine.mark(no_value()).unwrap(), 0);
}
