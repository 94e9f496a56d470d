//! Keys of any length, for engines whose own keys are short.

use crate::{Error, ErrorKind, Flow, Range, Result};

/// What stored keys of the root begin with.
const ROOT: u8 = 1;
/// What stored keys of the other regions begin with; the number of the region follows.
const REGION: u8 = 2;
/// The number of the newest region.
const NEWEST: &[u8] = &[0, 0xff];

/// The most that a stored key has in front of its chunk.
const PREFIX_BYTES_MAX: usize = 9;

/// The keys and values of an engine as it stores them, for [`LongKeys`].
pub trait Stored {
    /// As [`Backend::get`](crate::Backend::get).
    ///
    /// # Errors
    ///
    /// The engine's own.
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// As [`Backend::scan`](crate::Backend::scan); `out` may read while it is called.
    ///
    /// # Errors
    ///
    /// The engine's own.
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;
}

/// The same inside a batch, which reads what it has written.
pub trait StoredMut: Stored {
    /// Sets a key.
    ///
    /// # Errors
    ///
    /// The engine's own.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Removes a key, which may be absent.
    ///
    /// # Errors
    ///
    /// The engine's own.
    fn delete(&mut self, key: &[u8]) -> Result<()>;
}

/// Stores keys of any length in an engine whose own keys have a limit, in the same order.
///
/// A key that is shorter than a chunk is stored as it is, in the root. Of a longer one the first
/// chunk is stored there, and its value is the number of a region that has the rest, in the same
/// manner: so a key costs a read for each chunk that it fills.
///
/// Stored keys begin with the byte 1 or 2; those that begin with 0 are the engine's own, but for
/// `00 ff`.
#[derive(Debug, Clone, Copy)]
pub struct LongKeys {
    chunk: usize,
}

/// A part of the stored keys: the root, or what one first chunk leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region(u64);

impl Region {
    const ROOT: Region = Region(0);

    fn prefix(self) -> Vec<u8> {
        match self {
            Region::ROOT => vec![ROOT],
            Region(number) => [&[REGION][..], &number.to_be_bytes()].concat(),
        }
    }

    fn key(self, chunk: &[u8]) -> Vec<u8> {
        let mut key = self.prefix();
        key.extend_from_slice(chunk);
        key
    }

    /// The first stored key behind all of this region's.
    fn end(self) -> Vec<u8> {
        match self {
            Region::ROOT => vec![REGION],
            Region(number) => Region(number + 1).prefix(),
        }
    }

    /// What the value of a full chunk says.
    fn from_link(value: &[u8]) -> Result<Region> {
        value
            .try_into()
            .map(|number| Region(u64::from_le_bytes(number)))
            .map_err(|_| Error::new(ErrorKind::Corruption, "a long key leads nowhere"))
    }
}

