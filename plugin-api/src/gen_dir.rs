//! Swapping in whole new contents safely, for engines that cannot do it in one transaction.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

const CURRENT: &str = "CURRENT";
const CURRENT_NEXT: &str = "CURRENT.next";
const LOCK: &str = "LOCK";
const PREFIX: &str = "gen-";
const NONE: &str = "none";

/// A directory of numbered generations, of which the file `CURRENT` names the one in force.
///
/// A generation is a file or a directory called `gen-N`, with any contents that the engine likes.
/// The engine builds a new one beside the old, makes it durable, and calls
/// [`switch`](Self::switch): after a crash at any moment [`current`](Self::current) is the old
/// one or the new one, whole. The directory is locked for as long as the value lives.
///
/// `CURRENT` also carries the engine's format, so that a foreign directory is refused; it is
/// written before the first generation, so that its loss is noticed instead of being taken for an
/// empty directory.
#[derive(Debug)]
pub struct GenDir {
    dir: PathBuf,
    format: String,
    current: Option<u64>,
    lock: File,
}

impl Drop for GenDir {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that was just forked has a handle to it as
        // well until its own program begins. What cannot be unlocked goes with the last handle.
        let _ = self.lock.unlock();
    }
}

/// A generation that is being built; see [`GenDir::prepare`].
#[derive(Debug)]
pub struct Generation {
    number: u64,
    path: PathBuf,
}

impl Generation {
    /// Where it lies, or is to be created as a file or a directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number; later generations have higher ones.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl GenDir {
    /// Locks `dir`, which exists, and reads which generation is in force; removes others, which
    /// are what a crash left of a replacement.
    ///
    /// `format` is one line, such as `kvd-redb 1`; an empty directory gets it.
    ///
    /// # Errors
    ///
    /// `Locked` when another `GenDir` has the directory; `Incompatible` when it holds something
    /// else or another format; `Corruption` when `CURRENT` is lost or names what is not there;
    /// `Io`.
    pub fn open(dir: &Path, format: &str) -> Result<GenDir> {
        debug_assert!(!format.contains('\n'));
        // Looked at before the lock file is made, to leave a foreign directory untouched.
        read_current(dir, format)?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(dir.join(LOCK))
            .map_err(|error| context(error, "opening the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("{} is open elsewhere", dir.display());
                return Err(Error::new(ErrorKind::Locked, message));
            }
            Err(TryLockError::Error(error)) => return Err(context(error, "locking")),
        }
        let (is_new, current) = read_current(dir, format)?;
        let mut this = GenDir {
            dir: dir.to_owned(),
            format: format.to_owned(),
            current,
            lock,
        };
        if is_new {
            this.point_to(None)?;
        }
        this.remove_stale()?;
        Ok(this)
    }

