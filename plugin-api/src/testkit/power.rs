//! A process that writes loses its power again and again: it is killed, its files go back to what a
//! disk may hold of them, and the engine must open with the state after some write, not older than
//! its last promise.
//!
//! A small library that is preloaded into the process keeps a copy of each file and directory as it
//! was when its last completed sync began (see `preload/keep_synced.c`). What was written since is
//! lost by the block, by chance: a block of a file is the synced one or the one that was there at
//! the kill. Names are those of the last sync of their directory and of new files that were synced
//! themselves, or all that were there at the kill, so that renames and removals are undone or not.
//!
//! Not simulated: a block that was written twice since its sync and is in between, and a block that
//! is torn. Only what goes through the C library's `fsync` and `fdatasync` is seen: of an engine
//! that writes through mapped memory or io_uring this says nothing ([`unseen`]).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use tempfile::TempDir;

use super::history::Random;

/// What disks and file systems write as one.
const BLOCK: usize = 4096;

/// The library that is preloaded, compiled for this machine.
pub struct Shim {
    dir: TempDir,
}

impl Shim {
    /// Compiles it with the system's C compiler.
    ///
    /// # Errors
    ///
    /// There is none, or it does not work.
    pub fn build() -> Result<Shim, String> {
        let said = |error: io::Error| format!("the library that watches syncs: {error}");
        let shim = Shim {
            dir: tempfile::tempdir().map_err(said)?,
        };
        for (name, text) in [
            ("keep_synced.c", include_str!("preload/keep_synced.c")),
            ("watched.h", include_str!("preload/watched.h")),
        ] {
            fs::write(shim.dir.path().join(name), text).map_err(said)?;
        }
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(shim.library())
            .arg(shim.dir.path().join("keep_synced.c"))
            .arg("-ldl")
            .output()
            .map_err(|error| format!("no C compiler (cc): {error}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the library that watches syncs: {text}"));
        }
        Ok(shim)
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("keep_synced.so")
    }
}

/// A disk that can lose its power, with one engine's directory.
pub struct Disk {
    engine: PathBuf,
    kept: PathBuf,
    was: PathBuf,
    random: Random,
}

