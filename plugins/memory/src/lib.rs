//! A volatile engine: everything in memory, nothing after the process has ended.
//!
//! It is the example of a plugin, and the proof that kvd needs nothing from an engine but what the
//! contract says: under it a cluster still survives the loss of every process at once, because the
//! host keeps its own durable snapshot.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{Backend, Caps, Feed, Flow, Mark, Op, OpenContext, Range, Result, View};

/// Entries and their mark; a view is a second handle on them.
#[derive(Clone, Default)]
struct Contents {
    entries: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
    mark: Mark,
}

/// The engine.
#[derive(Default)]
pub struct Memory(RwLock<Contents>);

/// A view: the contents as they were.
pub struct MemoryView(Contents);

kvd_plugin_api::export_backend!(Memory);

impl Backend for Memory {
    const NAME: &'static str = "memory";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ);
    type View = MemoryView;

    fn open(_cx: &OpenContext<'_>) -> Result<Self> {
        Ok(Memory::default())
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.contents().mark.clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.contents().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.contents().scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Copies everything once where a view still holds the old contents.
        let entries = Arc::make_mut(&mut contents.entries);
        for op in batch {
            match *op {
                Op::Put(key, value) => drop(entries.insert(key.to_vec(), value.to_vec())),
                Op::Delete(key) => drop(entries.remove(key)),
                Op::DeleteRange(from, to) if from < to => {
                    let mut tail = entries.split_off(from);
                    entries.append(&mut tail.split_off(to));
                }
                Op::DeleteRange(..) => {}
            }
        }
        contents.mark = mark.clone();
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn view(&self) -> Result<MemoryView> {
        Ok(MemoryView(self.contents().clone()))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut entries = BTreeMap::new();
        while feed.next(&mut |key, value| drop(entries.insert(key.to_vec(), value.to_vec())))? {}
        let contents = Contents {
            entries: Arc::new(entries),
            mark: mark.clone(),
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = contents;
        Ok(())
    }
}

impl Memory {
    /// What is there now; a write waits until this is let go.
    ///
    /// A read holds it instead of taking a handle of its own: a second handle would make the next
    /// write copy everything.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.entries.get(key).map(|value| out(value)).is_some())
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        if range.to.is_some_and(|to| to <= range.from) {
            return Ok(());
        }
        let end = range.to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = self
            .entries
            .range::<[u8], _>((Bound::Included(range.from), end));
        loop {
            let next = if range.reverse {
                entries.next_back()
            } else {
                entries.next()
            };
            match next {
                Some((key, value)) if out(key, value) == Flow::Continue => {}
                _ => return Ok(()),
            }
        }
    }
}

impl View for MemoryView {
    fn mark(&self) -> &Mark {
        &self.0.mark
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn conforms_to_the_contract() {
        kvd_plugin_api::testkit::check::<Memory>(&[]);
    }
}
