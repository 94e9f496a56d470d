//! What goes wrong with a member's disk: errors, no room, losses of power, damage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvd::exit;
use kvd_tests::{free_bytes, until};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::cluster::Cluster;
use crate::power::Disk;

/// The room on a member's disk, where it has one of its own.
const DISK_BYTES: u64 = 128 << 20;

/// Below so much, commands that grow the data are refused.
pub(super) const FLOOR_BYTES: u64 = 16 << 20;

/// What a member's disk was told to do, in the words of `preload/fail_io.c`.
pub(super) struct Armed {
    once: bool,
    /// The one sync that was to fail did so in the process that runs now.
    pub(super) has_failed: bool,
}

/// Where a record is in its file.
struct Record {
    offset: u64,
    bytes: u64,
}

/// Where a log is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// One bit of something that is followed by more.
    Flip,
    /// A file is missing, or is cut short and others follow.
    Hole,
    /// The end of the last file is missing.
    Tail,
}

impl Cluster<'_> {
    /// Its disk does this from now on.
    pub(super) fn arm(&mut self, n: usize, what: &str) {
        // As a whole: the node may read it at any time.
        let (file, new) = (self.beside(n, "fails"), self.beside(n, "fails-new"));
        fs::write(&new, what).unwrap();
        fs::rename(&new, &file).unwrap();
        let state = &mut self.states[n];
        state.fallible |= !what.starts_with("slow");
        state.armed = Some(Armed {
            once: what.starts_with("sync-once"),
            has_failed: false,
        });
    }

    /// Whether the one sync that was to fail has been asked for.
    fn has_fired(&self, n: usize) -> bool {
        let armed = self.states[n].armed.as_ref();
        armed.is_some_and(|armed| armed.once) && !self.beside(n, "fails").exists()
    }

    /// A process has ended, and what its disk did once ended with it.
    pub(super) fn forget_what_fired(&mut self, n: usize) {
        if self.has_fired(n) {
            self.states[n].armed = None;
            self.happened("syncs that failed once");
        }
    }

    /// Its disk works, and has room.
    pub(super) fn mend_disk(&mut self, n: usize) {
        // What is not there does not fail. One that was to fail once, and had not yet, never will.
        let is_unfired = fs::remove_file(self.beside(n, "fails")).is_ok();
        let runs = self.nodes[n].pid().is_some();
        let armed = &mut self.states[n].armed;
        match armed {
            Some(armed) if armed.once && runs && !is_unfired => armed.has_failed = true,
            _ => *armed = None,
        }
        if let Some(filler) = self.states[n].filler.take() {
            fs::remove_file(filler).unwrap();
        }
    }

    /// Its disk has room for so many bytes, and no more; whether it has a disk of its own.
    pub(super) fn fill_disk(&mut self, n: usize, left: u64) -> bool {
        if self.mounts.is_empty() || self.states[n].filler.is_some() {
            return false;
        }
        let disk = self.nodes[n].dir.parent().unwrap();
        let filler = disk.join("filler");
        let file = File::create(&filler).unwrap();
        let taken = free_bytes(disk).saturating_sub(left);
        if taken > 0 {
            // The node takes room meanwhile, so this much may not be there any more.
            let flags = rustix::fs::FallocateFlags::empty();
            let _ = rustix::fs::fallocate(&file, flags, 0, taken);
        }
        self.states[n].filler = Some(filler);
        self.states[n].fallible = true;
        true
    }

    /// Its power goes, and what it had not synced with it.
    pub(super) fn lose_power(&mut self, n: usize) {
        self.kill(n);
        let dir = &self.nodes[n].dir;
        // It may be one that is to begin anew and has not.
        if !dir.exists() {
            return;
        }
        let notes = self.beside(n, "notes");
        let lost = Disk::read(&notes).lose(dir, &dir.join("groups/0/engine"));
        Disk::note_all(&notes, dir);
        let mut report = self.report.lock().unwrap();
        report.happened("bytes lost with the power", lost);
    }

    /// The files of a member's log, in order.
    fn chunks(&self, n: usize) -> Vec<PathBuf> {
        let chunks = fs::read_dir(self.nodes[n].dir.join("groups/0/log/chunks"));
        let chunks = chunks
            .into_iter()
            .flatten()
            .map(|chunk| chunk.unwrap().path());
        let mut chunks: Vec<PathBuf> = chunks
            .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
            .collect();
        chunks.sort();
        chunks
    }

    /// The records in the last file of a stopped member's log.
    fn records(&self, n: usize) -> Vec<Record> {
        let dir = self.nodes[n].dir.to_str().unwrap();
        let last = self.chunks(n).pop();
        let printed = kvd_tests::kvd(&["log", "inspect", "--json", dir]).stdout;
        let printed = String::from_utf8(printed).unwrap();
        let mut records = Vec::new();
        for line in printed.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            if record["file"].as_str() == last.as_deref().and_then(Path::to_str) {
                let number = |name: &str| record[name].as_u64().unwrap();
                records.push(Record {
                    offset: number("offset"),
                    bytes: number("bytes"),
                });
            }
        }
        records
    }

    /// A member is killed in the middle of a write: its log has an unfinished record at its end,
    /// which the next start cuts off.
    pub(super) fn tear_log(&mut self, n: usize, random: &mut StdRng) -> bool {
        if self.states[n].damaged {
            return false;
        }
        self.kill(n);
        let records = self.records(n);
        let (Some(last), false) = (self.chunks(n).pop(), records.is_empty()) else {
            return false;
        };
        let bytes = fs::read(&last).unwrap();
        // A record like any other, of which not everything came.
        let record = &records[random.next_u64() as usize % records.len()];
        let part = 1 + random.next_u64() % (record.bytes - 1);
        let begin = record.offset as usize;
        let (part, rest) = bytes[begin..begin + record.bytes as usize].split_at(part as usize);
        // Otherwise it is whole, or none.
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if is_zero(part) || is_zero(rest) {
            return false;
        }
        let end = records.last().map_or(0, |last| last.offset + last.bytes);
        // What is done to the log here needs room, as what a member does would.
        self.mend_disk(n);
        let file = File::options().write(true).open(last).unwrap();
        file.write_all_at(part, end).unwrap();
        file.sync_all().unwrap();
        self.happened("torn tails made");
        self.answer_after_start(n);
        true
    }

    /// Starts a member whose disk is in order.
    fn answer_after_start(&mut self, n: usize) {
        self.mend_disk(n);
        self.states[n].armed = None;
        self.nodes[n].start();
        self.states[n].fallible = false;
    }

    /// Hurts a stopped member's log. It must refuse to start, and is replaced: what it had may be
    /// gone. One at a time is hurt: the others have what was acknowledged.
    pub(super) fn damage(&mut self, n: usize, how: Damage, random: &mut StdRng) -> bool {
        if self.change.is_some() || self.nodes[n].pid().is_none() {
            return false;
        }
        self.kill(n);
        self.mend_disk(n);
        let chunks = self.chunks(n);
        let hurt = match how {
            Damage::Flip => flip(&chunks, random),
            Damage::Hole => hole(&chunks, random),
            Damage::Tail => cut_tail(chunks.last(), self.records(n).last(), random),
        };
        let Some(hurt) = hurt else {
            // It has too little of a log for this, and goes on.
            return false;
        };
        self.states[n].armed = None;
        let dir = self.nodes[n].dir.to_str().unwrap().to_owned();
        let verified = kvd_tests::kvd(&["log", "verify", &dir]).status.code();
        if how == Damage::Tail {
            // It looks like a write that was never finished: a start would trust it, so there is
            // none.
            assert_eq!(verified, Some(exit::TORN), "log verify after {hurt}");
        } else {
            // A log without files is whole, but it is not this member's.
            if !self.chunks(n).is_empty() {
                assert_eq!(verified, Some(exit::CONFIG), "log verify after {hurt}");
            }
            self.nodes[n].spawn();
            until("the damage is seen", || self.nodes[n].exited().is_some());
            let code = self.nodes[n].exited().unwrap().code();
            assert_eq!(code, Some(exit::CONFIG), "a start after {hurt}");
            self.nodes[n].kill();
            self.happened("refused to start on a damaged log");
        }
        self.states[n].damaged = true;
        self.begin_change(n);
        true
    }
}

