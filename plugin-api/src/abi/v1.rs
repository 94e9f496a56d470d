//! Interface 1.
//!
//! Plain data, borrowed slices and callbacks cross the border; no panic does, in either direction.

#![allow(
    non_local_definitions,
    non_camel_case_types,
    missing_docs,
    clippy::used_underscore_binding,
    reason = "what abi_stable's macros generate"
)]
#![allow(
    unsafe_code,
    reason = "callbacks cross the border as pairs of pointers"
)]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_trait;
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, ROption, RResult, RSlice, RStr, RString, RVec, Tuple2};

use crate::{Backend, Caps, Error, ErrorKind, Feed, Flow, Mark, Op, OpenContext, Options, Range};

/// An error: an open code and a message.
#[repr(C)]
#[derive(StableAbi, Debug)]
pub struct AbiError {
    pub code: u32,
    pub message: RString,
}

/// One change: 1 put, 2 delete, 3 delete range. Other kinds are unsupported.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiOp<'a> {
    pub kind: u8,
    pub a: RSlice<'a, u8>,
    pub b: RSlice<'a, u8>,
}

pub const OP_PUT: u8 = 1;
pub const OP_DELETE: u8 = 2;
pub const OP_DELETE_RANGE: u8 = 3;

/// A range; bit 0 of `flags`: there is a `to`; bit 1: reverse.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiRange<'a> {
    pub from: RSlice<'a, u8>,
    pub to: RSlice<'a, u8>,
    pub flags: u8,
}

pub const RANGE_HAS_TO: u8 = 1;
pub const RANGE_REVERSE: u8 = 2;

/// A mark that is lent.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiMark<'a> {
    pub index: u64,
    pub data: RSlice<'a, u8>,
}

/// A callback that takes one value.
#[repr(C)]
#[derive(StableAbi)]
pub struct ValueSink<'a> {
    pub context: *mut (),
    pub call: unsafe extern "C" fn(*mut (), RSlice<'_, u8>),
    pub _life: PhantomData<&'a mut ()>,
}

/// A callback that takes one entry and returns 0 to go on or 1 to stop.
#[repr(C)]
#[derive(StableAbi)]
pub struct EntrySink<'a> {
    pub context: *mut (),
    pub call: unsafe extern "C" fn(*mut (), RSlice<'_, u8>, RSlice<'_, u8>) -> u8,
    pub _life: PhantomData<&'a mut ()>,
}

/// A callback that hands one entry to the sink and returns 1; 0 at the end; 2 when it failed.
#[repr(C)]
#[derive(StableAbi)]
pub struct EntrySource<'a> {
    pub context: *mut (),
    pub next: unsafe extern "C" fn(*mut (), EntrySink<'_>) -> u8,
    pub _life: PhantomData<&'a mut ()>,
}

/// What `ext` does with this `op`, since 1.1: the request is a list of options, see
/// `Options::pack`, that the open engine takes.
pub const EXT_RECONFIGURE: u32 = 1;

pub const SOURCE_END: u8 = 0;
pub const SOURCE_ENTRY: u8 = 1;
pub const SOURCE_FAILED: u8 = 2;

/// What the host lends a plugin at opening.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct HostContext {
    /// Level (1 error to 5 trace), target, message.
    pub log: extern "C" fn(u8, RStr<'_>, RStr<'_>),
    /// The most detailed level that the host wants to hear of; 0 is none.
    pub log_level: u8,
}

/// What an engine is, as data.
#[repr(C)]
#[derive(StableAbi)]
pub struct Description {
    pub name: RString,
    pub version: RString,
    pub caps: u64,
    pub key_bytes_max: u64,
    pub value_bytes_max: u64,
    pub batch_bytes_max: u64,
    pub options: RVec<OptionDescription>,
}

/// One option; `kind` is open: 1 size, 2 duration, 3 bool, 4 int, 5 enum, 6 string.
#[repr(C)]
#[derive(StableAbi)]
pub struct OptionDescription {
    pub name: RString,
    pub kind: u32,
    pub default: RString,
    pub help: RString,
}