    /// As [`open`](Self::open), and opens what is in force; in a new directory it is created first,
    /// which must make it durable.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) and of the two functions.
    pub fn open_or_create<T>(
        dir: &Path,
        format: &str,
        open: impl FnOnce(&Path) -> Result<T>,
        create: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<(GenDir, T)> {
        let mut this = GenDir::open(dir, format)?;
        let opened = match this.current() {
            Some(generation) => open(generation.path())?,
            None => {
                let first = this.prepare()?;
                let created = create(first.path())?;
                this.switch(&first)?;
                created
            }
        };
        Ok((this, opened))
    }

    /// Puts what `build` makes, durably, in force in the place of what is. What was in force
    /// before stays on disk, as after [`switch`](Self::switch).
    ///
    /// # Errors
    ///
    /// The outer one is that of the switch: either may be in force then, and the engine must not
    /// write to any. With the inner one, that of `build`, the old one is in force as before.
    pub fn install<T>(&mut self, build: impl FnOnce(&Path) -> Result<T>) -> Result<Result<T>> {
        let next = match self.prepare() {
            Ok(next) => next,
            Err(error) => return Ok(Err(error)),
        };
        match build(next.path()) {
            Ok(built) => {
                self.switch(&next)?;
                Ok(Ok(built))
            }
            Err(error) => {
                // The first error is the one that matters; the next opening removes what is left.
                let _ = remove(&next.path);
                Ok(Err(error))
            }
        }
    }

    /// The generation in force, or `None` in a directory that never had one.
    pub fn current(&self) -> Option<Generation> {
        self.current.map(|number| self.generation(number))
    }

    /// A place for a new generation, where nothing lies.
    ///
    /// # Errors
    ///
    /// `Io` when a leftover could not be removed.
    pub fn prepare(&self) -> Result<Generation> {
        let generation = self.generation(self.current.unwrap_or(0) + 1);
        remove(&generation.path)?;
        Ok(generation)
    }

    /// Puts `next` in force, durably; it must itself be complete and durable.
    ///
    /// What was in force before stays on disk, for readers that still use it, until
    /// [`remove_stale`](Self::remove_stale).
    ///
    /// # Errors
    ///
    /// `Io` or `NoSpace`. Either one may be in force then: the engine must not write to any.
    pub fn switch(&mut self, next: &Generation) -> Result<()> {
        // The new generation's own directory entry must be there before anything points to it.
        sync_dir(&self.dir)?;
        self.point_to(Some(next.number))
    }

    /// Removes every generation but the one in force.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn remove_stale(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_stale = match parse_generation(name) {
                Some(number) => Some(number) != self.current,
                None => name == CURRENT_NEXT,
            };
            if is_stale {
                remove(&self.dir.join(name))?;
            }
        }
        Ok(())
    }

    fn generation(&self, number: u64) -> Generation {
        Generation {
            number,
            path: self.dir.join(format!("{PREFIX}{number}")),
        }
    }

    fn point_to(&mut self, number: Option<u64>) -> Result<()> {
        let name = number.map_or(NONE.to_owned(), |number| format!("{PREFIX}{number}"));
        let next = self.dir.join(CURRENT_NEXT);
        let mut file = File::create(&next)?;
        file.write_all(format!("{}\n{name}\n", self.format).as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, self.dir.join(CURRENT))?;
        sync_dir(&self.dir)?;
        self.current = number;
        Ok(())
    }
}

/// Whether the directory is new, and the number of the generation in force.
fn read_current(dir: &Path, format: &str) -> Result<(bool, Option<u64>)> {
    let text = match fs::read_to_string(dir.join(CURRENT)) {
        Ok(text) => text,
        Err(error) if error.kind() == IoErrorKind::NotFound => {
            refuse_contents(dir)?;
            return Ok((true, None));
        }
        Err(error) if error.kind() == IoErrorKind::InvalidData => {
            return Err(foreign(dir, "CURRENT is not text"));
        }
        Err(error) => return Err(context(error, "reading CURRENT")),
    };
    let mut lines = text.lines();
    let found = lines.next().unwrap_or_default();
    if found != format {
        let message = format!(
            "format is '{}', expected '{format}'",
            found.escape_default()
        );
        return Err(foreign(dir, &message));
    }
    match lines.next() {
        Some(NONE) => Ok((false, None)),
        Some(name) => {
            let number = parse_generation(name)
                .ok_or_else(|| corrupt(dir, "CURRENT does not name a generation"))?;
            if !dir.join(name).exists() {
                return Err(corrupt(dir, &format!("{name} is missing")));
            }
            Ok((false, Some(number)))
        }
        None => Err(corrupt(dir, "CURRENT is cut short")),
    }
}

/// Without `CURRENT` a directory must be empty, but for what is made before it.
fn refuse_contents(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        match name.to_str() {
            Some(LOCK | CURRENT_NEXT) => {}
            Some(name) if parse_generation(name).is_some() => {
                return Err(corrupt(
                    dir,
                    &format!("there is a {name}, but CURRENT is missing"),
                ));
            }
            _ => {
                let message = format!("'{}' is not this engine's", name.display());
                return Err(foreign(dir, &message));
            }
        }
    }
    Ok(())
}

