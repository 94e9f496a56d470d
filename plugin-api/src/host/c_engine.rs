//! An engine in C, as the interface that engines in Rust have: the host knows only that one.
//!
//! What a safe language rules out is looked at here: bytes of an absurd length or without an
//! address, marks that do not come, engines that are not there.

#![expect(unsafe_code, reason = "calling C")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString, RVec};

use super::c_table::{Table, Views};
use crate::abi::c;
use crate::abi::v1::{
    self, AbiEngine, AbiEngine_TO, AbiError, AbiMark, AbiOp, AbiRange, AbiView, AbiView_TO,
    EngineBox, EntrySink, EntrySource, ValueSink, ViewBox,
};
use crate::{Caps, Error, ErrorKind, Flow, Mark, OptionKind, Options, Result};

/// Longer than any key or value that kvd writes, and shorter than most numbers that are not lengths.
const BYTES_MAX: usize = 1 << 30;

/// The longest message of an error, with its NUL. Each call fills as much with zeros, and a get of
/// some nanoseconds would notice if it were much more.
const MESSAGE_BYTES_MAX: usize = 256;

/// The longest bytes of a mark.
const MARK_BYTES_MAX: usize = 64 << 10;

/// Opens the engine of a table.
pub(super) fn open(
    table: &'static Table,
    name: &str,
    dir: &Path,
    given: &[(String, String)],
    log_level: u8,
) -> Result<EngineBox> {
    let pairs = given
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let options = Options::parse(&table.options, pairs)?;
    let dir = dir
        .to_str()
        .ok_or_else(|| Error::new(ErrorKind::Other, "the directory's name is not UTF-8"))?;
    let dir = c_text(dir)?;
    let values = Values::of(table, &options)?;
    let name = c_text(name)?;
    let host = Box::new(c::Host {
        size: size_of::<c::Host>(),
        context: name.as_ptr().cast_mut().cast(),
        log,
        log_level: u32::from(log_level),
    });
    let cx = c::Open {
        size: size_of::<c::Open>(),
        dir: dir.as_ptr(),
        options: values.list.as_ptr(),
        options_len: values.list.len(),
        host: &raw const *host,
    };
    let mut engine = ptr::null_mut();
    call(|error| {
        // SAFETY: the table was checked; all that is lent lives until the call returns, and the
        // host until the engine is freed.
        unsafe { (table.functions.open)(&raw const cx, &raw mut engine, error) }
    })?;
    if engine.is_null() {
        return Err(broken("open returned without an engine"));
    }
    let opened = Arc::new(Opened {
        table,
        engine,
        _host: host,
        _name: name,
    });
    Ok(AbiEngine_TO::from_value(CEngine(opened), TD_Opaque))
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(ErrorKind::Other, "a text holds a NUL"))
}

/// Options as C reads them, for as long as this lives.
struct Values {
    list: Vec<c::OptionValue>,
    _texts: Vec<(CString, CString)>,
}

impl Values {
    fn of(table: &Table, options: &Options) -> Result<Self> {
        let mut values = Values {
            list: Vec::new(),
            _texts: Vec::new(),
        };
        for spec in &table.options {
            let number = match spec.kind {
                OptionKind::Size => options.size(spec.name),
                OptionKind::Duration => options.duration(spec.name).as_millis() as u64,
                OptionKind::Bool => u64::from(options.bool(spec.name)),
                OptionKind::Int => options.int(spec.name),
                OptionKind::Enum | OptionKind::String => 0,
            };
            let (name, text) = (c_text(spec.name)?, c_text(options.str(spec.name))?);
            // Where a text's bytes are does not change when the text moves.
            values.list.push(c::OptionValue {
                name: name.as_ptr(),
                text: text.as_ptr(),
                number,
            });
            values._texts.push((name, text));
        }
        Ok(values)
    }
}

extern "C" fn log(context: *mut c_void, level: u32, message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: the context is the engine's name, as `open` made it; the message ends with a NUL.
    let (name, message) = unsafe {
        (
            CStr::from_ptr(context.cast_const().cast()).to_string_lossy(),
            CStr::from_ptr(message).to_string_lossy(),
        )
    };
    let level = u8::try_from(level).unwrap_or(u8::MAX);
    super::load::forward(level, RStr::from_str(&name), RStr::from_str(&message));
}

