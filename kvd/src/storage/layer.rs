//! Changes on top of a read: one [`Layer`] holds them, a [`Stack`] reads through several.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::filter::{self, Filter};
use super::{Flow, Op, Range, Read, Result};

/// The key of a change: shared, because an undo log keeps it too.
pub(crate) type LayerKey = Arc<[u8]>;

/// How many entries of the base a range tombstone may hide in a row before the scan seeks past it.
const HIDDEN_RUN_MAX: u32 = 16;

/// An ordered set of changes: a value or a removal for single keys, and ranges that are removed.
///
/// A later change wins over an earlier one, as in a batch.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    /// What each key became; `None` is a removal.
    points: BTreeMap<LayerKey, Option<Bytes>>,
    /// Removed ranges, from inclusive to exclusive; they neither overlap nor touch. A point within
    /// one is later than it.
    ranges: BTreeMap<LayerKey, LayerKey>,
    /// The keys and values of `points`.
    bytes: usize,
    /// Of the keys of `points`, once they stay as they are.
    filter: Option<Filter>,
}

impl AsRef<Layer> for Layer {
    fn as_ref(&self) -> &Layer {
        self
    }
}

impl Layer {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one change after all earlier ones.
    pub fn apply(&mut self, op: Op<'_>) {
        match op {
            Op::Put(key, value) => {
                self.set(key.into(), Some(Bytes::copy_from_slice(value)));
            }
            Op::Delete(key) => {
                self.set(key.into(), None);
            }
            Op::DeleteRange(from, to) => self.delete_range(from, to),
        }
    }

    /// Sets what `key` becomes and returns what this layer said of it as a point before.
    pub(crate) fn set(&mut self, key: LayerKey, value: Option<Bytes>) -> Option<Option<Bytes>> {
        let key_bytes = key.len();
        self.filter = None;
        self.bytes += key_bytes + value.as_ref().map_or(0, Bytes::len);
        let old = self.points.insert(key, value);
        if let Some(old) = &old {
            self.bytes -= key_bytes + old.as_ref().map_or(0, Bytes::len);
        }
        old
    }

    /// Takes back a [`Self::set`] by what it returned.
    pub(crate) fn restore(&mut self, key: LayerKey, old: Option<Option<Bytes>>) {
        match old {
            Some(old) => {
                self.set(key, old);
            }
            None => {
                if let Some(value) = self.points.remove(&key) {
                    self.bytes -= key.len() + value.map_or(0, |value| value.len());
                }
            }
        }
    }

    fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        if from >= to {
            return;
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let hidden: Vec<LayerKey> = self
            .points
            .range::<[u8], _>(bounds)
            .map(|(key, _)| key.clone())
            .collect();
        for key in hidden {
            self.restore(key, None);
        }
        let mut from: LayerKey = from.into();
        let mut to: LayerKey = to.into();
        // The one range that begins before this one and reaches it, then those that begin in it.
        if let Some((start, end)) = self.ranges.range::<[u8], _>(up_to(&from)).next_back()
            && **end >= *from
        {
            let start = start.clone();
            to = to.max(end.clone());
            self.ranges.remove(&start);
            from = start;
        }
        while let Some((start, end)) = self
            .ranges
            .range::<[u8], _>((Bound::Included(&*from), Bound::Included(&*to)))
            .next()
        {
            let start = start.clone();
            to = to.max(end.clone());
            self.ranges.remove(&start);
        }
        self.ranges.insert(from, to);
    }

    /// Adds all changes of a later layer.
    pub fn absorb(&mut self, mut later: Layer) {
        for (from, to) in &later.ranges {
            self.delete_range(from, to);
        }
        self.filter = None;
        // A tree is joined with one of its own size in one pass, and takes a few keys one by one.
        if later.points.len() < self.points.len() / 16 {
            for (key, value) in later.points {
                self.set(key, value);
            }
            return;
        }
        self.points.append(&mut later.points);
        self.bytes = bytes_of(&self.points);
    }

    /// The changes of all these layers, of which the last is the newest.
    pub fn joined<L: AsRef<Layer>>(layers: &[L]) -> Layer {
        if layers.iter().any(|layer| !layer.as_ref().ranges.is_empty()) {
            let mut joined = Layer::new();
            for layer in layers {
                joined.absorb(layer.as_ref().clone());
            }
            return joined;
        }
        let points = layers.iter().flat_map(|layer| &layer.as_ref().points);
        // Of equal keys the last one stays.
        let points: BTreeMap<_, _> = points.map(|(k, v)| (k.clone(), v.clone())).collect();
        let bytes = bytes_of(&points);
        Layer {
            points,
            bytes,
            ..Layer::default()
        }
    }

