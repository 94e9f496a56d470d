//! The disk guard: a node that runs out of space refuses what makes it need more, before its log
//! or its engine would fail.
//!
//! ```text
//! free space >= floor     everything
//!            <  floor     as the leader: MISCONF for commands that may grow the data
//!            <  floor/2   as a follower: no entries are taken; the leader counts it as away
//!            <  floor/4   the ballast is given up, so that removals still find room
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::core::{Core, Leadership};
use crate::command::{self, Flags};
use crate::doors;
use crate::raft::entry::Group;
use crate::storage::Caps;

/// How often free space is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The floor unless told, as a share of the disk, and its bounds.
const FLOOR_SHARE: u64 = 20;
const FLOOR_MIN: u64 = 16 << 20;
const FLOOR_MAX: u64 = 256 << 20;

/// What a byte of an entry may take on disk until the engine is durable again: in the log, in the
/// engine, and in what the engine keeps of the state before.
const BYTES_PER_BYTE: u64 = 3;

/// The file that keeps space for bad times.
const BALLAST: &str = "BALLAST";

/// Its size at most.
const BALLAST_BYTES_MAX: u64 = 8 << 20;

/// Free space, as it was when it was looked at last, and the bytes of entries that the engine has
/// not written yet, as engines write much at a time.
pub(super) struct DiskGuard {
    dir: PathBuf,
    floor: u64,
    free: AtomicU64,
    /// Since the last sync of the engine began.
    spent: AtomicU64,
    /// Before it, while it is under way.
    syncing: AtomicU64,
    below: AtomicBool,
}

fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

impl DiskGuard {
    /// Looks at the disk of `dir` for the first time; gives the ballast up where nothing else is
    /// left, because an engine may need room to be opened.
    pub(super) fn new(dir: &Path, floor: Option<u64>) -> io::Result<Self> {
        let (free, total) = space(dir)?;
        let floor = floor.unwrap_or((total / FLOOR_SHARE).clamp(FLOOR_MIN, FLOOR_MAX));
        let guard = DiskGuard {
            dir: dir.to_owned(),
            floor,
            free: AtomicU64::new(free),
            spent: AtomicU64::new(0),
            syncing: AtomicU64::new(0),
            below: AtomicBool::new(false),
        };
        guard.tend_ballast(free);
        Ok(guard)
    }

    pub(super) fn free(&self) -> u64 {
        let spent = self.spent.load(Ordering::Relaxed) + self.syncing.load(Ordering::Relaxed);
        let spent = spent.saturating_mul(BYTES_PER_BYTE);
        self.free.load(Ordering::Relaxed).saturating_sub(spent)
    }

    /// Whether the floor was undercut when the disk was looked at last.
    pub(super) fn is_below(&self) -> bool {
        self.below.load(Ordering::Relaxed)
    }

    /// Whether what the engine has not written yet takes much of the room that is left.
    pub(super) fn is_tight(&self) -> bool {
        self.free() < 2 * self.floor && !self.is_below()
    }

    /// The engine begins to write all that was spent until now.
    pub(super) fn sync_begins(&self) {
        let spent = self.spent.swap(0, Ordering::Relaxed);
        self.syncing.fetch_add(spent, Ordering::Relaxed);
    }

    /// It has written it: what is free now is without it.
    pub(super) fn sync_ended(&self) {
        self.look();
        self.syncing.store(0, Ordering::Relaxed);
    }

