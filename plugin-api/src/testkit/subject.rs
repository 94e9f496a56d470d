//! The engine under trial, and how clauses read, write and compare it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use tempfile::TempDir;

use crate::{Caps, Error, Feed, Flow, Limits, Mark, Op, Options, Range, Result, View};

use super::Effort;
use super::candidate::{Candidate, Opened};

/// Keys and values as they should be.
pub(super) type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// What comes of a clause, and of its parts.
pub(super) type Verdict<T = ()> = std::result::Result<T, String>;

/// The range of all keys.
pub(super) const ALL: Range<'static> = Range {
    from: b"",
    to: None,
    reverse: false,
};

/// Returns the formatted text as the clause's verdict unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(super) use ensure;

/// Opens engines of one kind with the same options, and tries clauses on them.
pub struct Kit<'a> {
    pub(super) candidate: &'a Candidate,
    options: &'a [(&'a str, &'a str)],
    pub(super) effort: Effort,
    folder: Option<&'a Path>,
}

/// An engine and its directory, which goes away with it.
pub(super) struct Subject {
    // Before the directory, which must outlive it.
    pub(super) backend: Box<dyn Opened>,
    dir: TempDir,
}

impl<'a> Kit<'a> {
    /// Tries `candidate`, opened with `options`, in temporary directories.
    pub fn new(candidate: &'a Candidate, options: &'a [(&'a str, &'a str)]) -> Self {
        Kit {
            candidate,
            options,
            effort: Effort::FULL,
            folder: None,
        }
    }

    /// The same, but in seconds rather than in minutes on a slow engine.
    #[must_use]
    pub fn quick(self) -> Self {
        Kit {
            effort: Effort::QUICK,
            ..self
        }
    }

    /// The same, with the engines' directories in `folder`.
    #[must_use]
    pub fn within(self, folder: &'a Path) -> Self {
        Kit {
            folder: Some(folder),
            ..self
        }
    }

    pub(super) fn caps(&self) -> Caps {
        self.candidate.caps
    }

    pub(super) fn limits(&self) -> Limits {
        self.candidate.limits
    }

    pub(super) fn is_durable(&self) -> bool {
        self.caps().contains(Caps::DURABLE)
    }

    /// The options as they were given.
    pub(super) fn given(&self) -> &[(&'a str, &'a str)] {
        self.options
    }

    pub(super) fn options(&self) -> Result<Options> {
        Options::parse(&self.candidate.options, self.options.iter().copied())
    }

    /// Opens an engine in `dir`.
    pub(super) fn open_in(&self, dir: &Path) -> Result<Box<dyn Opened>> {
        self.candidate.open(dir, self.options)
    }

    /// Opens an engine in a new directory.
    pub(super) fn open(&self) -> Verdict<Subject> {
        let dir = match self.folder {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        }
        .map_err(|error| format!("temporary directory: {error}"))?;
        let backend = self
            .open_in(dir.path())
            .map_err(during("open in an empty directory"))?;
        Ok(Subject { backend, dir })
    }

    /// The same with `entries` in it, under the mark 1.
    pub(super) fn open_with(&self, entries: &Entries) -> Verdict<Subject> {
        let subject = self.open()?;
        let puts: Vec<_> = entries
            .iter()
            .map(|(key, value)| Op::Put(key, value))
            .collect();
        subject.write(&puts, &mark(1))?;
        Ok(subject)
    }

    /// Drops the engine and opens another in its place.
    pub(super) fn reopen(&self, subject: Subject) -> Verdict<Subject> {
        let Subject { backend, dir } = subject;
        drop(backend);
        let backend = self
            .open_in(dir.path())
            .map_err(during("open after the engine was dropped"))?;
        Ok(Subject { backend, dir })
    }
}

impl Subject {
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Verdict {
        self.backend.write(batch, mark).map_err(during("write"))
    }

    pub(super) fn sync(&self) -> Verdict<Mark> {
        self.backend.sync().map_err(during("sync"))
    }

    pub(super) fn mark(&self) -> Verdict<Mark> {
        self.backend.mark().map_err(during("mark"))
    }

