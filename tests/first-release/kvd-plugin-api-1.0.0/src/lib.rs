//! The interface between kvd and its storage engines as it was first released, cut down to what a
//! plugin needs: frozen, so that the tests can build plugins as they were built then.

#[doc(hidden)]
pub mod abi;
mod backend;
mod contents;
mod logging;
#[doc(hidden)]
pub mod manifest;
mod options;
mod types;

pub use backend::{Backend, Feed, Flow, Mark, NoView, Op, OpenContext, Range, View};
pub use contents::Contents;
pub use types::{Caps, Error, ErrorKind, Limits, OptionKind, OptionSpec, Options, Result};

#[doc(hidden)]
pub use abi_stable;

/// Exports an engine from a library: `export_backend!(MyEngine);`, once in a crate.
///
/// The crate's type is `cdylib`; nothing else of the interface is its author's concern.
#[macro_export]
macro_rules! export_backend {
    ($engine:ty) => {
        const _: () = {
            use $crate::abi_stable::library;
            use $crate::manifest;

            extern "C" fn load() -> library::RootModuleResult {
                library::__call_root_module_loader(|| $crate::abi::v1::plugin::<$engine>())
            }

            #[allow(unsafe_code, reason = "the symbol that abi_stable's loader looks for")]
            // SAFETY: the constructor returns the module of the type that it is declared with.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: library::LibHeader = unsafe {
                library::LibHeader::from_constructor::<$crate::abi::v1::Plugin_Ref>(
                    load,
                    library::CheckTypeLayout::Yes,
                )
            };

            static NAME: [u8; 256] = manifest::text(<$engine as $crate::Backend>::NAME);
            static VERSION: [u8; 256] = manifest::text(<$engine as $crate::Backend>::VERSION);

            #[allow(unsafe_code, reason = "the symbol that kvd looks for")]
            #[unsafe(no_mangle)]
            static KVD_PLUGIN_MANIFEST: manifest::Manifest = manifest::Manifest {
                magic: manifest::MAGIC,
                size: ::core::mem::size_of::<manifest::Manifest>() as u32,
                api_version: manifest::API_VERSION,
                flags: manifest::flags(),
                name: NAME.as_ptr().cast(),
                version: VERSION.as_ptr().cast(),
                plugin_api: manifest::PLUGIN_API.as_ptr().cast(),
                rustc: manifest::RUSTC.as_ptr().cast(),
                target: manifest::TARGET.as_ptr().cast(),
            };
        };
    };
}