    /// Makes the keys that it says nothing of cheap to tell; for a layer that stays as it is.
    pub fn seal(&mut self) {
        self.filter = Filter::new(self.points.keys().map(|key| &**key));
    }

    /// What this layer says of `key`: nothing, that it is removed, or its value.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        match self.points.get(key) {
            Some(value) => Some(value.as_ref()),
            None => self.covering(key).map(|_| None),
        }
    }

    /// The same, by a key whose hash is known.
    fn get_hashed(&self, key: &[u8], hash: u64) -> Option<Option<&Bytes>> {
        match &self.filter {
            Some(filter) if !filter.may_hold(hash) => self.covering(key).map(|_| None),
            _ => self.get(key),
        }
    }

    /// The removed range that holds `key`.
    fn covering(&self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        if self.ranges.is_empty() {
            return None;
        }
        let (from, to) = self.ranges.range::<[u8], _>(up_to(key)).next_back()?;
        (key < &**to).then_some((&**from, &**to))
    }

    /// The single keys of the layer in ascending order, with `None` for a removal; `rev` gives
    /// them in descending order.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = (&[u8], Option<&Bytes>)> {
        self.points
            .iter()
            .map(|(key, value)| (&**key, value.as_ref()))
    }

    /// The removed ranges in ascending order, from inclusive to exclusive.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        self.ranges.iter().map(|(from, to)| (&**from, &**to))
    }

    /// The same changes as one batch.
    pub fn ops(&self) -> Vec<Op<'_>> {
        let mut ops = Vec::with_capacity(self.ranges.len() + self.points.len());
        ops.extend(self.ranges().map(|(from, to)| Op::DeleteRange(from, to)));
        ops.extend(self.points().map(|(key, value)| match value {
            Some(value) => Op::Put(key, value),
            None => Op::Delete(key),
        }));
        ops
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.ranges.is_empty()
    }

    /// The number of single keys and ranges.
    pub fn len(&self) -> usize {
        self.points.len() + self.ranges.len()
    }

    /// The keys and values of single keys, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn in_range(&self, range: Range<'_>) -> btree_map::Range<'_, LayerKey, Option<Bytes>> {
        let to = range.to.map_or(Bound::Unbounded, Bound::Excluded);
        self.points
            .range::<[u8], _>((Bound::Included(range.from), to))
    }
}

/// The changes of these layers as one batch; of each key only the newest, where no ranges are
/// removed.
pub(super) fn batch_of<L: AsRef<Layer>>(layers: &[L]) -> Vec<Op<'_>> {
    let layers = || layers.iter().map(AsRef::as_ref);
    if layers().any(|layer| !layer.ranges.is_empty()) {
        return layers().flat_map(Layer::ops).collect();
    }
    let mut points = Vec::with_capacity(layers().map(Layer::len).sum());
    points.extend(layers().flat_map(Layer::points));
    // Stable, and quick with what is in order for long stretches.
    points.sort_by_key(|(key, _)| *key);
    points.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            *earlier = *later;
        }
        same
    });
    let ops = points.into_iter().map(|(key, value)| match value {
        Some(value) => Op::Put(key, value),
        None => Op::Delete(key),
    });
    ops.collect()
}

fn bytes_of(points: &BTreeMap<LayerKey, Option<Bytes>>) -> usize {
    let bytes = |(key, value): (&LayerKey, &Option<Bytes>)| {
        key.len() + value.as_ref().map_or(0, Bytes::len)
    };
    points.iter().map(bytes).sum()
}

/// The keys up to and with `key`.
fn up_to(key: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, Bound::Included(key))
}

/// A base with change layers over it; a later layer is newer. Reads as if all were applied.
#[derive(Clone, Copy)]
pub struct Stack<'a, L = Layer> {
    base: &'a dyn Read,
    layers: &'a [L],
}

impl<'a, L: AsRef<Layer>> Stack<'a, L> {
    /// Reads `base` through `layers`, of which the last is the newest.
    pub fn new(base: &'a dyn Read, layers: &'a [L]) -> Self {
        Stack { base, layers }
    }
}

