//! Long reads of an engine without views: what the engine had before it was changed under them.
//!
//! A reader of such an engine keeps the engine as it is by being there; whoever stores waits until
//! it has gone. That is right for reads of microseconds. A read that turns out to be long lets the
//! engine change: whoever stores first looks up what each key had, keeps it here, and only then
//! writes; the reader reads the engine under what is kept. Both go in turn, the reader for
//! [`TURN_ENTRIES`] or [`TURN_BYTES`] at a time, whoever stores for one batch.
//!
//! ```text
//! the steps that the reader knows      newest
//! what the engine had before           from here on as it was when the reader came
//! the engine, which changes            oldest
//! ```

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::layer::LayerKey;
use super::{Engine, Flow, Layer, Op, Range, Read, Result, Stack};

/// A reader lets the engine change after so many entries of a scan.
pub(super) const TURN_ENTRIES: usize = 1024;

/// Or after so many bytes; one entry may be larger.
pub(super) const TURN_BYTES: usize = 1 << 20;

/// So many point reads make a read a long one, as more entries than those of one turn do.
pub(super) const SHORT_GETS: usize = 1024;

/// What may be kept for all readers together. Beyond it, those for whom most is kept are in the
/// way again: a read that may be begun anew fails, and any other is waited for.
pub const KEPT_BYTES_MAX: usize = 256 << 20;

/// What one kept key takes in memory beside its bytes, about.
const KEPT_OVERHEAD: usize = 96;

/// What the engine had, for all readers that know the same steps.
#[derive(Default)]
pub(super) struct Before {
    /// What each key had that was changed since. Locked for reading while a reader has its turn.
    kept: RwLock<Layer>,
    bytes: AtomicUsize,
    /// Nothing more is kept.
    full: AtomicBool,
}

impl Before {
    /// What is kept takes this much, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Nothing more is kept for these readers: those that may not fail are waited for.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Keeps nothing more; where nobody needs what is kept, drops it when the turn has ended that
    /// somebody may have.
    pub(super) fn keep_no_more(&self, needed: bool) {
        self.full.store(true, Ordering::Relaxed);
        if !needed {
            let kept = std::mem::take(&mut *self.lock());
            self.bytes.store(0, Ordering::Relaxed);
            drop(kept);
        }
    }

    /// While it is locked the engine stays as it is.
    fn locked(&self) -> RwLockReadGuard<'_, Layer> {
        self.kept.read().expect("no panic while held")
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Layer> {
        self.kept.write().expect("no panic while held")
    }

    /// What `engine` has of what a batch changes and is not kept yet: the keys, each with its value
    /// if it has one.
    fn look_up(&self, engine: &dyn Engine, batch: &[Op<'_>]) -> Result<Vec<Kept>> {
        // Only one thread stores, so nothing is added in between.
        let kept = self.locked();
        let mut found = Vec::new();
        for op in batch {
            match *op {
                Op::Put(key, _) | Op::Delete(key) => {
                    if kept.get(key).is_none() {
                        let mut value = None;
                        engine.get(key, &mut |bytes| {
                            value = Some(Bytes::copy_from_slice(bytes));
                        })?;
                        found.push((key.into(), value));
                    }
                }
                Op::DeleteRange(from, to) => {
                    let range = Range {
                        from,
                        to: Some(to),
                        reverse: false,
                    };
                    engine.scan(range, &mut |key, value| {
                        if kept.get(key).is_none() {
                            found.push((key.into(), Some(Bytes::copy_from_slice(value))));
                        }
                        Flow::Continue
                    })?;
                }
            }
        }
        Ok(found)
    }

    fn keep(&self, kept: &mut Layer, found: Vec<Kept>) {
        let mut bytes = 0;
        for (key, value) in found {
            bytes += KEPT_OVERHEAD + key.len() + value.as_ref().map_or(0, Bytes::len);
            kept.set(key, value);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A key, and what it had.
type Kept = (LayerKey, Option<Bytes>);

/// Lets `write` change `engine` by `batch`, between the turns of these readers, after what they
/// still need is kept. For the one thread that stores.
pub(super) fn write_under<T>(
    readers: &[Arc<Before>],
    engine: &dyn Engine,
    batch: &[Op<'_>],
    write: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let found = readers.iter().map(|before| before.look_up(engine, batch));
    let found = found.collect::<Result<Vec<_>>>()?;
    let mut locked: Vec<_> = readers.iter().map(|before| before.lock()).collect();
    for ((before, kept), found) in readers.iter().zip(&mut locked).zip(found) {
        before.keep(kept, found);
    }
    // Under the locks: a reader sees a key either here and there as it was, or kept and changed.
    write()
}

/// The engine under what is kept of it, in one turn of one reader.
pub(super) struct Turn<'a> {
    engine: &'a dyn Engine,
    kept: RwLockReadGuard<'a, Layer>,
    /// Of the engine's entries and bytes, and of those that were shown.
    had: Cell<(usize, usize)>,
    shown: Cell<(usize, usize)>,
    /// The last key of a scan whose turn has ended.
    edge: RefCell<Option<Vec<u8>>>,
}

impl<'a> Turn<'a> {
    /// Begins a turn: the engine stays as it is until the turn goes.
    pub(super) fn begin(engine: &'a dyn Engine, before: &'a Before) -> Self {
        Turn {
            engine,
            kept: before.locked(),
            had: Cell::default(),
            shown: Cell::default(),
            edge: RefCell::default(),
        }
    }

    /// The last key that a scan has come to, where the turn ended before the scan.
    pub(super) fn edge(self) -> Option<Vec<u8>> {
        self.edge.into_inner()
    }

    /// Shows an entry of a scan, unless the turn has ended.
    pub(super) fn show(
        &self,
        key: &[u8],
        value: &[u8],
        out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Flow {
        // What the layers have behind the edge may have more between it and the edge.
        if self.edge.borrow().is_some() || out(key, value) == Flow::Stop {
            return Flow::Stop;
        }
        self.count(&self.shown, key, value)
    }

    fn count(&self, counted: &Cell<(usize, usize)>, key: &[u8], value: &[u8]) -> Flow {
        let (entries, bytes) = counted.get();
        let (entries, bytes) = (entries + 1, bytes + key.len() + value.len());
        counted.set((entries, bytes));
        if entries < TURN_ENTRIES && bytes < TURN_BYTES {
            return Flow::Continue;
        }
        self.edge.replace(Some(key.to_vec()));
        Flow::Stop
    }
}

impl Read for Turn<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match self.kept.get(key) {
            None => self.engine.get(key, out),
            Some(None) => Ok(false),
            Some(Some(value)) => {
                out(value);
                Ok(true)
            }
        }
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let counted = Counted(self);
        match self.kept.is_empty() {
            true => counted.scan(range, out),
            false => Stack::new(&counted, &[&*self.kept]).scan(range, out),
        }
    }
}

/// The engine itself in a turn: what it has is counted, whether or not it is shown.
struct Counted<'a>(&'a Turn<'a>);

impl Read for Counted<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.engine.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0
            .engine
            .scan(range, &mut |key, value| match out(key, value) {
                Flow::Stop => Flow::Stop,
                Flow::Continue => self.0.count(&self.0.had, key, value),
            })
    }
}
