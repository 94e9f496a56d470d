//! Values that were read lately, over any engine: what takes a tree a microsecond is one look into
//! a table here, under a lock that is held for as long as a value is copied.
//!
//! An entry says what the engine holds for a key, and since which *generation*: how often the engine
//! had been written to. It is put aside or renewed with each write of its key, so whatever is here
//! holds from its generation until now, and for a reader of any generation between. A reader whose
//! generation is over adds nothing.
//!
//! ```text
//! shard:   sets of 8 slots             ring of entries, the oldest goes first
//!          tag u32 | place u32  ---->  length u32 | key length u16 | kind u16 | since u64 | key | value
//! ```
//!
//! All memory is bounded by the budget, and taken only as entries come. Once the ring has been full, one
//! of eight reads that find nothing here adds what they got: of keys that are read evenly, and are more
//! than there is room for, as many are found, and far fewer are copied. A hash for which somebody
//! finds many keys spoils one set of eight.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Flow, Range, Read, Result, filter};

/// Parts with a lock of their own.
const SHARDS: usize = 64;

/// Slots that one key may be in.
const WAYS: usize = 8;

/// Of the budget, one part of so many is for slots: an entry of 56 bytes then has one.
const SLOTS_PART: usize = 8;

/// What is longer is worth reading from the engine.
const ENTRY_BYTES_MAX: usize = 4 << 10;

/// Where an entry has to go for it, one offer of so many is taken: most of what is read once is not
/// read again soon, and a table that is renewed with each read helps nobody.
const TAKEN_OF: u32 = 8;

const HEAD_BYTES: usize = 16;

const ABSENT: u16 = 0;
const VALUE: u16 = 1;

/// The newest generation and more: what is here holds for whoever knows all changes anyway.
pub(super) const ALWAYS: u64 = u64::MAX;

/// What the cache has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Memory that is in use.
    pub bytes: usize,
    /// Reads that it answered.
    pub hits: u64,
    /// Reads that the engine had to answer.
    pub misses: u64,
}

pub(super) struct Cache {
    shards: Box<[Counted]>,
    generation: AtomicU64,
}

/// A shard, with counters beside its lock.
struct Counted {
    shard: Mutex<Shard>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Shard {
    /// None until the first entry comes.
    slots: Vec<u64>,
    ring: Vec<u8>,
    ring_max: usize,
    slots_max: usize,
    /// Where the next entry comes.
    head: usize,
    /// Where the oldest entry is.
    tail: usize,
    /// Where entries end in front of a head that has begun anew at 0.
    wrapped: Option<usize>,
    /// The offers since the ring was full for the first time; none before.
    offers: Option<u32>,
}

impl Cache {
    /// Of at most so many bytes; none where that is too little to be of use.
    pub(super) fn new(bytes_max: usize) -> Option<Self> {
        let bytes = bytes_max / SHARDS;
        let slots_max = bytes / SLOTS_PART / size_of::<u64>() / WAYS * WAYS;
        let ring_max = (bytes - bytes / SLOTS_PART).min(u32::MAX as usize / 2);
        if slots_max == 0 || ring_max < ENTRY_BYTES_MAX {
            return None;
        }
        let shard = || Counted {
            shard: Mutex::new(Shard {
                ring_max,
                slots_max,
                ..Shard::default()
            }),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        Some(Cache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            generation: AtomicU64::new(0),
        })
    }

    fn of(&self, hash: u64) -> &Counted {
        &self.shards[hash as usize % SHARDS]
    }

    /// What the engine holds for `key` at `generation`: handed to `out`, or surely nothing; none
    /// where that is not known.
    pub(super) fn get(
        &self,
        hash: u64,
        key: &[u8],
        generation: u64,
        out: &mut dyn FnMut(&[u8]),
    ) -> Option<bool> {
        let counted = self.of(hash);
        let shard = lock(&counted.shard);
        let found = shard.find(hash, key).map(|(_, at)| shard.entry(at));
        let Some(entry) = found.filter(|entry| entry.since <= generation) else {
            counted.misses.fetch_add(1, Relaxed);
            return None;
        };
        counted.hits.fetch_add(1, Relaxed);
        if entry.kind == VALUE {
            out(entry.value);
        }
        Some(entry.kind == VALUE)
    }

    /// What `base`, the engine as it is at `generation`, is read through.
    pub(super) fn over<'a>(&'a self, generation: u64, base: &'a dyn Read) -> Cached<'a> {
        Cached {
            cache: self,
            generation,
            base,
        }
    }