/// An opened engine; it is freed when neither it nor a view of it is held any more.
struct Opened {
    table: &'static Table,
    engine: *mut c_void,
    /// What the engine was lent until it is freed.
    _host: Box<c::Host>,
    _name: CString,
}

// SAFETY: the interface says that reads come from many threads, and everything from any.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: nobody uses the engine any more.
        unsafe { (self.table.functions.free)(self.engine) }
    }
}

struct CEngine(Arc<Opened>);

struct CView {
    view: *mut c_void,
    views: Views,
    mark: Mark,
    /// Freed after its views.
    _engine: Arc<Opened>,
}

// SAFETY: the interface says that reads come from many threads.
unsafe impl Send for CView {}
// SAFETY: as above.
unsafe impl Sync for CView {}

impl Drop for CView {
    fn drop(&mut self) {
        // SAFETY: nobody uses the view any more.
        unsafe { (self.views.free)(self.view) }
    }
}

/// What no engine may do; the host enters it no more.
fn broken(what: &str) -> Error {
    Error::new(
        ErrorKind::Corruption,
        format!("the engine broke its contract: {what}"),
    )
}

/// Makes a call with room for its message.
#[inline]
fn call(call: impl FnOnce(*mut c::ErrorText) -> c::Status) -> Result<()> {
    let mut message = [0_u8; MESSAGE_BYTES_MAX];
    let mut error = c::ErrorText {
        message: message.as_mut_ptr().cast(),
        capacity: message.len(),
    };
    let status = call(&raw mut error);
    if status == c::OK {
        return Ok(());
    }
    Err(failed(status, &message))
}

/// The error behind a status that is not zero.
#[cold]
fn failed(status: c::Status, message: &[u8]) -> Error {
    // Without an end of its own it ends where the room does.
    let end = message.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&message[..end.unwrap_or(message.len())]);
    let kind = ErrorKind::from_code(status);
    if text.is_empty() {
        return Error::new(kind, format!("error {status}, without a message"));
    }
    Error::new(kind, text)
}

fn result<T>(result: Result<T>) -> RResult<T, AbiError> {
    result.map_err(AbiError::from).into()
}

/// Bytes that an engine hands out; none where they cannot be any.
///
/// # Safety
///
/// Where they can be, they live and do not change during the callback.
#[inline]
unsafe fn bytes<'a>(bytes: c::Bytes) -> Option<&'a [u8]> {
    match bytes.len {
        0 => Some(&[]),
        len if len > BYTES_MAX || bytes.data.is_null() => None,
        // SAFETY: the engine's word, as far as it can be looked at.
        len => Some(unsafe { std::slice::from_raw_parts(bytes.data, len) }),
    }
}

const ABSURD: &str = "it handed out bytes without an address, or more than a gigabyte of them";

struct Value<'a> {
    sink: ValueSink<'a>,
    is_given: bool,
    is_absurd: bool,
}

