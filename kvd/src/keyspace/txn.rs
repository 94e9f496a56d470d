//! Writes of the keyspace: the changes of one group of applied entries.

use bytes::Bytes;

use super::encoding::{self, KeyBuf, Place};
use super::record::{self, Kind, RecordMeta, State, Version};
use super::view::{Source, View};
use super::{Failure, Limits, What};
use crate::storage::{Flow, Layer, Op, Read, Stack};

/// What becomes of a key's expiry when its value is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expire {
    /// The key keeps the expiry that it has.
    Keep,
    /// The key has none.
    Clear,
    /// The key expires at this time, in milliseconds since the Unix epoch. One that is due already
    /// removes the key.
    At(u64),
}

/// The changes of a group of entries over a base, which reads see at once.
///
/// It serves one entry after the other ([`Self::begin_entry`]), each at its own index, time and
/// seed, and ends as one batch ([`Self::finish`]). After an `Engine` failure it must be dropped.
pub struct Txn<'a> {
    base: &'a dyn Read,
    layer: Layer,
    /// How to take back the changes of this entry.
    undo: Vec<Undo>,
    state: State,
    stored: State,
    version: Version,
    replicated_ms: u64,
    seed: u64,
    limits: Limits,
}

struct Undo {
    key: std::sync::Arc<[u8]>,
    old: Option<Option<Bytes>>,
}

/// Where a [`Txn`] can roll back to, within one entry.
#[derive(Debug, Clone, Copy)]
pub struct Savepoint {
    undo: usize,
    state: State,
    index: u64,
}

/// What a record in the base or the layer says, due or not.
struct Old {
    meta: RecordMeta,
    live: bool,
}