    /// Adds what a reader of `generation` got from the engine.
    pub(super) fn offer(&self, hash: u64, key: &[u8], value: Option<&[u8]>, generation: u64) {
        let mut shard = lock(&self.of(hash).shard);
        let now = self.generation.load(SeqCst);
        let holds = generation == ALWAYS || generation == now;
        if holds && shard.takes() && shard.find(hash, key).is_none() {
            shard.put(hash, key, value, now);
        }
    }

    /// Begins a generation: the engine has been written to. What was [changed](Self::changed) has
    /// to be told before any reader is of it.
    pub(super) fn begin(&self) -> u64 {
        self.generation.fetch_add(1, SeqCst) + 1
    }

    /// The engine holds another value for `key` since the newest generation. What is here is
    /// renewed, and nothing else is added.
    pub(super) fn changed(&self, key: &[u8], value: Option<&[u8]>) {
        let hash = filter::hash(key);
        let mut shard = lock(&self.of(hash).shard);
        let Some((slot, at)) = shard.find(hash, key) else {
            return;
        };
        let since = self.generation.load(SeqCst);
        if !shard.renew(at, value, since) {
            shard.slots[slot] = 0;
            shard.put(hash, key, value, since);
        }
    }

    /// Forgets everything: the engine may hold anything.
    pub(super) fn clear(&self) {
        for counted in &self.shards {
            let mut shard = lock(&counted.shard);
            let (ring_max, slots_max) = (shard.ring_max, shard.slots_max);
            *shard = Shard {
                ring_max,
                slots_max,
                ..Shard::default()
            };
        }
    }

    pub(super) fn counts(&self) -> CacheCounts {
        let mut counts = CacheCounts::default();
        for counted in &self.shards {
            counts.bytes += lock(&counted.shard).bytes();
            counts.hits += counted.hits.load(Relaxed);
            counts.misses += counted.misses.load(Relaxed);
        }
        counts
    }
}

/// An engine behind the cache.
pub(super) struct Cached<'a> {
    cache: &'a Cache,
    generation: u64,
    base: &'a dyn Read,
}

impl Read for Cached<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let (hash, generation) = (filter::hash(key), self.generation);
        if let Some(found) = self.cache.get(hash, key, generation, out) {
            return Ok(found);
        }
        let found = self.base.get(key, &mut |value| {
            self.cache.offer(hash, key, Some(value), generation);
            out(value);
        })?;
        // Whoever applies meets keys that are about to be there.
        if !found && generation != ALWAYS {
            self.cache.offer(hash, key, None, generation);
        }
        Ok(found)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.base.scan(range, out)
    }
}

/// A panic of whoever was handed a value has changed nothing here.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Entry<'a> {
    bytes: usize,
    kind: u16,
    since: u64,
    key: &'a [u8],
    value: &'a [u8],
}

impl Shard {
    fn bytes(&self) -> usize {
        self.ring.len() + self.slots.len() * size_of::<u64>()
    }

    /// Whether an offer is taken.
    fn takes(&mut self) -> bool {
        self.offers.as_mut().is_none_or(|offers| {
            *offers = offers.wrapping_add(1);
            offers.is_multiple_of(TAKEN_OF)
        })
    }

