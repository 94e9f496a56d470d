//! An opened engine, as safe methods: no panic of either side crosses the border.

#![expect(
    unsafe_code,
    reason = "callbacks cross the border as pairs of pointers"
)]

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use abi_stable::std_types::{RSlice, RStr};

use super::load::Description;
use crate::abi::v1::{self, AbiError, AbiMark, AbiOp, AbiRange, EntrySink, EntrySource, ValueSink};
use crate::{Caps, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Options, Range, Result};

/// An opened engine.
///
/// After a panic in the plugin or a report of damage it is poisoned: every later call, also of its
/// views, returns that error without entering the plugin. After [`close`](Self::close) every call
/// returns an error of kind [`ErrorKind::Closed`], in the same way.
///
/// A callback that panics stops the call that it was given to; its panic goes on in the caller,
/// and the engine can still be used. A callback is never called again after it has panicked or
/// said [`Flow::Stop`].
pub struct Engine {
    engine: v1::EngineBox,
    description: Description,
    end: End,
    /// New options come one at a time.
    reconfiguring: Mutex<()>,
}

/// A consistent read of an engine; it ends when its engine does.
pub struct EngineView {
    view: v1::ViewBox,
    mark: Mark,
    end: End,
}

/// Why nothing enters the plugin any more, once that is so; shared by an engine and its views.
#[derive(Clone, Default)]
struct End(Arc<OnceLock<Error>>);

impl End {
    fn check(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Passes a result of the plugin on; after a panic or damage it is the last one.
    fn note<T>(&self, result: std::result::Result<T, AbiError>) -> Result<T> {
        result.map_err(|error| {
            let error = Error::from(error);
            if matches!(error.kind(), ErrorKind::Panic | ErrorKind::Corruption) {
                self.set(&error);
            }
            error
        })
    }

    /// The plugin did what no engine may do; nothing else of it can be believed then.
    fn broken<T>(&self, what: &str) -> Result<T> {
        let message = format!("the engine broke its contract: {what}");
        let error = Error::new(ErrorKind::Corruption, message);
        self.set(&error);
        Err(error)
    }

    /// Returns whether this was the first reason, which stays.
    fn set(&self, error: &Error) -> bool {
        self.0.set(error.clone()).is_ok()
    }
}

impl Engine {
    pub(super) fn new(engine: v1::EngineBox, description: Description) -> Self {
        Engine {
            engine,
            description,
            end: End::default(),
            reconfiguring: Mutex::default(),
        }
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// The engine's version.
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// What it can do beyond the minimum.
    pub fn caps(&self) -> Caps {
        self.description.caps
    }

    /// The largest things it can store.
    pub fn limits(&self) -> Limits {
        self.description.limits
    }

    /// As [`Backend::mark`](crate::Backend::mark).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn mark(&self) -> Result<Mark> {
        read_mark(&self.end, |sink| self.engine.mark(sink).into_result())
    }