    pub(super) fn view(&self) -> Verdict<Box<dyn View>> {
        self.backend.view().map_err(during("view"))
    }

    pub(super) fn replace(&self, entries: &Entries, mark: &Mark) -> Verdict {
        let mut feed = EntriesFeed {
            entries: entries.iter(),
            end: None,
        };
        self.backend
            .replace(&mut feed, mark)
            .map_err(during("replace"))
    }
}

/// What an engine and its views have in common.
pub(super) trait Read {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;
}

impl Read for Subject {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.backend.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.backend.scan(range, out)
    }
}

/// An engine without a directory of its own.
impl Read for Box<dyn Opened> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Opened::get(&**self, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        Opened::scan(&**self, range, out)
    }
}

/// A view as a [`Read`].
pub(super) struct Still<'a>(pub(super) &'a dyn View);

impl Read for Still<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}

/// The value of a key.
pub(super) fn get(read: &impl Read, key: &[u8]) -> Verdict<Option<Vec<u8>>> {
    let mut value = None;
    let is_found = read
        .get(key, &mut |found| value = Some(found.to_vec()))
        .map_err(during("get"))?;
    ensure!(
        is_found == value.is_some(),
        "get of {} returned {is_found}, but its callback says otherwise",
        Bytes(key)
    );
    Ok(value)
}

/// The entries of a range in the order in which they come.
pub(super) fn scan(read: &impl Read, range: Range<'_>) -> Verdict<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut entries = Vec::new();
    read.scan(range, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        Flow::Continue
    })
    .map_err(during("scan"))?;
    Ok(entries)
}

/// Compares all entries, in whatever order they come, and the value that `get` has for each.
pub(super) fn compare(what: &str, read: &impl Read, expected: &Entries) -> Verdict {
    let found = scan(read, ALL)?.into_iter().collect();
    same(what, &found, expected)?;
    for (key, value) in expected {
        let found = get(read, key)?;
        ensure!(
            found.as_ref() == Some(value),
            "{what}: get of {} found {}, expected {}",
            Bytes(key),
            Value(found.as_deref()),
            Bytes(value)
        );
    }
    Ok(())
}

/// Compares entries, and names the first key that differs.
pub(super) fn same(what: &str, found: &Entries, expected: &Entries) -> Verdict {
    for key in found.keys().chain(expected.keys()) {
        let (found, expected) = (found.get(key), expected.get(key));
        ensure!(
            found == expected,
            "{what}: at key {} there is {}, expected {}",
            Bytes(key),
            Value(found.map(Vec::as_slice)),
            Value(expected.map(Vec::as_slice))
        );
    }
    Ok(())
}

/// Compares marks.
pub(super) fn same_mark(what: &str, found: &Mark, expected: &Mark) -> Verdict {
    ensure!(
        found == expected,
        "{what}: the mark is {} with {}, expected {} with {}",
        found.index,
        Bytes(&found.data),
        expected.index,
        Bytes(&expected.data)
    );
    Ok(())
}

/// A mark without bytes of the host.
pub(super) fn mark(index: u64) -> Mark {
    Mark {
        index,
        data: Vec::new(),
    }
}

/// Entries from literals.
pub(super) fn entries<const N: usize>(list: [(&str, &str); N]) -> Entries {
    list.into_iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

/// Says what was being done when an engine failed.
pub(super) fn during(what: &'static str) -> impl Fn(Error) -> String {
    move |error| format!("{what} failed: {error}")
}

/// A feed of entries that ends well, or with an error.
pub(super) struct EntriesFeed<I> {
    pub(super) entries: I,
    pub(super) end: Option<Error>,
}

impl<'a, I: Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>> Feed for EntriesFeed<I> {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        match (self.entries.next(), self.end.take()) {
            (Some((key, value)), end) => {
                self.end = end;
                out(key, value);
                Ok(true)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(false),
        }
    }
}

/// Bytes for people: escaped, and cut where they are many.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 32;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "'{}'", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// A value that may be absent, for people.
pub(super) struct Value<'a>(pub(super) Option<&'a [u8]>);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => Bytes(value).fmt(f),
            None => f.write_str("nothing"),
        }
    }
}
