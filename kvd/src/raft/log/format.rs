//! The `FORMAT` file of a log directory: whose log it is, and in which format.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data_dir::{replace_file, unfinished};
use crate::raft::types::NodeId;

const MAGIC: &str = "kvd-raft-log";
const VERSION: u32 = 1;

/// Its name.
pub(super) const FORMAT: &str = "FORMAT";

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The group of the cluster.
    pub group: u32,
    /// The node.
    pub node: NodeId,
}

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    magic: String,
    version: u32,
    records: String,
    cluster: String,
    group: u32,
    node: String,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Reading or writing failed.
    #[error("log {}: {source}", dir.display())]
    Io {
        /// The log's directory.
        dir: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Its files are damaged.
    #[error(
        "log {} is damaged: {reason}; nothing was changed: wipe this node's data directory and \
         join it again as a new member",
        dir.display()
    )]
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It is another's log, or has a format that this version does not read.
    #[error("log {}: {reason}", dir.display())]
    Foreign {
        /// The log's directory.
        dir: PathBuf,
        /// What differs.
        reason: String,
    },
}

impl OpenError {
    /// For what became of reading the log in `dir`.
    pub(crate) fn of(dir: &Path, error: io::Error) -> Self {
        let dir = dir.to_owned();
        match error.kind() {
            io::ErrorKind::InvalidData => OpenError::Damaged {
                dir,
                reason: error.to_string(),
            },
            _ => OpenError::Io { dir, source: error },
        }
    }
}

/// Checks the `FORMAT` file, or writes it where the directory is new.
pub(super) fn check(dir: &Path, identity: Identity) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io {
        dir: dir.to_owned(),
        source,
    };
    let foreign = |reason: String| OpenError::Foreign {
        dir: dir.to_owned(),
        reason,
    };
    let path = dir.join(FORMAT);
    let wanted = Format {
        magic: MAGIC.to_owned(),
        version: VERSION,
        records: "raft-log 0.4".to_owned(),
        cluster: format!("{:032x}", identity.cluster),
        group: identity.group,
        node: format!("{:016x}", identity.node),
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for file in std::fs::read_dir(dir).map_err(io_error)? {
                // An earlier start may have been cut off while it wrote the file.
                if file.map_err(io_error)?.path() != unfinished(&path) {
                    return Err(foreign("it has files but no FORMAT".to_owned()));
                }
            }
            let mut text = serde_json::to_vec_pretty(&wanted).expect("plain data serialises");
            text.push(b'\n');
            return replace_file(&path, &text).map_err(io_error);
        }
        Err(error) => return Err(io_error(error)),
    };
    let found: Format = serde_json::from_slice(&bytes)
        .map_err(|error| foreign(format!("FORMAT is damaged: {error}")))?;
    let differs = |what: &str, found: &str, wanted: &str| {
        Err(foreign(format!("{what} is {found}, expected {wanted}")))
    };
    if found.magic != wanted.magic {
        return differs("magic", &found.magic, &wanted.magic);
    }
    if found.version != wanted.version || found.records != wanted.records {
        let text = |format: &Format| format!("{} ({})", format.version, format.records);
        return differs("format", &text(&found), &text(&wanted));
    }
    if found.cluster != wanted.cluster {
        return differs("cluster", &found.cluster, &wanted.cluster);
    }
    if found.group != wanted.group {
        return differs("group", &found.group.to_string(), &wanted.group.to_string());
    }
    if found.node != wanted.node {
        return differs("node", &found.node, &wanted.node);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        cluster: 1,
        group: 0,
        node: 2,
    };

    #[test]
    fn a_start_that_was_cut_off_while_it_wrote_the_file_is_no_obstacle() {
        let temp = tempfile::tempdir().unwrap();
        let half = temp.path().join("FORMAT.tmp");
        std::fs::write(&half, b"{").unwrap();
        check(temp.path(), IDENTITY).unwrap();
        check(temp.path(), IDENTITY).unwrap();
        assert!(!half.exists());
    }

    #[test]
    fn files_of_unknown_origin_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("FORMAT.tmp"), b"{").unwrap();
        std::fs::create_dir(temp.path().join("chunks")).unwrap();
        let error = check(temp.path(), IDENTITY).unwrap_err().to_string();
        assert!(error.ends_with("it has files but no FORMAT"), "{error}");
    }
}
