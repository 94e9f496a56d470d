//! A host and a library that know each other only through the file.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use kvd_plugin_api::host::{Engine, EngineView, Places, Plugin, read_manifest, resolve};
use kvd_plugin_api::{Caps, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Result};

/// The library that cargo built for this test: it lies beside the test's own binary.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let name = format!(
        "{}kvd_memory{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let folders = exe.ancestors().skip(1).take(2);
    let mut files = folders.map(|folder| folder.join(&name));
    files
        .find(|file| file.is_file())
        .expect("cargo builds the library before its tests")
}

fn open() -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Plugin::load(&library())
        .unwrap()
        .open(dir.path(), &[])
        .unwrap();
    (dir, engine)
}

/// Why a file cannot be loaded, with the hint.
fn refusal(path: &Path) -> (String, Option<String>) {
    let error = Plugin::load(path).map(drop).unwrap_err();
    assert_eq!(read_manifest(path).unwrap_err(), error);
    (error.to_string(), error.hint().map(str::to_owned))
}

fn mark(index: u64) -> Mark {
    Mark {
        index,
        data: format!("mark {index}").into_bytes(),
    }
}

fn get(engine: &Engine, key: &str) -> Option<String> {
    let mut value = None;
    let found = engine
        .get(key.as_bytes(), &mut |bytes| value = Some(text(bytes)))
        .unwrap();
    assert_eq!(found, value.is_some());
    value
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn range<'a>(from: &'a str, to: Option<&'a str>, reverse: bool) -> Range<'a> {
    Range {
        from: from.as_bytes(),
        to: to.map(str::as_bytes),
        reverse,
    }
}

/// What a scan visits, as `key=value` words, at most `count` of them.
fn visit(
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>,
    count: usize,
) -> String {
    let mut seen = Vec::new();
    scan(&mut |key, value| {
        seen.push(format!("{}={}", text(key), text(value)));
        if seen.len() < count {
            Flow::Continue
        } else {
            Flow::Stop
        }
    })
    .unwrap();
    seen.join(" ")
}

fn all(engine: &Engine) -> String {
    visit(|out| engine.scan(range("", None, false), out), usize::MAX)
}

fn all_of(view: &EngineView) -> String {
    visit(|out| view.scan(range("", None, false), out), usize::MAX)
}

#[test]
fn a_library_says_what_it_is_before_it_is_opened() {
    let path = library();
    let manifest = read_manifest(&path).unwrap();
    assert_eq!(
        (manifest.api_version, manifest.name.as_str()),
        (1, "memory")
    );
    assert_eq!(manifest.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest.debug, cfg!(debug_assertions));
    assert!(manifest.rustc.starts_with("rustc "), "{}", manifest.rustc);
    assert!(
        manifest.target.contains(std::env::consts::ARCH),
        "{}",
        manifest.target
    );

    let plugin = Plugin::load(&path).unwrap();
    assert_eq!(
        (plugin.path(), plugin.manifest()),
        (path.as_path(), &manifest)
    );
    let description = plugin.describe();
    assert_eq!(description.name, "memory");
    assert_eq!(description.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(description.caps, Caps::VIEW.with(Caps::FAST_READ));
    assert_eq!(description.limits, Limits::UNBOUNDED);
    assert!(description.options.is_empty());
}

#[test]
fn an_engine_from_a_library_reads_what_was_written() {
    let (_dir, engine) = open();
    assert_eq!(
        (engine.name(), engine.version()),
        ("memory", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(engine.caps(), Caps::VIEW.with(Caps::FAST_READ));
    assert_eq!(engine.mark().unwrap(), Mark::default());
    assert_eq!((get(&engine, "a"), all(&engine).as_str()), (None, ""));

    let batch = [
        Op::Put(b"a", b"1"),
        Op::Put(b"b", b""),
        Op::Put(b"c", b"3"),
        Op::Put(b"d", b"4"),
        Op::Delete(b"a"),
        Op::Put(b"a", b"5"),
        Op::Delete(b"absent"),
        Op::DeleteRange(b"c", b"d"),
        Op::DeleteRange(b"z", b"a"),
    ];
    engine.write(&batch, &mark(7)).unwrap();
    assert_eq!(engine.mark().unwrap(), mark(7));
    assert_eq!(get(&engine, "a").as_deref(), Some("5"));
    assert_eq!(get(&engine, "b").as_deref(), Some(""));
    assert_eq!(get(&engine, "c"), None);
    assert_eq!(all(&engine), "a=5 b= d=4");
    let some =
        |from, to, reverse, count| visit(|out| engine.scan(range(from, to, reverse), out), count);
    assert_eq!(some("a", Some("d"), false, 9), "a=5 b=");
    assert_eq!(some("b", None, true, 9), "d=4 b=");
    assert_eq!(some("", None, true, 1), "d=4");
    assert_eq!(some("d", Some("a"), false, 9), "");
    // It is volatile, and says so.
    assert_eq!(engine.sync().unwrap(), Mark::default());
    engine.verify().unwrap();
    assert_eq!(engine.compact().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(
        (engine.properties().len(), engine.property("kvd.disk.bytes")),
        (0, None)
    );
}

#[test]
fn a_view_outlives_writes_and_its_engine() {
    let (_dir, engine) = open();
    engine.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    let view = engine.view().unwrap();
    engine
        .write(&[Op::Put(b"a", b"2"), Op::Put(b"b", b"2")], &mark(2))
        .unwrap();
    assert_eq!((view.mark(), all_of(&view).as_str()), (&mark(1), "a=1"));
    assert_eq!(all(&engine), "a=2 b=2");
    drop(engine);
    let mut value = String::new();
    assert!(view.get(b"a", &mut |bytes| value = text(bytes)).unwrap());
    assert_eq!(value, "1");
}

/// Hands out some entries, and then ends or fails.
struct Entries(Vec<(&'static str, &'static str)>, Option<Error>);

impl Feed for Entries {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        if self.0.is_empty() {
            return self.1.take().map_or(Ok(false), Err);
        }
        let (key, value) = self.0.remove(0);
        out(key.as_bytes(), value.as_bytes());
        Ok(true)
    }
}

#[test]
fn a_replacement_takes_the_place_of_everything_or_of_nothing() {
    let (_dir, engine) = open();
    engine.write(&[Op::Put(b"old", b"1")], &mark(1)).unwrap();
    let view = engine.view().unwrap();
    let error = Error::new(ErrorKind::Io, "the spool is gone");
    let mut feed = Entries(vec![("x", "1")], Some(error));
    let failed = engine.replace(&mut feed, &mark(5)).unwrap_err();
    assert_eq!(
        (failed.kind(), failed.to_string().as_str()),
        (ErrorKind::Io, "the spool is gone")
    );
    assert_eq!(
        (all(&engine).as_str(), engine.mark().unwrap()),
        ("old=1", mark(1))
    );

    let mut feed = Entries(vec![("x", "1"), ("y", "2")], None);
    engine.replace(&mut feed, &mark(9)).unwrap();
    assert_eq!(
        (all(&engine).as_str(), engine.mark().unwrap()),
        ("x=1 y=2", mark(9))
    );
    assert_eq!(all_of(&view), "old=1");
}

#[test]
fn a_panic_in_a_callback_goes_on_in_the_host_and_the_engine_still_works() {
    struct Broken;
    impl Feed for Broken {
        fn next(&mut self, _out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
            panic!("in the feed")
        }
    }

    let (_dir, engine) = open();
    engine
        .write(&[Op::Put(b"a", b"1"), Op::Put(b"b", b"2")], &mark(1))
        .unwrap();
    let view = engine.view().unwrap();
    let everything = range("", None, false);
    let calls: [(&str, &dyn Fn()); 5] = [
        ("in get", &|| {
            drop(engine.get(b"a", &mut |_| panic!("in get")))
        }),
        ("in scan", &|| {
            drop(engine.scan(everything, &mut |_, _| panic!("in scan")))
        }),
        ("in view's get", &|| {
            drop(view.get(b"a", &mut |_| panic!("in view's get")))
        }),
        ("in view's scan", &|| {
            drop(view.scan(everything, &mut |_, _| panic!("in view's scan")))
        }),
        ("in the feed", &|| {
            drop(engine.replace(&mut Broken, &mark(2)))
        }),
    ];
    for (message, call) in calls {
        let payload = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&message));
        assert_eq!(
            (all(&engine).as_str(), all_of(&view).as_str()),
            ("a=1 b=2", "a=1 b=2")
        );
    }
    engine.write(&[Op::Put(b"a", b"3")], &mark(2)).unwrap();
    assert_eq!(get(&engine, "a").as_deref(), Some("3"));
}

#[test]
fn a_closed_engine_refuses_every_call() {
    let (_dir, engine) = open();
    let view = engine.view().unwrap();
    engine.close().unwrap();
    let everything = range("", None, false);
    let errors = [
        engine.close().unwrap_err(),
        engine.mark().unwrap_err(),
        engine.get(b"a", &mut |_| {}).unwrap_err(),
        engine.write(&[], &mark(1)).unwrap_err(),
        engine.sync().unwrap_err(),
        engine.view().map(drop).unwrap_err(),
        view.scan(everything, &mut |_, _| Flow::Continue)
            .unwrap_err(),
    ];
    assert!(
        errors.iter().all(|error| error.kind() == ErrorKind::Closed),
        "{errors:?}"
    );
}

#[test]
fn unknown_options_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let options = [("cache".to_owned(), "1GiB".to_owned())];
    let plugin = Plugin::load(&library()).unwrap();
    let error = plugin.open(dir.path(), &options).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("'cache'"), "{error}");
}