/// What a walk meets.
enum Met<'a> {
    /// An entry: its stored key, its key, its value.
    Entry(&'a [u8], &'a [u8], &'a [u8]),
    /// The end of a region, and the stored key that leads to it.
    End(Region, &'a [u8]),
}

impl LongKeys {
    /// For an engine that stores keys of up to `stored_bytes_max` bytes.
    ///
    /// # Panics
    ///
    /// These are less than 10.
    pub const fn new(stored_bytes_max: usize) -> Self {
        assert!(stored_bytes_max > PREFIX_BYTES_MAX);
        LongKeys {
            chunk: stored_bytes_max - PREFIX_BYTES_MAX,
        }
    }

    /// The stored key of a key that is stored as it is; `None` for a longer one.
    pub fn short(self, key: &[u8]) -> Option<Vec<u8>> {
        (key.len() < self.chunk).then(|| Region::ROOT.key(key))
    }

    /// As [`Backend::get`](crate::Backend::get).
    ///
    /// # Errors
    ///
    /// The engine's own, or `Corruption`.
    pub fn get(self, stored: &impl Stored, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        // Most keys are put together without allocating.
        let mut short = [ROOT; 128];
        if key.len() < self.chunk.min(short.len()) {
            short[1..=key.len()].copy_from_slice(key);
            return stored.get(&short[..=key.len()], out);
        }
        match self.find(stored, key, &mut |_| ())? {
            Some(found) => stored.get(&found, out),
            None => Ok(false),
        }
    }

    /// As [`Backend::scan`](crate::Backend::scan).
    ///
    /// # Errors
    ///
    /// The engine's own, or `Corruption`.
    pub fn scan(
        self,
        stored: &impl Stored,
        range: Range<'_>,
        out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        let visit = &mut |met: Met<'_>| match met {
            Met::Entry(_, key, value) => out(key, value),
            Met::End(..) => Flow::Continue,
        };
        self.walk(stored, Region::ROOT, range, &mut Vec::new(), visit)
            .map(drop)
    }

    /// Sets a key.
    ///
    /// # Errors
    ///
    /// The engine's own, or `Corruption`.
    pub fn put(self, stored: &mut impl StoredMut, key: &[u8], value: &[u8]) -> Result<()> {
        let mut region = Region::ROOT;
        let mut rest = key;
        while let Some((chunk, tail)) = self.split(rest) {
            let link = region.key(chunk);
            region = match read_link(stored, &link)? {
                Some(next) => next,
                None => {
                    let next = new_region(stored)?;
                    stored.put(&link, &next.0.to_le_bytes())?;
                    next
                }
            };
            rest = tail;
        }
        stored.put(&region.key(rest), value)
    }

    /// Removes a key, which may be absent.
    ///
    /// # Errors
    ///
    /// The engine's own, or `Corruption`.
    pub fn delete(self, stored: &mut impl StoredMut, key: &[u8]) -> Result<()> {
        let mut links = Vec::new();
        let found = self.find(stored, key, &mut |link| links.push(link))?;
        if let Some(found) = found {
            stored.delete(&found)?;
        }
        for (link, region) in links.into_iter().rev() {
            remove_if_empty(stored, region, &link)?;
        }
        Ok(())
    }

    /// Removes the keys `>= from` and `< to`.
    ///
    /// # Errors
    ///
    /// The engine's own, or `Corruption`.
    pub fn delete_range(self, stored: &mut impl StoredMut, from: &[u8], to: &[u8]) -> Result<()> {
        let range = Range {
            from,
            to: Some(to),
            reverse: false,
        };
        let mut entries = Vec::new();
        let mut links = Vec::new();
        let visit = &mut |met: Met<'_>| {
            match met {
                Met::Entry(found, _, _) => entries.push(found.to_vec()),
                Met::End(region, link) => links.push((link.to_vec(), region)),
            }
            Flow::Continue
        };
        self.walk(stored, Region::ROOT, range, &mut Vec::new(), visit)?;
        for entry in entries {
            stored.delete(&entry)?;
        }
        // A region comes after those that it leads to.
        for (link, region) in links {
            remove_if_empty(stored, region, &link)?;
        }
        Ok(())
    }

    /// The first chunk of a key that fills one, and the rest.
    fn split(self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        key.split_at_checked(self.chunk)
    }

    /// Where a key is stored, if there is such a place; `passed` is told the links on the way.
    fn find(
        self,
        stored: &impl Stored,
        key: &[u8],
        passed: &mut dyn FnMut((Vec<u8>, Region)),
    ) -> Result<Option<Vec<u8>>> {
        let mut region = Region::ROOT;
        let mut rest = key;
        while let Some((chunk, tail)) = self.split(rest) {
            let link = region.key(chunk);
            let Some(next) = read_link(stored, &link)? else {
                return Ok(None);
            };
            passed((link, next));
            region = next;
            rest = tail;
        }
        Ok(Some(region.key(rest)))
    }

    /// Visits the entries of a region, whose keys begin with `before`, and of those it leads to.
    fn walk(
        self,
        stored: &impl Stored,
        region: Region,
        range: Range<'_>,
        before: &mut Vec<u8>,
        visit: &mut dyn FnMut(Met<'_>) -> Flow,
    ) -> Result<Flow> {
        if range.to.is_some_and(|to| to <= range.from) {
            return Ok(Flow::Continue);
        }
        let from = region.key(
            self.split(range.from)
                .map_or(range.from, |(chunk, _)| chunk),
        );
        let to = match range.to.map(|to| (to, self.split(to))) {
            None => region.end(),
            Some((to, None)) => region.key(to),
            // The chunk itself leads to keys below the end.
            Some((_, Some((chunk, _)))) => [&region.key(chunk)[..], &[0]].concat(),
        };
        let bounds = Range {
            from: &from,
            to: Some(&to),
            reverse: range.reverse,
        };
        let prefix = region.prefix().len();
        let mut outcome = Ok(Flow::Continue);
        stored.scan(bounds, &mut |found, value| {
            let chunk = &found[prefix..];
            outcome = if chunk.len() < self.chunk {
                if before.is_empty() {
                    Ok(visit(Met::Entry(found, chunk, value)))
                } else {
                    let length = before.len();
                    before.extend_from_slice(chunk);
                    let flow = visit(Met::Entry(found, before, value));
                    before.truncate(length);
                    Ok(flow)
                }
            } else {
                self.descend(stored, found, chunk, value, range, before, visit)
            };
            match outcome {
                Ok(flow) => flow,
                Err(_) => Flow::Stop,
            }
        })?;
        outcome
    }

    /// Goes on in the region that a full chunk leads to.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of a walk, and where it has come to"
    )]
    fn descend(
        self,
        stored: &impl Stored,
        link: &[u8],
        chunk: &[u8],
        value: &[u8],
        range: Range<'_>,
        before: &mut Vec<u8>,
        visit: &mut dyn FnMut(Met<'_>) -> Flow,
    ) -> Result<Flow> {
        let next = Region::from_link(value)?;
        // A bound matters inside where it begins with this chunk.
        let inner = Range {
            from: range.from.strip_prefix(chunk).unwrap_or_default(),
            to: range.to.and_then(|to| to.strip_prefix(chunk)),
            reverse: range.reverse,
        };
        let length = before.len();
        before.extend_from_slice(chunk);
        let flow = self.walk(stored, next, inner, before, visit);
        before.truncate(length);
        match flow? {
            Flow::Continue => Ok(visit(Met::End(next, link))),
            Flow::Stop => Ok(Flow::Stop),
        }
    }
}