/// A consistent read.
#[sabi_trait]
pub trait AbiView: Send + Sync {
    fn mark(&self, data: ValueSink<'_>) -> RResult<u64, AbiError>;
    fn get(&self, key: RSlice<'_, u8>, out: ValueSink<'_>) -> RResult<bool, AbiError>;
    #[sabi(last_prefix_field)]
    fn scan(&self, range: AbiRange<'_>, out: EntrySink<'_>) -> RResult<(), AbiError>;
}

/// A view in a box.
pub type ViewBox = AbiView_TO<'static, RBox<()>>;

/// An opened engine.
#[sabi_trait]
pub trait AbiEngine: Send + Sync {
    fn mark(&self, data: ValueSink<'_>) -> RResult<u64, AbiError>;
    fn get(&self, key: RSlice<'_, u8>, out: ValueSink<'_>) -> RResult<bool, AbiError>;
    fn scan(&self, range: AbiRange<'_>, out: EntrySink<'_>) -> RResult<(), AbiError>;
    fn write(&self, batch: RSlice<'_, AbiOp<'_>>, mark: AbiMark<'_>) -> RResult<(), AbiError>;
    fn sync(&self, data: ValueSink<'_>) -> RResult<u64, AbiError>;
    fn view(&self) -> RResult<ViewBox, AbiError>;
    fn replace(&self, feed: EntrySource<'_>, mark: AbiMark<'_>) -> RResult<(), AbiError>;
    fn property(&self, name: RStr<'_>) -> RResult<ROption<RString>, AbiError>;
    fn properties(&self) -> RResult<RVec<RString>, AbiError>;
    fn compact(&self) -> RResult<(), AbiError>;
    fn verify(&self) -> RResult<(), AbiError>;
    fn close(&self) -> RResult<(), AbiError>;
    /// For calls that come later; an unknown `op` is `Unsupported`.
    #[sabi(last_prefix_field)]
    fn ext(&self, op: u32, request: RSlice<'_, u8>, out: ValueSink<'_>) -> RResult<bool, AbiError>;
}

/// An engine in a box.
pub type EngineBox = AbiEngine_TO<'static, RBox<()>>;

/// The root module of a plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Plugin_Ref)))]
#[sabi(missing_field(panic))]
pub struct Plugin {
    pub describe: extern "C" fn() -> Description,
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(
        RStr<'_>,
        RVec<Tuple2<RString, RString>>,
        HostContext,
    ) -> RResult<EngineBox, AbiError>,
}

impl RootModule for Plugin_Ref {
    abi_stable::declare_root_module_statics! {Plugin_Ref}
    const BASE_NAME: &'static str = "kvd_plugin";
    const NAME: &'static str = "kvd_plugin";
    // Of the interface, not of the crate: the crate may grow without a new interface.
    const VERSION_STRINGS: VersionStrings = INTERFACE_VERSION;
}

const INTERFACE_VERSION: VersionStrings = {
    // The macro is the only way to make one; its version is replaced by the interface's.
    let _ = package_version_strings!();
    VersionStrings::new("1.0.0")
};

impl From<Error> for AbiError {
    fn from(error: Error) -> Self {
        AbiError {
            code: error.kind().code(),
            message: error.to_string().into(),
        }
    }
}

impl From<AbiError> for Error {
    fn from(error: AbiError) -> Self {
        Error::new(
            ErrorKind::from_code(error.code),
            error.message.into_string(),
        )
    }
}

/// Runs a plugin's code so that no panic leaves it.
fn contain<T>(call: impl FnOnce() -> crate::Result<T>) -> RResult<T, AbiError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => RResult::ROk(value),
        Ok(Err(error)) => RResult::RErr(error.into()),
        Err(payload) => {
            let message = format!("the plugin panicked: {}", panic_text(&*payload)).into();
            discard(payload);
            RResult::RErr(AbiError {
                code: ErrorKind::Panic.code(),
                message,
            })
        }
    }
}

/// Drops what a plugin made, so that no panic leaves its destructor.
fn discard<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // The payload's own destructor may panic in its turn: it is leaked instead.
        std::mem::forget(payload);
    }
}

/// A plugin's value whose destructor's panic goes no further: the box that holds it is dropped by
/// the host, across the border.
struct Contained<T>(ManuallyDrop<T>);

impl<T> Contained<T> {
    fn new(value: T) -> Self {
        Contained(ManuallyDrop::new(value))
    }
}

impl<T> std::ops::Deref for Contained<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        // SAFETY: this is the destructor, so the value is taken once and never used afterwards.
        discard(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

/// The message of a panic.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

impl ValueSink<'_> {
    pub(crate) fn give(&mut self, value: &[u8]) {
        // SAFETY: the host lends context and function together, for the time of this call.
        unsafe { (self.call)(self.context, RSlice::from_slice(value)) }
    }
}

impl EntrySink<'_> {
    pub(crate) fn give(&mut self, key: &[u8], value: &[u8]) -> Flow {
        // SAFETY: the host lends context and function together, for the time of this call.
        match unsafe {
            (self.call)(
                self.context,
                RSlice::from_slice(key),
                RSlice::from_slice(value),
            )
        } {
            0 => Flow::Continue,
            _ => Flow::Stop,
        }
    }
}

