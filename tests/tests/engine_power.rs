//! Losses of power under the engines that kvd ships: a process that writes is killed, its files go
//! back to what a disk may hold of them, and the engine must open with the state after some write,
//! not older than its last promise.
//!
//! A preloaded library keeps a copy of each file and directory as it was when its last completed
//! sync began (see `preload/keep_synced.c`). What was written since is lost by the block, by
//! chance: a block of a file is the synced one or the one that was there at the kill. Names are
//! those of the last sync of their directory and of new files that were synced themselves, or all
//! that were there at the kill, so that renames and removals are undone or not. Not simulated: a block that was written twice since its sync
//! and is in between, and a block that is torn.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kvd_plugin_api::testkit::history::Random;
use kvd_tests::{alone, built, kvd, until};
use serde_json::Value;

use crate::preload::preload;

/// What disks and file systems write as one.
const BLOCK: usize = 4096;

/// A disk that can lose its power.
struct Disk {
    /// Where the engine's directory is, in a folder of its own.
    root: PathBuf,
    kept: PathBuf,
    random: Random,
}

impl Disk {
    fn new(root: &Path, seed: u64) -> Self {
        let root = root.canonicalize().unwrap();
        let kept = root.join("kept");
        fs::create_dir(&kept).unwrap();
        fs::create_dir_all(root.join("trial/engine")).unwrap();
        Disk {
            root,
            kept,
            random: Random::new(seed),
        }
    }

    fn trial(&self) -> PathBuf {
        self.root.join("trial")
    }

    fn engine(&self) -> PathBuf {
        self.trial().join("engine")
    }

    /// Runs the process of `kvd plugin check --crash` until it has promised something more, and
    /// kills it. Returns its last promise.
    fn write_and_kill(&mut self, library: &str, lies: bool) -> u64 {
        let promises = self.trial().join("promises");
        drop(fs::remove_file(&promises));
        let mut command = Command::new(built().join("kvd"));
        command
            .args(["plugin", "trial", library, "crash-write"])
            .arg(self.trial())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !lies {
            command.env("KVD_POWER_DIR", self.engine());
        } else {
            // Nothing is watched, so nothing that is synced from now on is kept.
            command.env("KVD_POWER_DIR", self.root.join("nowhere"));
        }
        command
            .env("LD_PRELOAD", preload("keep_synced"))
            .env("KVD_POWER_KEPT", &self.kept);
        let mut child = command.spawn().unwrap();
        let wanted = 1 + self.random.below(4) as usize;
        let told = || fs::read_to_string(&promises).unwrap_or_default();
        until("marks are promised", || {
            assert_eq!(child.try_wait().unwrap(), None, "the process has ended");
            told().lines().count() > wanted
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let told = told();
        let last = told.rsplit('\n').nth(1).unwrap();
        last.parse().unwrap()
    }

    /// What the engine says of the directory: its mark, or how it breaks its promise.
    fn verify(&self, library: &str, promised: u64) -> Result<u64, String> {
        let promised = promised.to_string();
        let trial = self.trial();
        drop(fs::remove_file(trial.join("outcome")));
        let args = ["plugin", "trial", library, "crash-verify"];
        let more = [trial.to_str().unwrap(), "--promised", &promised];
        kvd(&[&args[..], &more[..]].concat());
        let outcome = fs::read_to_string(trial.join("outcome")).unwrap();
        let outcome: Value = serde_json::from_str(&outcome).unwrap();
        match outcome["index"].as_u64() {
            Some(index) => Ok(index),
            None => Err(outcome.to_string()),
        }
    }

    /// Loses power: the engine's directory becomes what the disk holds. Returns how many blocks
    /// and names were lost.
    fn lose_power(&mut self) -> u64 {
        let was = self.root.join("was");
        drop(fs::remove_dir_all(&was));
        fs::rename(self.engine(), &was).unwrap();
        let mut files = HashMap::new();
        note_files(&was, &mut files);
        let mut lost = 0;
        self.rebuild(&was, &identity(&was), &self.engine(), &files, &mut lost);
        // The new files are other files, and all of them are on the disk.
        fs::remove_dir_all(&self.kept).unwrap();
        fs::create_dir(&self.kept).unwrap();
        self.keep_all(&self.engine());
        lost
    }

    /// Makes the directory `file`, which lay at `was`, again at `to`.
    fn rebuild(
        &mut self,
        was: &Path,
        file: &str,
        to: &Path,
        files: &HashMap<String, PathBuf>,
        lost: &mut u64,
    ) {
        fs::create_dir(to).unwrap();
        let synced = fs::read_to_string(self.kept.join(format!("{file}.names")));
        let synced = synced.unwrap_or_default();
        let synced: Vec<(String, String)> = { synced.lines() }
            .map(|line| line.split_once(' ').unwrap())
            .map(|(file, name)| (file.to_owned(), name.to_owned()))
            .collect();
        let now: Vec<(String, String)> = { fs::read_dir(was).unwrap() }
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    identity(&entry.path()),
                    entry.file_name().into_string().unwrap(),
                )
            })
            .collect();
        let names = if self.random.below(2) == 0 {
            self.with_synced_files(was, synced)
        } else {
            now
        };
        for (file, name) in names {
            let to = to.join(&name);
            match files.get(&file) {
                Some(path) if path.is_dir() => self.rebuild(&path.clone(), &file, &to, files, lost),
                found => {
                    let kept = fs::read(self.kept.join(&file)).ok();
                    let now = found.map(|path| fs::read(path).unwrap());
                    let Some(latest) = now.or(kept.clone()) else {
                        // A name whose file was removed and never synced: an empty file.
                        fs::write(to, b"").unwrap();
                        continue;
                    };
                    fs::write(to, self.mix(&kept.unwrap_or_default(), &latest, lost)).unwrap();
                }
            }
        }
    }

    /// The names of a directory, and those by which files in it were synced that are new since.
    fn with_synced_files(
        &self,
        dir: &Path,
        mut names: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let inside = dir.strip_prefix(self.root.join("was")).unwrap();
        let dir = self.engine().join(inside);
        for entry in fs::read_dir(&self.kept).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "path") {
                continue;
            }
            let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let synced = PathBuf::from(fs::read_to_string(&path).unwrap());
            // Empty where the kill came before the name was noted: nothing was promised of it.
            let Some(name) = synced
                .file_name()
                .map(|name| name.to_str().unwrap().to_owned())
            else {
                continue;
            };
            let is_known = |(known, other): &(String, String)| *known == file || *other == name;
            if synced.parent() == Some(&*dir) && !names.iter().any(is_known) {
                names.push((file, name));
            }
        }
        names
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

    /// Everything under `dir` is on the disk.
    fn keep_all(&self, dir: &Path) {
        let mut names = String::new();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let file = identity(&entry.path());
            names += &format!("{file} {}\n", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                self.keep_all(&entry.path());
            } else {
                fs::copy(entry.path(), self.kept.join(&file)).unwrap();
            }
        }
        let file = identity(dir);
        fs::write(self.kept.join(format!("{file}.names")), names).unwrap();
    }
}

