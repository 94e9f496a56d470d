//! Engines in C: the example is compiled as its first lines say, keeps the contract and serves; bad
//! tables are refused, and what an engine in C does wrong is contained where it can be seen.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kvd::exit;
use kvd::resp::Reply;
use kvd_tests::{Node, alone, built, kvd, refused, repository};
use serde_json::Value;

/// Compiles a library into the folder of what was built, with every warning an error.
fn compiled(source: &str, name: &str, more: &[&str]) -> PathBuf {
    let library = built().join(format!("lib{name}.so"));
    let mut cc = Command::new("cc");
    cc.current_dir(repository())
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(["-O2", "-shared", "-fPIC", "-pthread"])
        .args(["-I", "plugin-api/include", "-I", "plugins/journal"])
        .args(more)
        .arg("-o")
        .arg(&library)
        .arg(source);
    let output = cc.output().expect("cc is there: rustc links with it");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    library
}

pub(crate) fn journal() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compiled("plugins/journal/journal.c", "kvd_journal", &[]))
}

fn rogue() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compiled("tests/engines/rogue.c", "kvd_rogue_c", &[]))
}

fn said(args: &[&str]) -> (Option<i32>, String) {
    let output = kvd(args);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

#[test]
fn the_example_in_c_keeps_the_contract() {
    let _alone = alone();
    let library = journal().to_str().unwrap();
    let (code, said) = said(&["plugin", "check", library, "--quick", "--crash", "5"]);
    assert_eq!(code, Some(exit::OK), "{said}");
    assert!(said.contains("journal 1.0.0 keeps the contract"), "{said}");
    let untried: Vec<&str> = { said.lines() }
        .filter_map(|line| line.trim().strip_prefix("n/a      "))
        .collect();
    assert_eq!(
        untried,
        [
            "refused_batch_changes_nothing: the engine has no limit, or none that is low enough to \
             be tried",
            "view_without_capability_is_unsupported: the engine claims the capability",
        ],
        "it claims all, so that all is tried that it leaves: {said}"
    );
}

/// The journal is written anew in nearly every sync, also in the moment of a kill.
#[test]
fn the_example_in_c_keeps_its_promises_when_its_journal_is_short() {
    let _alone = alone();
    let library = journal().to_str().unwrap();
    let check = ["plugin", "check", library, "--quick", "--crash", "5"];
    let (code, said) = said(&[&check[..], &["--backend-opt=slack=0"]].concat());
    assert_eq!(code, Some(exit::OK), "{said}");
}

#[test]
fn a_library_in_c_says_what_it_is() {
    let _alone = alone();
    let library = journal().to_str().unwrap();
    let (code, told) = said(&["plugin", "info", library]);
    assert_eq!(code, Some(exit::OK), "{told}");
    for part in [
        "name          journal 1.0.0",
        "plugin API    1 (kvd_plugin.h 1.1.0)",
        "built         cc ",
        "optimised",
        "durable, view, fast-read, fast-delete-range, compact, verify, reconfigure",
        "about         an example in C: all in memory",
        "slack (size, default 16MiB)",
        "longest key   no limit",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let (_, told) = said(&["plugin", "info", "--json", library]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["language"], &told["loads"]),
        (&"C".into(), &true.into())
    );
    // What an operator mistypes does not reach the engine.
    let node = ["--backend", library, "--backend-opt"];
    let addresses = ["--addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"];
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("node");
    for (option, why) in [
        ("slick=1", "unknown option 'slick' (known: slack)"),
        ("slack=lots", "option 'slack' is 'lots', expected a size"),
    ] {
        let node = [&addresses[..], &node[..], &[option, dir.to_str().unwrap()]].concat();
        refused(&node, exit::CONFIG, why);
    }
}

#[test]
fn a_node_runs_on_an_engine_in_c() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node", journal().to_str().unwrap());
    node.start();
    for number in 0..500 {
        let (key, value) = (format!("key:{number}"), format!("value {number}"));
        assert_eq!(node.client().call(&["SET", &key, &value]), Reply::Ok);
    }
    assert_eq!(node.client().call(&["DEL", "key:7"]), Reply::Int(1));
    node.kill();
    node.start();
    assert_eq!(node.client().call(&["DBSIZE"]), Reply::Int(499));
    assert_eq!(
        node.client().call(&["GET", "key:499"]),
        Reply::bulk("value 499")
    );
    // An engine that can takes other options while it serves.
    let set = |option: &str| {
        node.client()
            .call(&["CONFIG", "SET", "backend-opt", option])
    };
    assert_eq!(set("slack=1MiB"), Reply::Ok);
    for (option, why) in [
        (
            "slack=lots",
            "option 'slack' is 'lots', expected a size such as 64MiB",
        ),
        ("slick=1MiB", "unknown option 'slick' (known: slack)"),
        ("slack", "argument must be name=value"),
    ] {
        let refused = format!("{:?}", set(option));
        assert!(refused.contains(why), "{option}: {refused}");
    }
    let info = node.client().call(&["INFO", "backend"]);
    let info = format!("{info:?}");
    assert!(info.contains("backend_name:journal"), "{info}");
}