    /// As [`Backend::get`](crate::Backend::get).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        read_value(&self.end, out, |sink| {
            self.engine.get(RSlice::from_slice(key), sink).into_result()
        })
    }

    /// As [`Backend::scan`](crate::Backend::scan).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        read_entries(&self.end, out, |sink| {
            self.engine.scan(AbiRange::from(range), sink).into_result()
        })
    }

    /// As [`Backend::write`](crate::Backend::write).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.check()?;
        let ops: Vec<AbiOp<'_>> = batch
            .iter()
            .map(|op| {
                let (kind, a, b) = match *op {
                    Op::Put(key, value) => (v1::OP_PUT, key, value),
                    Op::Delete(key) => (v1::OP_DELETE, key, &[][..]),
                    Op::DeleteRange(from, to) => (v1::OP_DELETE_RANGE, from, to),
                };
                AbiOp {
                    kind,
                    a: RSlice::from_slice(a),
                    b: RSlice::from_slice(b),
                }
            })
            .collect();
        self.plain(
            self.engine
                .write(RSlice::from_slice(&ops), lend(mark))
                .into_result(),
        )
    }

    /// As [`Backend::sync`](crate::Backend::sync).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn sync(&self) -> Result<Mark> {
        read_mark(&self.end, |sink| self.engine.sync(sink).into_result())
    }

    /// As [`Backend::view`](crate::Backend::view).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn view(&self) -> Result<EngineView> {
        self.check()?;
        let view = self.plain(self.engine.view().into_result())?;
        let mark = read_mark(&self.end, |sink| view.mark(sink).into_result())?;
        Ok(EngineView {
            view,
            mark,
            end: self.end.clone(),
        })
    }

    /// As [`Backend::replace`](crate::Backend::replace). A panic of the feed goes on in the caller.
    ///
    /// # Errors
    ///
    /// The feed's own, or the engine's. An engine that panics or reports damage on a failing feed
    /// is poisoned although the feed's error is returned.
    pub fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.check()?;
        let mut context = Fed {
            feed,
            ended: None,
            failed: None,
            panicked: None,
        };
        let source = EntrySource {
            context: (&raw mut context).cast(),
            next: feed_next,
            _life: PhantomData,
        };
        let result = self.engine.replace(source, lend(mark)).into_result();
        // The engine's own panic or damage is noted first: the feed's failure may have caused it,
        // but hides nothing.
        let result = self.plain(result);
        let result = match context.ended {
            Some(v1::SOURCE_END) => result,
            // Whatever it holds now, it is not what it was told to hold.
            _ => result.and_then(|()| self.end.broken("replace did not read all of its feed")),
        };
        if let Some(payload) = context.panicked {
            resume_unwind(payload);
        }
        match context.failed {
            Some(error) => Err(error),
            None => result,
        }
    }

    /// As [`Backend::property`](crate::Backend::property).
    pub fn property(&self, name: &str) -> Option<String> {
        self.check().ok()?;
        let value = self
            .plain(self.engine.property(RStr::from_str(name)).into_result())
            .ok()?;
        value.into_option().map(String::from)
    }

    /// As [`Backend::properties`](crate::Backend::properties).
    pub fn properties(&self) -> Vec<String> {
        if self.check().is_err() {
            return Vec::new();
        }
        let names = self.plain(self.engine.properties().into_result());
        names.map_or_else(
            |_| Vec::new(),
            |names| names.into_iter().map(String::from).collect(),
        )
    }

    /// As [`Backend::compact`](crate::Backend::compact).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn compact(&self) -> Result<()> {
        self.check()?;
        self.plain(self.engine.compact().into_result())
    }

    /// As [`Backend::verify`](crate::Backend::verify).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn verify(&self) -> Result<()> {
        self.check()?;
        self.plain(self.engine.verify().into_result())
    }

    /// As [`Backend::reconfigure`](crate::Backend::reconfigure), with what was given; the options
    /// that are not get their defaults.
    ///
    /// # Errors
    ///
    /// The engine's own; `Unsupported` of one that knows nothing of it.
    pub fn reconfigure(&self, options: &[(String, String)]) -> Result<()> {
        self.check()?;
        let pairs = options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let request = Options::pack(pairs);
        let _one = self
            .reconfiguring
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let nothing = ValueSink {
            context: std::ptr::null_mut(),
            call: take_nothing,
            _life: PhantomData,
        };
        self.plain(
            self.engine
                .ext(v1::EXT_RECONFIGURE, RSlice::from_slice(&request), nothing)
                .into_result(),
        )
        .map(drop)
    }

    /// As [`Backend::close`](crate::Backend::close); the plugin sees at most one of these.
    ///
    /// # Errors
    ///
    /// The engine's own; `Closed` when it was closed before.
    pub fn close(&self) -> Result<()> {
        self.check()?;
        // Of two at once, one enters the plugin.
        if !self
            .end
            .set(&Error::new(ErrorKind::Closed, "the engine is closed"))
        {
            return self.check();
        }
        self.plain(self.engine.close().into_result())
    }

    fn check(&self) -> Result<()> {
        self.end.check()
    }

    fn plain<T>(&self, result: std::result::Result<T, AbiError>) -> Result<T> {
        self.end.note(result)
    }
}

impl EngineView {
    /// The mark at that moment.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// As [`Backend::get`](crate::Backend::get).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        read_value(&self.end, out, |sink| {
            self.view.get(RSlice::from_slice(key), sink).into_result()
        })
    }

    /// As [`Backend::scan`](crate::Backend::scan).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        read_entries(&self.end, out, |sink| {
            self.view.scan(AbiRange::from(range), sink).into_result()
        })
    }
}

/// Of a call that answers without bytes.
unsafe extern "C" fn take_nothing(_context: *mut (), _value: RSlice<'_, u8>) {}

fn lend(mark: &Mark) -> AbiMark<'_> {
    AbiMark {
        index: mark.index,
        data: RSlice::from_slice(&mark.data),
    }
}

