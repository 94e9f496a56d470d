//! A plugin in C: its table, checked before anything in it is called.

#![expect(unsafe_code, reason = "reading C data of a library")]

use std::ffi::{CStr, c_char};

use super::load::{Description, LoadError, Manifest, OptionInfo};
use crate::abi::c;
use crate::{Caps, Limits, OptionKind, OptionSpec};

/// No table is larger: what says so is something else.
const SIZE_MAX: usize = 64 << 10;

/// No engine has more options: a count that says so was never set.
const OPTIONS_MAX: usize = 4096;

/// A checked table, and what it says in words. It is never unloaded, as its library is not.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) functions: Functions,
    pub(super) options: Vec<OptionSpec>,
    description: Description,
}

/// The functions that an engine must have, and those that it may have.
#[derive(Debug)]
pub(super) struct Functions {
    pub(super) open: c::OpenEngine,
    pub(super) free: c::Free,
    pub(super) mark: c::GiveMark,
    pub(super) get: c::Get,
    pub(super) scan: c::Scan,
    pub(super) write: c::Write,
    pub(super) sync: c::GiveMark,
    pub(super) replace: c::Replace,
    pub(super) views: Option<Views>,
    pub(super) properties: Option<c::Properties>,
    pub(super) property: Option<c::Property>,
    pub(super) compact: Option<c::Plain>,
    pub(super) verify: Option<c::Plain>,
    pub(super) close: Option<c::Plain>,
    pub(super) reconfigure: Option<c::Reconfigure>,
}

/// The functions of an engine with views.
#[derive(Debug, Clone, Copy)]
pub(super) struct Views {
    pub(super) view: c::TakeView,
    pub(super) get: c::Get,
    pub(super) scan: c::Scan,
    pub(super) free: c::Free,
}

impl Table {
    /// Reads and checks the table of a library whose manifest says that it has one.
    pub(super) fn of(
        library: &'static libloading::Library,
        manifest: &Manifest,
    ) -> Result<&'static Table, LoadError> {
        // SAFETY: the symbol is data of the library, which is never unloaded.
        let at = unsafe {
            let symbol = library
                .get::<*const c::Backend>(c::SYMBOL.as_bytes())
                .map_err(|_| {
                    LoadError::new("a plugin in C without its table (no kvd_backend_v1 symbol)")
                })?;
            // The symbol's address is the table itself.
            *symbol.into_raw()
        };
        // SAFETY: the address is the symbol's.
        let table = unsafe { copy(at) }?;
        // SAFETY: the table is complete, and its texts belong to the library.
        let table = unsafe { Table::read(table, manifest) }?;
        Ok(Box::leak(Box::new(table)))
    }

    pub(super) fn describe(&self) -> Description {
        self.description.clone()
    }

    /// # Safety
    ///
    /// The table's texts live for ever.
    unsafe fn read(table: c::Backend, manifest: &Manifest) -> Result<Table, LoadError> {
        if manifest.name.is_empty() {
            return Err(LoadError::new("its manifest has no name for the engine"));
        }
        let caps = Caps::from_bits(table.caps);
        let functions = Functions {
            open: there(table.open, "open")?,
            free: there(table.free, "free")?,
            mark: there(table.mark, "mark")?,
            get: there(table.get, "get")?,
            scan: there(table.scan, "scan")?,
            write: there(table.write, "write")?,
            sync: there(table.sync, "sync")?,
            replace: there(table.replace, "replace")?,
            views: if caps.contains(Caps::VIEW) {
                Some(Views {
                    view: claimed(table.view, "view", "view")?,
                    get: claimed(table.view_get, "view_get", "view")?,
                    scan: claimed(table.view_scan, "view_scan", "view")?,
                    free: claimed(table.view_free, "view_free", "view")?,
                })
            } else {
                None
            },
            properties: table.properties,
            property: table.property,
            compact: table.compact,
            verify: table.verify,
            close: table.close,
            reconfigure: table.reconfigure,
        };
        if caps.contains(Caps::COMPACT) {
            claimed(table.compact, "compact", "compact")?;
        }
        if caps.contains(Caps::VERIFY) {
            claimed(table.verify, "verify", "verify")?;
        }
        if caps.contains(Caps::RECONFIGURE) {
            claimed(table.reconfigure, "reconfigure", "reconfigure")?;
        }
        // SAFETY: the caller's word.
        let options = unsafe { options(&table) }?;
        let limit = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let description = Description {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            caps,
            limits: Limits {
                key_bytes_max: limit(table.key_bytes_max),
                value_bytes_max: limit(table.value_bytes_max),
                batch_bytes_max: limit(table.batch_bytes_max),
            },
            options: options
                .iter()
                .map(|option| OptionInfo {
                    name: option.name.to_owned(),
                    kind: option.kind,
                    default: option.default.to_owned(),
                    help: option.help.to_owned(),
                })
                .collect(),
        };
        Ok(Table {
            functions,
            options,
            description,
        })
    }
}

/// Copies as much of a table as both sides know; what the library does not have stays empty.
///
/// # Safety
///
/// `at` is the address of the symbol.
unsafe fn copy(at: *const c::Backend) -> Result<c::Backend, LoadError> {
    // SAFETY: every table begins with its size, and `size` bytes belong to it.
    unsafe {
        let size = (&raw const (*at).size).read_unaligned();
        if size < c::SIZE_MIN {
            return Err(LoadError::new(format!(
                "its table kvd_backend_v1 has {size} bytes, those of interface 1 have {} and more",
                c::SIZE_MIN
            )));
        }
        if size > SIZE_MAX {
            return Err(LoadError::new(format!(
                "its table kvd_backend_v1 does not begin with its size, but with {size}"
            )));
        }
        // Numbers, and pointers that may be null: all zero is a value of it.
        let mut table: c::Backend = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(
            at.cast::<u8>(),
            (&raw mut table).cast::<u8>(),
            size.min(size_of::<c::Backend>()),
        );
        Ok(table)
    }
}

