//! Where bytes live: the host's [`Engine`] and its views, change layers, and the [`Store`] that
//! gives readers one consistent read whatever the engine can do.
//!
//! Everything here blocks, and knows no command, clock, task or socket. One thread applies and one
//! stores; many read.

mod before;
mod cache;
mod costs;
mod filter;
mod layer;
mod memory;
mod plugin;
mod store;
#[cfg(test)]
pub(crate) mod test_engine;
#[cfg(test)]
mod tests;
mod waiting;

pub use before::KEPT_BYTES_MAX;
pub use cache::CacheCounts;
pub use costs::{Call, Cost, Costs, READS_PER_SAMPLE, Stopwatch};
pub use kvd_plugin_api::{Caps, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Result};
pub use layer::{Layer, Stack};
pub use memory::MemoryEngine;
pub use plugin::{Calls, Origin, PluginEngine};
pub use store::{Latest, ReadView, Store};
pub use waiting::Amount;

/// Reads of one ordered keyspace of byte strings.
///
/// Callbacks get slices that live only during the call, and never call back into the same reader.
pub trait Read {
    /// Hands the value of `key` to `out`, once, and returns `true`; or returns `false`.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Visits the entries of `range` in its direction until the end or until `out` says stop.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;
}

/// An opened storage engine, as the host sees it.
///
/// Its direct reads see the latest write, and each call by itself is consistent.
/// `write`, `sync` and `replace` are called from one thread at a time.
pub trait Engine: Read + Send + Sync {
    /// The engine's name, for messages and the data directory.
    fn name(&self) -> &str;

    /// The engine's own version, for messages.
    fn version(&self) -> &str;

    /// What the engine can do beyond the minimum.
    fn caps(&self) -> Caps;

    /// The largest things it can store.
    fn limits(&self) -> Limits;

    /// The mark of the state as it is now.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    fn mark(&self) -> Result<Mark>;

    /// Applies all of `batch`, in order, together with `mark`, or nothing of it. Visible to reads
    /// on return; may be lazy.
    ///
    /// # Errors
    ///
    /// The engine's own failure; nothing more may be written after one.
    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()>;

    /// Makes every earlier write durable and returns the durable mark; [`Mark::default`] without
    /// [`Caps::DURABLE`].
    ///
    /// # Errors
    ///
    /// The engine's own failure; never called again after one.
    fn sync(&self) -> Result<Mark>;

    /// A read that stays as it is, whatever is written later.
    ///
    /// # Errors
    ///
    /// `Unsupported` without [`Caps::VIEW`]; the engine's own failure.
    fn view(&self) -> Result<Box<dyn EngineView>>;

    /// Replaces the whole contents by those of `feed`, which come in ascending key order.
    ///
    /// # Errors
    ///
    /// The feed's error or the engine's own; the contents are then the old ones, or empty with
    /// [`Mark::default`] after a restart.
    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()>;

    /// The current value of a property, as text.
    fn property(&self, name: &str) -> Option<String>;

    /// The names of the properties.
    fn properties(&self) -> Vec<String>;

    /// Gives unused space back.
    ///
    /// # Errors
    ///
    /// `Unsupported` without [`Caps::COMPACT`]; the engine's own failure.
    fn compact(&self) -> Result<()>;

    /// Reads everything and checks whatever the engine can check.
    ///
    /// # Errors
    ///
    /// `Corruption`, or the engine's own failure.
    fn verify(&self) -> Result<()>;

    /// Gives an option another value while the engine is open.
    ///
    /// # Errors
    ///
    /// `Unsupported` without [`Caps::RECONFIGURE`]; `InvalidOption`.
    fn set_option(&self, _name: &str, _value: &str) -> Result<()> {
        Err(Error::unsupported("reconfigure"))
    }

    /// Makes everything durable and lets go of the files. Nothing may be called after it.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    fn close(&self) -> Result<()>;

    /// Where it comes from, if it is a plugin's.
    fn origin(&self) -> Option<Origin> {
        None
    }

    /// What its calls have cost so far, where that is measured.
    fn costs(&self) -> Option<&Costs> {
        None
    }
}

/// A consistent read of an engine at one moment; outlives later writes.
pub trait EngineView: Read + Send + Sync {
    /// The mark at that moment.
    fn mark(&self) -> &Mark;
}
