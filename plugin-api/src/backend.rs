//! What an engine's author implements: [`Backend`] and [`View`], in safe Rust.

use std::path::Path;

use crate::{Caps, Error, ErrorKind, Limits, OptionSpec, Options, Result};

/// Where a state stands in the host's history.
///
/// `index` orders marks; `data` belongs to the host: an engine stores it, returns it, and never
/// reads it. [`Mark::default`] means "nothing was ever written".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mark {
    /// Position in the host's history; grows, or stays the same, with each write.
    pub index: u64,
    /// The host's own bytes, at most 64 KiB.
    pub data: Vec<u8>,
}

impl Mark {
    /// The mark as bytes, for an engine that stores it under a key: the index, little-endian, then
    /// the host's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.index.to_le_bytes()[..], &self.data].concat()
    }

    /// The mark that [`to_bytes`](Self::to_bytes) has made bytes of.
    ///
    /// # Errors
    ///
    /// `Corruption` where they are too few.
    pub fn from_bytes(bytes: &[u8]) -> Result<Mark> {
        let (index, data) = bytes
            .split_first_chunk()
            .ok_or_else(|| Error::new(ErrorKind::Corruption, "the stored mark is cut short"))?;
        Ok(Mark {
            index: u64::from_le_bytes(*index),
            data: data.to_vec(),
        })
    }
}

/// One change of a batch. Later changes of a batch see the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// Sets a key, whether it exists or not.
    Put(&'a [u8], &'a [u8]),
    /// Removes a key; removing an absent key is no error.
    Delete(&'a [u8]),
    /// Removes all keys `>= from` and `< to`; an empty range is no error.
    DeleteRange(&'a [u8], &'a [u8]),
}

/// The part of the key order that a scan visits: keys `>= from`, and `< to` where there is a `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<'a> {
    /// First key of the range, inclusive; empty means from the start.
    pub from: &'a [u8],
    /// End of the range, exclusive; `None` means to the end.
    pub to: Option<&'a [u8]>,
    /// Visit from the last key to the first.
    pub reverse: bool,
}

/// What a visitor wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next entry.
    Continue,
    /// Enough: the scan returns `Ok`.
    Stop,
}

/// What [`Backend::open`] is given.
pub struct OpenContext<'a> {
    /// The engine's own directory; it exists, and nothing else writes into it.
    pub dir: &'a Path,
    /// The options of [`Backend::OPTIONS`], parsed, with defaults filled in.
    pub options: &'a Options,
}

/// The sorted stream of entries that [`Backend::replace`] reads.
///
/// Entries come in strictly ascending key order.
pub trait Feed {
    /// Hands the next entry to `out`, or returns `false` at the end.
    ///
    /// The slices live only during the call.
    ///
    /// # Errors
    ///
    /// The host could not read its source; `replace` gives up with this error.
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool>;
}