    fn entry(&self, at: usize) -> Entry<'_> {
        let head: &[u8; HEAD_BYTES] = self.ring[at..].first_chunk().expect("an entry is there");
        let [l0, l1, l2, l3, k0, k1, kind0, kind1, since @ ..] = *head;
        let bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let key = usize::from(u16::from_le_bytes([k0, k1]));
        let (key, value) = self.ring[at + HEAD_BYTES..at + bytes].split_at(key);
        Entry {
            bytes,
            kind: u16::from_le_bytes([kind0, kind1]),
            since: u64::from_le_bytes(since),
            key,
            value,
        }
    }

    /// The first of the slots that a key may be in.
    fn set(&self, hash: u64) -> usize {
        (hash >> 8) as usize % (self.slots.len() / WAYS) * WAYS
    }

    /// The slot of a key, and where its entry is.
    fn find(&self, hash: u64, key: &[u8]) -> Option<(usize, usize)> {
        if self.slots.is_empty() {
            return None;
        }
        let first = self.set(hash);
        let set = self.slots[first..first + WAYS].iter().enumerate();
        set.filter_map(|(n, slot)| Some((first + n, place(*slot, hash)?)))
            .find(|(_, at)| self.entry(*at).key == key)
    }

    /// Gives an entry another value where it is, if that fits.
    fn renew(&mut self, at: usize, value: Option<&[u8]>, since: u64) -> bool {
        let entry = self.entry(at);
        let (key, room) = (entry.key.len(), entry.value.len());
        let from = at + HEAD_BYTES + key;
        let kind = match value {
            None => ABSENT,
            Some(value) if value.len() == room => {
                self.ring[from..from + room].copy_from_slice(value);
                VALUE
            }
            Some(_) => return false,
        };
        self.ring[at + 6..at + 8].copy_from_slice(&kind.to_le_bytes());
        self.ring[at + 8..at + 16].copy_from_slice(&since.to_le_bytes());
        true
    }

    /// Adds an entry for a key that has none.
    fn put(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>, since: u64) {
        let value_bytes = value.unwrap_or_default();
        let bytes = HEAD_BYTES + key.len() + value_bytes.len();
        if bytes > ENTRY_BYTES_MAX {
            return;
        }
        if self.slots.is_empty() {
            self.slots = vec![0; self.slots_max];
            // The system gives memory for it as entries come.
            self.ring.reserve_exact(self.ring_max);
        }
        let at = self.make_room(bytes);
        if self.ring.len() < at + bytes {
            self.ring.resize(at + bytes, 0);
        }
        let kind = if value.is_some() { VALUE } else { ABSENT };
        let entry = &mut self.ring[at..at + bytes];
        entry[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        entry[4..6].copy_from_slice(&(key.len() as u16).to_le_bytes());
        entry[6..8].copy_from_slice(&kind.to_le_bytes());
        entry[8..16].copy_from_slice(&since.to_le_bytes());
        entry[HEAD_BYTES..HEAD_BYTES + key.len()].copy_from_slice(key);
        entry[HEAD_BYTES + key.len()..].copy_from_slice(value_bytes);
        let first = self.set(hash);
        let set = first..first + WAYS;
        let free = set.clone().find(|slot| self.slots[*slot] == 0);
        let oldest = || set.max_by_key(|slot| self.age(self.slots[*slot] as u32 as usize - 1));
        let slot = free.or_else(oldest).expect("a set has slots");
        self.slots[slot] = hash >> 32 << 32 | (at + 1) as u64;
    }

    /// How far the entry at this place is behind the head.
    fn age(&self, at: usize) -> usize {
        match self.wrapped {
            Some(end) if at >= self.head => end - at + self.head,
            _ => self.head - at,
        }
    }

    /// Takes the place of an entry, from the oldest ones where it has to be.
    fn make_room(&mut self, bytes: usize) -> usize {
        loop {
            match self.wrapped {
                None if self.head + bytes <= self.ring_max => break,
                None => {
                    self.wrapped = Some(self.head);
                    self.head = 0;
                    self.offers.get_or_insert(0);
                }
                Some(_) if self.head + bytes <= self.tail => break,
                Some(end) if self.tail == end => {
                    self.wrapped = None;
                    self.tail = 0;
                }
                Some(_) => {
                    let entry = self.entry(self.tail);
                    let (hash, bytes) = (filter::hash(entry.key), entry.bytes);
                    let (first, slot) = (self.set(hash), (self.tail + 1) as u32);
                    for of_set in &mut self.slots[first..first + WAYS] {
                        // It may have been given another entry meanwhile.
                        if *of_set as u32 == slot {
                            *of_set = 0;
                        }
                    }
                    self.tail += bytes;
                }
            }
        }
        let at = self.head;
        self.head += bytes;
        at
    }
}