fn there<F>(function: Option<F>, name: &str) -> Result<F, LoadError> {
    function
        .ok_or_else(|| LoadError::new(format!("its table kvd_backend_v1 has no function '{name}'")))
}

fn claimed<F>(function: Option<F>, name: &str, cap: &str) -> Result<F, LoadError> {
    function.ok_or_else(|| {
        LoadError::new(format!(
            "it claims {cap}, but its table kvd_backend_v1 has no function '{name}'"
        ))
    })
}

/// # Safety
///
/// The table's texts live for ever.
unsafe fn options(table: &c::Backend) -> Result<Vec<OptionSpec>, LoadError> {
    if table.options_len > OPTIONS_MAX || (table.options_len > 0 && table.options.is_null()) {
        return Err(LoadError::new(format!(
            "its table kvd_backend_v1 has {} options, but not where they are",
            table.options_len
        )));
    }
    (0..table.options_len)
        .map(|at| {
            // SAFETY: the library says that there are as many.
            let option = unsafe { &*table.options.add(at) };
            let text = |text: *const c_char, what: &str| {
                if text.is_null() {
                    return Err(LoadError::new(format!(
                        "option {} of its table kvd_backend_v1 has no {what}",
                        at + 1
                    )));
                }
                // SAFETY: a text that ends with a NUL, by the caller's word.
                let text = unsafe { CStr::from_ptr(text) };
                // Like the library itself, which is never unloaded.
                Ok(&*Box::leak(
                    text.to_string_lossy().into_owned().into_boxed_str(),
                ))
            };
            Ok(OptionSpec {
                name: text(option.name, "name")?,
                kind: OptionKind::from_code(option.kind),
                default: text(option.default, "default")?,
                help: text(option.help, "help")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::abi::{c, v1};
    use crate::{Caps, ErrorKind, OptionKind, manifest};

    const HEADER: &str = include_str!("../../include/kvd_plugin.h");

    /// The number that the header has for a name.
    fn number(name: &str) -> u64 {
        let start = format!("#define {name} ");
        let line = HEADER.lines().find_map(|line| line.strip_prefix(&start));
        let value = line.unwrap_or_else(|| panic!("no {name}"));
        let value = value.split("/*").next().unwrap_or_default().trim();
        if let Some(shifted) = value.strip_prefix("(UINT64_C(1) << ") {
            return 1 << shifted.trim_end_matches(')').parse::<u32>().unwrap();
        }
        value.trim_end_matches('u').parse().unwrap()
    }

    #[test]
    fn the_header_has_the_numbers_of_the_interface() {
        for (name, expected) in [
            ("KVD_API_VERSION", manifest::API_VERSION.into()),
            ("KVD_MANIFEST_DEBUG", manifest::FLAG_DEBUG),
            ("KVD_MANIFEST_C_TABLE", manifest::FLAG_C_TABLE),
            ("KVD_OK", c::OK.into()),
            ("KVD_IO", ErrorKind::Io.code().into()),
            ("KVD_NO_SPACE", ErrorKind::NoSpace.code().into()),
            ("KVD_CORRUPTION", ErrorKind::Corruption.code().into()),
            ("KVD_LOCKED", ErrorKind::Locked.code().into()),
            ("KVD_INCOMPATIBLE", ErrorKind::Incompatible.code().into()),
            ("KVD_INVALID_OPTION", ErrorKind::InvalidOption.code().into()),
            ("KVD_TOO_LARGE", ErrorKind::TooLarge.code().into()),
            ("KVD_UNSUPPORTED", ErrorKind::Unsupported.code().into()),
            ("KVD_CLOSED", ErrorKind::Closed.code().into()),
            ("KVD_OTHER", ErrorKind::Other.code().into()),
            ("KVD_PUT", v1::OP_PUT.into()),
            ("KVD_DELETE", v1::OP_DELETE.into()),
            ("KVD_DELETE_RANGE", v1::OP_DELETE_RANGE.into()),
            ("KVD_FEED_END", v1::SOURCE_END.into()),
            ("KVD_FEED_ENTRY", v1::SOURCE_ENTRY.into()),
            ("KVD_FEED_FAILED", v1::SOURCE_FAILED.into()),
            ("KVD_OPTION_SIZE", OptionKind::Size.code().into()),
            ("KVD_OPTION_DURATION", OptionKind::Duration.code().into()),
            ("KVD_OPTION_BOOL", OptionKind::Bool.code().into()),
            ("KVD_OPTION_INT", OptionKind::Int.code().into()),
            ("KVD_OPTION_ENUM", OptionKind::Enum.code().into()),
            ("KVD_OPTION_STRING", OptionKind::String.code().into()),
            ("KVD_CAP_DURABLE", Caps::DURABLE.bits()),
            ("KVD_CAP_VIEW", Caps::VIEW.bits()),
            ("KVD_CAP_FAST_READ", Caps::FAST_READ.bits()),
            ("KVD_CAP_FAST_DELETE_RANGE", Caps::FAST_DELETE_RANGE.bits()),
            ("KVD_CAP_COMPACT", Caps::COMPACT.bits()),
            ("KVD_CAP_VERIFY", Caps::VERIFY.bits()),
            ("KVD_CAP_RECONFIGURE", Caps::RECONFIGURE.bits()),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
        let version = concat!(
            "#define KVD_HEADER_VERSION \"",
            env!("CARGO_PKG_VERSION"),
            "\""
        );
        assert!(HEADER.contains(version), "{version}");
    }
}
