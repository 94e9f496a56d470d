//! Interface 1 in C: the structures of `include/kvd_plugin.h`, which has their documentation.

#![allow(missing_docs, reason = "the header has it")]

use std::ffi::{c_char, c_int, c_void};

/// The name of the symbol.
pub const SYMBOL: &str = "kvd_backend_v1";

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    pub data: *const u8,
    pub len: usize,
}

pub type Status = u32;

pub const OK: Status = 0;

#[repr(C)]
#[derive(Debug)]
pub struct ErrorText {
    pub message: *mut c_char,
    pub capacity: usize,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pub index: u64,
    pub data: Bytes,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub kind: u32,
    pub a: Bytes,
    pub b: Bytes,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub from: Bytes,
    pub to: Bytes,
    pub has_to: u8,
    pub reverse: u8,
}

#[repr(C)]
#[derive(Debug)]
pub struct ValueOut {
    pub context: *mut c_void,
    pub give: unsafe extern "C" fn(*mut c_void, Bytes),
}

#[repr(C)]
#[derive(Debug)]
pub struct EntryOut {
    pub context: *mut c_void,
    pub give: unsafe extern "C" fn(*mut c_void, Bytes, Bytes) -> c_int,
}

#[repr(C)]
#[derive(Debug)]
pub struct MarkOut {
    pub context: *mut c_void,
    pub give: unsafe extern "C" fn(*mut c_void, Mark),
}

#[repr(C)]
#[derive(Debug)]
pub struct Feed {
    pub context: *mut c_void,
    pub next: unsafe extern "C" fn(*mut c_void, *mut Bytes, *mut Bytes) -> c_int,
}

#[repr(C)]
#[derive(Debug)]
pub struct OptionSpec {
    pub name: *const c_char,
    pub kind: u32,
    pub default: *const c_char,
    pub help: *const c_char,
}

#[repr(C)]
#[derive(Debug)]
pub struct OptionValue {
    pub name: *const c_char,
    pub text: *const c_char,
    pub number: u64,
}

#[repr(C)]
#[derive(Debug)]
pub struct Host {
    pub size: usize,
    pub context: *mut c_void,
    pub log: unsafe extern "C" fn(*mut c_void, u32, *const c_char),
    pub log_level: u32,
}

#[repr(C)]
#[derive(Debug)]
pub struct Open {
    pub size: usize,
    pub dir: *const c_char,
    pub options: *const OptionValue,
    pub options_len: usize,
    pub host: *const Host,
}

/// A function of the table; none where its author left it out.
pub type Function<F> = Option<F>;

/// The table. Fields may be appended; `size` says how many there are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    pub size: usize,
    pub caps: u64,
    pub key_bytes_max: u64,
    pub value_bytes_max: u64,
    pub batch_bytes_max: u64,
    pub options: *const OptionSpec,
    pub options_len: usize,
    pub open: Function<OpenEngine>,
    pub free: Function<Free>,
    pub mark: Function<GiveMark>,
    pub get: Function<Get>,
    pub scan: Function<Scan>,
    pub write: Function<Write>,
    pub sync: Function<GiveMark>,
    pub replace: Function<Replace>,
    pub view: Function<TakeView>,
    pub view_get: Function<Get>,
    pub view_scan: Function<Scan>,
    pub view_free: Function<Free>,
    pub properties: Function<Properties>,
    pub property: Function<Property>,
    pub compact: Function<Plain>,
    pub verify: Function<Plain>,
    pub close: Function<Plain>,
    /// Since 1.1.
    pub reconfigure: Function<Reconfigure>,
}

pub type OpenEngine = unsafe extern "C" fn(*const Open, *mut *mut c_void, *mut ErrorText) -> Status;
pub type Free = unsafe extern "C" fn(*mut c_void);
pub type Plain = unsafe extern "C" fn(*mut c_void, *mut ErrorText) -> Status;
pub type GiveMark = unsafe extern "C" fn(*mut c_void, *const MarkOut, *mut ErrorText) -> Status;
pub type Get = unsafe extern "C" fn(*mut c_void, Bytes, *const ValueOut, *mut ErrorText) -> Status;
pub type Scan =
    unsafe extern "C" fn(*mut c_void, *const Range, *const EntryOut, *mut ErrorText) -> Status;
pub type Write =
    unsafe extern "C" fn(*mut c_void, *const Op, usize, *const Mark, *mut ErrorText) -> Status;
pub type Replace =
    unsafe extern "C" fn(*mut c_void, *const Feed, *const Mark, *mut ErrorText) -> Status;
pub type TakeView =
    unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *const MarkOut, *mut ErrorText) -> Status;
pub type Properties = unsafe extern "C" fn(*mut c_void, *const ValueOut, *mut ErrorText) -> Status;
pub type Property =
    unsafe extern "C" fn(*mut c_void, *const c_char, *const ValueOut, *mut ErrorText) -> Status;

pub type Reconfigure =
    unsafe extern "C" fn(*mut c_void, *const OptionValue, usize, *mut ErrorText) -> Status;

/// The bytes of the table as interface 1 was first released: up to and with `close`.
pub const SIZE_MIN: usize = std::mem::offset_of!(Backend, reconfigure);

impl Bytes {
    /// Lends bytes.
    pub fn lend(bytes: &[u8]) -> Self {
        Bytes {
            data: bytes.as_ptr(),
            len: bytes.len(),
        }
    }
}