impl<'a> Txn<'a> {
    /// Starts with the entry at `index`, stamped `replicated_ms` (milliseconds since the Unix
    /// epoch) and `seed`, over a base that holds all earlier ones.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn new(
        base: &'a dyn Read,
        index: u64,
        replicated_ms: u64,
        seed: u64,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let state = State::read(base)?;
        Ok(Txn {
            base,
            layer: Layer::new(),
            undo: Vec::new(),
            state,
            stored: state,
            version: Version { index, ordinal: 0 },
            replicated_ms,
            seed,
            limits,
        })
    }

    /// Goes on to the next entry. A stamp below the one before counts as that one. Savepoints of
    /// the entry before are void.
    pub fn begin_entry(&mut self, index: u64, replicated_ms: u64, seed: u64) {
        assert!(index >= self.version.index, "entries are applied in order");
        if index > self.version.index {
            self.version = Version { index, ordinal: 0 };
        }
        self.replicated_ms = self.replicated_ms.max(replicated_ms);
        self.seed = seed;
        self.undo.clear();
    }

    /// The keyspace with all changes so far.
    pub fn view(&self) -> View<'_> {
        View::of(
            Source::Stack(Stack::new(self.base, std::slice::from_ref(&self.layer))),
            self.state,
            self.replicated_ms,
            self.replicated_ms,
        )
    }

    /// The log index of the entry.
    pub fn index(&self) -> u64 {
        self.version.index
    }

    /// Replicated time, in milliseconds since the Unix epoch.
    pub fn replicated_ms(&self) -> u64 {
        self.replicated_ms
    }

    /// The random number of the entry, the same on every node.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The limits that writes obey.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The counters and the epoch, with all changes so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The keys and values of all changes so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.layer.bytes()
    }

    /// Sets `key` to a string, whatever it was.
    ///
    /// # Errors
    ///
    /// `TooLarge`, or the engine's failure.
    pub fn set_string(&mut self, key: &[u8], value: &[u8], expire: Expire) -> Result<(), Failure> {
        self.check(What::Key, key.len(), self.limits.key_bytes_max)?;
        self.check(What::Value, value.len(), self.limits.value_bytes_max)?;
        let place = Place::of(key);
        let old = self.old(place, key)?;
        let expires_at_ms = match expire {
            Expire::Keep => old
                .as_ref()
                .filter(|old| old.live)
                .and_then(|old| old.meta.expires_at_ms),
            Expire::Clear => None,
            Expire::At(at) => Some(at),
        };
        self.put(place, key, old.as_ref(), Kind::String, expires_at_ms, value);
        Ok(())
    }

    /// Removes `key` and says whether it existed.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Failure> {
        let place = Place::of(key);
        let old = self.old(place, key)?;
        self.remove(place, key, old.as_ref());
        Ok(old.is_some_and(|old| old.live))
    }

    /// Changes when `key` expires, in milliseconds since the Unix epoch, `None` for never, and says
    /// whether the key existed. A time that is due already removes it.
    ///
    /// # Errors
    ///
    /// The engine's failure.
    pub fn set_expiry(&mut self, key: &[u8], at_ms: Option<u64>) -> Result<bool, Failure> {
        let Some((meta, payload)) = self.take(key)? else {
            return Ok(false);
        };
        if at_ms.is_some() || meta.expires_at_ms.is_some() {
            let old = Old { meta, live: true };
            self.put(Place::of(key), key, Some(&old), meta.kind, at_ms, &payload);
        }
        Ok(true)
    }

    /// Gives `to` the value and expiry of `from`, whatever it was, and says whether `from` existed.
    ///
    /// # Errors
    ///
    /// `TooLarge`, or the engine's failure.
    pub fn copy(&mut self, from: &[u8], to: &[u8]) -> Result<bool, Failure> {
        self.check(What::Key, to.len(), self.limits.key_bytes_max)?;
        let Some((meta, payload)) = self.take(from)? else {
            return Ok(false);
        };
        if from != to {
            let place = Place::of(to);
            let old = self.old(place, to)?;
            let expires_at_ms = meta.expires_at_ms;
            self.put(place, to, old.as_ref(), meta.kind, expires_at_ms, &payload);
        }
        Ok(true)
    }

    /// Moves the value and expiry of `from` to `to`, which is replaced, and says whether `from`
    /// existed. From a key to itself nothing changes.
    ///
    /// # Errors
    ///
    /// `TooLarge`, or the engine's failure.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<bool, Failure> {
        self.check(What::Key, to.len(), self.limits.key_bytes_max)?;
        let Some((meta, payload)) = self.take(from)? else {
            return Ok(false);
        };
        if from == to {
            return Ok(true);
        }
        let place = Place::of(to);
        let replaced = self.old(place, to)?;
        let old = Old { meta, live: true };
        self.remove(Place::of(from), from, Some(&old));
        let expires_at_ms = meta.expires_at_ms;
        self.put(
            place,
            to,
            replaced.as_ref(),
            meta.kind,
            expires_at_ms,
            &payload,
        );
        Ok(true)
    }

    /// Removes all keys, at once: a new epoch begins, unless this one is still empty.
    pub fn flush_all(&mut self) {
        if self.state.keys == 0 {
            return;
        }
        self.state.epoch += 1;
        self.state.keys = 0;
        self.state.expiring = 0;
    }

    /// Removes up to `max` records whose expiry is due, the earliest first, and says how many.
    ///
    /// # Errors
    ///
    /// The engine's failure; an index that does not fit the records is one.
    pub fn remove_due(&mut self, max: usize) -> Result<usize, Failure> {
        if max == 0 || self.state.expiring == 0 {
            return Ok(0);
        }
        let mut due = Vec::new();
        self.view()
            .expiries(Some(self.replicated_ms), &mut |at, key| {
                due.push((at, Bytes::copy_from_slice(key)));
                if due.len() == max {
                    Flow::Stop
                } else {
                    Flow::Continue
                }
            })?;
        for (at, key) in &due {
            let place = Place::of(key);
            let old = self.old(place, key)?;
            if old.as_ref().and_then(|old| old.meta.expires_at_ms) != Some(*at) {
                return Err(Failure::corrupt(
                    "the expiry index names a record that does not have this expiry",
                ));
            }
            self.remove(place, key, old.as_ref());
        }
        Ok(due.len())
    }

    /// Notes that a client's entry was applied: the node is not blank any more.
    pub fn set_used(&mut self) {
        self.state.used = true;
    }

    /// Sets or removes an entry that the node keeps beside the keys; see [`View::system`].
    pub fn set_system(&mut self, name: &str, value: Option<&[u8]>) {
        self.change(
            &encoding::system_key(name),
            value.map(Bytes::copy_from_slice),
        );
    }

    /// Where [`Self::rollback`] can go back to, until the next entry.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            undo: self.undo.len(),
            state: self.state,
            index: self.version.index,
        }
    }

    /// Takes back all changes since `savepoint`, which stays valid.
    pub fn rollback(&mut self, savepoint: Savepoint) {
        assert!(
            savepoint.index == self.version.index && savepoint.undo <= self.undo.len(),
            "a savepoint serves its own entry"
        );
        while self.undo.len() > savepoint.undo {
            let undo = self.undo.pop().expect("longer than the savepoint");
            self.layer.restore(undo.key, undo.old);
        }
        self.state = savepoint.state;
    }

    /// All changes, as one.
    pub fn finish(mut self) -> Changes {
        if self.state != self.stored {
            // As absent means the default, the default is absent: equal states are equal bytes.
            if self.state == State::default() {
                self.layer.apply(Op::Delete(encoding::STATE_KEY));
            } else {
                let state = self.state.encode();
                self.layer.apply(Op::Put(encoding::STATE_KEY, &state));
            }
        }
        Changes {
            layer: self.layer,
            state: self.state,
        }
    }

    fn check(&self, what: What, bytes: usize, limit: u64) -> Result<(), Failure> {
        if bytes as u64 > limit {
            return Err(Failure::TooLarge { what, limit });
        }
        Ok(())
    }

    fn change(&mut self, key: &KeyBuf, value: Option<Bytes>) {
        let key: std::sync::Arc<[u8]> = key.as_slice().into();
        let old = self.layer.set(key.clone(), value);
        self.undo.push(Undo { key, old });
    }

    /// Calls `f` with the stored record of `key`, due or not.
    fn stored<T>(
        &self,
        place: Place,
        key: &[u8],
        f: impl FnOnce(RecordMeta, &[u8]) -> T,
    ) -> Result<Option<T>, Failure> {
        let mut f = Some(f);
        let mut result = Ok(None);
        Stack::new(self.base, std::slice::from_ref(&self.layer)).get(
            encoding::record_key_at(self.state.epoch, place, key).as_slice(),
            &mut |bytes| {
                if let Some(f) = f.take() {
                    result = record::decode(bytes).map(|(meta, payload)| Some(f(meta, payload)));
                }
            },
        )?;
        Ok(result?)
    }

    fn old(&self, place: Place, key: &[u8]) -> Result<Option<Old>, Failure> {
        self.stored(place, key, |meta, _| Old {
            meta,
            live: !meta.due(self.replicated_ms),
        })
    }

    /// The record of `key`, where it exists, with its payload.
    fn take(&self, key: &[u8]) -> Result<Option<(RecordMeta, Bytes)>, Failure> {
        let found = self.stored(Place::of(key), key, |meta, payload| {
            (!meta.due(self.replicated_ms)).then(|| (meta, Bytes::copy_from_slice(payload)))
        })?;
        Ok(found.flatten())
    }

    /// Writes a record over `old`, with its counters and its place in the expiry index.
    fn put(
        &mut self,
        place: Place,
        key: &[u8],
        old: Option<&Old>,
        kind: Kind,
        expires_at_ms: Option<u64>,
        payload: &[u8],
    ) {
        if expires_at_ms.is_some_and(|at| at <= self.replicated_ms) {
            self.remove(place, key, old);
            return;
        }
        let epoch = self.state.epoch;
        let old_expiry = old.and_then(|old| old.meta.expires_at_ms);
        self.version.ordinal += 1;
        let record = record::encode(kind, self.version, expires_at_ms, payload);
        self.change(
            &encoding::record_key_at(epoch, place, key),
            Some(record.into()),
        );
        if old_expiry != expires_at_ms {
            if let Some(at) = old_expiry {
                self.change(&encoding::expiry_key(epoch, at, place, key), None);
                self.state.expiring -= 1;
            }
            if let Some(at) = expires_at_ms {
                let at = encoding::expiry_key(epoch, at, place, key);
                self.change(&at, Some(Bytes::new()));
                self.state.expiring += 1;
            }
        }
        if old.is_none() {
            self.state.keys += 1;
        }
    }

    /// Removes the record `old`, with its counters and its place in the expiry index.
    fn remove(&mut self, place: Place, key: &[u8], old: Option<&Old>) {
        let Some(old) = old else { return };
        let epoch = self.state.epoch;
        self.change(&encoding::record_key_at(epoch, place, key), None);
        let index = Bytes::copy_from_slice(&self.version.index.to_le_bytes());
        self.change(&encoding::removal_key(epoch, place), Some(index));
        self.state.keys -= 1;
        if let Some(at) = old.meta.expires_at_ms {
            self.change(&encoding::expiry_key(epoch, at, place, key), None);
            self.state.expiring -= 1;
        }
    }
}

/// The changes of a finished [`Txn`], for one write of the engine.
#[derive(Debug, Clone)]
pub struct Changes {
    /// What changed.
    pub layer: Layer,
    /// The keyspace's state after it.
    pub state: State,
}

impl Changes {
    /// The changes as one batch.
    pub fn ops(&self) -> Vec<Op<'_>> {
        self.layer.ops()
    }

    /// The keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.layer.bytes()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.layer.is_empty()
    }
}