#[test]
fn a_bad_table_is_refused_in_one_line() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("node");
    for (bad, why) in [
        (
            "SIZE_SMALL",
            "its table kvd_backend_v1 has 184 bytes, those of interface 1 have 192",
        ),
        ("SIZE_ZERO", "its table kvd_backend_v1 has 0 bytes"),
        ("SIZE_ABSURD", "does not begin with its size"),
        ("GET", "its table kvd_backend_v1 has no function 'get'"),
        (
            "VIEW",
            "it claims view, but its table kvd_backend_v1 has no function 'view'",
        ),
        (
            "COMPACT",
            "it claims compact, but its table kvd_backend_v1 has no function 'compact'",
        ),
        ("OPTIONS", "has 3 options, but not where they are"),
        (
            "OPTION",
            "option 1 of its table kvd_backend_v1 has no default",
        ),
        ("NAME", "its manifest has no name for the engine"),
        (
            "SYMBOL",
            "a plugin in C without its table (no kvd_backend_v1 symbol)",
        ),
        ("VERSION", "built for plugin API 7, this kvd supports 1"),
    ] {
        let define = format!("-DBAD_{bad}");
        let more = [&define, "-Wno-unused-function"];
        let name = format!("kvd_bad_{}", bad.to_lowercase());
        let library = compiled("tests/engines/bad_table.c", &name, &more);
        let file = library.to_str().unwrap();
        for command in ["info", "check", "bench"] {
            refused(&["plugin", command, file], exit::CONFIG, why);
        }
        let addresses = ["--addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"];
        let node = [&addresses[..], &["--backend", file, dir.to_str().unwrap()]].concat();
        refused(&node, exit::CONFIG, why);
        // Its manifest is told all the same.
        let (_, told) = said(&["plugin", "info", file]);
        assert!(told.contains("kvd_plugin.h 1."), "{bad}: {told}");
        std::fs::remove_file(library).unwrap();
    }
}