impl<L: AsRef<Layer>> Read for Stack<'_, L> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let hash = match self.layers {
            [] => return self.base.get(key, out),
            _ => filter::hash(key),
        };
        for layer in self.layers.iter().rev() {
            match layer.as_ref().get_hashed(key, hash) {
                Some(Some(value)) => {
                    out(value);
                    return Ok(true);
                }
                Some(None) => return Ok(false),
                None => {}
            }
        }
        self.base.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        if range.to.is_some_and(|to| range.from >= to) {
            return Ok(());
        }
        let mut merge = Merge::new(self.layers, range);
        if merge.heads.is_empty() {
            return self.base.scan(range, out);
        }
        let mut rest = range;
        loop {
            let mut stopped = false;
            let mut hidden = 0;
            let mut seek = None;
            self.base.scan(rest, &mut |key, value| {
                let flow = match merge.emit_before(Some(key), out) {
                    Flow::Stop => Flow::Stop,
                    Flow::Continue => match merge.take(key) {
                        Said::Nothing => out(key, value),
                        Said::Put(value) => out(key, value),
                        Said::Removed => Flow::Continue,
                        Said::Covered(from, to) => {
                            hidden += 1;
                            if hidden == HIDDEN_RUN_MAX {
                                seek = Some((from, to));
                                return Flow::Stop;
                            }
                            return Flow::Continue;
                        }
                    },
                };
                hidden = 0;
                stopped = flow == Flow::Stop;
                flow
            })?;
            if stopped {
                return Ok(());
            }
            let Some((from, to)) = seek else { break };
            // A restart may not move an edge outwards: the tombstone can reach beyond the range.
            if range.reverse {
                rest.to = Some(from);
            } else {
                rest.from = to;
            }
            if rest.to.is_some_and(|to| rest.from >= to) {
                break;
            }
        }
        merge.emit_before(None, out);
        Ok(())
    }
}

/// What the layers together say of one key.
enum Said<'a> {
    Nothing,
    Removed,
    Covered(&'a [u8], &'a [u8]),
    Put(&'a Bytes),
}

/// One layer's place in a merge.
struct Head<'a> {
    layer: &'a Layer,
    points: btree_map::Range<'a, LayerKey, Option<Bytes>>,
    next: Option<(&'a [u8], Option<&'a Bytes>)>,
}

impl Head<'_> {
    fn advance(&mut self, reverse: bool) {
        let next = if reverse {
            self.points.next_back()
        } else {
            self.points.next()
        };
        self.next = next.map(|(key, value)| (&**key, value.as_ref()));
    }
}

/// The layers of one scan; the last head is the newest layer.
struct Merge<'a> {
    heads: Vec<Head<'a>>,
    reverse: bool,
}

impl<'a> Merge<'a> {
    fn new<L: AsRef<Layer>>(layers: &'a [L], range: Range<'_>) -> Self {
        let heads = layers
            .iter()
            .map(AsRef::as_ref)
            .filter(|layer| !layer.is_empty())
            .map(|layer| {
                let mut head = Head {
                    layer,
                    points: layer.in_range(range),
                    next: None,
                };
                head.advance(range.reverse);
                head
            })
            .collect();
        Merge {
            heads,
            reverse: range.reverse,
        }
    }

    /// Whether `a` is visited before `b`.
    fn before(&self, a: &[u8], b: &[u8]) -> bool {
        if self.reverse { a > b } else { a < b }
    }

    /// Visits what the layers put before `bound`, or all that is left.
    fn emit_before(
        &mut self,
        bound: Option<&[u8]>,
        out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Flow {
        loop {
            let mut first: Option<&'a [u8]> = None;
            for head in &self.heads {
                if let Some((key, _)) = head.next
                    && first.is_none_or(|first| self.before(key, first))
                {
                    first = Some(key);
                }
            }
            let Some(key) = first else {
                return Flow::Continue;
            };
            if bound.is_some_and(|bound| !self.before(key, bound)) {
                return Flow::Continue;
            }
            if let Said::Put(value) = self.take(key)
                && out(key, value) == Flow::Stop
            {
                return Flow::Stop;
            }
        }
    }

    /// What the layers say of `key`, and moves every head that stands on it.
    fn take(&mut self, key: &[u8]) -> Said<'a> {
        let mut said = Said::Nothing;
        for head in self.heads.iter_mut().rev() {
            let point = match head.next {
                Some((at, value)) if at == key => {
                    head.advance(self.reverse);
                    Some(value)
                }
                _ => None,
            };
            if !matches!(said, Said::Nothing) {
                continue;
            }
            said = match point {
                Some(Some(value)) => Said::Put(value),
                Some(None) => Said::Removed,
                None => match head.layer.covering(key) {
                    Some((from, to)) => Said::Covered(from, to),
                    None => Said::Nothing,
                },
            };
        }
        said
    }
}