#[test]
fn two_files_are_two_libraries() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("libkvd_copy.so");
    std::fs::copy(library(), &copy).unwrap();
    let (first, second) = (
        Plugin::load(&library()).unwrap(),
        Plugin::load(&copy).unwrap(),
    );
    assert_eq!(second.path(), copy);
    let first = first.open(dir.path(), &[]).unwrap();
    let second = second.open(dir.path(), &[]).unwrap();
    first.write(&[Op::Put(b"a", b"1")], &mark(1)).unwrap();
    second.write(&[Op::Put(b"a", b"2")], &mark(1)).unwrap();
    assert_eq!(
        (all(&first).as_str(), all(&second).as_str()),
        ("a=1", "a=2")
    );
}

#[test]
fn a_library_is_found_by_its_name_in_a_folder_of_plugins() {
    let path = library();
    let places = Places {
        plugin_path: vec![path.parent().unwrap().to_owned()],
        ..Places::default()
    };
    let found = resolve("memory", &places).unwrap();
    assert_eq!(found, std::fs::canonicalize(&path).unwrap());
    Plugin::load(&found).unwrap();
}

#[test]
fn a_library_that_is_no_plugin_is_refused() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_libc = |path: &&Path| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name.starts_with("libc.so") || name.starts_with("libc-"))
    };
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(Path::new);
    let libc = { paths }
        .find(is_libc)
        .expect("this test is linked with a C library");
    let (message, hint) = refusal(libc);
    assert_eq!(message, "not a kvd plugin (no KVD_PLUGIN_MANIFEST symbol)");
    assert_eq!(hint, None);
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libkvd_text.so");
    for bytes in [
        &b""[..],
        b"KVD_PLUGIN_MANIFEST is only a word here",
        &[0xff; 5000],
    ] {
        std::fs::write(&path, bytes).unwrap();
        let (message, _) = refusal(&path);
        assert!(message.starts_with("not a shared library ("), "{message}");
        // It says what the system said, not only that it said something.
        assert!(!message.contains("dlopen failed"), "{message}");
    }
    let (message, _) = refusal(dir.path());
    assert!(message.starts_with("not a shared library ("), "{message}");
}

#[test]
fn a_library_that_is_half_copied_is_refused_and_does_not_kill_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libkvd_half.so");
    let whole = std::fs::read(library()).unwrap();
    for length in [20, 64, 1000, 5000, whole.len() / 2] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (message, hint) = refusal(&path);
        assert_eq!(
            message, "not a shared library (the file is cut short)",
            "{length} bytes"
        );
        assert_eq!(hint.as_deref(), Some("copy it again"));
    }
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (message, _) = refusal(&dir.path().join("libkvd_none.so"));
    assert!(message.contains("No such file"), "{message}");
}

#[test]
fn a_file_that_anyone_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libkvd_open.so");
    std::fs::copy(library(), &path).unwrap();
    let set_mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o757);
    let (message, hint) = refusal(&path);
    assert_eq!(message, "anyone may write to the file");
    let real = std::fs::canonicalize(&path).unwrap();
    assert_eq!(hint, Some(format!("chmod o-w {}", real.display())));
    // A link to it is no way around.
    let link = dir.path().join("link.so");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(refusal(&link).0, message);
    set_mode(0o755);
    Plugin::load(&path).unwrap();
}