fn parse_generation(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(context(error, "removing")),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    // Only Unix lets a directory be opened and synced; elsewhere a rename is as durable as it gets.
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

fn context(error: std::io::Error, what: &str) -> Error {
    let error = Error::from(error);
    Error::new(error.kind(), format!("{what}: {error}"))
}

fn foreign(dir: &Path, message: &str) -> Error {
    Error::new(
        ErrorKind::Incompatible,
        format!("{}: {message}", dir.display()),
    )
}

fn corrupt(dir: &Path, message: &str) -> Error {
    Error::new(
        ErrorKind::Corruption,
        format!("{}: {message}", dir.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "test 1";

    fn open(dir: &Path) -> Result<GenDir> {
        GenDir::open(dir, FORMAT)
    }

    fn number(gens: &GenDir) -> Option<u64> {
        gens.current().map(|generation| generation.number())
    }

    #[test]
    fn new_directory_has_no_generation() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(number(&open(dir.path()).unwrap()), None);
        assert_eq!(number(&open(dir.path()).unwrap()), None);
    }

    #[test]
    fn switched_generation_is_in_force_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut gens = open(dir.path()).unwrap();
        for expected in 1..=3 {
            let next = gens.prepare().unwrap();
            assert_eq!(next.number(), expected);
            fs::write(next.path(), [expected as u8]).unwrap();
            gens.switch(&next).unwrap();
        }
        drop(gens);
        let gens = open(dir.path()).unwrap();
        assert_eq!(fs::read(gens.current().unwrap().path()).unwrap(), [3]);
        assert!(!dir.path().join("gen-1").exists() && !dir.path().join("gen-2").exists());
    }

    #[test]
    fn what_could_not_be_built_leaves_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let make = |text: &'static str| move |path: &Path| Ok(fs::write(path, text)?);
        let open = |_: &Path| unreachable!("there is nothing");
        let (mut gens, ()) =
            GenDir::open_or_create(dir.path(), FORMAT, open, make("first")).unwrap();
        gens.install(make("second")).unwrap().unwrap();
        let failing = |path: &Path| -> Result<()> {
            fs::write(path, "half")?;
            Err(Error::new(ErrorKind::Other, "gone"))
        };
        let error = gens.install(failing).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "gone");
        // The first may still be read.
        let there = |number: u64| gens.generation(number).path.exists();
        assert_eq!((1..=3).map(there).collect::<Vec<_>>(), [true, true, false]);
        drop(gens);
        let open = |path: &Path| Ok(fs::read_to_string(path)?);
        let create = |_: &Path| unreachable!("it was created");
        let (_, text) = GenDir::open_or_create(dir.path(), FORMAT, open, create).unwrap();
        assert_eq!(text, "second");
    }

    #[test]
    fn generation_that_was_not_switched_to_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut gens = open(dir.path()).unwrap();
        let first = gens.prepare().unwrap();
        fs::write(first.path(), "old").unwrap();
        gens.switch(&first).unwrap();
        let second = gens.prepare().unwrap();
        fs::create_dir(second.path()).unwrap();
        fs::write(second.path().join("half"), "new").unwrap();
        fs::write(dir.path().join(CURRENT_NEXT), "test").unwrap();
        drop(gens);
        let gens = open(dir.path()).unwrap();
        assert_eq!(number(&gens), Some(1));
        assert!(!second.path().exists() && !dir.path().join(CURRENT_NEXT).exists());
    }

    #[test]
    fn a_handle_that_a_forked_process_still_has_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let inherited = first.lock.try_clone().unwrap();
        drop(first);
        open(dir.path()).unwrap();
        drop(inherited);
    }

    #[test]
    fn second_opening_is_locked_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
        drop(first);
        open(dir.path()).unwrap();
    }

    #[test]
    fn foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.mdb"), "x").unwrap();
        assert_eq!(
            open(dir.path()).unwrap_err().kind(),
            ErrorKind::Incompatible
        );
        assert!(!dir.path().join(LOCK).exists());
    }

    #[test]
    fn other_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        let error = GenDir::open(dir.path(), "test 2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(
            error.to_string().contains("'test 1', expected 'test 2'"),
            "{error}"
        );
    }

    #[test]
    fn lost_files_are_corruption_not_emptiness() {
        let dir = tempfile::tempdir().unwrap();
        let mut gens = open(dir.path()).unwrap();
        let next = gens.prepare().unwrap();
        fs::write(next.path(), "data").unwrap();
        gens.switch(&next).unwrap();
        drop(gens);

        let current = fs::read(dir.path().join(CURRENT)).unwrap();
        fs::remove_file(dir.path().join(CURRENT)).unwrap();
        assert_eq!(open(dir.path()).unwrap_err().kind(), ErrorKind::Corruption);
        fs::write(dir.path().join(CURRENT), current).unwrap();
        fs::remove_file(next.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap_err().kind(), ErrorKind::Corruption);
    }
}
