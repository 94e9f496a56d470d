//! Reads of the keyspace.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::encoding::{self, Place};
use super::record::{self, Kind, RecordMeta, State, Version};
use super::{Failure, corruption};
use crate::storage::{self, Flow, Layer, Range, Read, Stack};

/// What [`View::modified`] gives for absent keys is not less than this; no index is as large.
pub(super) const ABSENT: u64 = 1 << 63;
/// Where nothing of the slot was removed in an epoch, its number is above this.
const NEVER: u64 = 1 << 62;

/// The keyspace as it is at one state and one replicated time.
///
/// A key exists when its expiry is later than the replicated time. Callbacks get slices that live
/// only during the call, and never call back into the view.
pub struct View<'a> {
    source: Source<'a>,
    state: State,
    replicated_ms: u64,
    now_ms: u64,
    met_due: Cell<bool>,
}

pub(super) enum Source<'a> {
    Plain(&'a dyn Read),
    Stack(Stack<'a, Layer>),
}

impl Source<'_> {
    fn read(&self) -> &dyn Read {
        match self {
            Source::Plain(read) => *read,
            Source::Stack(stack) => stack,
        }
    }
}

impl<'a> View<'a> {
    /// A view of `read`, whose last applied entry has the stamp `replicated_ms`; TTLs are computed
    /// with `now_ms`, or with `replicated_ms` where that is later.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn new(read: &'a dyn Read, replicated_ms: u64, now_ms: u64) -> Result<Self, Failure> {
        let state = State::read(read)?;
        Ok(Self::with_state(read, state, replicated_ms, now_ms))
    }

    /// As [`Self::new`], without reading the state: it must be the one that `read` holds.
    pub fn with_state(read: &'a dyn Read, state: State, replicated_ms: u64, now_ms: u64) -> Self {
        Self::of(Source::Plain(read), state, replicated_ms, now_ms)
    }

    pub(super) fn of(source: Source<'a>, state: State, replicated_ms: u64, now_ms: u64) -> Self {
        View {
            source,
            state,
            replicated_ms,
            now_ms: now_ms.max(replicated_ms),
            met_due: Cell::new(false),
        }
    }

    /// The time by which TTLs are computed, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The time by which existence is judged, in milliseconds since the Unix epoch.
    pub fn replicated_ms(&self) -> u64 {
        self.replicated_ms
    }

    /// Whether a key was met that is due by `now_ms` and not yet by replicated time: the read must
    /// then wait for a tick and run again.
    pub fn met_due(&self) -> bool {
        self.met_due.get()
    }

    /// The counters and the epoch.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Hands the string at `key` to `out`, once, and returns `true`; or returns `false`.
    ///
    /// # Errors
    ///
    /// `WrongType`, or the engine's failure.
    pub fn string(&self, key: &[u8], mut out: impl FnMut(&[u8])) -> Result<bool, Failure> {
        let found = self.record(key, &mut |meta, payload| {
            let right = meta.kind == Kind::String;
            if right {
                out(payload);
            }
            right
        })?;
        match found {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => Err(Failure::WrongType),
        }
    }

    /// The string at `key`.
    ///
    /// # Errors
    ///
    /// `WrongType`, or the engine's failure.
    pub fn get_string(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        let mut value = None;
        self.string(key, |bytes| value = Some(Bytes::copy_from_slice(bytes)))?;
        Ok(value)
    }

    /// What the record of `key` says, of whatever type.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn meta(&self, key: &[u8]) -> Result<Option<RecordMeta>, Failure> {
        self.record(key, &mut |meta, _| *meta)
    }

    /// The type of `key`.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn kind(&self, key: &[u8]) -> Result<Option<Kind>, Failure> {
        Ok(self.meta(key)?.map(|meta| meta.kind))
    }

    /// Whether `key` exists.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn exists(&self, key: &[u8]) -> Result<bool, Failure> {
        Ok(self.meta(key)?.is_some())
    }

    /// A number that is another one after `key` was changed, set, removed or flushed away: the log
    /// index of the entry that changed it last, and while it is absent, one of 2^63 and above that
    /// tells the last removal of any key in its slot. It may so become another one although this
    /// key was not touched, but never stays the same when it was.
    ///
    /// Where reads may run between two commands of one entry, compare [`Self::version`] instead.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn modified(&self, key: &[u8]) -> Result<u64, Failure> {
        if let Some(meta) = self.meta(key)? {
            return Ok(meta.modified);
        }
        let epoch = self.state.epoch;
        let mut removed = Some(NEVER + u64::from(epoch));
        self.read().get(
            encoding::removal_key(epoch, Place::of(key)).as_slice(),
            &mut |value| removed = value.try_into().ok().map(u64::from_le_bytes),
        )?;
        match removed {
            Some(removed) => Ok(ABSENT | removed),
            None => Err(Failure::corrupt("a removal is not readable")),
        }
    }

    /// The last change of `key`, the default when it is absent.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn version(&self, key: &[u8]) -> Result<Version, Failure> {
        Ok(self
            .meta(key)?
            .map_or(Version::default(), |meta| meta.version()))
    }

    /// One step of an iteration over all keys: visits keys from `cursor` on, 0 at first, and
    /// returns the cursor of the next step, 0 at the end.
    ///
    /// `count` bounds the records that are looked at, due ones too, except that keys of one place
    /// are always visited in one step. A key that exists throughout the iteration is visited.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn scan(
        &self,
        cursor: u64,
        count: usize,
        mut out: impl FnMut(&[u8], &RecordMeta),
    ) -> Result<u64, Failure> {
        let Some(from) = Place::from_bits(cursor) else {
            return Ok(0);
        };
        let mut next = 0;
        let mut looked_at = 0;
        let mut last = None;
        self.records(from, None, &mut |place, key, meta, _, live| {
            if looked_at >= count.max(1) && last != Some(place) {
                next = place.bits();
                return Flow::Stop;
            }
            looked_at += 1;
            last = Some(place);
            if live {
                out(key, meta);
            }
            Flow::Continue
        })?;
        Ok(next)
    }

    /// Visits all keys in stored order, until `out` breaks.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn for_each(
        &self,
        mut out: impl FnMut(&[u8], &RecordMeta) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        self.live_records(Place::first_of(0), None, &mut |_, key, meta, _| {
            if out(key, meta).is_break() {
                Flow::Stop
            } else {
                Flow::Continue
            }
        })
    }

    /// Some key, by `seed`; `None` only when there is none.
    ///
    /// A random slot is sought first and a random hash within the next slot that holds keys, so
    /// that keys under one hash tag are all found.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn random_key(&self, seed: u64) -> Result<Option<Bytes>, Failure> {
        let first = |from: Place, to: Option<Place>| {
            let mut found = None;
            self.live_records(from, to, &mut |place, key, _, _| {
                found = Some((place, Bytes::copy_from_slice(key)));
                Flow::Stop
            })?;
            Ok::<_, Failure>(found)
        };
        let slot = Place::first_of((seed >> 48) as u16 % encoding::SLOTS);
        let found = match first(slot, None)? {
            Some(found) => Some(found),
            None => first(Place::first_of(0), Some(slot))?,
        };
        let Some((place, fallback)) = found else {
            return Ok(None);
        };
        let end = Place::first_of(place.slot() + 1);
        let within = first(place.with_hash(seed), Some(end))?;
        Ok(Some(within.map_or(fallback, |(_, key)| key)))
    }

    /// The number of keys.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn len(&self) -> Result<u64, Failure> {
        Ok(self.state.keys.saturating_sub(self.due()?))
    }

    /// Whether there is no key.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn is_empty(&self) -> Result<bool, Failure> {
        Ok(self.len()? == 0)
    }

    /// The number of keys that have an expiry.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn expires_len(&self) -> Result<u64, Failure> {
        Ok(self.state.expiring.saturating_sub(self.due()?))
    }

    /// The records that are due and not removed yet: few, as each entry removes some. Notes, as a
    /// read of one key does, what a tick would remove.
    fn due(&self) -> Result<u64, Failure> {
        let mut due = 0;
        self.expiries(Some(self.now_ms), &mut |at, _| {
            if at > self.replicated_ms {
                self.met_due.set(true);
                return Flow::Stop;
            }
            due += 1;
            Flow::Continue
        })?;
        Ok(due)
    }

    /// The number of keys in a slot.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn count_keys_in_slot(&self, slot: u16) -> Result<u64, Failure> {
        let mut keys = 0;
        let (from, to) = (Place::first_of(slot), Place::first_of(slot + 1));
        self.live_records(from, Some(to), &mut |_, _, _, _| {
            keys += 1;
            Flow::Continue
        })?;
        Ok(keys)
    }

    /// The keys of a slot in stored order, as long as `more` says so.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn keys_in_slot(
        &self,
        slot: u16,
        mut more: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Failure> {
        let (from, to) = (Place::first_of(slot), Place::first_of(slot + 1));
        self.live_records(from, Some(to), &mut |_, key, _, _| {
            if more(key) {
                Flow::Continue
            } else {
                Flow::Stop
            }
        })
    }

    /// The earliest expiry of all records, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn next_expiry(&self) -> Result<Option<u64>, Failure> {
        let mut first = None;
        self.expiries(None, &mut |at, _| {
            first = Some(at);
            Flow::Stop
        })?;
        Ok(first)
    }

    /// An entry that the node keeps under `name` beside the keys.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn system(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        let mut value = None;
        self.read()
            .get(encoding::system_key(name).as_slice(), &mut |bytes| {
                value = Some(Bytes::copy_from_slice(bytes));
            })?;
        Ok(value)
    }

    /// The bookkeeping values whose names begin with `prefix`, in the order of their names.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn systems(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, Failure> {
        self.systems_at_most(prefix, usize::MAX)
    }

    /// The first `max` of them.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn systems_at_most(
        &self,
        prefix: &str,
        max: usize,
    ) -> Result<Vec<(String, Bytes)>, Failure> {
        let mut found = Vec::new();
        self.scan_systems(prefix, &mut |name, value| {
            if found.len() == max {
                return Flow::Stop;
            }
            found.push((name.to_owned(), Bytes::copy_from_slice(value)));
            Flow::Continue
        })?;
        Ok(found)
    }

    fn scan_systems(
        &self,
        prefix: &str,
        out: &mut dyn FnMut(&str, &[u8]) -> Flow,
    ) -> Result<(), Failure> {
        let from = encoding::system_key(prefix);
        let range = Range {
            from: from.as_slice(),
            to: None,
            reverse: false,
        };
        self.read().scan(range, &mut |key, value| {
            if !key.starts_with(from.as_slice()) {
                return Flow::Stop;
            }
            out(
                &String::from_utf8_lossy(&key[encoding::SYSTEM_PREFIX.len()..]),
                value,
            )
        })?;
        Ok(())
    }

    /// SHA-256, cut to 20 bytes, over all keys in stored order (key, type, expiry and value) and
    /// the cluster's bookkeeping, such as the replies that are kept for ONCE.
    ///
    /// Equal contents at one replicated time give equal digests, whichever way they came about and
    /// whichever engine holds them.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn digest(&self) -> Result<[u8; 20], Failure> {
        let mut hash = Sha256::new();
        self.live_records(Place::first_of(0), None, &mut |_, key, meta, payload| {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key);
            hash.update(meta.kind.name());
            // An expiry of zero cannot exist: it would have been due at every time.
            hash.update(meta.expires_at_ms.unwrap_or(0).to_le_bytes());
            hash.update((payload.len() as u64).to_le_bytes());
            hash.update(payload);
            Flow::Continue
        })?;
        self.scan_systems("", &mut |name, value| {
            for part in [name.as_bytes(), value] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            Flow::Continue
        })?;
        let mut digest = [0; 20];
        digest.copy_from_slice(&hash.finalize()[..20]);
        Ok(digest)
    }

    fn read(&self) -> &dyn Read {
        self.source.read()
    }

    /// Whether a record exists at this view's time; notes what a tick would remove.
    fn live(&self, meta: &RecordMeta) -> bool {
        if meta.due(self.replicated_ms) {
            return false;
        }
        if meta.due(self.now_ms) {
            self.met_due.set(true);
        }
        true
    }

    /// Calls `f` with the record of `key` where it exists, and returns what `f` did.
    fn record<T>(
        &self,
        key: &[u8],
        f: &mut dyn FnMut(&RecordMeta, &[u8]) -> T,
    ) -> Result<Option<T>, Failure> {
        let mut result = Ok(None);
        self.read().get(
            encoding::record_key(self.state.epoch, key).as_slice(),
            &mut |bytes| {
                result = record::decode(bytes).map(|(meta, payload)| {
                    if self.live(&meta) {
                        Some(f(&meta, payload))
                    } else {
                        None
                    }
                });
            },
        )?;
        Ok(result?)
    }

    /// Visits the records from one place to before another, due ones too, with whether they live.
    fn records(
        &self,
        from: Place,
        to: Option<Place>,
        out: &mut dyn FnMut(Place, &[u8], &RecordMeta, &[u8], bool) -> Flow,
    ) -> Result<(), Failure> {
        let epoch = self.state.epoch;
        let to = to.unwrap_or(Place::first_of(encoding::SLOTS));
        let from = encoding::record_from(epoch, from);
        let to = encoding::record_from(epoch, to);
        let range = Range {
            from: from.as_slice(),
            to: Some(to.as_slice()),
            reverse: false,
        };
        let mut failed = None;
        self.read().scan(
            range,
            &mut |engine_key, value| match split_entry(engine_key, value) {
                Ok((place, key, meta, payload)) => {
                    let live = self.live(&meta);
                    out(place, key, &meta, payload, live)
                }
                Err(error) => {
                    failed = Some(error);
                    Flow::Stop
                }
            },
        )?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn live_records(
        &self,
        from: Place,
        to: Option<Place>,
        out: &mut dyn FnMut(Place, &[u8], &RecordMeta, &[u8]) -> Flow,
    ) -> Result<(), Failure> {
        self.records(from, to, &mut |place, key, meta, payload, live| {
            if live {
                out(place, key, meta, payload)
            } else {
                Flow::Continue
            }
        })
    }

    /// Visits the expiry index from the earliest, up to and with `until_ms`.
    pub(super) fn expiries(
        &self,
        until_ms: Option<u64>,
        out: &mut dyn FnMut(u64, &[u8]) -> Flow,
    ) -> Result<(), Failure> {
        let epoch = self.state.epoch;
        let end = match until_ms.and_then(|until| until.checked_add(1)) {
            Some(end) => encoding::expiry_at(epoch, end),
            None => encoding::epoch_from(encoding::EXPIRY, epoch.checked_add(1)),
        };
        let from = encoding::expiry_at(epoch, 0);
        let range = Range {
            from: from.as_slice(),
            to: Some(end.as_slice()),
            reverse: false,
        };
        let mut failed = false;
        self.read().scan(
            range,
            &mut |engine_key, _| match encoding::split_expiry(engine_key) {
                Some((_, at, _, key)) => out(at, key),
                None => {
                    failed = true;
                    Flow::Stop
                }
            },
        )?;
        if failed {
            return Err(Failure::corrupt("a key of the expiry index is too short"));
        }
        Ok(())
    }
}

fn split_entry<'k, 'v>(
    engine_key: &'k [u8],
    value: &'v [u8],
) -> storage::Result<(Place, &'k [u8], RecordMeta, &'v [u8])> {
    let (_, place, key) = encoding::split_record(engine_key)
        .ok_or_else(|| corruption("the key of a record is too short"))?;
    let (meta, payload) = record::decode(value)?;
    Ok((place, key, meta, payload))
}
