//! Repairing a damaged log.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use super::{Error, scan_log};
use crate::incarnation::Incarnations;
use crate::raft::log::{self, Contents, End, JournalState};

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// A copy of the log, or the part of it that was changed, as it was.
    pub kept: Option<PathBuf>,
    /// Bytes that were cut off, or entries that were dropped.
    pub dropped: u64,
    /// The last entry that is left; 0 for none.
    pub last: u64,
}

/// Cuts an unfinished record off the end of the log, which a start does by itself where it can
/// tell for certain that it is one.
///
/// # Errors
///
/// The log is damaged elsewhere: nothing is changed. Or a file could not be written.
pub fn drop_tail(path: &Path) -> Result<Repaired, Error> {
    let (_dir, scan) = scan_log(path, &mut |_| {})?;
    let last = scan.state.last.map_or(0, |id| id.index);
    match scan.end {
        End::Whole => Ok(Repaired {
            kept: None,
            dropped: 0,
            last,
        }),
        End::Damaged {
            file,
            offset,
            reason,
        } => Err(Error::Refused(format!(
            "{} is damaged at byte {offset}: {reason}; this is no unfinished write, and nothing \
             was changed",
            file.display()
        ))),
        End::Torn {
            file,
            offset,
            bytes,
        } => {
            let kept = file.with_extension("wal.bak");
            fs::copy(&file, &kept)?;
            fs::File::open(&kept)?.sync_all()?;
            let chunk = OpenOptions::new().write(true).open(&file)?;
            chunk.set_len(offset)?;
            chunk.sync_all()?;
            Ok(Repaired {
                kept: Some(kept),
                dropped: bytes,
                last,
            })
        }
    }
}

/// Drops all entries from `index` on, and with them whatever damage stands behind. What they said
/// is lost, even if clients were told that it is safe.
///
/// The node forgets its starts, so that a cluster that knew it takes it for a copy of an old
/// directory and does not let it vote: its log is one.
///
/// # Errors
///
/// An entry before `index` cannot be read, or was purged. Or a file could not be written.
pub fn drop_from(path: &Path, index: u64) -> Result<Repaired, Error> {
    let (mut dir, scan) = scan_log(path, &mut |_| {})?;
    let purged = scan.state.purged;
    let first = purged.map_or(0, |id| id.index) + 1;
    if index < first {
        return Err(Error::Refused(format!(
            "entry {index} was purged: the log begins with entry {first}"
        )));
    }
    let reached = scan.state.last.max(purged).map_or(0, |id| id.index);
    if index > reached + 1 {
        return Err(Error::Refused(format!(
            "entry {} cannot be read: the entries before {index} are not all there",
            reached + 1
        )));
    }
    let mut entries: Vec<_> = scan.entries.into_values().collect();
    let whole = entries.len();
    entries.retain(|(id, _)| id.index < index);
    let last = entries.last().map(|(id, _)| *id).max(purged);
    let identity = log::Identity {
        cluster: dir.identity().cluster,
        group: 0,
        node: dir.identity().node,
    };
    let dropped = (whole - entries.len()) as u64;
    dir.update(|identity| identity.incarnations = Incarnations::default())?;
    let contents = Contents {
        state: JournalState {
            vote: scan.highest_vote,
            last,
            committed: scan.state.committed.min(last),
            purged,
        },
        entries: &mut entries.into_iter(),
    };
    let kept = log::rebuild(&dir.log(), identity, contents)?;
    Ok(Repaired {
        kept,
        dropped,
        last: last.map_or(0, |id| id.index),
    })
}