struct Value<'c> {
    out: &'c mut dyn FnMut(&[u8]),
    given: usize,
    panicked: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn take_value(context: *mut (), value: RSlice<'_, u8>) {
    // SAFETY: `with_value` lends its context for the time of the call; nobody else uses it.
    let context = unsafe { &mut *context.cast::<Value<'_>>() };
    context.given += 1;
    if context.given > 1 {
        return;
    }
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (context.out)(value.as_slice()))) {
        context.panicked = Some(payload);
    }
}

/// Lends a callback, and returns how often it was called; its panic goes on here, after the
/// plugin has returned.
fn with_value<T>(
    end: &End,
    out: &mut dyn FnMut(&[u8]),
    call: impl FnOnce(ValueSink<'_>) -> std::result::Result<T, AbiError>,
) -> Result<(T, usize)> {
    end.check()?;
    let mut context = Value {
        out,
        given: 0,
        panicked: None,
    };
    let result = end.note(call(ValueSink {
        context: (&raw mut context).cast(),
        call: take_value,
        _life: PhantomData,
    }));
    if let Some(payload) = context.panicked {
        resume_unwind(payload);
    }
    Ok((result?, context.given))
}

fn read_value(
    end: &End,
    out: &mut dyn FnMut(&[u8]),
    call: impl FnOnce(ValueSink<'_>) -> std::result::Result<bool, AbiError>,
) -> Result<bool> {
    let (found, given) = with_value(end, out, call)?;
    if given != usize::from(found) {
        return end.broken("get reported one thing and handed out another");
    }
    Ok(found)
}

fn read_mark(
    end: &End,
    call: impl FnOnce(ValueSink<'_>) -> std::result::Result<u64, AbiError>,
) -> Result<Mark> {
    let mut data = Vec::new();
    let (index, given) = with_value(end, &mut |bytes| data.extend_from_slice(bytes), call)?;
    if given != 1 {
        return end.broken("a mark came without its data");
    }
    Ok(Mark { index, data })
}

struct Entries<'c> {
    out: &'c mut dyn FnMut(&[u8], &[u8]) -> Flow,
    stopped: bool,
    panicked: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn take_entry(
    context: *mut (),
    key: RSlice<'_, u8>,
    value: RSlice<'_, u8>,
) -> u8 {
    // SAFETY: `read_entries` lends its context for the time of the call; nobody else uses it.
    let context = unsafe { &mut *context.cast::<Entries<'_>>() };
    if context.stopped {
        return 1;
    }
    let visited = catch_unwind(AssertUnwindSafe(|| {
        (context.out)(key.as_slice(), value.as_slice())
    }));
    match visited {
        Ok(Flow::Continue) => return 0,
        Ok(Flow::Stop) => {}
        Err(payload) => context.panicked = Some(payload),
    }
    context.stopped = true;
    1
}

fn read_entries(
    end: &End,
    out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    call: impl FnOnce(EntrySink<'_>) -> std::result::Result<(), AbiError>,
) -> Result<()> {
    end.check()?;
    let mut context = Entries {
        out,
        stopped: false,
        panicked: None,
    };
    let result = end.note(call(EntrySink {
        context: (&raw mut context).cast(),
        call: take_entry,
        _life: PhantomData,
    }));
    if let Some(payload) = context.panicked {
        resume_unwind(payload);
    }
    result
}

struct Fed<'c> {
    feed: &'c mut dyn Feed,
    /// What the plugin was told last, once that was not an entry: the feed is left alone then.
    ended: Option<u8>,
    failed: Option<Error>,
    panicked: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn feed_next(context: *mut (), sink: EntrySink<'_>) -> u8 {
    // SAFETY: `replace` lends its context for the time of the call; nobody else uses it.
    let context = unsafe { &mut *context.cast::<Fed<'_>>() };
    if let Some(ended) = context.ended {
        return ended;
    }
    let fed = catch_unwind(AssertUnwindSafe(|| {
        context.feed.next(&mut |key, value| {
            // SAFETY: the plugin lends context and function together, for this call.
            unsafe {
                (sink.call)(
                    sink.context,
                    RSlice::from_slice(key),
                    RSlice::from_slice(value),
                );
            }
        })
    }));
    let ended = match fed {
        Ok(Ok(true)) => return v1::SOURCE_ENTRY,
        Ok(Ok(false)) => v1::SOURCE_END,
        Ok(Err(error)) => {
            context.failed = Some(error);
            v1::SOURCE_FAILED
        }
        Err(payload) => {
            context.panicked = Some(payload);
            v1::SOURCE_FAILED
        }
    };
    context.ended = Some(ended);
    ended
}