impl Disk {
    /// A disk in `root`, which is empty, and in it the empty directory of an engine.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn new(root: &Path, seed: u64) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let disk = Disk {
            engine: root.join("engine"),
            kept: root.join("kept"),
            was: root.join("was"),
            random: Random::new(seed),
        };
        fs::create_dir(&disk.engine)?;
        fs::create_dir(&disk.kept)?;
        Ok(disk)
    }

    /// The engine's directory.
    pub fn engine(&self) -> &Path {
        &self.engine
    }

    /// The environment of a process that writes there.
    pub fn environment(&self, shim: &Shim) -> [(&'static str, OsString); 3] {
        [
            ("LD_PRELOAD", shim.library().into()),
            ("KVD_POWER_DIR", self.engine.clone().into()),
            ("KVD_POWER_KEPT", self.kept.clone().into()),
        ]
    }

    /// The same of a disk that only says it has synced.
    pub fn lying_environment(&self, shim: &Shim) -> [(&'static str, OsString); 3] {
        let mut environment = self.environment(shim);
        // Nothing is watched, so nothing that is synced from now on is kept.
        environment[1].1 = self.was.clone().into();
        environment
    }

    /// Loses power once nothing writes any more: the engine's directory becomes what the disk
    /// holds. Returns how many blocks were lost.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn lose_power(&mut self) -> io::Result<u64> {
        fs::rename(&self.engine, &self.was)?;
        let mut files = HashMap::new();
        note_files(&self.was, &mut files)?;
        let mut lost = 0;
        let (was, engine) = (self.was.clone(), self.engine.clone());
        self.rebuild(&was, &identity(&was)?, &engine, &files, &mut lost)?;
        fs::remove_dir_all(&self.was)?;
        self.settle()?;
        Ok(lost)
    }

    /// All that is there is on the disk: the files are other files after a loss, and one who has
    /// looked at them may have closed them in order.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn settle(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.kept)?;
        fs::create_dir(&self.kept)?;
        self.keep_all(&self.engine)
    }

    fn keep_all(&self, dir: &Path) -> io::Result<()> {
        let mut names = String::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let file = identity(&path)?;
            names += &format!("{file} {}\n", name_of(&path)?);
            if path.is_dir() {
                self.keep_all(&path)?;
            } else {
                fs::copy(&path, self.kept.join(&file))?;
            }
        }
        let file = identity(dir)?;
        fs::write(self.kept.join(format!("{file}.names")), names)
    }

    /// Makes the directory `file`, which lay at `was`, again at `to`.
    fn rebuild(
        &mut self,
        was: &Path,
        file: &str,
        to: &Path,
        files: &HashMap<String, PathBuf>,
        lost: &mut u64,
    ) -> io::Result<()> {
        fs::create_dir(to)?;
        let names = if self.random.below(2) == 0 {
            self.synced_names(file, to)?
        } else {
            let mut names = Vec::new();
            for entry in fs::read_dir(was)? {
                let path = entry?.path();
                names.push((identity(&path)?, name_of(&path)?));
            }
            names
        };
        for (file, name) in names {
            let to = to.join(&name);
            match files.get(&file) {
                Some(path) if path.is_dir() => {
                    self.rebuild(&path.clone(), &file, &to, files, lost)?;
                }
                found => {
                    let kept = read(&self.kept.join(&file))?;
                    let now = found.map(fs::read).transpose()?;
                    let bytes = match now.or_else(|| kept.clone()) {
                        Some(latest) => self.mix(&kept.unwrap_or_default(), &latest, lost),
                        // A name whose file was removed and never synced: an empty file.
                        None => Vec::new(),
                    };
                    fs::write(to, bytes)?;
                }
            }
        }
        Ok(())
    }

    /// The names of the directory `file` when it was synced, and those by which files that are new
    /// in it since, at `dir`, were synced themselves.
    fn synced_names(&self, file: &str, dir: &Path) -> io::Result<Vec<(String, String)>> {
        let text = read(&self.kept.join(format!("{file}.names")))?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut names: Vec<(String, String)> = { text.lines() }
            .filter_map(|line| line.split_once(' '))
            .map(|(file, name)| (file.to_owned(), name.to_owned()))
            .collect();
        for entry in fs::read_dir(&self.kept)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "path") {
                continue;
            }
            let synced = PathBuf::from(fs::read_to_string(&path)?);
            // Empty where the kill came before the name was noted: nothing was promised of it.
            if synced.parent() != Some(dir) {
                continue;
            }
            let (file, name) = (stem_of(&path)?, name_of(&synced)?);
            let is_known = |(known, other): &(String, String)| *known == file || *other == name;
            if !names.iter().any(is_known) {
                names.push((file, name));
            }
        }
        Ok(names)
    }

    /// By the block, what was synced or what was written since.
    fn mix(&mut self, synced: &[u8], latest: &[u8], lost: &mut u64) -> Vec<u8> {
        // The length is one of the two: a file that has grown or was cut may be either.
        let len = if self.random.below(2) == 0 {
            synced.len()
        } else {
            latest.len()
        };
        // Half of the time everything that was not synced is lost.
        let loses_all = self.random.below(2) == 0;
        let mut bytes = vec![0; len];
        for at in (0..len).step_by(BLOCK) {
            let end = len.min(at + BLOCK);
            let part = |of: &[u8]| of.get(at..of.len().min(end)).unwrap_or_default().to_vec();
            let (old, new) = (part(synced), part(latest));
            let chosen = if loses_all || self.random.below(2) == 0 {
                *lost += u64::from(old != new);
                old
            } else {
                new
            };
            bytes[at..at + chosen.len()].copy_from_slice(&chosen);
        }
        bytes
    }
}

/// Why nothing can be said of the losses of a process that writes under `dir`, if that is so.
pub fn unseen(process: u32, dir: &Path) -> Option<&'static str> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let dir = dir.to_string_lossy();
    let is_mapped = |line: &str| {
        let mut fields = line.split_whitespace();
        let mode = fields.nth(1).unwrap_or_default();
        mode.contains('w') && mode.ends_with('s') && line.contains(&*dir)
    };
    if maps.lines().any(is_mapped) {
        return Some("the engine writes through mapped memory, whose losses cannot be simulated");
    }
    let handles = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    handles
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target.to_string_lossy().contains("[io_uring]"))
        .then_some("the engine writes through io_uring, whose losses cannot be simulated")
}

/// What a file is known by, as the preloaded library says it: an inode is used again.
fn identity(path: &Path) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let born = meta.created()?;
    let born = born.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let (seconds, nanoseconds) = (born.as_secs(), born.subsec_nanos());
    Ok(format!("{}-{seconds}-{nanoseconds}", meta.ino()))
}

fn name_of(path: &Path) -> io::Result<String> {
    text(path.file_name())
}

fn stem_of(path: &Path) -> io::Result<String> {
    text(path.file_stem())
}

fn text(name: Option<&std::ffi::OsStr>) -> io::Result<String> {
    name.and_then(|name| name.to_str())
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("a name that is no text"))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn note_files(dir: &Path, files: &mut HashMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            note_files(&path, files)?;
        }
        files.insert(identity(&path)?, path);
    }
    Ok(())
}
