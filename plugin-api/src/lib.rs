//! The stable interface between kvd and its storage engines.
//!
//! kvd is a distributed server that speaks the Redis protocol; where each of its nodes keeps the
//! state is decided by a shared library. This crate is all that the author of such a library needs:
//! implement [`Backend`] in safe Rust, and export it with [`export_backend!`].
//!
//! # An engine
//!
//! This one is complete. It keeps everything in memory, which kvd is content with. Its structure is
//! spelled out here; [`Contents`] is the same, ready made.
//!
//! ```standalone_crate
//! use std::collections::BTreeMap;
//! use std::ops::Bound;
//! use std::sync::{Arc, RwLock};
//!
//! use kvd_plugin_api::{Backend, Caps, Feed, Flow, Mark, Op, OpenContext, Range, Result, View};
//!
//! #[derive(Clone, Default)]
//! struct Contents {
//!     entries: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
//!     mark: Mark,
//! }
//!
//! #[derive(Default)]
//! struct Tree(RwLock<Contents>);
//!
//! kvd_plugin_api::export_backend!(Tree);
//!
//! impl Backend for Tree {
//!     const NAME: &'static str = "tree";
//!     const VERSION: &'static str = "0.1.0";
//!     const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ);
//!     type View = Contents;
//!
//!     fn open(_cx: &OpenContext<'_>) -> Result<Self> {
//!         Ok(Tree::default())
//!     }
//!
//!     fn mark(&self) -> Result<Mark> {
//!         Ok(self.0.read().unwrap().mark.clone())
//!     }
//!
//!     fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
//!         self.0.read().unwrap().get(key, out)
//!     }
//!
//!     fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
//!         self.0.read().unwrap().scan(range, out)
//!     }
//!
//!     fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
//!         let mut contents = self.0.write().unwrap();
//!         let entries = Arc::make_mut(&mut contents.entries);
//!         for op in batch {
//!             match *op {
//!                 Op::Put(key, value) => drop(entries.insert(key.to_vec(), value.to_vec())),
//!                 Op::Delete(key) => drop(entries.remove(key)),
//!                 Op::DeleteRange(from, to) => {
//!                     entries.retain(|key, _| key.as_slice() < from || key.as_slice() >= to)
//!                 }
//!             }
//!         }
//!         contents.mark = mark.clone();
//!         Ok(())
//!     }
//!
//!     fn sync(&self) -> Result<Mark> {
//!         Ok(Mark::default()) // nothing here survives the process
//!     }
//!
//!     fn view(&self) -> Result<Contents> {
//!         Ok(self.0.read().unwrap().clone())
//!     }
//!
//!     fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
//!         let mut entries = BTreeMap::new();
//!         while feed.next(&mut |key, value| drop(entries.insert(key.to_vec(), value.to_vec())))? {}
//!         *self.0.write().unwrap() = Contents { entries: Arc::new(entries), mark: mark.clone() };
//!         Ok(())
//!     }
//! }
//!
//! impl View for Contents {
//!     fn mark(&self) -> &Mark {
//!         &self.mark
//!     }
//!
//!     fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
//!         Ok(self.entries.get(key).map(|value| out(value)).is_some())
//!     }
//!
//!     fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
//!         if range.to.is_some_and(|to| to <= range.from) {
//!             return Ok(());
//!         }
//!         let to = range.to.map_or(Bound::Unbounded, Bound::Excluded);
//!         let mut entries = self.entries.range::<[u8], _>((Bound::Included(range.from), to));
//!         while let Some((key, value)) =
//!             if range.reverse { entries.next_back() } else { entries.next() }
//!         {
//!             if out(key, value) == Flow::Stop {
//!                 break;
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! # use kvd_plugin_api::Options;
//! # let options = Options::parse(Tree::OPTIONS, [])?;
//! # let tree = Tree::open(&OpenContext { dir: std::path::Path::new("."), options: &options })?;
//! # let mark = |index| Mark { index, data: vec![7] };
//! # let keys = |view: &Contents, from: &[u8], to: Option<&[u8]>, reverse| {
//! #     let mut keys = Vec::new();
//! #     view.scan(Range { from, to, reverse }, &mut |key, _| {
//! #         keys.extend_from_slice(key);
//! #         if keys.len() < 3 { Flow::Continue } else { Flow::Stop }
//! #     }).unwrap();
//! #     String::from_utf8(keys).unwrap()
//! # };
//! # let put = |key| Op::Put(key, b"1");
//! # tree.write(&[put(b"a"), put(b"b"), put(b"c"), put(b"d"), Op::Delete(b"a")], &mark(1))?;
//! # let old = tree.view()?;
//! # tree.write(&[put(b"e"), Op::DeleteRange(b"c", b"e"), Op::DeleteRange(b"z", b"a")], &mark(2))?;
//! # assert_eq!((keys(&old, b"", None, false).as_str(), old.mark()), ("bcd", &mark(1)));
//! # let new = tree.view()?;
//! # assert_eq!((keys(&new, b"", None, true).as_str(), tree.mark()?), ("eb", mark(2)));
//! # assert_eq!(keys(&new, b"b", Some(b"e"), false), "b");
//! # assert_eq!(keys(&new, b"z", Some(b"a"), false), "");
//! # struct One(bool);
//! # impl Feed for One {
//! #     fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
//! #         if !std::mem::replace(&mut self.0, false) { return Ok(false); }
//! #         out(b"x", b"9");
//! #         Ok(true)
//! #     }
//! # }
//! # tree.replace(&mut One(true), &mark(5))?;
//! # let mut value = Vec::new();
//! # assert!(tree.get(b"x", &mut |bytes| value.extend_from_slice(bytes))?);
//! # assert!(!tree.get(b"b", &mut |_| unreachable!())?);
//! # assert_eq!((value, tree.mark()?, tree.sync()?), (b"9".to_vec(), mark(5), Mark::default()));
//! # tree.close()
//! # }
//! ```
//!
//! Its `Cargo.toml` says `crate-type = ["cdylib", "rlib"]` (the second for tests), with this crate
//! as a dependency. kvd runs it as `kvd --backend path/to/libtree.so ./node0`. The library is best
//! called `kvd_` and the engine's name: `--backend tree` then finds `libkvd_tree.so` in the folders
//! for plugins.
//!
//! # The contract
//!
//! An engine is one ordered keyspace of byte strings, and a [`Mark`] that belongs to it: a number
//! that only grows, and some bytes of the host's. The engine keeps the mark and never reads it; to
//! kvd it says which entries of the replicated log are in the state.
//!
//! 1. A write takes its batch and its mark together, or not at all: for readers, for views, and for
//!    whoever opens the engine after a crash.
//! 2. A write is visible when it has returned. Within a batch later changes see earlier ones.
//! 3. After a crash at any moment the state is exactly that after some write; [`Backend::mark`]
//!    returns that write's mark, and it is not older than the mark that [`Backend::sync`] last
//!    returned.
//! 4. A view stays as it was when it was taken.
//! 5. What an engine cannot do, it says as data, in [`Backend::CAPS`] and [`Backend::LIMITS`]. kvd
//!    asks for nothing that is not claimed there.
//!
//! ## The journey of a write
//!
//! A client's `SET` becomes an entry of the Raft log, which a majority of the nodes has on disk
//! before the client hears of it. Each node then applies the entry: the changes of many commands
//! become one call of [`Backend::write`], with the mark of the last entry among them. Now and then
//! kvd calls [`Backend::sync`], and may from then on forget the log up to the mark that it returned.
//! After a restart it asks for [`Backend::mark`] and applies again whatever the log has beyond it.
//!
//! ## Durability
//!
//! So the log is the write-ahead log, and an engine needs none: a write may stay in memory, and be
//! lost, as long as all writes after it are lost with it. An engine that fsyncs in each write is
//! right, and slow for nothing. An engine that survives a crash claims [`Caps::DURABLE`]; one that
//! does not returns `Mark::default()` from `sync`, and kvd keeps a file of its own with the whole
//! state, from time to time. `Mark::default()` says "nothing": that is also the mark of an engine
//! that was just created.
//!
//! What counts is what the disk has, not what the system was told: a mark that `sync` has returned
//! must survive the loss of power. After an error of `write`, `sync` or `replace` kvd writes nothing
//! more, as nobody can know what a failed fsync has left; a restart begins from what is there.
//!
//! ## Views
//!
//! kvd takes a view to make a snapshot for another node, and reads it for minutes, while it writes
//! on. An engine with cheap ones claims [`Caps::VIEW`]. One without has [`NoView`] as its
//! [`Backend::View`], and does not make up for it: kvd keeps what a long reader still needs before
//! it lets the engine change it.
//!
//! ## Replacing everything
//!
//! A node that was away for long gets the whole state from another one, possibly from another
//! engine: a sorted stream, for [`Backend::replace`]. The new contents are built beside the old and
//! put in force in one step, durably. After a crash in the middle the engine opens with the old
//! contents, the new ones, or nothing and `Mark::default()`, never with a mixture. Views that were
//! taken before stay as they were. [`GenDir`] does this for engines whose own transactions cannot.
//!
//! ## Options
//!
//! [`Backend::OPTIONS`] lists what an operator may set by `--backend-opt name=value`, with kinds,
//! defaults and help texts. kvd refuses unknown names and bad values before the engine is called;
//! [`OpenContext::options`] has a value for each. An engine that claims [`Caps::RECONFIGURE`] takes
//! new values while it is open.
//!
//! # Errors
//!
//! An engine's error is never a client's answer: the other nodes have carried the same command out,
//! so a node that cannot must stop, loudly. What kvd does depends on the [`ErrorKind`] and on the
//! call:
//!
//! | kind | means | and then |
//! | --- | --- | --- |
//! | `Locked`, `Incompatible`, `InvalidOption` | from `open`: it is in use, foreign, or wrongly set up | the node does not start |
//! | `Io`, `NoSpace`, `Other` | the disk or the system failed | the node stops; a restart begins from what is there |
//! | `Corruption` | stored data is damaged | the node stops, and nothing enters the engine any more |
//! | `Panic` | the engine panicked; made by this crate, not by authors | as for `Corruption` |
//! | `TooLarge` | above the engine's limits; kvd checks them before | the node stops, and again at the next start |
//! | `Unsupported` | `view`, `compact` or `reconfigure` without the capability | the caller does without |
//! | `Closed` | a call after `close` | a fault of the host's |
//!
//! A panic is caught before it leaves the library, in every call and destructor: the node says what
//! happened and stops in order. A lie that kvd notices, such as a `get` that returns `true` without
//! a value, is taken for damage. Messages are short fragments in lower case without a full stop;
//! they are for the operator.
//!
//! # Threads
//!
//! Calls are plain and blocking; nothing is async. `write`, `sync`, `replace`, `compact`, `verify`
//! and `close` come one at a time. Reads come from many threads, at any time, also during those, and
//! each sees all of a write or nothing. A callback never calls back into the engine, so an engine
//! may hold a lock while it calls one. An engine that usually answers a `get` in a few microseconds
//! claims [`Caps::FAST_READ`], and is then called on the threads that serve sockets. An engine may
//! have threads of its own; they end with `close` or with the value.
//!
//! A library has its own copy of every static, including those of `log`, `tracing` and `tokio`.
//! Records of `log` are forwarded to kvd, at its level, and so is the text of a panic; a runtime is
//! the engine's own affair.
//!
//! # Versions
//!
//! A library says which interface it was built for: this is interface 1. A released interface never
//! changes. What is added comes as a new capability, option, property or code, or as a call that may
//! be refused, and a host or a library that does not know it goes on as before; so it was with
//! [`Backend::ABOUT`] and [`Backend::reconfigure`], since 1.1. What does not fit that way will be
//! interface 2, beside this one. A new item of a trait has a default, so that sources go on too. A library that was built with any 1.x of this
//! crate is loaded by every kvd that supports interface 1, whatever compiler made either. Libraries
//! are never unloaded: a new one takes effect when the node is restarted.
//!
//! # In C
//!
//! `include/kvd_plugin.h` of this crate is the same interface as a table of functions, for engines in
//! C: no crate is needed for one. A host loads both alike.
//!
//! # Features
//!
//! An author needs none, but `testkit` for tests: the conformance suite. `host` is the other side
//! of the border: it finds a library, checks it and opens engines in it, as kvd does.

#[doc(hidden)]
pub mod abi;
mod backend;
mod contents;
mod gen_dir;
#[cfg(feature = "host")]
pub mod host;
mod logging;
mod long_keys;
#[doc(hidden)]
pub mod manifest;
mod options;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod types;

pub use backend::{Backend, Feed, Flow, Mark, NoView, Op, OpenContext, Range, View};
pub use contents::Contents;
pub use gen_dir::{GenDir, Generation};
pub use long_keys::{LongKeys, Stored, StoredMut};
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
            static ABOUT: [u8; 256] = manifest::text(<$engine as $crate::Backend>::ABOUT);

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
                about: ABOUT.as_ptr().cast(),
            };
        };
    };
}
