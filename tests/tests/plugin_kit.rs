//! `kvd plugin`, and engines that others write: built outside of the tree from what the package of
//! the interface holds, tried, loaded, and contained when they are bad.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use kvd::exit;
use kvd::resp::Reply;
use kvd_plugin_api::manifest::PLUGIN_API;
use kvd_tests::{Node, alone, built, kvd, refused, repository, until};
use serde_json::Value;

/// Where crates outside of the tree are made and built; what they depend on is compiled once.
pub(crate) fn kit() -> PathBuf {
    built().parent().expect("a target folder").join("kit")
}

pub(crate) fn cargo(folder: &Path, args: &[&str]) -> Output {
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
pub(crate) fn succeeds(output: &Output) {
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
        let name = format!("kvd-plugin-api-{}", PLUGIN_API.trim_end_matches('\0'));
        let packed = kit().join("package").join(format!("{name}.crate"));
        let unpacked = kit().join("unpacked");
        // Files of an earlier version would be taken along; times that are kept would hide changes.
        drop(fs::remove_dir_all(&unpacked));
        fs::create_dir(&unpacked).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xmf").arg(packed).arg("-C").arg(&unpacked);
        succeeds(&tar.output().expect("tar runs"));
        unpacked.join(name)
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

/// Two engines of one name could not be told apart: not their libraries, nor their directories.
#[test]
fn a_new_engine_is_not_given_the_name_of_one_that_comes_with_kvd() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("crate");
    let mut names = 0;
    for plugin in fs::read_dir(repository().join("plugins")).unwrap() {
        let plugin = plugin.unwrap();
        let name = plugin.file_name().into_string().unwrap();
        // What the tests of several engines share is no engine.
        if name == "testing" || !plugin.path().is_dir() {
            continue;
        }
        refused(
            &["plugin", "new", &name, "--path", folder.to_str().unwrap()],
            exit::USAGE,
            &format!("'{name}' is an engine that comes with kvd"),
        );
        names += 1;
    }
    assert!(names >= 7 && !folder.exists(), "{names}");
}

/// It says nothing of the engine, so no clause is tried.
#[test]
fn a_wrong_option_is_named_in_one_line_and_nothing_is_tried_with_it() {
    let _alone = alone();
    for (option, why) in [
        ("sise=1", "unknown option 'sise' (known: "),
        (
            "cache_size=lots",
            "option 'cache_size' is 'lots', expected a size",
        ),
        // Which only the engine itself knows.
        ("cache_size=1", "cache_size is 1, at least "),
    ] {
        for command in ["check", "bench"] {
            let args = ["plugin", command, "redb", "--backend-opt", option];
            refused(&args, exit::USAGE, why);
            let said = kvd(&args);
            let lines = String::from_utf8_lossy(&said.stderr).lines().count();
            assert!(lines <= 2, "a line and its hint: {said:?}");
            assert!(!text(&said).contains("n/a"), "{}", text(&said));
        }
    }
}

#[test]
fn the_shipped_engines_keep_the_contract_as_libraries() {
    let _alone = alone();
    for name in ["files", "memory", "redb", "sled", "fjall"] {
        let library = built().join(format!("libkvd_{name}.so"));
        let (code, said) = check(&library, &["--crash", "3"]);
        assert_eq!(code, Some(exit::OK), "{said}");
        // fjall writes nothing but what it syncs at once: a loss may never meet it in between.
        let missed = name == "fjall" && said.contains("all was synced whenever the power was lost");
        let (kills, power, verdict) = match name {
            // A volatile engine has nothing to lose, and nothing to look at afterwards.
            "memory" => ("n/a", "n/a", "of which no crash can show anything"),
            _ if missed => ("ok ", "n/a", "as far as 3 kills show"),
            _ => ("ok ", "ok ", "as far as 3 kills and "),
        };
        for (state, clause) in [(kills, "kill_leaves"), (power, "loss_of_power_leaves")] {
            let line = format!("{state}      {clause}_the_state_after_some_write: ");
            assert!(said.contains(&line), "{line}: {said}");
        }
        assert!(said.contains(verdict), "{said}");
        let few = said.contains(": few, --crash 100 shows more");
        assert_eq!(few, name != "memory", "{said}");
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
            "block in open",
            "new_engine_is_empty",
            "it did not end within 2 s",
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
    // A destructor's panic is caught, and breaks no clause.
    let (code, said) = check(rogue(), &["--backend-opt=fault=panic in drop"]);
    assert_eq!(code, Some(exit::OK), "{said}");
    // Where an orderly end hides it, killing does not, nor does a loss of power.
    let (code, said) = check(rogue(), &["--backend-opt=fault=delay in sync", "--crash=5"]);
    assert_eq!(code, Some(exit::CONFIG), "{said}");
    let failed: Vec<&str> = said.split("FAILED   ").skip(1).collect();
    assert!(failed[0].starts_with("kill_leaves_"), "{said}");
    for part in failed {
        let by_a_crash = ["kill_leaves_", "loss_of_power_leaves_"];
        assert!(
            by_a_crash.iter().any(|clause| part.starts_with(clause)),
            "{said}"
        );
        assert!(part.contains("was promised by sync or replace"), "{said}");
    }
}

/// A node on the engine that misbehaves, in a directory of its own.
fn node_with(fault: &str, root: &Path) -> Node {
    Node::new(root, "node", rogue().to_str().unwrap())
        .with(&["--max-log-bytes", "65536"])
        .with(&[&format!("--backend-opt=fault={fault}")])
}

#[test]
fn a_panic_of_the_engine_ends_its_node_in_order_and_is_named() {
    let _alone = alone();
    for (fault, code) in [
        ("panic in open", exit::CONFIG),
        ("panic in get", exit::IO),
        ("panic in write", exit::IO),
        ("panic in sync", exit::IO),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let mut node = node_with(fault, temp.path());
        node.spawn();
        until("the node ends", || node.exited().is_some());
        let status = node.exited().unwrap();
        assert_eq!(status.code(), Some(code), "{fault}: {}", node.log());
        let last = node.log().lines().last().unwrap_or_default().to_owned();
        assert!(
            last.contains("the plugin panicked: as it was told"),
            "{fault}: {last}"
        );
    }
}

/// It says what was refused, and that the next start meets it again.
#[test]
fn an_engine_that_refuses_what_its_limits_allow_is_named_when_its_node_ends() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = node_with("refuse in write", temp.path());
    node.start();
    let value = "v".repeat(100_000);
    assert_eq!(node.client().call(&["SET", "a", &value]), Reply::Ok);
    for _ in 0..2 {
        until("the node ends", || node.exited().is_some());
        let status = node.exited().unwrap();
        assert_eq!(status.code(), Some(exit::CONFIG), "{}", node.log());
        let last = node.log().lines().last().unwrap_or_default().to_owned();
        for part in [
            "kvd cannot go on, nor could it after a restart",
            "it refused a batch of ",
            " bytes as too large, which is within its limits: 64 KiB are enough",
        ] {
            assert!(last.contains(part), "{part}: {last}");
        }
        node.kill();
        node.spawn();
    }
}

/// Its node ends as if nothing had happened, and says what did.
#[test]
fn a_panic_of_the_engines_destructor_goes_no_further() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = node_with("panic in drop", temp.path());
    node.start();
    assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(node.terminate(), Some(exit::OK), "{}", node.log());
}

