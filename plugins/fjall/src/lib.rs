//! fjall's LSM tree as a storage engine for kvd: for much writing.
//!
//! This is the tree alone (the crate `lsm-tree`), without fjall's journal: Raft's log is the
//! write-ahead log already. A write goes to memory, `sync` makes a table of what is there, and the
//! manifest that names the tables is replaced as a whole; so a crash leaves the state after some
//! batch, there is nothing to replay, and nothing is written twice.

mod background;
mod error;
mod instants;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, GenDir, Limits, Mark, Op, OpenContext, OptionKind,
    OptionSpec, Range, Result, View,
};

use crate::store::{LIMITS, Settings, State, Store};

const FORMAT: &str = "kvd-fjall 1";

/// With less the engine would do nothing but read blocks and merge tables.
const CACHE_BYTES_MIN: u64 = 1 << 20;
const MEMORY_BYTES_MIN: u64 = 1 << 20;

/// The engine.
pub struct FjallBackend {
    settings: Settings,
    /// `None` after `close`, and after a failure that left a part of a batch in memory.
    writer: Mutex<Option<Writer>>,
    /// What reads see; `None` after `close`.
    current: RwLock<Option<Arc<State>>>,
}

struct Writer {
    generations: GenDir,
    store: Arc<Store>,
    mark: Mark,
    /// Whether anything was written since the last sync.
    is_dirty: bool,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Before the directory's lock is given back; a view may keep the tree itself.
        self.store.stop();
    }
}

/// A consistent read of a [`FjallBackend`].
pub struct FjallView(Arc<State>);

impl FjallBackend {
    fn open_with(dir: &Path, settings: Settings) -> Result<Self> {
        let open = |path: &Path| Store::open(path, settings);
        let create = |path: &Path| {
            let store = Store::open(path, settings)?;
            store.write(&[], Some(&Mark::default()))?;
            store.sync()?;
            Ok(store)
        };
        let (generations, store) = GenDir::open_or_create(dir, FORMAT, open, create)?;
        let store = Arc::new(store);
        let state = store.read()?;
        let writer = Writer {
            generations,
            store,
            mark: state.mark().clone(),
            is_dirty: false,
        };
        Ok(FjallBackend {
            settings,
            writer: Mutex::new(Some(writer)),
            current: RwLock::new(Some(Arc::new(state))),
        })
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<Arc<State>> {
        self.current_slot()
            .as_ref()
            .map(Arc::clone)
            .ok_or_else(Error::closed)
    }

    fn current_slot(&self) -> RwLockReadGuard<'_, Option<Arc<State>>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `state` in the place of what reads see; the old one is let go outside the lock.
    fn publish(&self, state: Option<Arc<State>>) {
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *slot, state);
        drop(slot);
        drop(old);
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

    fn show(&self, writer: &Writer) {
        let state = writer.store.read_at(writer.mark.clone());
        self.publish(Some(Arc::new(state)));
    }

    fn make_durable(&self, writer: &mut Writer) -> Result<()> {
        if !writer.is_dirty {
            return Ok(());
        }
        writer.store.sync()?;
        writer.is_dirty = false;
        // What reads see holds the memory that is a table now.
        self.show(writer);
        writer.store.tidy()
    }
}

kvd_plugin_api::export_backend!(FjallBackend);

impl Backend for FjallBackend {
    const NAME: &'static str = "fjall";
    const VERSION: &'static str = "3.1";
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::FAST_READ)
        .with(Caps::COMPACT)
        .with(Caps::VERIFY);
    const LIMITS: Limits = LIMITS;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec {
            name: "cache_size",
            kind: OptionKind::Size,
            default: "256MiB",
            help: "memory for blocks of tables, in bytes, beside the system's own file cache; at \
                   least 1MiB",
        },
        OptionSpec {
            name: "memtable_size",
            kind: OptionKind::Size,
            default: "32MiB",
            help: "what is written in memory before it becomes a table, in bytes; up to five times \
                   as much is used; at least 1MiB",
        },
        OptionSpec {
            name: "compression",
            kind: OptionKind::Enum,
            default: "lz4",
            help: "lz4 or none: of the tables of the lower levels, from the next one that is \
                   written",
        },
    ];
    type View = FjallView;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let is_compressed = match cx.options.str("compression") {
            "lz4" => true,
            "none" => false,
            other => {
                let message = format!("compression is '{other}', expected lz4 or none");
                return Err(Error::new(ErrorKind::InvalidOption, message));
            }
        };
        let settings = Settings {
            cache_bytes: cx.options.size_at_least("cache_size", CACHE_BYTES_MIN)?,
            memory_bytes: cx
                .options
                .size_at_least("memtable_size", MEMORY_BYTES_MIN)?,
            is_compressed,
        };
        FjallBackend::open_with(cx.dir, settings)
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.current()?.mark().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        View::get(&*self.current()?, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        View::scan(&*self.current()?, range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        for op in batch {
            Self::LIMITS.check(op)?;
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
            self.show(writer);
            writer.store.make_room()
        };
        self.change(change).map(drop)
    }

    fn sync(&self) -> Result<Mark> {
        self.change(|writer| self.make_durable(writer))
    }

    fn view(&self) -> Result<FjallView> {
        self.current().map(FjallView)
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        let installed = writer.generations.install(|path| {
            let store = Store::open(path, self.settings)?;
            store.fill(feed, mark)?;
            Ok(Arc::new(store))
        });
        let store = match installed {
            Ok(installed) => installed?,
            Err(error) => {
                // Either tree may be in force now, so nothing may be written to any.
                *slot = None;
                return Err(error);
            }
        };
        let old = std::mem::replace(&mut writer.store, store);
        writer.mark = mark.clone();
        writer.is_dirty = false;
        self.show(writer);
        old.was_replaced();
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        let state = self.current().ok()?;
        let store = state.store();
        match name {
            "kvd.disk.bytes" => Some(store.disk_bytes().to_string()),
            "fjall.tables" => {
                let levels = store.tables();
                let levels: Vec<String> = levels.iter().map(usize::to_string).collect();
                Some(levels.join(" "))
            }
            "fjall.memory.used_bytes" => Some(store.memory_used_bytes().to_string()),
            "fjall.cache.used_bytes" => Some(store.cache_used_bytes().to_string()),
            _ => None,
        }
    }

    fn properties(&self) -> Vec<&'static str> {
        vec![
            "kvd.disk.bytes",
            "fjall.tables",
            "fjall.memory.used_bytes",
            "fjall.cache.used_bytes",
        ]
    }

    fn compact(&self) -> Result<()> {
        let change = |writer: &mut Writer| {
            self.make_durable(writer)?;
            writer.store.compact()?;
            self.show(writer);
            writer.store.tidy()
        };
        self.change(change).map(drop)
    }

    fn verify(&self) -> Result<()> {
        let store = Arc::clone(self.current()?.store());
        store.verify()
    }

    fn close(&self) -> Result<()> {
        let synced = self.sync();
        self.publish(None);
        // With the threads and the lock; views may still hold the tree.
        drop(self.writer().take());
        synced.map(drop)
    }
}

impl View for FjallView {
    fn mark(&self) -> &Mark {
        self.0.mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        View::get(&*self.0, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        View::scan(&*self.0, range, out)
    }
}