/// Where the entry of a slot is, if it may be of a key of this hash.
fn place(slot: u64, hash: u64) -> Option<usize> {
    (slot != 0 && slot >> 32 == hash >> 32).then(|| slot as u32 as usize - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const BYTES: usize = 1 << 20;

    fn get(cache: &Cache, key: &[u8], generation: u64) -> Option<Option<Vec<u8>>> {
        let mut got = None;
        let found = cache.get(filter::hash(key), key, generation, &mut |value| {
            got = Some(value.to_vec());
        });
        assert_eq!(found == Some(true), got.is_some());
        found.map(|_| got)
    }

    fn offer(cache: &Cache, key: &[u8], value: Option<&[u8]>, generation: u64) {
        cache.offer(filter::hash(key), key, value, generation);
    }

    #[test]
    fn what_was_offered_is_found_with_its_key_only() {
        let cache = Cache::new(BYTES).unwrap();
        offer(&cache, b"a", Some(b"1"), 0);
        offer(&cache, b"b", None, 0);
        assert_eq!(get(&cache, b"a", 0), Some(Some(b"1".to_vec())));
        assert_eq!(get(&cache, b"b", 0), Some(None));
        assert_eq!(get(&cache, b"c", 0), None);
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses), (2, 1));
        cache.clear();
        assert_eq!(get(&cache, b"a", 0), None);
    }

    #[test]
    fn a_reader_never_sees_what_was_written_behind_its_generation() {
        let cache = Cache::new(BYTES).unwrap();
        offer(&cache, b"same", Some(b"1"), 0);
        offer(&cache, b"longer", Some(b"1"), 0);
        offer(&cache, b"gone", Some(b"1"), 0);
        assert_eq!(cache.begin(), 1);
        cache.changed(b"same", Some(b"2"));
        cache.changed(b"longer", Some(b"22"));
        cache.changed(b"gone", None);
        cache.changed(b"never read", Some(b"2"));
        for key in [&b"same"[..], b"longer", b"gone"] {
            assert_eq!(get(&cache, key, 0), None);
        }
        assert_eq!(get(&cache, b"same", 1), Some(Some(b"2".to_vec())));
        assert_eq!(get(&cache, b"longer", 1), Some(Some(b"22".to_vec())));
        assert_eq!(get(&cache, b"gone", ALWAYS), Some(None));
        assert_eq!(get(&cache, b"never read", 1), None);
    }

    #[test]
    fn a_reader_whose_generation_is_over_adds_nothing() {
        let cache = Cache::new(BYTES).unwrap();
        cache.begin();
        offer(&cache, b"a", Some(b"old"), 0);
        assert_eq!(get(&cache, b"a", 1), None);
        offer(&cache, b"a", Some(b"new"), 1);
        assert_eq!(get(&cache, b"a", 1), Some(Some(b"new".to_vec())));
        offer(&cache, b"b", Some(b"whoever applies knows"), ALWAYS);
        assert!(get(&cache, b"b", 1).is_some());
        assert_eq!(get(&cache, b"b", 0), None, "it was not looked at then");
    }

    #[test]
    fn whatever_is_written_and_read_what_is_found_is_what_the_engine_holds() {
        let cache = Cache::new(BYTES).unwrap();
        let mut chance = StdRng::seed_from_u64(1);
        let mut engine: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        // Far more than there is room for, of all lengths, some too long.
        let mut found = 0;
        for round in 0..400 {
            for _ in 0..100 {
                let key = format!("key:{}", chance.random_range(0..4000)).into_bytes();
                match get(&cache, &key, round) {
                    Some(got) => {
                        assert_eq!(got.as_ref(), engine.get(&key));
                        found += 1;
                    }
                    None => offer(&cache, &key, engine.get(&key).map(Vec::as_slice), round),
                }
            }
            cache.begin();
            for _ in 0..20 {
                let n = chance.random_range(0..4000);
                let key = format!("key:{n}").into_bytes();
                let length = if n % 100 == 0 { 5000 } else { n % 900 };
                let value = vec![chance.random::<u8>(); length];
                let value = (!chance.random_ratio(1, 4)).then_some(value);
                cache.changed(&key, value.as_deref());
                match value {
                    Some(value) => engine.insert(key, value),
                    None => engine.remove(&key),
                };
            }
            assert!(cache.counts().bytes <= BYTES, "{round}");
        }
        assert!(found > 10_000, "{found}");
    }

    #[test]
    fn where_others_have_to_go_for_it_one_offer_of_eight_is_taken() {
        let cache = Cache::new(BYTES).unwrap();
        let count = |keys: std::ops::Range<u32>| {
            let taken = keys.filter(|n| {
                let key = n.to_be_bytes();
                offer(&cache, &key, Some(&[0; 100]), 0);
                get(&cache, &key, 0).is_some()
            });
            taken.count()
        };
        assert_eq!(count(0..1000), 1000);
        count(1000..100_000);
        let taken = count(100_000..108_000);
        assert!((950..1050).contains(&taken), "{taken}");
    }

    #[test]
    fn a_budget_of_any_size_has_room_for_as_many_keys_as_it_has_bytes_for() {
        for bytes in [BYTES, 3 * BYTES / 2, 2 * BYTES - 1] {
            let cache = Cache::new(bytes).unwrap();
            let entries = bytes / 64;
            for n in 0..entries as u64 {
                offer(&cache, &n.to_be_bytes(), Some(&[0; 32]), 0);
            }
            let found = (0..entries as u64).filter(|n| get(&cache, &n.to_be_bytes(), 0).is_some());
            assert!(found.count() > entries * 8 / 10, "{bytes}");
        }
    }

    #[test]
    fn too_small_a_budget_is_none() {
        assert!(Cache::new(0).is_none());
        assert!(Cache::new(SHARDS * 100).is_none());
    }
}