/// Flips a bit in the first half of the longest file. Near the end, damage cannot be told from a
/// write that was cut off.
fn flip(chunks: &[PathBuf], random: &mut StdRng) -> Option<String> {
    let length = |path: &&PathBuf| fs::metadata(path).unwrap().len();
    let file = chunks.iter().max_by_key(length)?;
    let mut bytes = fs::read(file).unwrap();
    // Zeros may follow its records.
    let used = 1 + bytes.iter().rposition(|byte| *byte != 0)?;
    if used < 4096 {
        return None;
    }
    let at = random.next_u64() as usize % (used / 2);
    bytes[at] ^= 1 << (random.next_u64() % 8);
    fs::write(file, bytes).unwrap();
    Some(format!("a flip in byte {at} of {}", file.display()))
}

/// Removes a file, or cuts one short that is not the last.
fn hole(chunks: &[PathBuf], random: &mut StdRng) -> Option<String> {
    let at = random.next_u64() as usize % chunks.len().max(1);
    let file = chunks.get(at)?;
    let is_last = at + 1 == chunks.len();
    // Without its last file, but with others, a log looks like one that is older.
    if is_last && at > 0 {
        return None;
    }
    let bytes = fs::metadata(file).unwrap().len();
    if is_last || random.next_u64().is_multiple_of(2) {
        fs::remove_file(file).unwrap();
        return Some(format!("the removal of {}, {bytes} bytes", file.display()));
    }
    let keep = random.next_u64() % bytes;
    cut(file, keep);
    Some(format!(
        "a cut of {} from {bytes} to {keep} bytes",
        file.display()
    ))
}

/// Cuts the last file off in the middle of its last record.
fn cut_tail(file: Option<&PathBuf>, last: Option<&Record>, random: &mut StdRng) -> Option<String> {
    let (file, last) = (file?, last?);
    let keep = last.offset + 1 + random.next_u64() % (last.bytes - 1);
    let kept = &fs::read(file).unwrap()[last.offset as usize..keep as usize];
    if kept.iter().all(|byte| *byte == 0) {
        // That looks like a log whose last record is the one before.
        return None;
    }
    cut(file, keep);
    Some(format!("a cut of {} to {keep} bytes", file.display()))
}

fn cut(file: &Path, keep: u64) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(keep).unwrap();
}

/// A small file system in memory, so that a disk can be full; where the machine allows it.
pub(super) struct Mount(PathBuf);

impl Mount {
    /// Whether this user may mount anything here.
    pub(super) fn is_possible() -> bool {
        let temp = tempfile::tempdir().unwrap();
        Self::over(temp.path()).is_some()
    }

    pub(super) fn over(dir: &Path) -> Option<Self> {
        let size = format!("size={DISK_BYTES}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "kvd-chaos"])
            .arg(dir)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Mount(dir.to_owned())),
            _ => None,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The directory above it goes next, and says so if this did not work.
        drop(Command::new("umount").arg(&self.0).status());
    }
}
