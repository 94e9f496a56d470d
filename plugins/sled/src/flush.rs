//! What sled leaves out between its writes: syncs.
//!
//! sled notes in its log how far it is on the disk, overwrites what is replaced behind that point,
//! and after a crash passes over what it cannot read before it. But on Linux it asks for a
//! `sync_file_range` in between, which neither empties the disk's cache nor covers the file's
//! length. And it never syncs the files of large values, of which a crash may leave what the log
//! says of them alone; that it passes over as well. So a loss of power could take a part from the
//! middle, even of what had been synced.
//!
//! `build.rs` has the linker send three calls of this library here. Before sled's log is written, the
//! files of large values are synced; `sync_file_range` is an `fdatasync`. Of each of them, and of
//! `fsync`, it is noted when it fails: sled shortens its log behind everybody's back, keeps to itself
//! what became of the sync behind that, and may wait for ever for a write that failed. Elsewhere sled
//! calls `fsync` by itself, and large values are as it leaves them until the plugin's own sync.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The files of large values that were synced, and how long they were: one that is longer now was
/// still being written.
type Blobs = HashMap<OsString, u64>;

/// What is known of an open directory of sled's.
#[derive(Default)]
struct Known {
    synced: Blobs,
    /// The error number of the first sync of one of its files that failed.
    failed: Option<i32>,
    /// It was replaced, and is going to be removed.
    is_replaced: bool,
}

static KNOWN: LazyLock<Mutex<HashMap<PathBuf, Known>>> = LazyLock::new(Mutex::default);

fn known() -> MutexGuard<'static, HashMap<PathBuf, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often who waits for sled looks whether that is in vain.
const LOOK: Duration = Duration::from_millis(100);

/// How often sled's logs were synced for it.
#[cfg(all(test, wrapped))]
pub(crate) static LOG_SYNCS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// A directory of sled's whose large values are watched, for as long as this lives.
pub(crate) struct Watched(PathBuf);

impl Watched {
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        known().insert(dir.clone(), Known::default());
        Ok(Watched(dir))
    }

    /// How many files were synced.
    #[cfg(test)]
    pub(crate) fn synced(&self) -> usize {
        known().get(&self.0).map_or(0, |known| known.synced.len())
    }

    /// It was replaced: sled writes once more when it is dropped, which is worth no sync, nor the end of
    /// the node where that fails.
    pub(crate) fn replaced(&self) {
        if let Some(known) = known().get_mut(&self.0) {
            known.is_replaced = true;
        }
    }

    /// An error where a sync failed, whoever asked for it: the kernel tells of what it could not write
    /// once.
    pub(crate) fn check(&self) -> io::Result<()> {
        let Some(error) = known().get(&self.0).and_then(|known| known.failed) else {
            return Ok(());
        };
        let error = io::Error::from_raw_os_error(error);
        let told = format!("an earlier sync failed: {error}");
        Err(io::Error::new(error.kind(), told))
    }

    /// Does `work` in a thread of its own, and leaves it to itself where a sync has failed meanwhile: sled
    /// may wait for ever then, because it loses the news.
    pub(crate) fn unless_failed<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, wait) = mpsc::channel();
        let run = move || drop(done.send(work()));
        #[expect(
            clippy::disallowed_methods,
            reason = "it has to outlive who waits for it, and a plugin knows no doors"
        )]
        thread::Builder::new()
            .name("kvd-sled-flush".to_owned())
            .spawn(run)?;
        loop {
            match wait.recv_timeout(LOOK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("sled's flush panicked"));
                }
            }
        }
    }

    /// Where it is, by the name that the kernel has for it.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        known().remove(&self.0);
    }
}

