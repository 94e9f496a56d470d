//! kvd's default storage engine: redb, a copy-on-write B-tree in one file.
//!
//! `write` is a redb transaction that is not made durable; `sync` is a durable, empty one, which
//! takes all before it along. A crash rolls back to the last `sync`, as a whole. Reads use a
//! table handle that is replaced after each write, so that a read opens no transaction, and a
//! view is a clone of that handle.

mod error;
mod store;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, GenDir, Limits, Mark, Op, OpenContext, OptionKind,
    OptionSpec, Range, Result, View,
};

use crate::store::{LIMITS, State, Store};

const FORMAT: &str = "kvd-redb 1";

/// Below this redb reads pages from the file again and again.
const CACHE_BYTES_MIN: u64 = 1 << 20;

/// How often `verify` looks whether the reads that were under way have ended, and how long it
/// waits in between: about a second in all.
const QUIET_TRIES: u32 = 1000;
const QUIET_PAUSE: Duration = Duration::from_millis(1);

/// The engine.
pub struct RedbBackend {
    settings: Settings,
    /// `None` after `close`, and after a failure that left open which file is in force.
    writer: Mutex<Option<Writer>>,
    /// What reads see; `None` after `close`.
    current: RwLock<Option<Arc<State>>>,
}

#[derive(Clone, Copy)]
struct Settings {
    cache_bytes: usize,
    check_on_open: bool,
}

struct Writer {
    generations: GenDir,
    store: Arc<Store>,
    mark: Mark,
    /// Whether anything was written since the last durable commit.
    is_dirty: bool,
}

/// A consistent read of a [`RedbBackend`].
pub struct RedbView(Arc<State>);

impl RedbBackend {
    fn open_with(dir: &std::path::Path, settings: Settings) -> Result<Self> {
        let cache = settings.cache_bytes;
        let open = |path: &std::path::Path| Store::open(path, cache, settings.check_on_open);
        let create = |path: &std::path::Path| Store::create(path, cache);
        let (generations, store) = GenDir::open_or_create(dir, FORMAT, open, create)?;
        let store = Arc::new(store);
        let state = store.read()?;
        let writer = Writer {
            generations,
            store,
            mark: state.mark().clone(),
            is_dirty: false,
        };
        Ok(RedbBackend {
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
    fn publish(&self, state: Option<Arc<State>>) -> Option<Arc<State>> {
        let mut slot = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, state)
    }

    /// Builds a new file from `feed` and puts it in force.
    fn install(&self, slot: &mut Option<Writer>, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        let installed = writer.generations.install(|path| {
            let store = Store::create(path, self.settings.cache_bytes)?;
            store.fill(feed, mark)?;
            let store = Arc::new(store);
            let state = store.read_at(mark.clone())?;
            Ok((store, state))
        });
        let (store, state) = match installed {
            Ok(installed) => installed?,
            Err(error) => {
                // Either file may be in force now, so nothing may be written to any.
                *slot = None;
                return Err(error);
            }
        };
        writer.store = store;
        writer.mark = mark.clone();
        writer.is_dirty = false;
        self.publish(Some(Arc::new(state)));
        // Views of the old file keep it open, and its space is given back with the last of them.
        writer.generations.remove_stale()
    }
}

kvd_plugin_api::export_backend!(RedbBackend);

impl Backend for RedbBackend {
    const NAME: &'static str = "redb";
    const VERSION: &'static str = "4.6";
    const ABOUT: &'static str = "a B-tree with views; what kvd runs unless told otherwise";
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::FAST_READ)
        .with(Caps::FAST_DELETE_RANGE)
        .with(Caps::COMPACT)
        .with(Caps::VERIFY);
    const LIMITS: Limits = LIMITS;
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec {
            name: "cache_size",
            kind: OptionKind::Size,
            default: "256MiB",
            help: "memory for pages of the file, in bytes, beside the system's own file cache; at \
                   least 1MiB",
        },
        OptionSpec {
            name: "check_on_open",
            kind: OptionKind::Bool,
            default: "no",
            help: "read the whole file at each start and check every page's checksum, not only \
                   after a crash",
        },
    ];
    type View = RedbView;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let cache_bytes = cx.options.size_at_least("cache_size", CACHE_BYTES_MIN)?;
        let settings = Settings {
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
            check_on_open: cx.options.bool("check_on_open"),
        };
        RedbBackend::open_with(cx.dir, settings)
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.current()?.mark().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.current()?.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.current()?.scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        let new_mark = (writer.mark != *mark).then_some(mark);
        if batch.is_empty() && new_mark.is_none() {
            return Ok(());
        }
        writer.store.write(batch, new_mark)?;
        writer.is_dirty = true;
        if let Some(mark) = new_mark {
            writer.mark = mark.clone();
        }
        self.publish(Some(Arc::new(writer.store.read_at(mark.clone())?)));
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        if writer.is_dirty {
            writer.store.sync()?;
            writer.is_dirty = false;
        }
        Ok(writer.mark.clone())
    }

    fn view(&self) -> Result<RedbView> {
        self.current().map(RedbView)
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.install(&mut self.writer(), feed, mark)
    }

    fn property(&self, name: &str) -> Option<String> {
        let state = self.current().ok()?;
        match name {
            "kvd.disk.bytes" => Some(
                std::fs::metadata(state.store().path())
                    .ok()?
                    .len()
                    .to_string(),
            ),
            "kvd.keys" => Some(state.len().ok()?.to_string()),
            "redb.cache.used_bytes" => Some(state.store().cache_used_bytes().to_string()),
            _ => None,
        }
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["kvd.disk.bytes", "kvd.keys", "redb.cache.used_bytes"]
    }

    fn compact(&self) -> Result<()> {
        // A copy into a new file, and not redb's own compaction in place: that one would shut out
        // every read and view until it is done.
        let mut slot = self.writer();
        let state = self.current()?;
        self.install(&mut slot, &mut state.feed()?, state.mark())
    }

    fn verify(&self) -> Result<()> {
        let mut slot = self.writer();
        let writer = slot.as_mut().ok_or_else(Error::closed)?;
        // Reads wait at this lock until the check is done.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = None;
        let mut tries = 0;
        let checked = loop {
            if let Some(store) = Arc::get_mut(&mut writer.store) {
                break store.check();
            }
            if tries == QUIET_TRIES {
                let message = "a view is held, the check needs the file for itself";
                break Err(Error::new(ErrorKind::Other, message));
            }
            tries += 1;
            pause();
        };
        // After a repair the contents may be those of an earlier sync: they are shown as they are,
        // and the error below tells the host to stop.
        let reread = writer.store.read();
        let is_same = match reread {
            Ok(state) => {
                let is_same = *state.mark() == writer.mark;
                writer.mark = state.mark().clone();
                *current = Some(Arc::new(state));
                is_same
            }
            Err(_) => false,
        };
        if checked? && is_same {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corruption,
            "redb: the check failed, and the file was repaired",
        ))
    }

    fn close(&self) -> Result<()> {
        let synced = self.sync();
        let state = self.publish(None);
        let writer = self.writer().take();
        // The database closes with the last one that holds it.
        drop(state);
        drop(writer);
        synced.map(drop)
    }
}

impl View for RedbView {
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

#[expect(
    clippy::disallowed_methods,
    reason = "the end of a read is nothing that can be awaited"
)]
fn pause() {
    thread::sleep(QUIET_PAUSE);
}
