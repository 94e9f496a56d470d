//! The page is true: each row names tests, and there are such tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kvd_tests::repository;

/// The names of all functions that are tests, and of all planted bugs and fuzz targets.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in [
        "kvd/src",
        "plugin-api",
        "plugins",
        "tests/src",
        "tests/tests",
    ] {
        gather(&repository().join(folder), &mut found);
    }
    found
}

fn gather(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        for file in fs::read_dir(path).unwrap() {
            gather(&file.unwrap().path(), found);
        }
        return;
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = line.split_once("fn ")
            && !line.starts_with("//")
        {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if std::mem::take(&mut is_test) {
                found.insert(name.to_owned());
            }
        }
    }
}

/// Names of planted bugs, as `simulation:NAME`.
fn plants() -> BTreeSet<String> {
    let text = fs::read_to_string(repository().join("tests/simulation/plant.rs")).unwrap();
    let all = text.split_once("pub(crate) const ALL").unwrap().1;
    let all = all.split_once("];").unwrap().0;
    let names = all.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("(\"")?;
        Some(format!("simulation:{}", rest.split('"').next()?))
    });
    names.collect()
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_hazard_names_tests_that_there_are() {
    let page = fs::read_to_string(repository().join("docs/hazards.md")).unwrap();
    let (tests, plants) = (tests(), plants());
    assert!(tests.len() > 300, "{} tests were found", tests.len());
    assert!(plants.len() > 9, "{plants:?}");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter(|line| !line.starts_with("| what ") && !line.starts_with("| ---"));
    let mut count = 0;
    for row in rows {
        count += 1;
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(
            cells.len(),
            3,
            "what went wrong, what kvd does, tests: {row}"
        );
        let named = quoted(cells[2]);
        assert!(!named.is_empty(), "no test is named: {row}");
        for name in named {
            assert!(
                tests.contains(name) || plants.contains(name),
                "there is no test '{name}': {row}"
            );
        }
    }
    assert!(count > 50, "{count} rows");
}
