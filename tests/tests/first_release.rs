//! Plugins of the interface's first release, built with the sources of that time (see
//! `tests/first-release`), under today's kvd: what the interface was given since is not in their
//! way, and plugins of today have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kvd::exit;
use kvd::resp::Reply;
use kvd_plugin_api::ErrorKind;
use kvd_plugin_api::host::{Plugin, read_manifest};
use kvd_tests::{Node, alone, built, kvd, refused, repository};

use crate::c_plugin::journal;
use crate::plugin_kit::{cargo, kit, succeeds};

/// The frozen sources, where they can be built.
fn sources() -> &'static Path {
    static COPIED: OnceLock<PathBuf> = OnceLock::new();
    COPIED.get_or_init(|| {
        built();
        let folder = kit().join("first-release");
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(kit()).unwrap();
        let mut copy = Command::new("cp");
        let from = repository().join("tests/first-release");
        succeeds(&copy.arg("-r").arg(from).arg(&folder).output().unwrap());
        folder
    })
}

/// The plugin in Rust.
fn first() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = sources().join("rust");
        // The versions that are known here, so that nothing is fetched.
        fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        succeeds(&cargo(&folder, &["build"]));
        kit().join("debug/libkvd_first.so")
    })
}

/// The plugin in C.
fn first_c() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = kit().join("libkvd_first_c.so");
        let mut cc = Command::new("cc");
        cc.current_dir(sources())
            .args(["-O2", "-shared", "-fPIC", "-pthread"])
            .args(["-I", "kvd-plugin-api-1.0.0/include", "-o"])
            .arg(&library)
            .arg("c/first.c");
        succeeds(&cc.output().expect("cc is there: rustc links with it"));
        library
    })
}