/// Before anything is made: an engine that stops at some entry stops there again at each start.
#[test]
fn an_engine_that_stores_less_than_its_node_may_be_given_is_refused_when_it_is_loaded() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("node");
    let flag = "hint: --max-entry-bytes";
    // What the engine says of itself, what is said of that, the hint, and whether `check` minds.
    for (number, (limits, why, hint, checks)) in [
        (
            ".batch_bytes_max = 1048576",
            "takes batches of 1048576 bytes at most (batch_bytes_max), and kvd needs \
             18446744073709551615 (no limit)",
            None,
            false,
        ),
        (
            ".key_bytes_max = 511",
            "takes keys of 511 bytes at most (key_bytes_max), and kvd needs 65557",
            Some("LongKeys".to_owned()),
            false,
        ),
        (
            ".key_bytes_max = 10000",
            "takes keys of 10000 bytes at most (key_bytes_max), and kvd needs 65557",
            Some(format!("{flag} 9979 makes")),
            true,
        ),
        (
            ".value_bytes_max = 1048576",
            "takes values of 1048576 bytes at most (value_bytes_max), and kvd needs 67108898",
            Some(format!("{flag} 1048542 makes")),
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let define = format!("-DBAD_LIMITS={limits}");
        let name = format!("kvd_small_{number}");
        let library = compiled("tests/engines/bad_table.c", &name, &[&define]);
        let file = library.to_str().unwrap();
        let addresses = ["--addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"];
        let node = [&addresses[..], &["--backend", file, dir.to_str().unwrap()]].concat();
        refused(&node, exit::CONFIG, why);
        assert!(!dir.exists(), "nothing was made");
        let (_, told) = said(&node);
        let hinted = hint.as_ref().is_none_or(|hint| told.contains(hint));
        assert!(hinted && told.contains("hint") == hint.is_some(), "{told}");
        let check = ["plugin", "check", file, "--quick", "--crash=0"];
        let (_, told) = said(&check);
        if checks {
            assert!(told.contains("for nodes with --max-entry-bytes"), "{told}");
        } else {
            assert!(!told.contains("n/a"), "nothing is tried: {told}");
            // What is too low for the least of nodes.
            let why = why.split(", and").next().unwrap();
            refused(&check, exit::CONFIG, why);
        }
        std::fs::remove_file(library).unwrap();
    }
}

#[test]
fn what_an_engine_in_c_does_wrong_is_contained_and_named() {
    let _alone = alone();
    let library = rogue().to_str().unwrap();
    let (code, told) = said(&["plugin", "check", library, "--quick", "--crash=0"]);
    assert_eq!(code, Some(exit::OK), "{told}");
    let absurd = "the engine broke its contract: it handed out bytes without an address, or more \
                  than a gigabyte of them";
    for (fault, how) in [
        (
            "open fails",
            "open in an empty directory failed: the disk is gone",
        ),
        ("open without an engine", "open returned without an engine"),
        (
            "mark that never comes",
            "the engine broke its contract: a mark never came",
        ),
        (
            "mark of absurd length",
            "the engine broke its contract: a mark of an absurd length",
        ),
        (
            "mark twice",
            "the engine broke its contract: a mark came more than once",
        ),
        ("value of absurd length", absurd),
        ("value of some gigabytes", absurd),
        ("value without an address", absurd),
        ("key of absurd length", absurd),
        (
            "value twice",
            "get reported one thing and handed out another",
        ),
        (
            "view without a view",
            "the engine broke its contract: view returned without a view",
        ),
        (
            "unknown status",
            "get failed: error 4711, without a message",
        ),
        ("message without an end", "get failed: xxxxxxxx"),
    ] {
        let fault_option = format!("--backend-opt=fault={fault}");
        let (code, told) = said(&[
            "plugin",
            "check",
            library,
            "--quick",
            "--crash=0",
            &fault_option,
        ]);
        assert_eq!(code, Some(exit::CONFIG), "{fault}: {told}");
        assert!(told.contains(how), "{fault}: {told}");
        assert!(!told.contains("signal"), "{fault}: {told}");
    }
}

/// What the engine says reaches the node's log, and what it breaks ends the node in order.
#[test]
fn a_node_hears_an_engine_in_c_and_ends_in_order_when_it_lies() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let library = rogue().to_str().unwrap();
    let mut node = Node::new(temp.path(), "good", library);
    node.start();
    assert_eq!(node.client().call(&["SET", "a", "1"]), Reply::Ok);
    assert!(node.log().contains("journal: opened in "), "{}", node.log());
    let fault = ["--backend-opt=fault=value of absurd length"];
    let mut node = Node::new(temp.path(), "bad", library).with(&fault);
    node.spawn();
    kvd_tests::until("the node ends", || node.exited().is_some());
    assert_eq!(
        node.exited().unwrap().code(),
        Some(exit::IO),
        "{}",
        node.log()
    );
    let last = node.log().lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("the engine broke its contract"), "{last}");
}