/// What a file is known by, as the preloaded library says it: an inode is used again.
fn identity(path: &Path) -> String {
    let meta = fs::metadata(path).unwrap();
    let born = meta
        .created()
        .expect("the file system notes when a file was made");
    let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{}-{}-{}", meta.ino(), born.as_secs(), born.subsec_nanos())
}

fn note_files(dir: &Path, files: &mut HashMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        files.insert(identity(&path), path.clone());
        if path.is_dir() {
            note_files(&path, files);
        }
    }
}

fn seed() -> u64 {
    std::env::var("KVD_SEED").map_or(1, |seed| seed.parse().expect("KVD_SEED is a number"))
}

fn rounds() -> u64 {
    std::env::var("KVD_ROUNDS").map_or(4, |rounds| rounds.parse().expect("a number"))
}

fn keeps_its_promises(engine: &str) {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let library = built().join(format!("libkvd_{engine}.so"));
    let library = library.to_str().unwrap();
    let mut disk = Disk::new(temp.path(), seed());
    let mut lost = 0;
    // Whether anything is unsynced at a kill is chance; rounds in which nothing was show nothing.
    for round in 1.. {
        let promised = disk.write_and_kill(library, false);
        lost += disk.lose_power();
        let found = disk.verify(library, promised);
        assert!(
            found.is_ok(),
            "KVD_SEED={} round {round}: {found:?}",
            seed()
        );
        // What the verifying process has done is on the disk; it closed nothing in a hurry.
        disk.keep_all(&disk.engine());
        if round >= rounds() && lost > 0 {
            break;
        }
        assert!(round < 10 * rounds(), "nothing was ever unsynced");
    }
}

#[test]
fn redb_keeps_its_promises_over_losses_of_power() {
    keeps_its_promises("redb");
}

#[test]
fn sled_keeps_its_promises_over_losses_of_power() {
    keeps_its_promises("sled");
}

#[test]
fn fjall_keeps_its_promises_over_losses_of_power() {
    keeps_its_promises("fjall");
}

/// The tests above can fail: on a disk that only says it has synced, promises are lost.
#[test]
fn a_disk_that_lies_about_syncs_loses_what_engines_promised() {
    let _alone = alone();
    for engine in ["redb", "sled", "fjall"] {
        let temp = tempfile::tempdir().unwrap();
        let library = built().join(format!("libkvd_{engine}.so"));
        let library = library.to_str().unwrap();
        let mut is_found = false;
        for round in 0..10 {
            let root = temp.path().join(round.to_string());
            fs::create_dir(&root).unwrap();
            let mut disk = Disk::new(&root, seed() + round);
            let promised = disk.write_and_kill(library, true);
            disk.lose_power();
            if disk.verify(library, promised).is_err() {
                is_found = true;
                break;
            }
        }
        assert!(
            is_found,
            "{engine} has everything, though nothing was synced"
        );
    }
}