/// A storage engine.
///
/// One ordered keyspace of byte strings. The host is the only user; it makes one call at a time of
/// those that change something ([`write`](Self::write), [`sync`](Self::sync),
/// [`replace`](Self::replace), [`compact`](Self::compact), [`verify`](Self::verify),
/// [`close`](Self::close)), and reads from many threads at any time, also during these. All calls
/// may block.
///
/// Callbacks get slices that live only during the call, and must not be called after the method
/// has returned. A host's callback never calls back into the engine.
///
/// A panic in any of these, or in a destructor, stays inside the library: the host sees an error
/// of kind [`ErrorKind::Panic`](crate::ErrorKind::Panic) and never enters the engine again.
pub trait Backend: Send + Sync + Sized + 'static {
    /// The engine's name: lower-case letters, digits, `-` and `_`.
    const NAME: &'static str;
    /// The engine's own version, for messages: usually that of the wrapped library.
    const VERSION: &'static str;
    /// A sentence on the engine, of at most 255 bytes, for `kvd plugin list`: what it is good for,
    /// or what to know before using it. Since 1.1 of this crate.
    const ABOUT: &'static str = "";
    /// What the engine can do beyond the minimum.
    const CAPS: Caps = Caps::empty();
    /// The largest things it can store.
    const LIMITS: Limits = Limits::UNBOUNDED;
    /// The options that [`open`](Self::open) understands.
    const OPTIONS: &'static [OptionSpec] = &[];
    /// The type of its consistent reads; `NoView<Self>` without [`Caps::VIEW`].
    type View: View;

    /// Opens the engine in `cx.dir`, creating it where the directory is empty.
    ///
    /// # Errors
    ///
    /// `Locked` when something else has it open, `Incompatible` for a foreign format,
    /// `InvalidOption`, `Corruption`, `Io`.
    fn open(cx: &OpenContext<'_>) -> Result<Self>;

    /// The mark of the state as it is now: after `open`, of what survived.
    ///
    /// # Errors
    ///
    /// `Io` or `Corruption`.
    fn mark(&self) -> Result<Mark>;

    /// Hands the value of `key` to `out`, once, and returns `true`; or returns `false`.
    ///
    /// # Errors
    ///
    /// `Io` or `Corruption`.
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Visits the entries of `range` in key order until the end or until `out` says stop.
    ///
    /// # Errors
    ///
    /// `Io` or `Corruption`.
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;

    /// Applies all of `batch`, together with `mark`, or nothing of it.
    ///
    /// Visible to reads on return. It may be lazy: a crash may lose it, but only as a whole and
    /// only together with all later writes. `mark.index` is never below that of the write before;
    /// a write with an unchanged mark is allowed.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`, `TooLarge`, `Corruption`. The host writes nothing more after an error.
    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()>;

    /// Makes every write that returned before this call durable, and returns the durable mark.
    ///
    /// An engine without [`Caps::DURABLE`] returns [`Mark::default`].
    ///
    /// # Errors
    ///
    /// `NoSpace` or `Io`. The host never calls `sync` again after an error.
    fn sync(&self) -> Result<Mark>;

    /// A read that stays as it is, whatever is written later; needs [`Caps::VIEW`].
    ///
    /// # Errors
    ///
    /// `Unsupported`, `Io`.
    fn view(&self) -> Result<Self::View>;

    /// Replaces the whole contents by those of `feed`, with `mark`; durable on return where the
    /// engine is.
    ///
    /// `feed` is read to its end; an engine that returns `Ok` before, or in spite of the feed's
    /// error, is not used any more.
    ///
    /// After a crash in the middle the engine opens with the old contents, the new ones, or empty
    /// with [`Mark::default`].
    ///
    /// # Errors
    ///
    /// The feed's own error, `NoSpace`, `Io`.
    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()>;

    /// The current value of a property of [`properties`](Self::properties), as text.
    fn property(&self, _name: &str) -> Option<String> {
        None
    }

    /// The names of the properties: `kvd.disk.bytes` and the like, or the engine's own prefix.
    fn properties(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Gives unused space back, as far as the engine can while it is open.
    ///
    /// # Errors
    ///
    /// `Unsupported` unless overridden; `Io`.
    fn compact(&self) -> Result<()> {
        Err(Error::unsupported("compact"))
    }

    /// Reads everything and checks whatever the engine can check.
    ///
    /// # Errors
    ///
    /// `Corruption`, `Io`.
    fn verify(&self) -> Result<()> {
        Ok(())
    }

    /// Takes new values of options while the engine is open; needs [`Caps::RECONFIGURE`]. Since 1.1
    /// of this crate.
    ///
    /// `options` has a value for each, as [`OpenContext::options`] has. It comes at any time, also
    /// during other calls, but never beside itself, returns soon, and changes no contents. All of it
    /// is taken, or nothing.
    ///
    /// # Errors
    ///
    /// `Unsupported` unless overridden; `InvalidOption` for one that cannot be changed while the
    /// engine is open, with its name.
    fn reconfigure(&self, _options: &Options) -> Result<()> {
        Err(Error::unsupported("reconfigure"))
    }

    /// Makes everything durable and lets go of the files. Called at most once; nothing but the
    /// destructors, of the engine and of its views, runs afterwards.
    ///
    /// # Errors
    ///
    /// As for [`sync`](Self::sync).
    fn close(&self) -> Result<()> {
        self.sync().map(drop)
    }
}

/// A consistent read of an engine at one moment; outlives later writes.
pub trait View: Send + Sync + 'static {
    /// The mark at that moment.
    fn mark(&self) -> &Mark;

    /// As [`Backend::get`].
    ///
    /// # Errors
    ///
    /// `Io` or `Corruption`.
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// As [`Backend::scan`].
    ///
    /// # Errors
    ///
    /// `Io` or `Corruption`.
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;
}

/// The view of an engine without [`Caps::VIEW`]: there is no value of it.
pub struct NoView<B> {
    never: std::convert::Infallible,
    _engine: std::marker::PhantomData<fn() -> B>,
}

impl<B: 'static> View for NoView<B> {
    fn mark(&self) -> &Mark {
        match self.never {}
    }

    fn get(&self, _key: &[u8], _out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match self.never {}
    }

    fn scan(&self, _range: Range<'_>, _out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        match self.never {}
    }
}