/// Nothing can take the engine's thread away from it, but the others go on: what is written waits in
/// memory, and the log says why.
#[test]
fn an_engine_that_blocks_in_a_write_does_not_block_its_node() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = node_with("block in write", temp.path());
    node.start();
    assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
    let line = "the engine 'rogue' has not returned from write for 5 s";
    until("the node says what it waits for", || {
        node.log().contains(line)
    });
    assert_eq!(node.client().call(&["SET", "a", "2"]), Reply::Ok);
    assert_eq!(node.client().call(&["GET", "a"]), Reply::bulk("2"));
}

/// A start waits for its engine, whatever comes, but says so.
#[test]
fn a_start_that_waits_for_its_engine_says_so() {
    let _alone = alone();
    for call in ["open", "sync"] {
        let temp = tempfile::tempdir().unwrap();
        let mut node = node_with(&format!("block in {call}"), temp.path());
        node.spawn();
        let line = format!("the engine 'rogue' has not returned from {call} for 5 s");
        until("the node says what it waits for", || {
            node.log().contains(&line)
        });
        assert!(node.exited().is_none(), "{}", node.log());
        node.kill();
    }
}

#[test]
fn an_engine_that_lied_about_its_mark_is_found_out_by_the_next_start() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = node_with("lie in sync", temp.path());
    node.start();
    let value = "v".repeat(4096);
    until("the log is cut behind the mark", || {
        for key in 0..50 {
            let key = format!("key:{key}");
            assert_eq!(node.client().call(&["SET", &key, &value]), Reply::Ok);
        }
        node.info_number("raft_purged_index") > 0
    });
    node.kill();
    node.spawn();
    until("the node ends", || node.exited().is_some());
    assert_eq!(node.exited().unwrap().code(), Some(exit::CONFIG));
    let last = node.log().lines().last().unwrap_or_default().to_owned();
    assert!(
        last.contains("entries are missing; wipe this node's data directory"),
        "{last}"
    );
}

