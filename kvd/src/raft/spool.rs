//! Snapshots as openraft and the transport pass them round: a source, a sink, and files between.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::type_config::alias::SnapshotMetaOf;

use super::log::Hold;
use super::types::{NodeId, TypeConfig};
use crate::doors::BoxFuture;

/// What Raft calls the meta of a snapshot: the last entry it covers, and the membership.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

/// The contents of a snapshot, as openraft passes them round.
pub enum SnapshotData {
    /// The state of this node: a view is opened only when a peer needs it.
    Live(Arc<dyn SnapshotSource>),
    /// A file that a leader sent.
    Spool(Spool),
}

/// Where a snapshot to be sent comes from.
pub trait SnapshotSource: Send + Sync {
    /// Opens a view now and writes it to a file; its meta may be newer than what Raft knew.
    fn spool(&self) -> BoxFuture<'_, io::Result<(SnapshotMeta, Spool)>>;

    /// Keeps the log behind the entry `from` for a member, to which a snapshot that ends there, or
    /// later, begins to be sent.
    fn hold_log(&self, member: NodeId, from: u64) -> Hold;
}

/// Where a snapshot that a leader sends goes.
pub trait SnapshotSink: Send + Sync {
    /// Begins a file for the snapshot with this meta.
    ///
    /// # Errors
    ///
    /// The file could not be created.
    fn begin(&self, meta: &SnapshotMeta) -> io::Result<Box<dyn SpoolWriter>>;
}

/// One file being received.
pub trait SpoolWriter: Send {
    /// Adds the next bytes.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Verifies the whole file and makes it durable.
    ///
    /// # Errors
    ///
    /// It is not a whole snapshot with the meta that was announced, or syncing failed.
    fn finish(self: Box<Self>) -> io::Result<Spool>;
}

/// A snapshot file; it is removed when dropped, unless it is to stay.
#[derive(Debug)]
pub struct Spool {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
    pub(super) keep: bool,
}

impl Spool {
    /// A file that goes with this value.
    pub fn temporary(path: PathBuf, bytes: u64) -> Self {
        Spool {
            path,
            bytes,
            keep: false,
        }
    }

    /// A file that stays.
    pub fn kept(path: PathBuf, bytes: u64) -> Self {
        Spool {
            path,
            bytes,
            keep: true,
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "snapshot file not removed");
        }
    }
}
