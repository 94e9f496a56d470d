//! Licences beyond MIT and Apache-2.0 are known: `docs/licences.md` lists each crate that has one,
//! of the workspace and of the benchmarks.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use kvd_tests::repository;
use serde_json::Value;

/// Whether `licence` can be taken as MIT or Apache-2.0 alone.
fn is_plain(licence: &str) -> bool {
    licence
        .replace('/', " OR ")
        .split(" OR ")
        .map(|choice| choice.trim_matches(|c: char| c == '(' || c == ')' || c == ' '))
        .any(|choice| choice == "MIT" || choice == "Apache-2.0")
        && !licence.contains(" AND ")
}

/// Every crate of the lock file beside `manifest` under another licence, as a row of the page:
/// `name | licence`.
fn others(manifest: &str) -> BTreeSet<(String, String)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .current_dir(repository())
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--manifest-path", manifest])
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    assert!(packages.len() > 50, "the whole tree is listed");
    packages
        .iter()
        .map(|package| {
            let text = |field: &str| package[field].as_str().unwrap_or("none").to_owned();
            (text("name"), text("license"))
        })
        .filter(|(_, licence)| !is_plain(licence))
        .collect()
}

#[test]
fn choices_are_told_from_obligations() {
    for plain in [
        "MIT",
        "Apache-2.0",
        "MIT/Apache-2.0",
        "Zlib OR MIT",
        "Apache-2.0 OR (MIT)",
    ] {
        assert!(is_plain(plain), "{plain}");
    }
    for other in [
        "MPL-2.0",
        "none",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "MIT-0",
        "ISC",
    ] {
        assert!(!is_plain(other), "{other}");
    }
}

#[test]
fn every_other_licence_in_the_tree_is_listed() {
    let page = fs::read_to_string(repository().join("docs/licences.md")).unwrap();
    let listed: BTreeSet<(String, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| {
            let (name, rest) = line.split_once("` | ")?;
            Some((name.to_owned(), rest.split(" | ").next()?.to_owned()))
        })
        .collect();
    let mut found = others("Cargo.toml");
    found.extend(others("bench/Cargo.toml"));
    found.extend(others("plugins/lmdb/Cargo.toml"));
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "not in docs/licences.md: {missing:?}");
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "no longer in the tree: {gone:?}");
}