impl<'a> AbiRange<'a> {
    pub fn range(&self) -> Range<'a> {
        Range {
            from: self.from.as_slice(),
            to: (self.flags & RANGE_HAS_TO != 0).then(|| self.to.as_slice()),
            reverse: self.flags & RANGE_REVERSE != 0,
        }
    }
}

impl<'a> From<Range<'a>> for AbiRange<'a> {
    fn from(range: Range<'a>) -> Self {
        let mut flags = 0;
        if range.to.is_some() {
            flags |= RANGE_HAS_TO;
        }
        if range.reverse {
            flags |= RANGE_REVERSE;
        }
        AbiRange {
            from: RSlice::from_slice(range.from),
            to: RSlice::from_slice(range.to.unwrap_or_default()),
            flags,
        }
    }
}

impl AbiMark<'_> {
    fn mark(&self) -> Mark {
        Mark {
            index: self.index,
            data: self.data.as_slice().to_vec(),
        }
    }
}

/// The feed of the host, as an author meets it.
struct HostFeed<'a> {
    source: EntrySource<'a>,
    /// What the last call of the source returned, once that was not an entry: it is not called
    /// again, whatever the engine does.
    ended: Option<u8>,
}

impl Feed for HostFeed<'_> {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> crate::Result<bool> {
        struct Context<'c> {
            out: &'c mut dyn FnMut(&[u8], &[u8]),
            panicked: Option<Box<dyn std::any::Any + Send>>,
        }
        unsafe extern "C" fn give(
            context: *mut (),
            key: RSlice<'_, u8>,
            value: RSlice<'_, u8>,
        ) -> u8 {
            // SAFETY: this is the context below, which lives during the call and is used by
            // nobody else meanwhile.
            let context = unsafe { &mut *context.cast::<Context<'_>>() };
            if context.panicked.is_some() {
                return 1;
            }
            let given = catch_unwind(AssertUnwindSafe(|| {
                (context.out)(key.as_slice(), value.as_slice());
            }));
            match given {
                Ok(()) => 0,
                Err(payload) => {
                    context.panicked = Some(payload);
                    1
                }
            }
        }
        if self.ended.is_none() {
            let mut context = Context {
                out,
                panicked: None,
            };
            let sink = EntrySink {
                context: (&raw mut context).cast(),
                call: give,
                _life: PhantomData,
            };
            // SAFETY: the host lends context and function together, for the time of `replace`.
            let result = unsafe { (self.source.next)(self.source.context, sink) };
            if let Some(payload) = context.panicked {
                self.ended = Some(SOURCE_FAILED);
                std::panic::resume_unwind(payload);
            }
            if result == SOURCE_ENTRY {
                return Ok(true);
            }
            self.ended = Some(result);
        }
        match self.ended {
            Some(SOURCE_END) => Ok(false),
            _ => Err(Error::new(ErrorKind::Other, "the host's feed failed")),
        }
    }
}

struct Shim<B>(Contained<B>);

struct ViewShim<V>(Contained<V>);

impl<V: crate::View> AbiView for ViewShim<V> {
    fn mark(&self, mut data: ValueSink<'_>) -> RResult<u64, AbiError> {
        contain(|| {
            let mark = self.0.mark();
            data.give(&mark.data);
            Ok(mark.index)
        })
    }

    fn get(&self, key: RSlice<'_, u8>, mut out: ValueSink<'_>) -> RResult<bool, AbiError> {
        contain(|| self.0.get(key.as_slice(), &mut |value| out.give(value)))
    }

    fn scan(&self, range: AbiRange<'_>, mut out: EntrySink<'_>) -> RResult<(), AbiError> {
        contain(|| {
            self.0
                .scan(range.range(), &mut |key, value| out.give(key, value))
        })
    }
}

impl<B: Backend> AbiEngine for Shim<B> {
    fn mark(&self, mut data: ValueSink<'_>) -> RResult<u64, AbiError> {
        contain(|| {
            let mark = self.0.mark()?;
            data.give(&mark.data);
            Ok(mark.index)
        })
    }

    fn get(&self, key: RSlice<'_, u8>, mut out: ValueSink<'_>) -> RResult<bool, AbiError> {
        contain(|| self.0.get(key.as_slice(), &mut |value| out.give(value)))
    }

    fn scan(&self, range: AbiRange<'_>, mut out: EntrySink<'_>) -> RResult<(), AbiError> {
        contain(|| {
            self.0
                .scan(range.range(), &mut |key, value| out.give(key, value))
        })
    }

