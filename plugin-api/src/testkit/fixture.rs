//! What the tests of an engine need again and again, beside the suite.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Backend, Error, ErrorKind, Feed, OpenContext, Options, Result, View};

use super::history::{mark, write};

/// Opens the engine as a host does.
///
/// # Errors
///
/// The options' or the engine's.
pub fn open<B: Backend>(dir: &Path, given: &[(&str, &str)]) -> Result<B> {
    let options = &Options::parse(B::OPTIONS, given.iter().copied())?;
    B::open(&OpenContext { dir, options })
}

/// The value of a key in a view.
///
/// # Panics
///
/// It cannot be read.
pub fn get(view: &impl View, key: &[u8]) -> Option<Vec<u8>> {
    let mut found = None;
    if let Err(error) = view.get(key, &mut |value| found = Some(value.to_vec())) {
        panic!("get failed: {error}");
    }
    found
}

/// Copies the contents of a directory: what a process has told the system, when it is copied while
/// the engine is open.
///
/// # Errors
///
/// The file system's.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A feed that hands out as many entries and then fails with "source is gone".
pub struct FailingFeed(pub u32);

impl Feed for FailingFeed {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        if self.0 == 0 {
            return Err(Error::new(ErrorKind::Other, "source is gone"));
        }
        out(&u32::MAX.wrapping_sub(self.0).to_be_bytes(), b"fed");
        self.0 -= 1;
        Ok(true)
    }
}

/// The engine opens with each of `right`, and refuses each of `wrong`.
///
/// # Panics
///
/// That is not so.
pub fn options_are_checked<B: Backend>(right: &[&[(&str, &str)]], wrong: &[(&str, &str)]) {
    let Ok(dir) = tempfile::tempdir() else {
        panic!("no temporary directory");
    };
    for given in right {
        if let Err(error) = open::<B>(dir.path(), given) {
            panic!("{given:?}: {error}");
        }
    }
    for given in wrong {
        let kind = open::<B>(dir.path(), &[*given]).map_err(|error| error.kind());
        assert!(
            matches!(kind, Err(ErrorKind::InvalidOption)),
            "{given:?}: {:?}",
            kind.err()
        );
    }
}

/// An engine that was dropped, not closed, is opened again without a pause, and has what was
/// synced.
///
/// # Panics
///
/// That is not so.
pub fn dropped_engine_opens_again_at_once<B: Backend>(given: &[(&str, &str)]) {
    let Ok(dir) = tempfile::tempdir() else {
        panic!("no temporary directory");
    };
    for round in 0..5 {
        let backend = match open::<B>(dir.path(), given) {
            Ok(backend) => backend,
            Err(error) => panic!("round {round}: {error}"),
        };
        let found = backend.mark().map_err(|error| error.kind());
        assert_eq!(found, Ok(mark(round)));
        write(&backend, round + 1);
        let synced = backend.sync().map_err(|error| error.kind());
        assert_eq!(synced, Ok(mark(round + 1)));
    }
}