    /// The engine has nothing to write: what was spent is in the log, or came to nothing.
    pub(super) fn nothing_to_write(&self) {
        self.sync_begins();
        self.sync_ended();
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Counts `bytes` of entries; whether free space stays above the floor with them.
    pub(super) fn spend(&self, bytes: usize) -> bool {
        self.spend_above(self.floor, bytes)
    }

    /// The same for entries that another node leads.
    pub(super) fn spend_as_follower(&self, bytes: usize) -> bool {
        self.spend_above(self.floor / 2, bytes)
    }

    fn spend_above(&self, floor: u64, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let fits = self.free() >= floor.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE));
        // Counted only then, and never taken back: a sync may begin at any moment.
        if fits {
            self.spent.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Looks at the disk, and says so when the floor is crossed.
    fn look(&self) {
        let free = match space(&self.dir) {
            Ok((free, _)) => free,
            Err(error) => {
                tracing::error!(%error, "free space cannot be told");
                return;
            }
        };
        self.free.store(free, Ordering::Relaxed);
        self.tend_ballast(free);
        let below = free < self.floor;
        let before = self.below.swap(below, Ordering::Relaxed);
        let floor = self.floor;
        match (before, below) {
            (false, true) => tracing::error!(
                free,
                floor,
                "the disk is nearly full: commands that may grow the data are refused"
            ),
            (true, false) => tracing::info!(free, floor, "the disk has room again"),
            _ => {}
        }
    }

    fn tend_ballast(&self, free: u64) {
        let path = self.dir.join(BALLAST);
        let bytes = (self.floor / 4).min(BALLAST_BYTES_MAX);
        let there = path.exists();
        let tended = if there && free < self.floor / 4 {
            tracing::warn!(bytes, "the ballast is given up");
            fs::remove_file(&path)
        } else if !there && free > self.floor + 2 * bytes {
            lay_ballast(&path, bytes)
        } else {
            Ok(())
        };
        if let Err(error) = tended {
            // Not every file system sets space aside.
            tracing::debug!(%error, "no ballast");
        }
    }
}

fn lay_ballast(path: &Path, bytes: u64) -> io::Result<()> {
    let file = fs::File::create(path)?;
    let laid = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
    if laid.is_err() {
        fs::remove_file(path)?;
    }
    Ok(laid?)
}

/// Whether one of a group's commands may make the data grow.
pub(super) fn grows(group: &Group) -> bool {
    let (mut args, mut commands) = (Vec::new(), group.commands());
    while let Ok(true) = commands.next_into(&mut args) {
        if command::lookup(&args).is_ok_and(|spec| spec.has(Flags::DENYOOM)) {
            return true;
        }
    }
    false
}

impl Core {
    /// Watches the disk for as long as the node runs. A leader without room hands over, once: the
    /// next one may have more.
    pub(super) async fn run_disk_guard(self: Arc<Self>) {
        // A volatile engine writes nothing until the log is cut.
        let durable = self.machine.store().engine().caps().contains(Caps::DURABLE);
        let mut was_below = false;
        loop {
            let guard = self.disk.clone();
            let looked = move || {
                if durable {
                    guard.look();
                } else {
                    guard.nothing_to_write();
                }
                guard.is_below()
            };
            let below = doors::blocking(&*self.doors.workers, looked).await == Some(true);
            let leads = matches!(self.leadership(), Leadership::Mine { .. });
            let crossed = below && !was_below;
            was_below = below;
            if crossed && leads && self.members().len() > 1 {
                match self.hand_over(None).await {
                    Ok(()) => tracing::info!("leadership handed over"),
                    Err(reason) => tracing::warn!(%reason, "leadership not handed over"),
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::entry::{GroupBuilder, Rule};

    #[test]
    fn what_is_spent_counts_until_the_engine_has_written_it() {
        let temp = tempfile::tempdir().unwrap();
        let guard = DiskGuard::new(temp.path(), Some(1 << 20)).unwrap();
        guard.free.store((1 << 20) + 3000, Ordering::Relaxed);
        assert!(guard.spend(900));
        assert!(!guard.spend(200));
        assert!(guard.spend(100));
        assert!(guard.spend_as_follower(100_000));
        assert!(!guard.spend_as_follower(100_000));
        guard.sync_begins();
        assert!(!guard.spend(100));
        guard.sync_ended();
        assert!(guard.spend(1000));
    }

    #[test]
    fn ballast_is_laid_and_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let guard = DiskGuard::new(temp.path(), Some(1 << 20)).unwrap();
        let path = temp.path().join(BALLAST);
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 18);
        guard.tend_ballast(1 << 17);
        assert!(!path.exists());
        guard.tend_ballast(1 << 20);
        assert!(!path.exists());
        guard.tend_ballast(1 << 21);
        assert!(path.exists());
    }

    #[test]
    fn removals_do_not_grow_the_data() {
        for (request, growing) in [
            (&["SET", "a", "1"][..], true),
            (&["APPEND", "a", "1"], true),
            (&["DEL", "a"], false),
            (&["GETDEL", "a"], false),
            (&["EXPIRE", "a", "1"], false),
            (&["FLUSHALL"], false),
        ] {
            let mut group = GroupBuilder::new(Rule::Each);
            group.command(request);
            assert_eq!(grows(&group.finish()), growing, "{request:?}");
        }
    }
}
