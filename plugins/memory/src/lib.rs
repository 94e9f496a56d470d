//! A volatile engine: everything in memory, nothing after the process has ended.
//!
//! It is the example of a plugin, and the proof that kvd needs nothing from an engine but what the
//! contract says: under it a cluster still survives the loss of every process at once, because the
//! host keeps its own durable snapshot.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Contents, Feed, Flow, Mark, Op, OpenContext, Range, Result, View as _,
};

/// The engine.
#[derive(Default)]
pub struct Memory(RwLock<Contents>);

kvd_plugin_api::export_backend!(Memory);

impl Backend for Memory {
    const NAME: &'static str = "memory";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str =
        "an example: all in memory, and nothing after the process has ended";
    const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ);
    type View = Contents;

    fn open(_cx: &OpenContext<'_>) -> Result<Self> {
        Ok(Memory::default())
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.contents().mark().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.contents().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.contents().scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        contents.write(batch, mark);
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn view(&self) -> Result<Contents> {
        Ok(self.contents().clone())
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let contents = Contents::from_feed(feed, mark)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = contents;
        Ok(())
    }
}

impl Memory {
    /// What is there now; a write waits until this is let go.
    ///
    /// A read holds it instead of taking a clone of its own: that would make the next write copy
    /// everything.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn conforms_to_the_contract() {
        kvd_plugin_api::testkit::check::<Memory>(&[]);
    }
}
