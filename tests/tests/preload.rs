//! Libraries that are preloaded into nodes, to see and to disturb what they do with their files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use kvd_tests::repository;

/// The library of `preload/NAME.c`, compiled when first asked for.
pub(crate) fn preload(name: &str) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(library) = built.get(name) {
        return library.clone();
    }
    let library = dir.path().join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("preload/{name}.c"));
    let status = Command::new("cc")
        .args([
            "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
        ])
        .arg(&library)
        .arg(&source)
        // What they share with the one that the plugin kit preloads.
        .arg("-I")
        .arg(repository().join("plugin-api/src/testkit/preload"))
        .arg("-ldl")
        .status()
        .expect("a C compiler runs");
    assert!(status.success(), "{} does not compile", source.display());
    built.insert(name.to_owned(), library.clone());
    library
}