fn said(args: &[&str]) -> String {
    let output = kvd(args);
    succeeds(&output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is asked of a plugin of any age.
fn is_accepted(library: &Path, name: &str) {
    let file = library.to_str().unwrap();
    let told = said(&["plugin", "check", file, "--quick"]);
    assert!(told.contains(&format!("{name} 1.0.0 keeps the contract")));
    // It cannot know what came later, and is not asked.
    assert!(
        told.contains("n/a      reconfigure_keeps_contents"),
        "{told}"
    );
    let told = said(&["plugin", "info", file]);
    assert!(told.contains(" 1.0.0)\nbuilt "), "{told}");
    assert!(!told.contains("about "), "{told}");
}

fn serves(library: &Path, more: &[&str]) -> (String, String) {
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node", library.to_str().unwrap()).with(more);
    node.start();
    for number in 0..50 {
        let key = format!("key:{number}");
        assert_eq!(node.client().call(&["SET", &key, "value"]), Reply::Ok);
    }
    assert_eq!(node.client().call(&["DEL", "key:7"]), Reply::Int(1));
    node.kill();
    node.start();
    assert_eq!(node.client().call(&["DBSIZE"]), Reply::Int(49));
    assert_eq!(node.client().call(&["GET", "key:8"]), Reply::bulk("value"));
    let info = format!("{:?}", node.client().call(&["INFO", "backend"]));
    (info, node.log())
}

#[test]
fn a_plugin_of_the_first_release_keeps_the_contract_and_serves() {
    let _alone = alone();
    is_accepted(first(), "first");
    let (info, log) = serves(first(), &["--backend-opt=label=of old"]);
    assert!(info.contains("first_label:of old"), "{info}");
    assert!(log.contains("opened with the label of old"), "{log}");
}

#[test]
fn a_plugin_in_c_of_the_first_release_keeps_the_contract_and_serves() {
    let _alone = alone();
    is_accepted(first_c(), "first-c");
    let (info, log) = serves(first_c(), &[]);
    assert!(info.contains("backend_name:first-c"), "{info}");
    assert!(log.contains("first-c: opened"), "{log}");
}

/// Both by the same call of the host: the old one says that it knows nothing of it, and goes on.
#[test]
fn what_came_since_is_unsupported_by_an_old_plugin_and_works_with_a_new_one() {
    let _alone = alone();
    let given = |value: &str| vec![("slack".to_owned(), value.to_owned())];
    for old in [first(), first_c()] {
        assert_eq!(read_manifest(old).unwrap().about, "");
        let temp = tempfile::tempdir().unwrap();
        let engine = Plugin::load(old).unwrap().open(temp.path(), &[]).unwrap();
        let error = engine.reconfigure(&given("1MiB")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        engine.mark().expect("it goes on");
    }
    assert!(read_manifest(journal()).unwrap().about.contains("in C"));
    let temp = tempfile::tempdir().unwrap();
    let plugin = Plugin::load(journal()).unwrap();
    let engine = plugin.open(temp.path(), &given("1GiB")).unwrap();
    let written = |engine: &kvd_plugin_api::host::Engine, index| {
        let mark = kvd_plugin_api::Mark {
            index,
            data: Vec::new(),
        };
        let value = vec![b'v'; 1 << 20];
        let put = kvd_plugin_api::Op::Put(b"key", &value);
        engine.write(&[put], &mark).unwrap();
        engine.sync().unwrap();
        let bytes = engine.property("kvd.disk.bytes").unwrap();
        bytes.parse::<u64>().unwrap()
    };
    let disk = (1..=5).map(|index| written(&engine, index)).max();
    assert!(
        disk > Some(5 << 20),
        "with so much slack nothing is cleaned up: {disk:?}"
    );
    engine.reconfigure(&given("0")).unwrap();
    assert!(written(&engine, 6) < 3 << 20, "the new value is in force");
    let error = engine.reconfigure(&given("lots")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
}

/// What the interface never does: the same version, and one field of another size.
#[test]
fn another_layout_under_the_same_version_is_refused_in_one_line() {
    let _alone = alone();
    let folder = kit().join("other-layout");
    drop(fs::remove_dir_all(&folder));
    let mut copy = Command::new("cp");
    succeeds(&copy.arg("-r").arg(sources()).arg(&folder).output().unwrap());
    let interface = folder.join("kvd-plugin-api-1.0.0/src/abi/v1.rs");
    let text = fs::read_to_string(&interface).unwrap();
    let changed = text.replace("pub kind: u8,\n    pub a:", "pub kind: u32,\n    pub a:");
    let changed = changed.replace("OP_PUT: u8", "OP_PUT: u32");
    let changed = changed.replace("OP_DELETE: u8", "OP_DELETE: u32");
    let changed = changed.replace("OP_DELETE_RANGE: u8", "OP_DELETE_RANGE: u32");
    assert_ne!(text, changed);
    fs::write(&interface, changed).unwrap();
    let manifest = folder.join("rust/Cargo.toml");
    let named = fs::read_to_string(&manifest).unwrap();
    let named = named
        .replace("kvd-first", "kvd-other-layout")
        .replace("kvd_first", "kvd_other_layout");
    fs::write(&manifest, named).unwrap();
    let folder = folder.join("rust");
    fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    succeeds(&cargo(&folder, &["build"]));
    let library = kit().join("debug/libkvd_other_layout.so");
    let file = library.to_str().unwrap();
    let why =
        "same API version but another binary layout (plugin-api 1.0.0 / kvd 1.1.0): rebuild it";
    for command in ["info", "check", "bench"] {
        refused(&["plugin", command, file], exit::CONFIG, why);
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("node");
    let addresses = ["--addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"];
    let node = [&addresses[..], &["--backend", file, dir.to_str().unwrap()]].concat();
    refused(&node, exit::CONFIG, why);
}

/// The frozen sources are what they were: whoever changes them changes what is promised.
#[test]
fn the_first_release_is_left_alone() {
    let folder = repository().join("tests/first-release");
    let mut files: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "README.md") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for file in files {
        let name = file.strip_prefix(&folder).unwrap().to_str().unwrap();
        let bytes = fs::read(&file).unwrap();
        for byte in name.bytes().chain(bytes) {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    assert_eq!(format!("{sum:016x}"), "9a73aaedff4a4c12");
}
