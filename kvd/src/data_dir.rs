//! A node's data directory: who the node is, which life stage it is in, and the lock on it.
//!
//! ```text
//! DIR/LOCK              held while a process uses the directory
//! DIR/NODE              identity, life stage, engine (JSON, replaced atomically)
//! DIR/groups/0/log      the Raft log
//! DIR/groups/0/engine   the engine's files
//! DIR/groups/0/snapshots
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::doors::Random;
use crate::incarnation::{Incarnation, Incarnations};
use crate::raft::NodeId;

const MAGIC: &str = "kvd-node";
const FORMAT: u32 = 1;

/// Peers whose incarnation is noted.
const PEERS_MAX: usize = 1024;

/// How far a node has come in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Its cluster of one is being made; the only stage that may initialise Raft.
    Founding,
    /// It is a member, or was when it last ran.
    Founded,
    /// It waits for a cluster to take it in, or is being taken in.
    Joining,
    /// It was taken out, and serves no more.
    Removed,
}

/// What the `NODE` file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    magic: String,
    format: u32,
    /// This node: random, never used again.
    #[serde(with = "crate::hex::u64")]
    pub node: NodeId,
    /// The cluster; 0 while it belongs to none.
    #[serde(with = "crate::hex::u128")]
    pub cluster: u128,
    /// The name that the cluster knows it by.
    pub name: String,
    /// Its starts: a new one each time, so that a directory restored from an old copy is found out.
    pub incarnations: Incarnations,
    /// How far it has come.
    pub stage: Stage,
    /// It has been a member of its cluster, as far as it has carried out the log: where it is none
    /// any more it was taken out, and is not merely still to be taken in.
    #[serde(default)]
    pub member: bool,
    /// The engine that wrote the directory.
    pub backend: String,
    /// The latest start that was seen of each other node of the cluster, by its identity in hex
    /// digits.
    #[serde(default)]
    peers: BTreeMap<String, Incarnation>,
    /// Where it was told to be when its cluster last knew where it is.
    #[serde(default)]
    pub addresses: Option<Addresses>,
    /// An adoption has begun to wipe the directory and must finish before anything is read.
    #[serde(default)]
    pub wiping: bool,
    /// A command that makes log and state anew has begun: only that command may go on.
    #[serde(default)]
    pub rebuilding: bool,
    /// A copy of another directory's contents has begun here: only the same command may go on.
    #[serde(default)]
    pub migrating: bool,
}

/// Where a node was told to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Where peers reach it.
    pub raft: String,
    /// Where clients reach it.
    pub client: String,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// It is none.
    #[error("{} is no data directory of kvd: it has no file NODE", .0.display())]
    Absent(PathBuf),
    /// A command that makes its log and state anew was cut off.
    #[error("data directory {} is half rebuilt: a command on it was cut off", .0.display())]
    HalfRebuilt(PathBuf),
    /// A copy from another engine was cut off.
    #[error(
        "data directory {} is half made: `kvd backend migrate` was cut off; the directory that it \
         was made from is as it was",
        .0.display()
    )]
    HalfMigrated(PathBuf),
    /// Reading or writing it failed.
    #[error("data directory {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The `NODE` file is not one of ours, or is damaged.
    #[error("{}: not a kvd node file: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another engine wrote it.
    #[error(
        "data directory {} was written by backend '{found}', not '{wanted}'",
        path.display()
    )]
    Backend {
        /// The directory.
        path: PathBuf,
        /// The engine that wrote it.
        found: String,
        /// The engine that was asked for.
        wanted: String,
    },
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

/// What a new directory is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// The node's name.
    pub name: String,
    /// The engine's name.
    pub backend: String,
    /// Found a cluster of one at once; else wait to be taken in.
    pub found: bool,
}

