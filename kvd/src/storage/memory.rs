//! An engine in memory, for tests and simulations: its disk is the state of the last sync.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::{
    Caps, Engine, EngineView, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Read, Result,
};

type Map = BTreeMap<Bytes, Bytes>;

/// An engine in memory that loses on [`crash`](Self::crash) what was not synced.
///
/// A write while a view lives copies the map, so it suits small contents.
pub struct MemoryEngine {
    caps: Caps,
    state: Mutex<State>,
}

struct State {
    map: Arc<Map>,
    mark: Mark,
    synced: Mark,
    /// What each key was before a write since the last sync, in order.
    /// Without `DURABLE` nothing is kept: a crash leaves nothing.
    undo: Option<Vec<(Bytes, Option<Bytes>)>>,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryEngine {
    /// An empty engine with `DURABLE`, `VIEW` and `FAST_READ`.
    pub fn new() -> Self {
        Self::with_caps(Caps::DURABLE.with(Caps::VIEW).with(Caps::FAST_READ))
    }

    /// An empty engine that behaves as `caps` says: without `DURABLE` a crash loses everything,
    /// without `VIEW` there are no views.
    pub fn with_caps(caps: Caps) -> Self {
        MemoryEngine {
            caps,
            state: Mutex::new(State {
                map: Arc::default(),
                mark: Mark::default(),
                synced: Mark::default(),
                undo: caps.contains(Caps::DURABLE).then(Vec::new),
            }),
        }
    }

    /// Goes back to the state of the last sync, as a power failure does.
    pub fn crash(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        match &mut state.undo {
            None => state.map = Arc::default(),
            Some(undo) => {
                let map = Arc::make_mut(&mut state.map);
                for (key, old) in undo.drain(..).rev() {
                    match old {
                        Some(old) => map.insert(key, old),
                        None => map.remove(&key),
                    };
                }
            }
        }
        state.mark = state.synced.clone();
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.lock().map.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl State {
    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        let map = Arc::make_mut(&mut self.map);
        let old = match value {
            Some(value) => map.insert(key.clone(), value),
            None => map.remove(&key),
        };
        if let Some(undo) = &mut self.undo {
            undo.push((key, old));
        }
    }
}

fn scan_map(map: &Map, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) {
    if range.to.is_some_and(|to| range.from >= to) {
        return;
    }
    let to = range.to.map_or(Bound::Unbounded, Bound::Excluded);
    let mut entries = map.range::<[u8], _>((Bound::Included(range.from), to));
    loop {
        let entry = if range.reverse {
            entries.next_back()
        } else {
            entries.next()
        };
        match entry {
            Some((key, value)) if out(key, value) == Flow::Continue => {}
            _ => return,
        }
    }
}

impl Read for MemoryEngine {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.lock().map.get(key).cloned();
        Ok(value.is_some_and(|value| {
            out(&value);
            true
        }))
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let map = self.lock().map.clone();
        scan_map(&map, range, out);
        Ok(())
    }
}

impl Engine for MemoryEngine {
    fn name(&self) -> &str {
        "memory"
    }

    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn limits(&self) -> Limits {
        Limits::UNBOUNDED
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.lock().mark.clone())
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut state = self.lock();
        for op in batch {
            match *op {
                Op::Put(key, value) => state.set(
                    Bytes::copy_from_slice(key),
                    Some(Bytes::copy_from_slice(value)),
                ),
                Op::Delete(key) => state.set(Bytes::copy_from_slice(key), None),
                Op::DeleteRange(from, to) => {
                    let mut keys = Vec::new();
                    let range = Range {
                        from,
                        to: Some(to),
                        reverse: false,
                    };
                    scan_map(&state.map, range, &mut |key, _| {
                        keys.push(Bytes::copy_from_slice(key));
                        Flow::Continue
                    });
                    for key in keys {
                        state.set(key, None);
                    }
                }
            }
        }
        state.mark = mark.clone();
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        let mut state = self.lock();
        if let Some(undo) = &mut state.undo {
            undo.clear();
            state.synced = state.mark.clone();
        }
        Ok(state.synced.clone())
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        if !self.caps.contains(Caps::VIEW) {
            return Err(Error::unsupported("view"));
        }
        let state = self.lock();
        Ok(Box::new(MemoryView {
            map: state.map.clone(),
            mark: state.mark.clone(),
        }))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut map = Map::new();
        let mut in_order = true;
        while feed.next(&mut |key, value| {
            in_order &= map.last_key_value().is_none_or(|(last, _)| *last < *key);
            map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        })? {}
        if !in_order {
            return Err(Error::new(
                ErrorKind::Other,
                "entries of a replacement are not in ascending order",
            ));
        }
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.map, Arc::new(map));
        state.mark = mark.clone();
        if let Some(undo) = &mut state.undo {
            undo.clear();
            state.synced = mark.clone();
        }
        drop(state);
        drop(old);
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        (name == "kvd.entries").then(|| self.len().to_string())
    }

    fn properties(&self) -> Vec<String> {
        vec!["kvd.entries".to_owned()]
    }

    fn compact(&self) -> Result<()> {
        Err(Error::unsupported("compact"))
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.sync().map(drop)
    }
}

/// A view of a [`MemoryEngine`].
struct MemoryView {
    map: Arc<Map>,
    mark: Mark,
}

impl Read for MemoryView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.map.get(key).is_some_and(|value| {
            out(value);
            true
        }))
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        scan_map(&self.map, range, out);
        Ok(())
    }
}

impl EngineView for MemoryView {
    fn mark(&self) -> &Mark {
        &self.mark
    }
}