unsafe extern "C" fn give_value(context: *mut c_void, value: c::Bytes) {
    // SAFETY: `read_value` lends its context for the time of the call; bytes are the engine's word.
    let (context, value) = unsafe { (&mut *context.cast::<Value<'_>>(), bytes(value)) };
    match value {
        Some(value) => {
            context.is_given = true;
            context.sink.give(value);
        }
        None => context.is_absurd = true,
    }
}

/// Lends a callback for a value, and returns whether it was called.
#[inline]
fn read_value(
    sink: ValueSink<'_>,
    read: impl FnOnce(*const c::ValueOut, *mut c::ErrorText) -> c::Status,
) -> Result<bool> {
    let mut context = Value {
        sink,
        is_given: false,
        is_absurd: false,
    };
    let out = c::ValueOut {
        context: (&raw mut context).cast(),
        give: give_value,
    };
    call(|error| read(&raw const out, error))?;
    if context.is_absurd {
        return Err(broken(ABSURD));
    }
    Ok(context.is_given)
}

struct Entries<'a> {
    sink: EntrySink<'a>,
    is_absurd: bool,
}

unsafe extern "C" fn give_entry(context: *mut c_void, key: c::Bytes, value: c::Bytes) -> c_int {
    // SAFETY: `read_entries` lends its context for the time of the call; bytes are the engine's
    // word.
    let (context, key, value) = unsafe {
        (
            &mut *context.cast::<Entries<'_>>(),
            bytes(key),
            bytes(value),
        )
    };
    match (key, value) {
        (Some(key), Some(value)) if !context.is_absurd => {
            c_int::from(context.sink.give(key, value) == Flow::Stop)
        }
        _ => {
            context.is_absurd = true;
            1
        }
    }
}

fn read_entries(
    range: AbiRange<'_>,
    sink: EntrySink<'_>,
    read: impl FnOnce(*const c::Range, *const c::EntryOut, *mut c::ErrorText) -> c::Status,
) -> Result<()> {
    let range = range.range();
    let range = c::Range {
        from: c::Bytes::lend(range.from),
        to: c::Bytes::lend(range.to.unwrap_or_default()),
        has_to: u8::from(range.to.is_some()),
        reverse: u8::from(range.reverse),
    };
    let mut context = Entries {
        sink,
        is_absurd: false,
    };
    let out = c::EntryOut {
        context: (&raw mut context).cast(),
        give: give_entry,
    };
    call(|error| read(&raw const range, &raw const out, error))?;
    if context.is_absurd {
        return Err(broken(ABSURD));
    }
    Ok(())
}

#[derive(Default)]
struct Marks {
    mark: Option<Mark>,
    given: usize,
}

unsafe extern "C" fn give_mark(context: *mut c_void, mark: c::Mark) {
    // SAFETY: `read_mark` lends its context for the time of the call; bytes are the engine's word.
    let (context, data) = unsafe { (&mut *context.cast::<Marks>(), bytes(mark.data)) };
    context.given += 1;
    context.mark = data
        .filter(|data| data.len() <= MARK_BYTES_MAX)
        .map(|data| Mark {
            index: mark.index,
            data: data.to_vec(),
        });
}

/// Lends a callback for a mark.
fn read_mark(read: impl FnOnce(*const c::MarkOut, *mut c::ErrorText) -> c::Status) -> Result<Mark> {
    let mut context = Marks::default();
    let out = c::MarkOut {
        context: (&raw mut context).cast(),
        give: give_mark,
    };
    call(|error| read(&raw const out, error))?;
    match (context.given, context.mark) {
        (1, Some(mark)) => Ok(mark),
        (1, None) => Err(broken("a mark of an absurd length")),
        (0, _) => Err(broken("a mark never came")),
        _ => Err(broken("a mark came more than once")),
    }
}

fn give_on(mark: Result<Mark>, mut data: ValueSink<'_>) -> RResult<u64, AbiError> {
    result(mark.map(|mark| {
        data.give(&mark.data);
        mark.index
    }))
}

#[derive(Default)]
struct Texts(Vec<String>);

unsafe extern "C" fn give_text(context: *mut c_void, text: c::Bytes) {
    // SAFETY: `read_texts` lends its context for the time of the call; bytes are the engine's word.
    let (context, text) = unsafe { (&mut *context.cast::<Texts>(), bytes(text)) };
    if let Some(text) = text {
        context.0.push(String::from_utf8_lossy(text).into_owned());
    }
}

/// Lends a callback for texts.
fn read_texts(
    read: impl FnOnce(*const c::ValueOut, *mut c::ErrorText) -> c::Status,
) -> Result<Vec<String>> {
    let mut context = Texts::default();
    let out = c::ValueOut {
        context: (&raw mut context).cast(),
        give: give_text,
    };
    call(|error| read(&raw const out, error))?;
    Ok(context.0)
}

/// The host's feed, whose entries live until the next one is asked for.
struct Fed<'a> {
    source: EntrySource<'a>,
    key: Vec<u8>,
    value: Vec<u8>,
}

