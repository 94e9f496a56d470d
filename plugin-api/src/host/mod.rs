//! The host's side: finds a library, checks it, and opens engines in it.
//!
//! What is cheapest and most stable is checked first: the file, then the manifest (plain C data),
//! then the interface's version, then the binary layout; only then is anything called.

mod c_engine;
mod c_table;
mod engine;
mod load;
mod peek;
mod resolve;
pub mod template;
#[cfg(test)]
mod tests;

pub use engine::{Engine, EngineView};
pub use load::{Description, LoadError, Manifest, OptionInfo, Plugin, open_linked, read_manifest};
pub use peek::peek_manifest;
pub use resolve::{Found, Places, ResolveError, found, resolve};
