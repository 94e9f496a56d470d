//! Loading a library.

use std::ffi::CStr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use abi_stable::library::{AbiHeaderRef, LibraryError, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::std_types::{RStr, RVec, Tuple2};

use super::c_engine;
use super::c_table::Table;
use super::engine::Engine;
use crate::abi::v1;
use crate::{Backend, Caps, Error, ErrorKind, Limits, OptionKind, manifest};

/// Why a library cannot be used: one line, and perhaps what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    message: String,
    hint: Option<String>,
    details: Option<String>,
}

impl LoadError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        LoadError {
            message: message.into(),
            hint: None,
            details: None,
        }
    }

    /// What the operator can do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// More than fits into a line, for the debug log.
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }
}

/// What a library's manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The interface it was built for.
    pub api_version: u32,
    /// It was built without optimisation.
    pub debug: bool,
    /// Its interface is a table in C.
    pub is_c: bool,
    /// The engine's name.
    pub name: String,
    /// The engine's version.
    pub version: String,
    /// The version of `kvd-plugin-api` it was built with.
    pub plugin_api: String,
    /// The compiler.
    pub rustc: String,
    /// The target.
    pub target: String,
    /// A sentence on the engine; empty where it has none.
    pub about: String,
}

/// What an engine says of itself.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it can do beyond the minimum.
    pub caps: Caps,
    /// The largest things it can store.
    pub limits: Limits,
    /// Its options.
    pub options: Vec<OptionInfo>,
}

/// One option of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its name.
    pub name: String,
    /// What its value looks like.
    pub kind: OptionKind,
    /// The value in force when none is given.
    pub default: String,
    /// What it does.
    pub help: String,
}

/// A loaded library. It is never unloaded: what it gave out may live anywhere.
#[derive(Clone)]
pub struct Plugin {
    path: PathBuf,
    manifest: Manifest,
    root: Root,
}

/// What is called in it.
#[derive(Clone, Copy)]
pub(super) enum Root {
    Rust(v1::Plugin_Ref),
    C(&'static Table),
}

/// Reads the manifest of a library, also of one that cannot be used.
///
/// This loads the library, which runs its constructors: naming a file is trusting it.
///
/// # Errors
///
/// It is no library, no plugin, or anyone may write to it.
pub fn read_manifest(path: &Path) -> Result<Manifest, LoadError> {
    open_library(path).map(|(_, manifest)| manifest)
}

impl Plugin {
    /// Loads the library at `path` and checks that it fits.
    ///
    /// # Errors
    ///
    /// See [`LoadError`]; the message goes behind `backend 'X': `.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let (library, manifest) = open_library(path)?;
        if manifest.api_version != manifest::API_VERSION {
            let Manifest {
                api_version,
                name,
                version,
                plugin_api,
                rustc,
                ..
            } = &manifest;
            return Err(LoadError::new(format!(
                "built for plugin API {api_version}, this kvd supports {}   (plugin {name} \
                 {version}, plugin-api {plugin_api}, {rustc})",
                manifest::API_VERSION
            )));
        }
        let root = if manifest.is_c {
            Root::C(Table::of(library, &manifest)?)
        } else {
            Root::Rust(root_module(library).map_err(|details| LoadError {
                message: format!(
                    "same API version but another binary layout (plugin-api {} / kvd {}): rebuild \
                     it",
                    manifest.plugin_api,
                    env!("CARGO_PKG_VERSION")
                ),
                hint: Some("the details are in the debug log".to_owned()),
                details: Some(details),
            })?)
        };
        Ok(Plugin {
            path: path.to_owned(),
            manifest,
            root,
        })
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What its engine says of itself.
    pub fn describe(&self) -> Description {
        describe(self.root)
    }

