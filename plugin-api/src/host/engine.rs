//! An opened engine, as safe methods: no panic of either side crosses the border.

#![expect(
    unsafe_code,
    reason = "callbacks cross the border as pairs of pointers"
)]

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use abi_stable::std_types::{RSlice, RStr};

use super::load::Description;
use crate::abi::v1::{self, AbiMark, AbiOp, AbiRange, EntrySink, EntrySource, ValueSink};
use crate::{Caps, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Result};

/// An opened engine.
///
/// After a panic in the plugin or a report of damage it is poisoned: every later call returns that
/// error without entering the plugin.
pub struct Engine {
    engine: v1::EngineBox,
    description: Description,
    poison: OnceLock<Error>,
}

/// A consistent read of an engine.
pub struct EngineView {
    view: v1::ViewBox,
    mark: Mark,
}

impl Engine {
    pub(super) fn new(engine: v1::EngineBox, description: Description) -> Self {
        Engine {
            engine,
            description,
            poison: OnceLock::new(),
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
        self.with_mark(|sink| self.engine.mark(sink).into_result())
    }

    /// As [`Backend::get`](crate::Backend::get).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.check()?;
        with_value(out, |sink| {
            self.engine.get(RSlice::from_slice(key), sink).into_result()
        })
        .map_err(|error| self.note(error))
    }

    /// As [`Backend::scan`](crate::Backend::scan).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.check()?;
        with_entries(out, |sink| {
            self.engine.scan(AbiRange::from(range), sink).into_result()
        })
        .map_err(|error| self.note(error))
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
        self.with_mark(|sink| self.engine.sync(sink).into_result())
    }

    /// As [`Backend::view`](crate::Backend::view).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn view(&self) -> Result<EngineView> {
        self.check()?;
        let view = self.plain(self.engine.view().into_result())?;
        let mut mark = Mark::default();
        let index = with_value(&mut |data| mark.data.extend_from_slice(data), |sink| {
            Ok(view.mark(sink))
        })?;
        mark.index = index;
        Ok(EngineView { view, mark })
    }

    /// As [`Backend::replace`](crate::Backend::replace).
    ///
    /// # Errors
    ///
    /// The feed's own, or the engine's.
    pub fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.check()?;
        struct Context<'c> {
            feed: &'c mut dyn Feed,
            failed: Option<Error>,
            panicked: Option<Box<dyn Any + Send>>,
        }
        unsafe extern "C" fn next(context: *mut (), mut sink: EntrySink<'_>) -> u8 {
            // SAFETY: this is the context below, which lives during the call and is used by
            // nobody else meanwhile.
            let context = unsafe { &mut *context.cast::<Context<'_>>() };
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
            let _ = &mut sink;
            match fed {
                Ok(Ok(more)) => u8::from(more),
                Ok(Err(error)) => {
                    context.failed = Some(error);
                    2
                }
                Err(payload) => {
                    context.panicked = Some(payload);
                    2
                }
            }
        }
        let mut context = Context {
            feed,
            failed: None,
            panicked: None,
        };
        let source = EntrySource {
            context: (&raw mut context).cast(),
            next,
            _life: PhantomData,
        };
        let result = self.engine.replace(source, lend(mark)).into_result();
        if let Some(payload) = context.panicked {
            resume_unwind(payload);
        }
        match context.failed {
            Some(error) => Err(error),
            None => self.plain(result),
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

    /// As [`Backend::close`](crate::Backend::close).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn close(&self) -> Result<()> {
        self.check()?;
        self.plain(self.engine.close().into_result())
    }

    fn check(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    fn note(&self, error: Error) -> Error {
        if matches!(error.kind(), ErrorKind::Panic | ErrorKind::Corruption) {
            // The first one stays.
            drop(self.poison.set(error.clone()));
        }
        error
    }

    fn plain<T>(&self, result: std::result::Result<T, v1::AbiError>) -> Result<T> {
        result.map_err(|error| self.note(error.into()))
    }

    fn with_mark(
        &self,
        call: impl FnOnce(ValueSink<'_>) -> std::result::Result<u64, v1::AbiError>,
    ) -> Result<Mark> {
        self.check()?;
        let mut data = Vec::new();
        let index = with_value(&mut |bytes| data.extend_from_slice(bytes), call)
            .map_err(|error| self.note(error))?;
        Ok(Mark { index, data })
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
        with_value(out, |sink| {
            self.view.get(RSlice::from_slice(key), sink).into_result()
        })
    }

    /// As [`Backend::scan`](crate::Backend::scan).
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        with_entries(out, |sink| {
            self.view.scan(AbiRange::from(range), sink).into_result()
        })
    }
}

fn lend(mark: &Mark) -> AbiMark<'_> {
    AbiMark {
        index: mark.index,
        data: RSlice::from_slice(&mark.data),
    }
}

struct Value<'c> {
    out: &'c mut dyn FnMut(&[u8]),
    panicked: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn take_value(context: *mut (), value: RSlice<'_, u8>) {
    // SAFETY: `with_value` lends its context for the time of the call; nobody else uses it.
    let context = unsafe { &mut *context.cast::<Value<'_>>() };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (context.out)(value.as_slice()))) {
        context.panicked = Some(payload);
    }
}

/// Lends a callback; its panic goes on here, after the plugin has returned.
fn with_value<T>(
    out: &mut dyn FnMut(&[u8]),
    call: impl FnOnce(ValueSink<'_>) -> std::result::Result<T, v1::AbiError>,
) -> Result<T> {
    let mut context = Value {
        out,
        panicked: None,
    };
    let result = call(ValueSink {
        context: (&raw mut context).cast(),
        call: take_value,
        _life: PhantomData,
    });
    if let Some(payload) = context.panicked {
        resume_unwind(payload);
    }
    result.map_err(Error::from)
}

struct Entries<'c> {
    out: &'c mut dyn FnMut(&[u8], &[u8]) -> Flow,
    panicked: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn take_entry(
    context: *mut (),
    key: RSlice<'_, u8>,
    value: RSlice<'_, u8>,
) -> u8 {
    // SAFETY: `with_entries` lends its context for the time of the call; nobody else uses it.
    let context = unsafe { &mut *context.cast::<Entries<'_>>() };
    if context.panicked.is_some() {
        return 1;
    }
    match catch_unwind(AssertUnwindSafe(|| {
        (context.out)(key.as_slice(), value.as_slice())
    })) {
        Ok(Flow::Continue) => 0,
        Ok(Flow::Stop) => 1,
        Err(payload) => {
            context.panicked = Some(payload);
            1
        }
    }
}

fn with_entries(
    out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    call: impl FnOnce(EntrySink<'_>) -> std::result::Result<(), v1::AbiError>,
) -> Result<()> {
    let mut context = Entries {
        out,
        panicked: None,
    };
    let result = call(EntrySink {
        context: (&raw mut context).cast(),
        call: take_entry,
        _life: PhantomData,
    });
    if let Some(payload) = context.panicked {
        resume_unwind(payload);
    }
    result.map_err(Error::from)
}
