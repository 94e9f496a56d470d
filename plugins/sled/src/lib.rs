//! sled 0.34.7 as a storage engine for kvd: experimental, for the reasons in the README.
//!
//! Everything is in one tree, the mark under a key of its own, because sled's batches are atomic
//! in one tree only. `sync` is sled's flush and then an fsync of its files, which sled's flush
//! leaves out on Linux. There is no view.

mod digest;
mod error;
mod flush;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, GenDir, Limits, Mark, NoView, Op, OpenContext,
    OptionKind, OptionSpec, Range, Result,
};
use sled::Mode;

use crate::digest::Digest;
use crate::store::{Files, LIMITS, Settings, Store};

const FORMAT: &str = "kvd-sled 1";

/// Below this sled evicts pages faster than it can use them.
const CACHE_BYTES_MIN: u64 = 1 << 20;

/// The engine.
pub struct SledBackend {
    settings: Settings,
    /// `None` after `close`, and after a failure that left open which directory is in force.
    writer: Mutex<Option<Writer>>,
    /// Written to under the lock, so that a scan meets whole batches only; `None` after `close`, and
    /// after a batch that failed.
    current: RwLock<Option<Current>>,
    /// The first failure behind which nothing goes on: whoever comes later has to hear the reason.
    failure: OnceLock<Error>,
}

struct Writer {
    generations: GenDir,
    files: Files,
    /// Whether anything was written since the last sync.
    is_dirty: bool,
}

struct Current {
    store: Store,
    mark: Mark,
    digest: Digest,
}

impl SledBackend {
    fn open_with(dir: &Path, settings: Settings) -> Result<Self> {
        let open = |path: &Path| Store::open(path, settings);
        let create = |path: &Path| {
            let (store, files) = Store::open(path, settings)?;
            store.apply(store.prepare(&[], &Mark::default(), Digest::default())?)?;
            store.sync(&files)?;
            Ok((store, files))
        };
        let (generations, (store, files)) = GenDir::open_or_create(dir, FORMAT, open, create)?;
        let mark = store.mark()?;
        let digest = store.digest(&mark)?;
        // What sled found after a crash need not be on disk: the first sync makes it so.
        let writer = Writer {
            generations,
            files,
            is_dirty: true,
        };
        Ok(SledBackend {
            settings,
            writer: Mutex::new(Some(writer)),
            current: RwLock::new(Some(Current {
                store,
                mark,
                digest,
            })),
            failure: OnceLock::new(),
        })
    }

    /// Why there is nothing any more.
    fn gone(&self) -> Error {
        self.failure.get().cloned().unwrap_or_else(Error::closed)
    }

    /// Nothing goes on behind this error.
    fn failed(&self, error: Error) -> Error {
        self.failure.get_or_init(|| error.clone());
        error
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> RwLockReadGuard<'_, Option<Current>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, current: Option<Current>) -> Option<Current> {
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, current)
    }

    /// Builds a new directory from `feed` and puts it in force; returns the files of the one before,
    /// which have to outlive whoever uses that.
    fn install(
        &self,
        slot: &mut Option<Writer>,
        feed: &mut dyn Feed,
        mark: &Mark,
    ) -> Result<Files> {
        let writer = slot.as_mut().ok_or_else(|| self.gone())?;
        let installed = writer.generations.install(|path| {
            let (store, files) = Store::open(path, self.settings)?;
            let digest = store.fill(feed, mark)?;
            store.sync(&files)?;
            Ok((store, files, digest))
        });
        let (store, files, digest) = match installed {
            Ok(installed) => installed?,
            Err(error) => {
                // Either directory may be in force now, so nothing may be written to any.
                let error = self.failed(error);
                *slot = None;
                return Err(error);
            }
        };
        let replaced = std::mem::replace(&mut writer.files, files);
        replaced.replaced();
        writer.is_dirty = false;
        drop(self.publish(Some(Current {
            store,
            mark: mark.clone(),
            digest,
        })));
        // It took nothing away, but a disk that fails is not passed over.
        replaced.check()?;
        Ok(replaced)
    }

    /// Removes what was replaced; nothing may use it any more, because sled still writes when it
    /// is dropped.
    fn remove_replaced(slot: &Option<Writer>) -> Result<()> {
        slot.as_ref()
            .map_or(Ok(()), |writer| writer.generations.remove_stale())
    }
}

kvd_plugin_api::export_backend!(SledBackend);