    /// Opens the engine in a directory that exists.
    ///
    /// What the plugin logs goes to this process's `log` records, with the target `plugin`, at the
    /// level that is in force now.
    ///
    /// # Errors
    ///
    /// The engine's own error; a panic in it is one of kind [`ErrorKind::Panic`].
    pub fn open(&self, dir: &Path, options: &[(String, String)]) -> Result<Engine, Error> {
        open(self.root, dir, options)
    }
}

/// Opens an engine that is linked into this process, through the same border as a library's: to
/// measure what the border costs. Each call keeps a few hundred bytes for ever.
///
/// # Errors
///
/// As for [`Plugin::open`].
pub fn open_linked<B: Backend>(dir: &Path, options: &[(String, String)]) -> Result<Engine, Error> {
    open(Root::Rust(v1::plugin::<B>()), dir, options)
}

fn describe(root: Root) -> Description {
    let description = match root {
        Root::Rust(root) => (root.describe())(),
        Root::C(table) => return table.describe(),
    };
    Description {
        name: description.name.into_string(),
        version: description.version.into_string(),
        caps: Caps::from_bits(description.caps),
        limits: Limits {
            key_bytes_max: description.key_bytes_max,
            value_bytes_max: description.value_bytes_max,
            batch_bytes_max: description.batch_bytes_max,
        },
        options: description
            .options
            .into_iter()
            .map(|option| OptionInfo {
                name: option.name.into_string(),
                kind: OptionKind::from_code(option.kind),
                default: option.default.into_string(),
                help: option.help.into_string(),
            })
            .collect(),
    }
}

pub(super) fn open(root: Root, dir: &Path, options: &[(String, String)]) -> Result<Engine, Error> {
    let description = describe(root);
    let opened = match root {
        Root::Rust(root) => {
            let text = dir
                .to_str()
                .ok_or_else(|| Error::new(ErrorKind::Other, "the directory's name is not UTF-8"))?;
            let options: RVec<_> = options
                .iter()
                .map(|(name, value)| Tuple2(name.as_str().into(), value.as_str().into()))
                .collect();
            (root.open())(RStr::from_str(text), options, context())
                .into_result()
                .map_err(Error::from)?
        }
        Root::C(table) => {
            let level = log::max_level() as u8;
            c_engine::open(table, &description.name, dir, options, level)?
        }
    };
    Ok(Engine::new(opened, description))
}

pub(super) fn context() -> v1::HostContext {
    crate::logging::this_is_the_host();
    v1::HostContext {
        log: forward,
        log_level: log::max_level() as u8,
    }
}

pub(super) extern "C" fn forward(level: u8, target: RStr<'_>, message: RStr<'_>) {
    let level = match level {
        1 => log::Level::Error,
        2 => log::Level::Warn,
        3 => log::Level::Info,
        4 => log::Level::Debug,
        _ => log::Level::Trace,
    };
    // A panic must not cross the border; a logger that panics is not worth the process.
    let logged = std::panic::catch_unwind(|| {
        log::log!(target: "plugin", level, "{}: {}", target.as_str(), message.as_str());
    });
    if let Err(payload) = logged {
        std::mem::forget(payload);
    }
}

#[expect(unsafe_code, reason = "loading a library and reading a symbol of it")]
fn open_library(path: &Path) -> Result<(&'static libloading::Library, Manifest), LoadError> {
    let file = std::fs::canonicalize(path).map_err(|error| LoadError::new(error.to_string()))?;
    let meta = std::fs::metadata(&file).map_err(|error| LoadError::new(error.to_string()))?;
    if meta.permissions().mode() & 0o002 != 0 {
        return Err(LoadError {
            hint: Some(format!("chmod o-w {}", file.display())),
            ..LoadError::new("anyone may write to the file")
        });
    }
    if is_cut_short(&file).map_err(|error| LoadError::new(error.to_string()))? {
        return Err(LoadError {
            hint: Some("copy it again".to_owned()),
            ..LoadError::new("not a shared library (the file is cut short)")
        });
    }
    // SAFETY: loading runs the library's constructors; the operator named the file.
    let library = unsafe { libloading::Library::new(&file) }
        .map_err(|error| LoadError::new(format!("not a shared library ({})", cause(&error))))?;
    // Never unloaded: engines, views and error texts may point into it for ever.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: the symbol is data of the library, which is never unloaded.
    let manifest = unsafe {
        let symbol = library
            .get::<*const manifest::Manifest>(manifest::SYMBOL.as_bytes())
            .map_err(|_| LoadError::new("not a kvd plugin (no KVD_PLUGIN_MANIFEST symbol)"))?;
        // The symbol's address is the manifest itself.
        let at: *const manifest::Manifest = *symbol.into_raw() as *const _;
        copy_manifest(at)?
    };
    Ok((library, manifest))
}

/// Whether an ELF file ends before what its headers promise, as a copy under way does.
///
/// The system's loader maps such a file without complaint, and the process dies of SIGBUS when it
/// touches what is not there. Of files of other formats it is left to judge.
fn is_cut_short(file: &Path) -> std::io::Result<bool> {
    const ELF_64_LITTLE_ENDIAN: &[u8; 6] = b"\x7fELF\x02\x01";
    let file = std::fs::File::open(file)?;
    let meta = file.metadata()?;
    let mut magic = [0; ELF_64_LITTLE_ENDIAN.len()];
    if !meta.is_file()
        || file.read_exact_at(&mut magic, 0).is_err()
        || magic != *ELF_64_LITTLE_ENDIAN
    {
        return Ok(false);
    }
    let read = |at: u64, bytes: usize| {
        let mut field = [0; 8];
        file.read_exact_at(&mut field[..bytes], at).ok()?;
        Some(u64::from_le_bytes(field))
    };
    // The end of what the segments and the table of sections, which comes last, take up; none at
    // all where even the headers are not there or make no sense.
    let end = || {
        let (table, size, count) = (read(0x20, 8)?, read(0x36, 2)?, read(0x38, 2)?);
        let (sections, section, sections_count) = (read(0x28, 8)?, read(0x3a, 2)?, read(0x3c, 2)?);
        let mut end = sections.checked_add(section * sections_count)?;
        for index in 0..count {
            let offset = table.checked_add(index * size + 0x08)?;
            let bytes = table.checked_add(index * size + 0x20)?;
            end = end.max(read(offset, 8)?.checked_add(read(bytes, 8)?)?);
        }
        Some(end)
    };
    Ok(end().is_none_or(|end| end > meta.len()))
}

/// Copies what a manifest says.
///
/// # Safety
///
/// `at` is the address of the symbol.
#[expect(unsafe_code, reason = "reading C data")]
unsafe fn copy_manifest(at: *const manifest::Manifest) -> Result<Manifest, LoadError> {
    let foreign =
        || LoadError::new("not a kvd plugin (its KVD_PLUGIN_MANIFEST is not one of ours)");
    // SAFETY: every manifest begins with the magic and its size, and `size` bytes belong to it.
    unsafe {
        if (&raw const (*at).magic).read_unaligned() != manifest::MAGIC {
            return Err(foreign());
        }
        let size = (&raw const (*at).size).read_unaligned() as usize;
        if size < manifest::SIZE_MIN {
            return Err(foreign());
        }
        // An older library has less of it: what is not there is left alone.
        let mut manifest = std::mem::zeroed::<manifest::Manifest>();
        std::ptr::copy_nonoverlapping(
            at.cast::<u8>(),
            (&raw mut manifest).cast::<u8>(),
            size.min(size_of::<manifest::Manifest>()),
        );
        let text = |text: *const std::ffi::c_char| {
            if text.is_null() {
                return String::new();
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        };
        Ok(Manifest {
            api_version: manifest.api_version,
            debug: manifest.flags & manifest::FLAG_DEBUG != 0,
            is_c: manifest.flags & manifest::FLAG_C_TABLE != 0,
            name: text(manifest.name),
            version: text(manifest.version),
            plugin_api: text(manifest.plugin_api),
            rustc: text(manifest.rustc),
            target: text(manifest.target),
            about: text(manifest.about),
        })
    }
}

#[expect(unsafe_code, reason = "reading a symbol of a library")]
fn root_module(library: &libloading::Library) -> Result<v1::Plugin_Ref, String> {
    // Not `RootModule::load_from_file`: that returns the first plugin for every later path.
    // SAFETY: abi_stable's own loader reads the symbol as this type; the library is never unloaded.
    let header = unsafe {
        *library
            .get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes())
            .map_err(|error| cause(&error))?
    };
    let text = |error: LibraryError| error.to_string();
    header
        .upgrade()
        .map_err(text)?
        .init_root_module::<v1::Plugin_Ref>()
        .map_err(text)
}

/// libloading's own text leaves out what the system said.
fn cause(error: &libloading::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}