impl DataDir {
    /// Locks the directory, creating it where it is absent, and notes the start durably.
    ///
    /// # Errors
    ///
    /// See [`DataDirError`].
    pub fn open(path: &Path, birth: &Birth, random: &Random) -> Result<Self, DataDirError> {
        make(path)?;
        crash_point!("dir_made");
        let lock = lock(path)?;
        crash_point!("dir_locked");
        let file = path.join("NODE");
        let mut identity = match fs::read(&file) {
            Ok(bytes) => read_identity(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.join("groups").exists() {
                    return Err(DataDirError::Foreign {
                        path: file,
                        reason: "it is missing, but the directory holds data".to_owned(),
                    });
                }
                // Records that are synced later are worth nothing in a folder without a name.
                if let Some(parent) = path.canonicalize().map_err(at(path))?.parent() {
                    sync_dir(parent).map_err(at(parent))?;
                }
                new_identity(birth, random)
            }
            Err(source) => return Err(DataDirError::Io { path: file, source }),
        };
        if identity.migrating {
            return Err(DataDirError::HalfMigrated(path.to_owned()));
        }
        if identity.rebuilding {
            return Err(DataDirError::HalfRebuilt(path.to_owned()));
        }
        if identity.backend != birth.backend {
            return Err(DataDirError::Backend {
                path: path.to_owned(),
                found: identity.backend,
                wanted: birth.backend.clone(),
            });
        }
        identity.incarnations.begin(random);
        let mut dir = DataDir {
            path: path.to_owned(),
            identity,
            _lock: lock,
        };
        if dir.identity.wiping {
            dir.finish_wipe()?;
        }
        dir.save()?;
        dir.create_folders()?;
        Ok(dir)
    }

