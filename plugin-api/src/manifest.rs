//! The manifest: plain C data that a host reads before it calls anything in a library.

use std::ffi::c_char;

/// The first bytes of every manifest.
pub const MAGIC: [u8; 8] = *b"KVDPLUG\0";

/// The interface that this version of the crate speaks.
pub const API_VERSION: u32 = 1;

/// The name of the symbol.
pub const SYMBOL: &str = "KVD_PLUGIN_MANIFEST";

/// The library was built without optimisation.
pub const FLAG_DEBUG: u64 = 1;

/// The interface is a table in C, not one of abi_stable's modules.
pub const FLAG_C_TABLE: u64 = 1 << 1;

/// What a library says of itself. Fields may be appended; `size` says how many there are.
///
/// All texts are UTF-8 and end with a NUL.
#[repr(C)]
#[derive(Debug)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of this structure.
    pub size: u32,
    /// The interface that it was built for.
    pub api_version: u32,
    /// A set of `FLAG_` bits; unknown ones are ignored.
    pub flags: u64,
    /// The engine's name.
    pub name: *const c_char,
    /// The engine's version.
    pub version: *const c_char,
    /// The version of `kvd-plugin-api`.
    pub plugin_api: *const c_char,
    /// The compiler.
    pub rustc: *const c_char,
    /// The target.
    pub target: *const c_char,
    /// A sentence on the engine; since 1.1.
    pub about: *const c_char,
}

/// The bytes of the structure as interface 1 was first released: up to and with `target`.
pub const SIZE_MIN: usize = std::mem::offset_of!(Manifest, about);

#[expect(
    unsafe_code,
    reason = "the texts are constants of the library and never change"
)]
// SAFETY: the pointers lead to immutable static texts.
unsafe impl Sync for Manifest {}

/// The flags of this build.
pub const fn flags() -> u64 {
    if cfg!(debug_assertions) {
        FLAG_DEBUG
    } else {
        0
    }
}

/// The version of this crate.
pub const PLUGIN_API: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The compiler of this crate.
pub const RUSTC: &str = concat!(env!("KVD_RUSTC"), "\0");

/// The target of this crate.
pub const TARGET: &str = concat!(env!("KVD_TARGET"), "\0");

/// A text with a NUL at its end, made at compile time.
///
/// # Panics
///
/// The text is longer than 255 bytes, or holds a NUL: compilation fails then.
pub const fn text(text: &str) -> [u8; 256] {
    let bytes = text.as_bytes();
    assert!(
        bytes.len() < 256,
        "a manifest's text is at most 255 bytes long"
    );
    let mut out = [0; 256];
    let mut at = 0;
    while at < bytes.len() {
        assert!(bytes[at] != 0, "a manifest's text holds no NUL");
        out[at] = bytes[at];
        at += 1;
    }
    out
}
