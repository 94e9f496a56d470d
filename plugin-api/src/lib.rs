//! The stable interface between kvd and its storage engines.

mod backend;
mod gen_dir;
mod options;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod types;

pub use backend::{Backend, Feed, Flow, Mark, NoView, Op, OpenContext, Range, View};
pub use gen_dir::{GenDir, Generation};
pub use types::{Caps, Error, ErrorKind, Limits, OptionKind, OptionSpec, Options, Result};