/// A copy of a plugin, with some of its bytes changed.
fn changed(root: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(built().join("libkvd_memory.so")).unwrap();
    change(&mut bytes);
    let file = root.join(name);
    fs::write(&file, bytes).unwrap();
    file
}

fn of_another_interface(bytes: &mut [u8]) {
    // The magic, a size of four bytes, and the interface's version.
    let at = bytes
        .windows(8)
        .position(|part| part == b"KVDPLUG\0")
        .unwrap();
    bytes[at + 12..at + 16].copy_from_slice(&7_u32.to_le_bytes());
}

fn of_another_machine(bytes: &mut [u8]) {
    const MACHINE: usize = 18;
    const AARCH64: u16 = 183;
    const X86_64: u16 = 62;
    let other = if cfg!(target_arch = "x86_64") {
        AARCH64
    } else {
        X86_64
    };
    bytes[MACHINE..MACHINE + 2].copy_from_slice(&other.to_le_bytes());
}

#[test]
fn a_bad_file_is_refused_in_one_line_by_every_command_and_by_a_node() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let text = root.join("text.so");
    fs::write(&text, "not a library").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = {
        maps.lines()
            .filter_map(|line| line.split_whitespace().nth(5))
    }
    .find(|path| path.contains("/libc.so"))
    .expect("the tests are linked with libc");
    for (file, why) in [
        (root.join("none.so"), "not found"),
        (text, "not a shared library"),
        (libc.into(), "not a kvd plugin"),
        (
            changed(root, "libkvd_short.so", |bytes| {
                bytes.truncate(bytes.len() / 2)
            }),
            "the file is cut short",
        ),
        (
            changed(root, "libkvd_later.so", |bytes| of_another_interface(bytes)),
            "built for plugin API 7, this kvd supports 1",
        ),
        (
            changed(root, "libkvd_foreign.so", |bytes| of_another_machine(bytes)),
            "not a shared library",
        ),
    ] {
        let file = file.to_str().unwrap();
        for command in ["info", "check", "bench"] {
            refused(&["plugin", command, file], exit::CONFIG, why);
        }
        let dir = root.join("data");
        let addresses = ["--addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"];
        let node = [&addresses[..], &["--backend", file, dir.to_str().unwrap()]].concat();
        refused(&node, exit::CONFIG, why);
    }
}

#[test]
fn a_manifest_is_told_also_of_a_file_that_cannot_be_loaded() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let whole = kvd(&["plugin", "info", "memory", "--json"]);
    let whole: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(whole["loads"], true);
    assert_eq!(
        whole["capabilities"],
        serde_json::json!(["view", "fast-read"])
    );
    let changes: [(&str, fn(&mut [u8]), u64); 2] = [
        ("later.so", of_another_interface, 7),
        ("foreign.so", of_another_machine, 1),
    ];
    for (name, change, interface) in changes {
        let file = changed(temp.path(), name, |bytes| change(bytes));
        let output = kvd(&["plugin", "info", "--json", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(exit::CONFIG));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["loads"], &told["interface"]),
            (&false.into(), &interface.into())
        );
        for same in [
            "about",
            "name",
            "version",
            "plugin_api",
            "rustc",
            "target",
            "optimised",
        ] {
            assert_eq!(told[same], whole[same], "{name}");
        }
        assert!(told["reason"].is_string(), "{told}");
        let output = kvd(&["plugin", "info", file.to_str().unwrap()]);
        assert!(
            text(&output).contains("name          memory "),
            "{}",
            text(&output)
        );
    }
}