    fn write(&self, batch: RSlice<'_, AbiOp<'_>>, mark: AbiMark<'_>) -> RResult<(), AbiError> {
        contain(|| {
            let ops: Vec<Op<'_>> = batch
                .as_slice()
                .iter()
                .map(|op| match op.kind {
                    OP_PUT => Ok(Op::Put(op.a.as_slice(), op.b.as_slice())),
                    OP_DELETE => Ok(Op::Delete(op.a.as_slice())),
                    OP_DELETE_RANGE => Ok(Op::DeleteRange(op.a.as_slice(), op.b.as_slice())),
                    other => Err(Error::unsupported(&format!("change of kind {other}"))),
                })
                .collect::<crate::Result<_>>()?;
            self.0.write(&ops, &mark.mark())
        })
    }

    fn sync(&self, mut data: ValueSink<'_>) -> RResult<u64, AbiError> {
        contain(|| {
            let mark = self.0.sync()?;
            data.give(&mark.data);
            Ok(mark.index)
        })
    }

    fn view(&self) -> RResult<ViewBox, AbiError> {
        contain(|| {
            if !B::CAPS.contains(Caps::VIEW) {
                return Err(Error::unsupported("view"));
            }
            Ok(AbiView_TO::from_value(
                ViewShim(Contained::new(self.0.view()?)),
                TD_Opaque,
            ))
        })
    }

    fn replace(&self, feed: EntrySource<'_>, mark: AbiMark<'_>) -> RResult<(), AbiError> {
        contain(|| {
            let mut feed = HostFeed {
                source: feed,
                ended: None,
            };
            self.0.replace(&mut feed, &mark.mark())
        })
    }

    fn property(&self, name: RStr<'_>) -> RResult<ROption<RString>, AbiError> {
        contain(|| Ok(self.0.property(name.as_str()).map(RString::from).into()))
    }

    fn properties(&self) -> RResult<RVec<RString>, AbiError> {
        contain(|| Ok(self.0.properties().into_iter().map(RString::from).collect()))
    }

    fn compact(&self) -> RResult<(), AbiError> {
        contain(|| self.0.compact())
    }

    fn verify(&self) -> RResult<(), AbiError> {
        contain(|| self.0.verify())
    }

    fn close(&self) -> RResult<(), AbiError> {
        contain(|| self.0.close())
    }

    fn ext(
        &self,
        op: u32,
        request: RSlice<'_, u8>,
        _out: ValueSink<'_>,
    ) -> RResult<bool, AbiError> {
        contain(|| match op {
            EXT_RECONFIGURE if B::CAPS.contains(Caps::RECONFIGURE) => {
                let pairs = Options::unpack(request.as_slice())?;
                self.0.reconfigure(&Options::parse(B::OPTIONS, pairs)?)?;
                Ok(true)
            }
            EXT_RECONFIGURE => Err(Error::unsupported("reconfigure")),
            _ => Err(Error::unsupported(&format!("call {op}"))),
        })
    }
}

extern "C" fn describe<B: Backend>() -> Description {
    Description {
        name: B::NAME.into(),
        version: B::VERSION.into(),
        caps: B::CAPS.bits(),
        key_bytes_max: B::LIMITS.key_bytes_max,
        value_bytes_max: B::LIMITS.value_bytes_max,
        batch_bytes_max: B::LIMITS.batch_bytes_max,
        options: B::OPTIONS
            .iter()
            .map(|option| OptionDescription {
                name: option.name.into(),
                kind: option.kind.code(),
                default: option.default.into(),
                help: option.help.into(),
            })
            .collect(),
    }
}

extern "C" fn open<B: Backend>(
    dir: RStr<'_>,
    options: RVec<Tuple2<RString, RString>>,
    host: HostContext,
) -> RResult<EngineBox, AbiError> {
    contain(|| {
        crate::logging::forward_to(host.log, host.log_level);
        let pairs: Vec<(&str, &str)> = options
            .iter()
            .map(|Tuple2(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let options = Options::parse(B::OPTIONS, pairs)?;
        let cx = OpenContext {
            dir: Path::new(dir.as_str()),
            options: &options,
        };
        Ok(AbiEngine_TO::from_value(
            Shim(Contained::new(B::open(&cx)?)),
            TD_Opaque,
        ))
    })
}

/// The root module of a plugin with this engine; for [`export_backend!`](crate::export_backend).
pub fn plugin<B: Backend>() -> Plugin_Ref {
    use abi_stable::prefix_type::PrefixTypeTrait as _;
    Plugin {
        describe: describe::<B>,
        open: open::<B>,
    }
    .leak_into_prefix()
}
