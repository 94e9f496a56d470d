//! Copies the files of a stopped node's log.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::format::FORMAT;
use super::store::CHUNKS;
use crate::data_dir::sync_dir;

/// Whether there is a log in `dir`: one that was opened at least once.
pub fn exists(dir: &Path) -> bool {
    dir.join(CHUNKS).is_dir()
}

/// Copies the log in `from` into the empty directory `to`, byte for byte and durably: entries,
/// votes, what is known to be committed, also an unfinished record at its end.
///
/// # Errors
///
/// A file could not be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    copy_file(&from.join(FORMAT), &to.join(FORMAT))?;
    let (old, new) = (from.join(CHUNKS), to.join(CHUNKS));
    fs::create_dir(&new)?;
    for file in fs::read_dir(old)? {
        let file = file?;
        if file.file_type()?.is_file() {
            copy_file(&file.path(), &new.join(file.file_name()))?;
        }
    }
    sync_dir(&new)?;
    sync_dir(to)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}
