//! `kvd plugin`, and engines that others write: built outside of the tree from what the package of
//! the interface holds, tried, loaded, and contained when they are bad.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{Node, alone, built, kvd, refused, repository, until};
use serde_json::Value;

/// Where crates outside of the tree are made and built; what they depend on is compiled once.
fn kit() -> PathBuf {
    built().parent().expect("a target folder").join("kit")
}

fn cargo(folder: &Path, args: &[&str]) -> Output {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo)
        .args(args)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", kit())
        .env("CARGO_NET_OFFLINE", "true")
        .output()
        .expect("cargo runs")
}

#[track_caller]
fn succeeds(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The interface as its package holds it, unpacked when first asked for.
fn interface() -> &'static Path {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let args = [
            "package",
            "-p",
            "kvd-plugin-api",
            "--no-verify",
            "--allow-dirty",
        ];
        succeeds(&cargo(&repository(), &args));
        let packed = kit().join("package/kvd-plugin-api-1.0.0.crate");
        let unpacked = kit().join("unpacked");
        // Files of an earlier version would be taken along; times that are kept would hide changes.
        drop(fs::remove_dir_all(&unpacked));
        fs::create_dir(&unpacked).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xmf").arg(packed).arg("-C").arg(&unpacked);
        succeeds(&tar.output().expect("tar runs"));
        unpacked.join("kvd-plugin-api-1.0.0")
    })
}

/// A crate as `kvd plugin new` writes it.
fn new_crate(name: &str) -> PathBuf {
    let folder = kit().join("crates").join(name);
    drop(fs::remove_dir_all(&folder));
    let (api, path) = (interface().to_str().unwrap(), folder.to_str().unwrap());
    let output = kvd(&["plugin", "new", name, "--path", path, "--plugin-api", api]);
    succeeds(&output);
    // The versions that are known here, so that nothing is fetched.
    fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    folder
}

/// The library of the engine that misbehaves on demand.
fn rogue() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = new_crate("rogue");
        let source = repository().join("tests/engines/rogue.rs");
        fs::copy(source, folder.join("src/lib.rs")).unwrap();
        succeeds(&cargo(&folder, &["build"]));
        kit().join("debug/libkvd_rogue.so")
    })
}

/// `kvd plugin check` on a library: its exit code, and what it said.
fn check(library: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut args = vec!["plugin", "check", library.to_str().unwrap(), "--quick"];
    args.extend(more);
    let output = kvd(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text(&output) + &said)
}

#[test]
fn a_new_engine_is_built_outside_of_the_tree_and_passes_and_serves() {
    let _alone = alone();
    let folder = new_crate("mine");
    succeeds(&cargo(&folder, &["fmt", "--check"]));
    let output = cargo(&folder, &["test"]);
    succeeds(&output);
    assert!(text(&output).contains("2 passed"), "{}", text(&output));
    succeeds(&cargo(&folder, &["build"]));
    let library = kit().join("debug/libkvd_mine.so");
    let (code, said) = check(&library, &[]);
    assert_eq!(code, Some(exit::OK), "{said}");
    assert!(said.contains("mine 0.1.0 keeps the contract"), "{said}");
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node", library.to_str().unwrap());
    node.start();
    assert_eq!(node.client().call(&["SET", "a", "42"]), Reply::Ok);
    node.kill();
    node.start();
    assert_eq!(node.client().call(&["GET", "a"]), Reply::bulk("42"));
}

#[test]
fn a_crate_is_not_written_over_another_nor_under_a_wrong_name() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("crate");
    let path = folder.to_str().unwrap();
    refused(
        &["plugin", "new", "Mine", "--path", path],
        exit::USAGE,
        "'Mine' is no name",
    );
    let elsewhere = temp.path().to_str().unwrap();
    refused(
        &[
            "plugin",
            "new",
            "mine",
            "--path",
            path,
            "--plugin-api",
            elsewhere,
        ],
        exit::USAGE,
        "not the folder of kvd-plugin-api",
    );
    assert!(!folder.exists());
    succeeds(&kvd(&["plugin", "new", "mine", "--path", path]));
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    assert!(
        manifest.contains("kvd-plugin-api = { version = \"1\" }"),
        "{manifest}"
    );
    refused(
        &["plugin", "new", "mine", "--path", path],
        exit::CONFIG,
        "is not empty",
    );
}

#[test]
fn the_shipped_engines_keep_the_contract_as_libraries() {
    let _alone = alone();
    for name in ["memory", "redb", "sled"] {
        let library = built().join(format!("libkvd_{name}.so"));
        let (code, said) = check(&library, &["--crash", "3"]);
        assert_eq!(code, Some(exit::OK), "{said}");
        assert!(
            said.contains("ok       kill_leaves_the_state_after_some_write"),
            "{said}"
        );
    }
}

#[test]
fn an_engine_that_misbehaves_fails_the_clause_and_not_the_run() {
    let _alone = alone();
    let (code, said) = check(rogue(), &[]);
    assert_eq!(code, Some(exit::OK), "{said}");
    // The fault, the clauses that meet it, and what is said of it.
    for (fault, clause, how) in [
        (
            "panic in open",
            "new_engine_is_empty",
            "the plugin panicked: as it was told",
        ),
        (
            "panic in get",
            "new_engine_is_empty",
            "get failed: the plugin panicked",
        ),
        (
            "panic in write",
            "mark_comes_with_its_batch",
            "write failed: the plugin panicked",
        ),
        (
            "panic in sync",
            "new_engine_is_empty",
            "sync failed: the plugin panicked",
        ),
        (
            "abort in write",
            "mark_comes_with_its_batch",
            "the process was ended by signal 6",
        ),
        (
            "block in sync",
            "new_engine_is_empty",
            "it did not end within 2 s",
        ),
        (
            "lie in sync",
            "reopened_engine_has_what_was_synced",
            "opened again with the mark 0, but 9 was synced",
        ),
    ] {
        let fault_option = format!("--backend-opt=fault={fault}");
        let (code, said) = check(rogue(), &[&fault_option, "--time-limit", "2"]);
        assert_eq!(code, Some(exit::CONFIG), "{fault}: {said}");
        let failed = said
            .split("FAILED   ")
            .find(|part| part.starts_with(clause));
        let failed = failed.unwrap_or_else(|| panic!("{fault}: {said}"));
        assert!(failed.contains(how), "{fault}: {said}");
        assert!(said.contains("kvd: backend '"), "{fault}: {said}");
    }
    // Where the clauses cannot see it, killing does.
    let (_, said) = check(rogue(), &["--backend-opt=fault=lie in sync"]);
    assert!(!said.contains("keeps the contract\n"), "{said}");
}