fn read_link(stored: &impl Stored, link: &[u8]) -> Result<Option<Region>> {
    let mut region = None;
    stored.get(link, &mut |value| region = Some(Region::from_link(value)))?;
    region.transpose()
}

fn new_region(stored: &mut impl StoredMut) -> Result<Region> {
    let newest = read_link(stored, NEWEST)?.unwrap_or(Region::ROOT);
    let next = Region(newest.0 + 1);
    stored.put(NEWEST, &next.0.to_le_bytes())?;
    Ok(next)
}

fn remove_if_empty(stored: &mut impl StoredMut, region: Region, link: &[u8]) -> Result<()> {
    let mut is_empty = true;
    let all = Range {
        from: &region.prefix(),
        to: Some(&region.end()),
        reverse: false,
    };
    stored.scan(all, &mut |_, _| {
        is_empty = false;
        Flow::Stop
    })?;
    if is_empty {
        stored.delete(link)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testkit::history::Random;

    /// Refuses what the engines that it stands for would.
    #[derive(Default)]
    struct Map(BTreeMap<Vec<u8>, Vec<u8>>);

    const STORED_BYTES_MAX: usize = 12;
    const KEYS: LongKeys = LongKeys::new(STORED_BYTES_MAX);

    impl Stored for Map {
        fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
            Ok(self.0.get(key).map(|value| out(value)).is_some())
        }

        fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
            let inside = |key: &[u8]| key >= range.from && range.to.is_none_or(|to| key < to);
            let mut found: Vec<_> = self.0.iter().filter(|(key, _)| inside(key)).collect();
            if range.reverse {
                found.reverse();
            }
            for (key, value) in found {
                if out(key, value) == Flow::Stop {
                    break;
                }
            }
            Ok(())
        }
    }

    impl StoredMut for Map {
        fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
            assert!(key.len() <= STORED_BYTES_MAX, "{} bytes", key.len());
            self.0.insert(key.to_vec(), value.to_vec());
            Ok(())
        }

        fn delete(&mut self, key: &[u8]) -> Result<()> {
            self.0.remove(key);
            Ok(())
        }
    }

    fn key(random: &mut Random) -> Vec<u8> {
        (0..random.below(14))
            .map(|_| b"ab\x00\xff"[random.below(4) as usize])
            .collect()
    }

    fn scanned(map: &Map, range: Range<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        KEYS.scan(map, range, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Flow::Continue
        })
        .unwrap();
        found
    }

    fn found(map: &Map, key: &[u8]) -> Option<Vec<u8>> {
        let mut found = None;
        let is_there = KEYS
            .get(map, key, &mut |value| found = Some(value.to_vec()))
            .unwrap();
        assert_eq!(is_there, found.is_some());
        found
    }

    #[test]
    fn keys_of_any_length_match_a_model_in_order_and_bounds() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            for step in 0u32..400 {
                let (one, other) = (key(&mut random), key(&mut random));
                match random.below(10) {
                    0..6 => {
                        let value = step.to_be_bytes();
                        KEYS.put(&mut map, &one, &value).unwrap();
                        model.insert(one, value.to_vec());
                    }
                    6..8 => {
                        KEYS.delete(&mut map, &one).unwrap();
                        model.remove(&one);
                    }
                    8 => {
                        KEYS.delete_range(&mut map, &one, &other).unwrap();
                        model.retain(|key, _| *key < one || *key >= other);
                    }
                    _ => {
                        let reverse = step % 2 == 0;
                        let to = (step % 5 > 0).then_some(&other[..]);
                        let inside = |key: &[u8]| key >= &one[..] && to.is_none_or(|to| key < to);
                        let mut expected: Vec<_> = model
                            .iter()
                            .filter(|(key, _)| inside(key))
                            .map(|(key, value)| (key.clone(), value.clone()))
                            .collect();
                        if reverse {
                            expected.reverse();
                        }
                        let range = Range {
                            from: &one,
                            to,
                            reverse,
                        };
                        assert_eq!(scanned(&map, range), expected, "seed {seed}: {range:?}");
                        assert_eq!(found(&map, &other), model.get(&other).cloned());
                    }
                }
            }
            KEYS.delete_range(&mut map, b"", &[0xff; 14]).unwrap();
            let left: Vec<_> = map.0.keys().map(Vec::as_slice).collect();
            assert_eq!(left, [NEWEST], "seed {seed}: nothing leads nowhere");
        }
    }

    #[test]
    fn a_scan_that_is_stopped_inside_a_region_stops() {
        let mut map = Map::default();
        for number in 0..9u8 {
            KEYS.put(&mut map, &[b'x', b'x', b'x', b'x', number], b"")
                .unwrap();
        }
        let mut visited = 0;
        let all = Range {
            from: b"",
            to: None,
            reverse: true,
        };
        KEYS.scan(&map, all, &mut |_, _| {
            visited += 1;
            if visited == 4 {
                Flow::Stop
            } else {
                Flow::Continue
            }
        })
        .unwrap();
        assert_eq!(visited, 4);
    }

    #[test]
    fn a_damaged_link_is_corruption() {
        let mut map = Map::default();
        KEYS.put(&mut map, b"a long key", b"").unwrap();
        map.0.insert(Region::ROOT.key(b"a l"), b"short".to_vec());
        let error = KEYS.get(&map, b"a long key", &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption);
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        let scanned = KEYS.scan(&map, all, &mut |_, _| Flow::Continue);
        assert_eq!(scanned.unwrap_err().kind(), ErrorKind::Corruption);
    }
}