unsafe extern "C" fn feed_next(
    context: *mut c_void,
    key: *mut c::Bytes,
    value: *mut c::Bytes,
) -> c_int {
    unsafe extern "C" fn keep(context: *mut (), key: RSlice<'_, u8>, value: RSlice<'_, u8>) -> u8 {
        // SAFETY: the two buffers of the call below; nobody else uses them meanwhile.
        let kept = unsafe { &mut *context.cast::<(Vec<u8>, Vec<u8>)>() };
        kept.0.extend_from_slice(key.as_slice());
        kept.1.extend_from_slice(value.as_slice());
        0
    }
    // SAFETY: `replace` lends its context for the time of the call; the engine says where key and
    // value go.
    unsafe {
        let context = &mut *context.cast::<Fed<'_>>();
        let mut kept = (
            std::mem::take(&mut context.key),
            std::mem::take(&mut context.value),
        );
        kept.0.clear();
        kept.1.clear();
        let sink = EntrySink {
            context: (&raw mut kept).cast(),
            call: keep,
            _life: std::marker::PhantomData,
        };
        let came = (context.source.next)(context.source.context, sink);
        (context.key, context.value) = kept;
        if came == v1::SOURCE_ENTRY {
            key.write(c::Bytes::lend(&context.key));
            value.write(c::Bytes::lend(&context.value));
        }
        c_int::from(came)
    }
}

impl CEngine {
    fn functions(&self) -> &'static super::c_table::Functions {
        &self.0.table.functions
    }

    /// A function that an engine may leave out.
    fn optional(&self, function: Option<c::Plain>) -> Option<Result<()>> {
        // SAFETY: the engine is open.
        function.map(|function| call(|error| unsafe { function(self.0.engine, error) }))
    }
}

impl CEngine {
    fn reconfigure(&self, request: &[u8]) -> Result<()> {
        let table = self.0.table;
        let is_claimed = table.describe().caps.contains(Caps::RECONFIGURE);
        let Some(reconfigure) = table.functions.reconfigure.filter(|_| is_claimed) else {
            return Err(Error::unsupported("reconfigure"));
        };
        let options = Options::parse(&table.options, Options::unpack(request)?)?;
        let values = Values::of(table, &options)?;
        call(|error| {
            // SAFETY: as below.
            unsafe {
                reconfigure(
                    self.0.engine,
                    values.list.as_ptr(),
                    values.list.len(),
                    error,
                )
            }
        })
    }
}

impl AbiEngine for CEngine {
    fn mark(&self, data: ValueSink<'_>) -> RResult<u64, AbiError> {
        let mark = read_mark(|out, error| {
            // SAFETY: the engine is open; callback and room are lent for the call. So below.
            unsafe { (self.functions().mark)(self.0.engine, out, error) }
        });
        give_on(mark, data)
    }

    fn get(&self, key: RSlice<'_, u8>, out: ValueSink<'_>) -> RResult<bool, AbiError> {
        let key = c::Bytes::lend(key.as_slice());
        result(read_value(out, |out, error| {
            // SAFETY: as above.
            unsafe { (self.functions().get)(self.0.engine, key, out, error) }
        }))
    }

    fn scan(&self, range: AbiRange<'_>, out: EntrySink<'_>) -> RResult<(), AbiError> {
        result(read_entries(range, out, |range, out, error| {
            // SAFETY: as above.
            unsafe { (self.functions().scan)(self.0.engine, range, out, error) }
        }))
    }

    fn write(&self, batch: RSlice<'_, AbiOp<'_>>, mark: AbiMark<'_>) -> RResult<(), AbiError> {
        let ops: Vec<c::Op> = batch
            .as_slice()
            .iter()
            .map(|op| c::Op {
                kind: u32::from(op.kind),
                a: c::Bytes::lend(op.a.as_slice()),
                b: c::Bytes::lend(op.b.as_slice()),
            })
            .collect();
        let mark = lend(&mark);
        result(call(|error| {
            // SAFETY: as above.
            unsafe {
                (self.functions().write)(
                    self.0.engine,
                    ops.as_ptr(),
                    ops.len(),
                    &raw const mark,
                    error,
                )
            }
        }))
    }

    fn sync(&self, data: ValueSink<'_>) -> RResult<u64, AbiError> {
        let mark = read_mark(|out, error| {
            // SAFETY: as above.
            unsafe { (self.functions().sync)(self.0.engine, out, error) }
        });
        give_on(mark, data)
    }

