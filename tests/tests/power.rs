//! Losses of power: a node is killed, and its files are cut back to what it had synced.
//!
//! A preloaded library notes each completed sync (see `preload/lose_unsynced.c`). What is simulated
//! exactly are the files of the log, the node's identity and the snapshots, which are appended to,
//! written over zeros, or replaced as a whole: each file keeps the length of its last completed
//! sync; of what was written over zeros since then sectors are lost by chance; a file that was never
//! synced is removed, and so is a file or folder that is new since the last sync of the one above
//! it. What is not simulated: removals and renames are not undone, and bytes before those zeros are
//! what was last written there. The engine's own files are overwritten in place, so lengths say
//! nothing of them: they stay as the kill left them. The volatile engine has none, so there the log
//! and the snapshots alone bring the data back.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::preload::preload;

const WRITERS: u64 = 4;

/// What the notes say is on the disk.
#[derive(Default)]
pub(crate) struct Disk {
    /// What was there at the last completed sync.
    synced: HashMap<PathBuf, Synced>,
    /// Files whose names were there when their directory was synced.
    named: HashSet<PathBuf>,
}

#[derive(Clone, Copy)]
struct Synced {
    length: usize,
    /// Behind this there were zeros only.
    used: usize,
}

impl Synced {
    fn of(bytes: &[u8]) -> Self {
        let last = bytes.iter().rposition(|byte| *byte != 0);
        Synced {
            length: bytes.len(),
            used: last.map_or(0, |last| last + 1),
        }
    }
}

impl Disk {
    /// Reads the notes of all runs; later ones count.
    pub(crate) fn read(notes: &Path) -> Self {
        let mut disk = Disk::default();
        for line in fs::read_to_string(notes).unwrap_or_default().lines() {
            let (kind, rest) = line.split_once(' ').expect("a note has a kind");
            match kind {
                "S" => {
                    let mut parts = rest.splitn(3, ' ');
                    let mut number = || parts.next()?.parse().ok();
                    let (length, used) = (number(), number());
                    let synced = length
                        .zip(used)
                        .map(|(length, used)| Synced { length, used });
                    let path = parts.next().expect("a note has a path");
                    disk.synced
                        .insert(path.into(), synced.expect("a note has numbers"));
                }
                "N" => {
                    disk.named.insert(rest.into());
                }
                other => panic!("a note of unknown kind {other}"),
            }
        }
        disk
    }

    /// Notes that everything under `dir` is on the disk, as after a loss of power.
    pub(crate) fn note_all(notes: &Path, dir: &Path) {
        let (mut lines, mut dirs) = (String::new(), vec![dir.to_owned()]);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                lines += &format!("N {}\n", path.display());
                if path.is_dir() {
                    dirs.push(path);
                } else if !replaced_as_a_whole(&path) {
                    let Synced { length, used } = Synced::of(&fs::read(&path).unwrap());
                    lines += &format!("S {length} {used} {}\n", path.display());
                }
            }
        }
        fs::write(notes, lines).unwrap();
    }

    /// Cuts the files under `dir` back; returns how many bytes were lost.
    pub(crate) fn lose(&self, dir: &Path, engine: &Path) -> u64 {
        let mut lost = 0;
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path == engine {
                continue;
            }
            if path.is_dir() {
                if !self.named.contains(&path) {
                    fs::remove_dir_all(&path).unwrap();
                    continue;
                }
                lost += self.lose(&path, engine);
                continue;
            }
            let now = Synced::of(&fs::read(&path).unwrap());
            let keep = match self.synced.get(&path) {
                _ if !self.named.contains(&path) => None,
                // Under this name nothing was synced: it was complete before it was renamed.
                None if replaced_as_a_whole(&path) => continue,
                synced => synced.copied(),
            };
            let Some(keep) = keep else {
                fs::remove_file(&path).unwrap();
                lost += now.length as u64;
                continue;
            };
            lost += now.used.saturating_sub(keep.used) as u64;
            // In place: the disk may be full.
            let file = File::options().write(true).open(&path).unwrap();
            if keep.length < now.length {
                file.set_len(keep.length as u64).unwrap();
            }
            for part in lost_parts(keep.used..now.used.min(keep.length)) {
                file.write_all_at(&vec![0; part.len()], part.start as u64)
                    .unwrap();
            }
        }
        lost
    }
}

/// What is lost of bytes that were written over zeros and not synced: of a short flush any sector,
/// of a longer one all, for the log does not write such a one over zeros.
fn lost_parts(unsynced: Range<usize>) -> Vec<Range<usize>> {
    if unsynced.len() > 16 << 10 {
        return vec![unsynced];
    }
    let mut random = StdRng::seed_from_u64(unsynced.end as u64);
    let (mut from, mut parts) = (unsynced.start, Vec::new());
    while from < unsynced.end {
        let to = unsynced.end.min((from / 512 + 1) * 512);
        if random.next_u64().is_multiple_of(2) {
            parts.push(from..to);
        }
        from = to;
    }
    parts
}