    /// Locks the directory of a stopped node, for a command that looks at it or repairs it. No
    /// start is noted and nothing is changed.
    ///
    /// # Errors
    ///
    /// See [`DataDirError`]; also that an adoption was cut off, which the next start finishes.
    pub fn open_stopped(path: &Path) -> Result<Self, DataDirError> {
        let file = path.join("NODE");
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::Absent(path.to_owned()));
            }
            Err(source) => return Err(DataDirError::Io { path: file, source }),
        };
        let lock = lock(path)?;
        let identity = read_identity(&file, &bytes)?;
        if identity.migrating {
            return Err(DataDirError::HalfMigrated(path.to_owned()));
        }
        if identity.wiping {
            return Err(DataDirError::Foreign {
                path: file,
                reason: "an adoption was cut off; start the node, which finishes it".to_owned(),
            });
        }
        Ok(DataDir {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// Makes a directory, which must be absent or empty, for a node whose state comes from
    /// elsewhere. It cannot be started until [`found`](Self::found) is called.
    ///
    /// # Errors
    ///
    /// See [`DataDirError`].
    pub fn create(path: &Path, birth: &Birth, random: &Random) -> Result<Self, DataDirError> {
        make(path)?;
        if fs::read_dir(path).map_err(at(path))?.next().is_some() {
            return Err(DataDirError::Io {
                path: path.to_owned(),
                source: io::ErrorKind::DirectoryNotEmpty.into(),
            });
        }
        let dir = DataDir {
            path: path.to_owned(),
            identity: Identity {
                rebuilding: true,
                ..new_identity(birth, random)
            },
            _lock: lock(path)?,
        };
        dir.save()?;
        dir.create_folders()?;
        Ok(dir)
    }

    /// Makes a directory for the same node on another engine. It must be absent, empty, or what
    /// an earlier attempt with the same node left half made, which is dropped first. Nothing else
    /// may use it until [`end_copy`](Self::end_copy) is called.
    ///
    /// # Errors
    ///
    /// See [`DataDirError`].
    pub fn begin_copy(path: &Path, node: &Identity, backend: &str) -> Result<Self, DataDirError> {
        make(path)?;
        takes_copy_of(path, node)?;
        let lock = lock(path)?;
        // Another such command may have ended in between.
        takes_copy_of(path, node)?;
        let mut dir = DataDir {
            path: path.to_owned(),
            identity: Identity {
                backend: backend.to_owned(),
                migrating: true,
                ..node.clone()
            },
            _lock: lock,
        };
        dir.save()?;
        if let Some(parent) = path.canonicalize().map_err(at(path))?.parent() {
            sync_dir(parent).map_err(at(parent))?;
        }
        dir.finish_wipe()?;
        dir.create_folders()?;
        Ok(dir)
    }

    /// Says durably that a copy is whole: the directory is the node's from now on.
    ///
    /// # Errors
    ///
    /// The file could not be replaced.
    pub fn end_copy(&mut self) -> Result<(), DataDirError> {
        self.update(|identity| identity.migrating = false)
    }

    /// Makes the node the only member of a new cluster, under a new identity, last known at
    /// `addresses`. Its log and state must say the same.
    ///
    /// # Errors
    ///
    /// The file could not be replaced.
    pub fn found(
        &mut self,
        node: NodeId,
        cluster: u128,
        addresses: Addresses,
    ) -> Result<(), DataDirError> {
        self.update(|identity| {
            identity.node = node;
            identity.cluster = cluster;
            identity.stage = Stage::Founded;
            identity.incarnations = Incarnations::default();
            identity.peers.clear();
            identity.addresses = Some(addresses);
            identity.rebuilding = false;
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who the node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where the log lives.
    pub fn log(&self) -> PathBuf {
        self.path.join("groups/0/log")
    }

    /// Where the engine lives.
    pub fn engine(&self) -> PathBuf {
        self.path.join("groups/0/engine")
    }

    /// Where snapshots are spooled.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("groups/0/snapshots")
    }

    /// Changes the identity durably.
    ///
    /// # Errors
    ///
    /// The file could not be replaced; the identity in memory is then unchanged.
    pub fn update(&mut self, change: impl FnOnce(&mut Identity)) -> Result<(), DataDirError> {
        let before = self.identity.clone();
        change(&mut self.identity);
        if self.identity == before {
            return Ok(());
        }
        self.save().inspect_err(|_| self.identity = before)
    }

    /// Notes durably a peer's latest start. Where the start that was seen last is not among its
    /// own, that one is the inner error: what the peer did then, votes too, is not in its
    /// directory.
    ///
    /// # Errors
    ///
    /// The file could not be replaced.
    pub fn note_peer(
        &mut self,
        node: NodeId,
        starts: &Incarnations,
    ) -> Result<Result<(), Incarnation>, DataDirError> {
        let Some(latest) = starts.latest() else {
            return Ok(Ok(()));
        };
        let name = format!("{node:016x}");
        match self.identity.peers.get(&name) {
            Some(seen) if *seen == latest => return Ok(Ok(())),
            Some(seen) if !starts.contains(*seen) => return Ok(Err(*seen)),
            // Removed members stay in it; nobody has as many.
            None if self.identity.peers.len() >= PEERS_MAX => return Ok(Ok(())),
            _ => {}
        }
        self.update(|identity| {
            identity.peers.insert(name, latest);
        })?;
        Ok(Ok(()))
    }

    /// Drops all contents and becomes a node that waits for `cluster` to take it in.
    ///
    /// Each step is durable before the next, so a crash in the middle ends in the same state at
    /// the next start. The log, engine and snapshots must not be open.
    ///
    /// # Errors
    ///
    /// A file could not be changed; the next start goes on from there.
    pub fn adopt(&mut self, cluster: u128, name: &str) -> Result<(), DataDirError> {
        self.update(|identity| {
            identity.stage = Stage::Joining;
            identity.cluster = cluster;
            identity.name = name.to_owned();
            identity.member = false;
            identity.peers.clear();
            identity.wiping = true;
        })?;
        crash_point!("wipe_noted");
        self.finish_wipe()?;
        self.save()?;
        crash_point!("wipe_forgotten");
        self.create_folders()
    }

    /// Makes the folders of log, engine and snapshots, with durable names. An earlier start may
    /// have been cut off between the two, so those that are there are synced as well.
    fn create_folders(&self) -> Result<(), DataDirError> {
        for sub in [self.log(), self.engine(), self.snapshots()] {
            make(&sub)?;
            crash_point!("dir_folder_made");
        }
        for holder in ["groups/0", "groups", ""] {
            let holder = self.path.join(holder);
            sync_dir(&holder).map_err(at(&holder))?;
            crash_point!("dir_folder_synced");
        }
        Ok(())
    }

    fn finish_wipe(&mut self) -> Result<(), DataDirError> {
        let groups = self.path.join("groups");
        match fs::remove_dir_all(&groups) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(DataDirError::Io {
                    path: groups,
                    source,
                });
            }
        }
        crash_point!("wipe_removed");
        sync_dir(&self.path).map_err(|source| DataDirError::Io {
            path: self.path.clone(),
            source,
        })?;
        crash_point!("wipe_synced");
        self.identity.wiping = false;
        Ok(())
    }

    fn save(&self) -> Result<(), DataDirError> {
        let mut bytes = serde_json::to_vec_pretty(&self.identity).expect("plain data serialises");
        bytes.push(b'\n');
        let path = self.path.join("NODE");
        replace_file(&path, &bytes).map_err(|source| DataDirError::Io { path, source })
    }
}

/// Refuses a directory that holds anything but what an earlier copy of `node` left half made.
fn takes_copy_of(path: &Path, node: &Identity) -> Result<(), DataDirError> {
    let file = path.join("NODE");
    match fs::read(&file) {
        Ok(bytes) => {
            let found = read_identity(&file, &bytes)?;
            if found.migrating && found.node == node.node {
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut others = fs::read_dir(path)
                .map_err(at(path))?
                .map(|entry| entry.map(|entry| entry.path()));
            let made_before_it = [path.join("LOCK"), unfinished(&file)];
            if others.all(|other| other.is_ok_and(|other| made_before_it.contains(&other))) {
                return Ok(());
            }
        }
        Err(source) => return Err(DataDirError::Io { path: file, source }),
    }
    Err(DataDirError::Io {
        path: path.to_owned(),
        source: io::ErrorKind::DirectoryNotEmpty.into(),
    })
}

/// Says which file or directory it was.
fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

/// Makes a directory for its owner alone, with those above it, where it is absent.
fn make(path: &Path) -> Result<(), DataDirError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let lock_path = path.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(at(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(DataDirError::Io {
            path: lock_path,
            source,
        }),
    }
}

/// A node's identity and a cluster's, both new. Zero means "unknown" on the wire.
pub fn new_ids(random: &Random) -> (NodeId, u128) {
    let nonzero = || random.next() | 1 << 63;
    let cluster = u128::from(nonzero()) << 64 | u128::from(random.next());
    (nonzero(), cluster)
}

fn read_identity(path: &Path, bytes: &[u8]) -> Result<Identity, DataDirError> {
    let foreign = |reason: String| DataDirError::Foreign {
        path: path.to_owned(),
        reason,
    };
    let identity: Identity =
        serde_json::from_slice(bytes).map_err(|error| foreign(error.to_string()))?;
    if identity.magic != MAGIC {
        return Err(foreign(format!("magic '{}'", identity.magic)));
    }
    if identity.format != FORMAT {
        return Err(foreign(format!(
            "format {} (this kvd reads {FORMAT})",
            identity.format
        )));
    }
    Ok(identity)
}

fn new_identity(birth: &Birth, random: &Random) -> Identity {
    let (node, cluster) = new_ids(random);
    Identity {
        magic: MAGIC.to_owned(),
        format: FORMAT,
        node,
        cluster: if birth.found { cluster } else { 0 },
        name: birth.name.clone(),
        incarnations: Incarnations::default(),
        member: false,
        stage: if birth.found {
            Stage::Founding
        } else {
            Stage::Joining
        },
        backend: birth.backend.clone(),
        peers: BTreeMap::new(),
        addresses: None,
        wiping: false,
        rebuilding: false,
        migrating: false,
    }
}

/// What a crash may leave beside a file that was being replaced.
pub fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Replaces a file so that a crash leaves the old contents or the new ones.
///
/// # Errors
///
/// Writing, syncing or renaming failed.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    crash_point!("file_created");
    file.write_all(bytes)?;
    crash_point!("file_written");
    file.sync_all()?;
    crash_point!("file_synced");
    fs::rename(&temporary, path)?;
    crash_point!("file_renamed");
    let synced = sync_dir(path.parent().unwrap_or(Path::new(".")));
    crash_point!("file_replaced");
    synced
}

/// Makes created, renamed and removed names of a directory durable.
///
/// # Errors
///
/// The directory could not be opened or synced.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth() -> Birth {
        Birth {
            name: "node0".to_owned(),
            backend: "redb".to_owned(),
            found: true,
        }
    }

    #[test]
    fn a_peers_latest_start_is_remembered_until_the_node_is_adopted() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("node0");
        let random = Random::from_seed(1);
        let mut dir = DataDir::open(&path, &birth(), &random).unwrap();
        let mut peer = Incarnations::default();
        peer.begin(&random);
        let copy = peer.clone();
        assert_eq!(dir.note_peer(7, &peer).unwrap(), Ok(()));
        assert_eq!(dir.note_peer(8, &copy).unwrap(), Ok(()));
        peer.begin(&random);
        assert_eq!(dir.note_peer(7, &peer).unwrap(), Ok(()));
        drop(dir);
        let mut dir = DataDir::open(&path, &birth(), &random).unwrap();
        assert_eq!(dir.note_peer(7, &peer).unwrap(), Ok(()));
        let seen = peer.latest().unwrap();
        let mut copy = copy;
        for _ in 0..3 {
            assert_eq!(dir.note_peer(7, &copy).unwrap(), Err(seen));
            copy.begin(&random);
        }
        assert_eq!(dir.note_peer(8, &copy).unwrap(), Ok(()));
        dir.adopt(9, "node0").unwrap();
        assert_eq!(dir.note_peer(7, &copy).unwrap(), Ok(()));
    }

    #[test]
    fn identity_stays_and_each_start_is_noted() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("node0");
        let random = Random::from_seed(1);
        let first = DataDir::open(&path, &birth(), &random)
            .unwrap()
            .identity()
            .clone();
        let second = DataDir::open(&path, &birth(), &random)
            .unwrap()
            .identity()
            .clone();
        assert_eq!((first.node, first.cluster), (second.node, second.cluster));
        let numbers = [&first, &second].map(|identity| identity.incarnations.number());
        assert_eq!(numbers, [1, 2]);
        assert_eq!(first.stage, Stage::Founding);
    }

    #[test]
    fn a_second_process_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let random = Random::from_seed(1);
        let _first = DataDir::open(temp.path(), &birth(), &random).unwrap();
        let second = DataDir::open(temp.path(), &birth(), &random);
        assert!(matches!(second, Err(DataDirError::Locked(_))));
    }

    #[test]
    fn another_engine_is_refused_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let random = Random::from_seed(1);
        drop(DataDir::open(temp.path(), &birth(), &random).unwrap());
        let other = Birth {
            backend: "sled".to_owned(),
            ..birth()
        };
        let error = DataDir::open(temp.path(), &other, &random)
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("was written by backend 'redb', not 'sled'"),
            "{error}"
        );
    }

    #[test]
    fn an_interrupted_adoption_is_finished_at_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        let random = Random::from_seed(1);
        let mut dir = DataDir::open(temp.path(), &birth(), &random).unwrap();
        fs::write(dir.log().join("chunk"), b"entries").unwrap();
        dir.update(|identity| {
            identity.stage = Stage::Joining;
            identity.cluster = 7;
            identity.wiping = true;
        })
        .unwrap();
        drop(dir);
        let dir = DataDir::open(temp.path(), &birth(), &random).unwrap();
        assert!(!dir.log().join("chunk").exists());
        assert!(!dir.identity().wiping);
        assert_eq!(
            (dir.identity().cluster, dir.identity().stage),
            (7, Stage::Joining)
        );
    }

    #[test]
    fn a_damaged_node_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("NODE"), b"{").unwrap();
        let error = DataDir::open(temp.path(), &birth(), &Random::from_seed(1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("NODE: not a kvd node file"), "{error}");
    }
}