/// Syncs the files of large values that were not yet, and their names.
pub(crate) fn sync_blobs(dir: &Path) -> io::Result<()> {
    if known().get(dir).is_some_and(|known| known.is_replaced) {
        return Ok(());
    }
    let blobs = dir.join("blobs");
    let entries = match fs::read_dir(&blobs) {
        // Replaced as a whole since: nobody needs it any more.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut found = Blobs::new();
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) => drop(found.insert(entry.file_name(), meta.len())),
            // Removed since, because nothing needs it any more.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(Known { synced, .. }) = known().get_mut(dir) {
        synced.retain(|name, bytes| found.get(name) == Some(bytes));
        found.retain(|name, _| !synced.contains_key(name));
    }
    if found.is_empty() {
        return Ok(());
    }
    for name in found.keys() {
        match File::open(blobs.join(name)) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(&blobs)?.sync_all()?;
    if let Some(Known { synced, .. }) = known().get_mut(dir) {
        synced.extend(found);
    }
    Ok(())
}

/// Whether a file is of a directory that was replaced.
#[cfg(wrapped)]
fn is_replaced(file: &Path) -> bool {
    let of = |(dir, known): (&PathBuf, &Known)| known.is_replaced && file.starts_with(dir);
    known().iter().any(of)
}

#[cfg(wrapped)]
#[expect(
    unsafe_code,
    reason = "the C library's own names and shapes of functions"
)]
mod wrapped {
    use std::ffi::{c_int, c_uint, c_void};
    use std::io;
    use std::panic::catch_unwind;
    use std::path::PathBuf;

    use super::{is_replaced, known, sync_blobs};

    fn path_of(file: c_int) -> io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{file}"))
    }

    /// Whether a sync of this file is of no use to anybody.
    fn is_needless(file: c_int) -> bool {
        catch_unwind(|| path_of(file).is_ok_and(|path| is_replaced(&path))).unwrap_or(false)
    }

    /// Notes what a call for this file failed with, and leaves it as the thread's error.
    fn fail(file: c_int, error: &io::Error) {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        if number != libc::EINTR {
            let noted = catch_unwind(|| {
                let path = path_of(file)?;
                for (dir, known) in known().iter_mut() {
                    if path.starts_with(dir) {
                        known.failed.get_or_insert(number);
                    }
                }
                io::Result::Ok(())
            });
            // Where it cannot be told whose it was, the caller knows at least.
            drop(noted);
        }
        // SAFETY: it is this thread's own number, and always there.
        unsafe { *libc::__errno_location() = number };
    }

    unsafe extern "C" {
        fn __real_fsync(file: c_int) -> c_int;
        fn __real_pwrite64(file: c_int, bytes: *const c_void, len: usize, at: i64) -> isize;
    }

    /// What is called for `pwrite64`, in this library by sled alone and for its log alone.
    ///
    /// # Safety
    ///
    /// As of `pwrite64`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_pwrite64(
        log: c_int,
        bytes: *const c_void,
        len: usize,
        at: i64,
    ) -> isize {
        let synced = catch_unwind(|| {
            let path = path_of(log)?;
            path.parent().map_or(Ok(()), sync_blobs)
        });
        let synced = synced.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::EIO)));
        if let Err(error) = synced {
            fail(log, &error);
            return -1;
        }
        // SAFETY: as the caller promises.
        let written = unsafe { __real_pwrite64(log, bytes, len, at) };
        if written < 0 {
            fail(log, &io::Error::last_os_error());
        }
        written
    }

    /// What is called for `fsync`.
    ///
    /// # Safety
    ///
    /// As of `fsync`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_fsync(file: c_int) -> c_int {
        if is_needless(file) {
            return 0;
        }
        // SAFETY: as the caller promises.
        let synced = unsafe { __real_fsync(file) };
        if synced == 0 {
            return 0;
        }
        fail(file, &io::Error::last_os_error());
        synced
    }

    /// What is called for `sync_file_range`, by sled alone and for its log alone.
    #[unsafe(no_mangle)]
    extern "C" fn __wrap_sync_file_range(log: c_int, _at: i64, _len: i64, _flags: c_uint) -> c_int {
        #[cfg(test)]
        super::LOG_SYNCS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if is_needless(log) {
            return 0;
        }
        // SAFETY: a number is passed, and a wrong one is an error.
        let synced = unsafe { libc::fdatasync(log) };
        if synced != 0 {
            fail(log, &io::Error::last_os_error());
        }
        synced
    }
}
