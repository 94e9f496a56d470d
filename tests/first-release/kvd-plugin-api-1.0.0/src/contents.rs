//! Contents that are held in memory: what an engine does, without the engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::{Feed, Flow, Mark, Op, Range, Result, View};

/// Ordered entries and their mark, in memory.
///
/// A volatile engine is this behind a lock, and its own view: a clone shares the entries until one
/// of the two is written to, and that write copies them.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    entries: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
    mark: Mark,
}

impl Contents {
    /// The entries of `feed`, with `mark`: what [`Backend::replace`](crate::Backend::replace) leaves.
    ///
    /// # Errors
    ///
    /// The feed's own.
    pub fn from_feed(feed: &mut dyn Feed, mark: &Mark) -> Result<Self> {
        let mut entries = BTreeMap::new();
        while feed.next(&mut |key, value| drop(entries.insert(key.to_vec(), value.to_vec())))? {}
        Ok(Contents {
            entries: Arc::new(entries),
            mark: mark.clone(),
        })
    }

    /// Applies a batch and sets the mark, as [`Backend::write`](crate::Backend::write) does.
    pub fn write(&mut self, batch: &[Op<'_>], mark: &Mark) {
        let entries = Arc::make_mut(&mut self.entries);
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
        self.mark = mark.clone();
    }
}

impl View for Contents {
    fn mark(&self) -> &Mark {
        &self.mark
    }

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