/// Written under another name, synced, and renamed.
fn replaced_as_a_whole(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name == "NODE" || name == "FORMAT" || name.ends_with(".snap")
}

/// What was acknowledged.
#[derive(Default)]
struct Acknowledged {
    keys: Mutex<Vec<String>>,
    next: AtomicU64,
}

impl Acknowledged {
    fn write(&self, addr: &str, stop: &AtomicBool) {
        let Ok(mut client) = Client::connect(addr) else {
            return;
        };
        while !stop.load(Ordering::Relaxed) {
            let key = format!("key:{}", self.next.fetch_add(1, Ordering::Relaxed));
            match client.try_call(&["SET", &key, &key]) {
                Ok(Reply::Ok) => self.keys.lock().unwrap().push(key),
                // Nobody was promised anything.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn count(&self) -> usize {
        self.keys.lock().unwrap().len()
    }

    /// How many are not there any more.
    fn missing(&self, node: &Node) -> usize {
        let mut client = node.client();
        let keys = self.keys.lock().unwrap();
        let absent = |key: &&String| client.call(&["GET", key]) != Reply::bulk((*key).clone());
        keys.iter().filter(absent).count()
    }
}

/// Kills the node in the middle of writes.
fn kill_while_writing(node: &mut Node, acknowledged: &Acknowledged) {
    let (addr, stop) = (node.addr(), AtomicBool::new(false));
    let enough = acknowledged.count() + 300;
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| acknowledged.write(&addr, &stop));
        }
        until("writes are acknowledged", || acknowledged.count() >= enough);
        node.kill();
        stop.store(true, Ordering::Relaxed);
    });
}

struct Powered {
    node: Node,
    notes: PathBuf,
    engine: PathBuf,
}

fn powered(root: &Path, backend: &str) -> Powered {
    let root = root.canonicalize().unwrap();
    let mut node = Node::new(&root, "node", backend);
    let (notes, dir) = (root.join("notes"), node.dir.clone());
    node.set_env("LD_PRELOAD", preload("lose_unsynced").to_str());
    node.set_env("KVD_POWER_DIR", dir.to_str());
    node.set_env("KVD_POWER_NOTES", notes.to_str());
    let engine = dir.join("groups/0/engine");
    Powered {
        node,
        notes,
        engine,
    }
}

fn acknowledged_writes_survive(backend: &str) {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut powered = powered(temp.path(), backend);
    let acknowledged = Acknowledged::default();
    for round in 0..3 {
        powered.node.start();
        assert_eq!(
            acknowledged.missing(&powered.node),
            0,
            "after {round} losses of power"
        );
        kill_while_writing(&mut powered.node, &acknowledged);
        Disk::read(&powered.notes).lose(&powered.node.dir, &powered.engine);
    }
    powered.node.start();
    assert_eq!(acknowledged.missing(&powered.node), 0);
}

#[test]
fn acknowledged_writes_survive_a_loss_of_power_on_redb() {
    acknowledged_writes_survive("redb");
}

#[test]
fn acknowledged_writes_survive_a_loss_of_power_on_sled() {
    acknowledged_writes_survive("sled");
}

#[test]
fn acknowledged_writes_survive_a_loss_of_power_on_fjall() {
    acknowledged_writes_survive("fjall");
}

/// Nothing but the log holds the data here, so the log alone must bring it back.
#[test]
fn acknowledged_writes_survive_a_loss_of_power_on_a_volatile_engine() {
    acknowledged_writes_survive("memory");
}

/// The test above can fail: with a disk that only says it has synced, writes are lost.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut powered = powered(temp.path(), "memory");
    let acknowledged = Acknowledged::default();
    powered.node.start();
    kill_while_writing(&mut powered.node, &acknowledged);
    Disk::read(&powered.notes).lose(&powered.node.dir, &powered.engine);
    powered.node.set_env("KVD_POWER_LIE", Some("1"));
    powered.node.start();
    assert_eq!(acknowledged.missing(&powered.node), 0);
    kill_while_writing(&mut powered.node, &acknowledged);
    let lost = Disk::read(&powered.notes).lose(&powered.node.dir, &powered.engine);
    assert!(lost > 0, "nothing was unsynced");
    powered.node.set_env("KVD_POWER_LIE", None);
    powered.node.start();
    assert!(
        acknowledged.missing(&powered.node) > 0,
        "the writes that were never synced are there"
    );
}