#[test]
fn plugins_are_listed_with_what_keeps_them_from_being_loaded() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    changed(temp.path(), "libkvd_later.so", |bytes| {
        of_another_interface(bytes)
    });
    changed(temp.path(), "libkvd_memory.so", |_| {});
    changed(temp.path(), "libkvd_mine.so", |_| {});
    let list = |more: &[&str]| {
        let output = Command::new(built().join("kvd"))
            .args(["plugin", "list"])
            .args(more)
            .env("KVD_PLUGIN_PATH", temp.path())
            .output()
            .unwrap();
        succeeds(&output);
        text(&output)
    };
    let said = list(&[]);
    let line = |part: &str| {
        said.lines()
            .find(|line| line.contains(part))
            .unwrap_or_default()
    };
    assert!(
        line("libkvd_later.so").contains("cannot be loaded: built for plugin API 7"),
        "{said}"
    );
    assert!(
        line("/libkvd_redb.so").starts_with("redb ") && line("/libkvd_redb.so").ends_with("  ok")
    );
    // The first folder wins.
    let first = temp.path().canonicalize().unwrap().join("libkvd_memory.so");
    assert!(
        line(&first.display().to_string()).ends_with("  ok"),
        "{said}"
    );
    assert!(
        said.contains(&format!("hidden by {}", first.display())),
        "{said}"
    );
    // What a directory says of its engine would find another library, or none.
    let warning = "--backend mine finds it, but its engine is 'memory'";
    let warnings: Vec<&str> = { said.lines() }
        .filter(|line| line.starts_with("    warning: "))
        .collect();
    assert!(
        warnings
            .iter()
            .filter(|line| line.contains(warning))
            .count()
            == 1,
        "{said}"
    );
    assert!(
        !warnings
            .iter()
            .any(|line| line.contains("--backend memory")),
        "{said}"
    );
    let json = list(&["--json"]);
    let found: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // What a library says of itself stands below it.
    let lines = said.lines().filter(|line| !line.starts_with(' '));
    assert_eq!(found.len(), lines.count());
    assert!(
        said.contains("\n    experimental: "),
        "sled says so: {said}"
    );
    assert!(
        found
            .iter()
            .any(|plugin| plugin["name"] == "sled" && plugin["loads"] == true)
    );
    let warned = |part: &str| {
        found.iter().any(|plugin| {
            plugin["file"].as_str().unwrap().contains(part) && plugin["warning"].is_string()
        })
    };
    assert!(warned("libkvd_mine.so") && !warned("libkvd_redb.so"));
}

#[test]
fn an_engine_and_the_interface_are_measured() {
    let _alone = alone();
    built();
    let args = ["--seconds", "1", "--keys", "2000", "--value-bytes", "10"];
    let output = kvd(&[&["plugin", "bench", "redb"], &args[..]].concat());
    succeeds(&output);
    let said = text(&output);
    let figure = |what: &str| {
        let line = said.lines().find(|line| line.trim().starts_with(what));
        let line = line.unwrap_or_else(|| panic!("no {what} in {said}"));
        let rest = line.trim().strip_prefix(what).unwrap_or_default().trim();
        let number = rest
            .trim_start_matches("mean ")
            .split([' ', ','])
            .next()
            .unwrap();
        number
            .parse::<f64>()
            .unwrap_or_else(|_| panic!("no number in {line}"))
    };
    for what in [
        "fill, batches of 1000",
        "get",
        "scan, an entry",
        "write, batches of 1 ",
    ] {
        assert!(figure(what) > 100.0, "{said}");
    }
    for what in ["sync, each second, of 100 ", "close", "reopen", "on disk"] {
        assert!(figure(what) > 0.0, "{said}");
    }
    let (_, interface) = said
        .split_once("the call itself")
        .expect("the interface's figures");
    assert!(
        interface.contains("  get ") && interface.contains(" ns"),
        "{said}"
    );
}

/// The guide's commands are ones that kvd takes, and a new crate is announced as the guide has it.
#[test]
fn the_guide_says_what_is_true() {
    let _alone = alone();
    built();
    let page = fs::read_to_string(repository().join("docs/plugins.md")).unwrap();
    let mut commands = 0;
    for line in page.lines() {
        let line = line.trim_start_matches("$ ");
        let Some(args) = line.strip_prefix("kvd plugin ") else {
            continue;
        };
        // Flags are looked at from left to right, and help ends that.
        let args: Vec<&str> = args.split(' ').chain(["--help"]).collect();
        succeeds(&kvd(&[&["plugin"], &args[..]].concat()));
        commands += 1;
    }
    assert!(commands >= 8, "{commands}");
    let temp = tempfile::tempdir().unwrap();
    let output = Command::new(built().join("kvd"))
        .args(["plugin", "new", "mine"])
        .current_dir(temp.path())
        .output()
        .unwrap();
    succeeds(&output);
    let said = format!("$ kvd plugin new mine\n{}", text(&output));
    assert!(page.contains(&said), "{said}");
}