impl Backend for SledBackend {
    const NAME: &'static str = "sled";
    const VERSION: &'static str = "0.34.7";
    const ABOUT: &'static str =
        "experimental: without views; its README says what is known of its files";
    const CAPS: Caps = Caps::DURABLE.with(Caps::FAST_READ).with(Caps::COMPACT);
    const LIMITS: Limits = LIMITS;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec {
            name: "cache_capacity",
            kind: OptionKind::Size,
            default: "256MiB",
            help: "memory for sled's pages, in bytes, beside the system's own file cache; at \
                   least 1MiB",
        },
        OptionSpec {
            name: "mode",
            kind: OptionKind::Enum,
            default: "low-space",
            help: "low-space rewrites half-empty segments early, high-throughput late",
        },
    ];
    type View = NoView<Self>;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let cache_bytes = cx
            .options
            .size_at_least("cache_capacity", CACHE_BYTES_MIN)?;
        let mode = match cx.options.str("mode") {
            "low-space" => Mode::LowSpace,
            "high-throughput" => Mode::HighThroughput,
            other => {
                return Err(invalid(format!(
                    "mode is '{other}', expected low-space or high-throughput"
                )));
            }
        };
        SledBackend::open_with(cx.dir, Settings { cache_bytes, mode })
    }

    fn mark(&self) -> Result<Mark> {
        self.current()
            .as_ref()
            .map(|current| current.mark.clone())
            .ok_or_else(|| self.gone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self
            .current()
            .as_ref()
            .ok_or_else(|| self.gone())?
            .store
            .get(key)?;
        Ok(found.map(|value| out(&value)).is_some())
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.current()
            .as_ref()
            .ok_or_else(|| self.gone())?
            .store
            .scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(|| self.gone())?;
        let mut seen = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let current = seen.as_mut().ok_or_else(|| self.gone())?;
        if batch.is_empty() && current.mark == *mark {
            return Ok(());
        }
        let changes = current.store.prepare(batch, mark, current.digest)?;
        writer.is_dirty = true;
        match current.store.apply(changes) {
            Ok(digest) => {
                current.digest = digest;
                current.mark.clone_from(mark);
                Ok(())
            }
            Err(error) => {
                // sled may have applied a part of it in memory, which nobody must see.
                let error = self.failed(error);
                *seen = None;
                *slot = None;
                Err(error)
            }
        }
    }

    fn sync(&self) -> Result<Mark> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(|| self.gone())?;
        // Reads go on: only writes take the other lock for themselves, and they wait at this one.
        let current = self.current();
        let current = current.as_ref().ok_or_else(|| self.gone())?;
        let mark = current.mark.clone();
        if writer.is_dirty {
            if let Err(error) = current.store.sync(&writer.files) {
                // The kernel reports a failed write once: a second sync would seem to succeed.
                let error = self.failed(error);
                *slot = None;
                return Err(error);
            }
            writer.is_dirty = false;
        }
        Ok(mark)
    }

    fn view(&self) -> Result<Self::View> {
        Err(Error::unsupported("view"))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut slot = self.writer();
        let replaced = self.install(&mut slot, feed, mark)?;
        let removed = Self::remove_replaced(&slot);
        drop(replaced);
        removed
    }

    fn property(&self, name: &str) -> Option<String> {
        let current = self.current();
        let store = &current.as_ref()?.store;
        match name {
            "kvd.disk.bytes" => Some(store.disk_bytes().ok()?.to_string()),
            "sled.dir" => Some(store.dir().display().to_string()),
            _ => None,
        }
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["kvd.disk.bytes", "sled.dir"]
    }

    fn compact(&self) -> Result<()> {
        // sled gives space back when it likes; a copy into a new directory does it for certain.
        let mut slot = self.writer();
        let (mut feed, mark) = {
            let current = self.current();
            let current = current.as_ref().ok_or_else(|| self.gone())?;
            (current.store.feed(), current.mark.clone())
        };
        let replaced = self.install(&mut slot, &mut feed, &mark)?;
        drop(feed);
        let removed = Self::remove_replaced(&slot);
        drop(replaced);
        removed
    }

    fn verify(&self) -> Result<()> {
        let current = self.current();
        let current = current.as_ref().ok_or_else(|| self.gone())?;
        current.store.digest(&current.mark).map(drop)
    }

    fn close(&self) -> Result<()> {
        let synced = self.sync();
        let current = self.publish(None);
        let writer = self.writer().take();
        // sled first: the lock of the whole directory is given back when its files are free.
        drop(current);
        drop(writer);
        synced.map(drop)
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOption, message)
}