    fn view(&self) -> RResult<ViewBox, AbiError> {
        let Some(views) = self.functions().views else {
            return result(Err(Error::unsupported("view")));
        };
        let mut view = ptr::null_mut();
        let mark = read_mark(|out, error| {
            // SAFETY: as above.
            unsafe { (views.view)(self.0.engine, &raw mut view, out, error) }
        });
        if view.is_null() {
            return result(mark.and_then(|_| Err(broken("view returned without a view"))));
        }
        // A view that is there is freed, whatever else is wrong.
        let mut view = CView {
            view,
            views,
            mark: Mark::default(),
            _engine: Arc::clone(&self.0),
        };
        result(mark.map(|mark| {
            view.mark = mark;
            AbiView_TO::from_value(view, TD_Opaque)
        }))
    }

    fn replace(&self, feed: EntrySource<'_>, mark: AbiMark<'_>) -> RResult<(), AbiError> {
        let mut context = Fed {
            source: feed,
            key: Vec::new(),
            value: Vec::new(),
        };
        let feed = c::Feed {
            context: (&raw mut context).cast(),
            next: feed_next,
        };
        let mark = lend(&mark);
        result(call(|error| {
            // SAFETY: as above.
            unsafe {
                (self.functions().replace)(self.0.engine, &raw const feed, &raw const mark, error)
            }
        }))
    }

    fn property(&self, name: RStr<'_>) -> RResult<ROption<RString>, AbiError> {
        let (Some(property), Ok(name)) = (self.functions().property, CString::new(name.as_str()))
        else {
            return RResult::ROk(ROption::RNone);
        };
        let texts = read_texts(|out, error| {
            // SAFETY: as above.
            unsafe { property(self.0.engine, name.as_ptr(), out, error) }
        });
        result(texts.map(|texts| texts.into_iter().next().map(RString::from).into()))
    }

    fn properties(&self) -> RResult<RVec<RString>, AbiError> {
        let Some(properties) = self.functions().properties else {
            return RResult::ROk(RVec::new());
        };
        let names = read_texts(|out, error| {
            // SAFETY: as above.
            unsafe { properties(self.0.engine, out, error) }
        });
        result(names.map(|names| names.into_iter().map(RString::from).collect()))
    }

    fn compact(&self) -> RResult<(), AbiError> {
        let compacted = self.optional(self.functions().compact);
        result(compacted.unwrap_or_else(|| Err(Error::unsupported("compact"))))
    }

    fn verify(&self) -> RResult<(), AbiError> {
        result(self.optional(self.functions().verify).unwrap_or(Ok(())))
    }

    fn close(&self) -> RResult<(), AbiError> {
        match self.optional(self.functions().close) {
            Some(closed) => result(closed),
            None => result(
                read_mark(|out, error| {
                    // SAFETY: as above.
                    unsafe { (self.functions().sync)(self.0.engine, out, error) }
                })
                .map(drop),
            ),
        }
    }

    fn ext(
        &self,
        op: u32,
        request: RSlice<'_, u8>,
        _out: ValueSink<'_>,
    ) -> RResult<bool, AbiError> {
        let done = match op {
            v1::EXT_RECONFIGURE => self.reconfigure(request.as_slice()),
            _ => Err(Error::unsupported(&format!("call {op}"))),
        };
        result(done.map(|()| true))
    }
}

impl AbiView for CView {
    fn mark(&self, mut data: ValueSink<'_>) -> RResult<u64, AbiError> {
        data.give(&self.mark.data);
        RResult::ROk(self.mark.index)
    }

    fn get(&self, key: RSlice<'_, u8>, out: ValueSink<'_>) -> RResult<bool, AbiError> {
        let key = c::Bytes::lend(key.as_slice());
        result(read_value(out, |out, error| {
            // SAFETY: the view is there; callback and room are lent for the call.
            unsafe { (self.views.get)(self.view, key, out, error) }
        }))
    }

    fn scan(&self, range: AbiRange<'_>, out: EntrySink<'_>) -> RResult<(), AbiError> {
        result(read_entries(range, out, |range, out, error| {
            // SAFETY: as above.
            unsafe { (self.views.scan)(self.view, range, out, error) }
        }))
    }
}

fn lend(mark: &AbiMark<'_>) -> c::Mark {
    c::Mark {
        index: mark.index,
        data: c::Bytes::lend(mark.data.as_slice()),
    }
}
