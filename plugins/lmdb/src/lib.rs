//! LMDB as a storage engine for kvd: a B-tree in one mapped file, for much reading.
//!
//! `write` is a transaction whose pages are synced and whose last page is not; `sync` syncs that
//! one too. A view is a read transaction of LMDB's.

mod error;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, GenDir, Limits, Mark, Op, OpenContext, OptionKind,
    OptionSpec, Range, Result, View,
};

use crate::store::{LIMITS, State, Store};

const FORMAT: &str = "kvd-lmdb 1";

const MAP_BYTES_MIN: u64 = 1 << 20;
/// LMDB asks for whole pages of the system; this is a multiple of every size in use.
const MAP_BYTES_STEP: u64 = 64 << 10;

/// The engine.
pub struct LmdbBackend {
    map_bytes: usize,
    /// `None` after `close`, and after a failed write or sync.
    writer: Mutex<Option<Writer>>,
    /// What reads see; `None` after `close`.
    current: RwLock<Option<Arc<Store>>>,
}

struct Writer {
    generations: GenDir,
    store: Arc<Store>,
    mark: Mark,
    /// Whether anything was written since the last sync.
    is_dirty: bool,
}

/// A consistent read of an [`LmdbBackend`].
pub struct LmdbView(State);

impl LmdbBackend {
    fn open_with(dir: &Path, map_bytes: usize) -> Result<Self> {
        let open = |path: &Path| Store::open(path, map_bytes);
        let create = |path: &Path| Store::create(path, map_bytes);
        let (generations, store) = GenDir::open_or_create(dir, FORMAT, open, create)?;
        let store = Arc::new(store);
        let mark = store.read(&store.begin()?).mark()?;
        let writer = Writer {
            generations,
            store: Arc::clone(&store),
            mark,
            // What a killed process wrote need not be on disk: the first sync makes it so.
            is_dirty: true,
        };
        Ok(LmdbBackend {
            map_bytes,
            writer: Mutex::new(Some(writer)),
            current: RwLock::new(Some(store)),
        })
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<Arc<Store>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(Arc::clone).ok_or_else(Error::closed)
    }

    fn publish(&self, store: Option<Arc<Store>>) {
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *slot = store;
    }

    /// Lets `change` write; after an error of its nothing is written any more.
    fn change(&self, change: impl FnOnce(&mut Writer) -> Result<()>) -> Result<Mark> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        match change(writer) {
            Ok(()) => Ok(writer.mark.clone()),
            Err(error) => {
                *slot = None;
                Err(error)
            }
        }
    }

    /// Puts what `build` makes in force, with `mark`.
    fn install(
        &self,
        mark: &Mark,
        build: impl FnOnce(&Store, &Path) -> Result<Store>,
    ) -> Result<()> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        let current = &writer.store;
        let store = match writer.generations.install(|path| build(current, path)) {
            Ok(installed) => Arc::new(installed?),
            Err(error) => {
                // Either environment may be in force now, so nothing may be written to any.
                *slot = None;
                return Err(error);
            }
        };
        writer.store = Arc::clone(&store);
        writer.mark = mark.clone();
        writer.is_dirty = false;
        self.publish(Some(store));
        // Views of the old file keep it open, and its space is given back with the last of them.
        writer.generations.remove_stale()
    }
}

kvd_plugin_api::export_backend!(LmdbBackend);

impl Backend for LmdbBackend {
    const NAME: &'static str = "lmdb";
    const VERSION: &'static str = "0.9.70";
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::FAST_READ)
        .with(Caps::COMPACT);
    const LIMITS: Limits = LIMITS;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "map_size",
        kind: OptionKind::Size,
        default: "256GiB",
        help: "how large the file may become, in bytes: address space that is reserved, and no \
               memory; at least 1MiB",
    }];
    type View = LmdbView;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let map_bytes = cx.options.size_at_least("map_size", MAP_BYTES_MIN)?;
        let rounded = map_bytes / MAP_BYTES_STEP * MAP_BYTES_STEP;
        let Ok(rounded) = usize::try_from(rounded) else {
            let message = format!("map_size is {map_bytes}, more than the address space");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        };
        LmdbBackend::open_with(cx.dir, rounded)
    }

    fn mark(&self) -> Result<Mark> {
        let store = self.current()?;
        store.read(&store.begin()?).mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let store = self.current()?;
        store.read(&store.begin()?).get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let store = self.current()?;
        store.read(&store.begin()?).scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        for op in batch {
            LIMITS.check(op)?;
        }
        let change = |writer: &mut Writer| {
            let new_mark = (writer.mark != *mark).then_some(mark);
            if batch.is_empty() && new_mark.is_none() {
                return Ok(());
            }
            writer.store.write(batch, new_mark)?;
            writer.is_dirty = true;
            if let Some(mark) = new_mark {
                writer.mark = mark.clone();
            }
            Ok(())
        };
        self.change(change).map(drop)
    }

    fn sync(&self) -> Result<Mark> {
        self.change(|writer| {
            if writer.is_dirty {
                writer.store.sync()?;
                writer.is_dirty = false;
            }
            Ok(())
        })
    }

    fn view(&self) -> Result<LmdbView> {
        self.current()?.state().map(LmdbView)
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.install(mark, |_, path| {
            let store = Store::create(path, self.map_bytes)?;
            store.fill(feed, mark)?;
            Ok(store)
        })
    }

    fn property(&self, name: &str) -> Option<String> {
        let store = self.current().ok()?;
        match name {
            "kvd.disk.bytes" => Some(store.disk_bytes().ok()?.to_string()),
            "lmdb.used_bytes" => Some(store.used_bytes().ok()?.to_string()),
            _ => None,
        }
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["kvd.disk.bytes", "lmdb.used_bytes"]
    }

    fn compact(&self) -> Result<()> {
        let mark = self.mark()?;
        self.install(&mark, |store, path| {
            store.copy_to(path)?;
            let store = Store::open(path, self.map_bytes)?;
            store.sync()?;
            Ok(store)
        })
    }

    fn verify(&self) -> Result<()> {
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        self.scan(all, &mut |_, _| Flow::Continue)
    }

    fn close(&self) -> Result<()> {
        let synced = self.sync();
        self.publish(None);
        // LMDB closes with the last view.
        drop(self.writer().take());
        synced.map(drop)
    }
}

impl View for LmdbView {
    fn mark(&self) -> &Mark {
        self.0.mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}
