//! Losses of power: a node is killed, and its files are cut back to what it had synced.
//!
//! A preloaded library notes each completed sync (see `preload/lose_unsynced.c`). What is simulated
//! exactly are the files of the log, the node's identity and the snapshots, which are appended to
//! or replaced as a whole: each file keeps the length of its last completed sync, a file that was
//! never synced is removed, and so is a file or folder that is new since the last sync of the one
//! above it. What is not simulated: removals and renames are not undone, and bytes below the synced
//! length are what was last written there. The engine's own files are overwritten in place, so
//! lengths say nothing of them: they stay as the kill left them. The volatile engine has none, so
//! there the log and the snapshots alone bring the data back.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvd::resp::Reply;
use kvd_tests::{Client, Node, alone, until};

use crate::preload::preload;

const WRITERS: u64 = 4;

/// What the notes say is on the disk.
#[derive(Default)]
pub(crate) struct Disk {
    /// The length at the last completed sync.
    synced: HashMap<PathBuf, u64>,
    /// Files whose names were there when their directory was synced.
    named: HashSet<PathBuf>,
}

impl Disk {
    /// Reads the notes of all runs; later ones count.
    pub(crate) fn read(notes: &Path) -> Self {
        let mut disk = Disk::default();
        for line in fs::read_to_string(notes).unwrap_or_default().lines() {
            let (kind, rest) = line.split_once(' ').expect("a note has a kind");
            match kind {
                "S" => {
                    let (bytes, path) = rest.split_once(' ').expect("a note has a length");
                    disk.synced.insert(path.into(), bytes.parse().unwrap());
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
                    let bytes = fs::metadata(&path).unwrap().len();
                    lines += &format!("S {bytes} {}\n", path.display());
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
            let bytes = fs::metadata(&path).unwrap().len();
            let keep = match self.synced.get(&path) {
                _ if !self.named.contains(&path) => None,
                // Under this name nothing was synced: it was complete before it was renamed.
                None if replaced_as_a_whole(&path) => Some(bytes),
                synced => synced.copied(),
            };
            match keep {
                None => fs::remove_file(&path).unwrap(),
                Some(keep) => File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(keep.min(bytes)))
                    .unwrap(),
            }
            lost += bytes - keep.unwrap_or(0).min(bytes);
        }
        lost
    }
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
