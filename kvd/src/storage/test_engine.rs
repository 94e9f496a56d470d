//! An engine in memory whose writes a test does in its own way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::{
    Caps, Engine, EngineView, Error, Feed, Flow, Limits, Mark, MemoryEngine, Op, Range, Read,
    Result,
};

/// How a test writes a batch to the memory.
type Write = dyn Fn(&MemoryEngine, &[Op<'_>], &Mark) -> Result<()> + Send + Sync;

/// A [`MemoryEngine`] behind a write of one's own.
pub(crate) struct TestEngine {
    pub(crate) memory: MemoryEngine,
    caps: Caps,
    write: Box<Write>,
    /// Called when contents were replaced, before the host hears of it.
    pub(crate) replaced: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The most entries that it had to show at once.
    pub(crate) longest_scan: Arc<AtomicUsize>,
}

impl TestEngine {
    pub(crate) fn new(
        caps: Caps,
        write: impl Fn(&MemoryEngine, &[Op<'_>], &Mark) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        TestEngine {
            memory: MemoryEngine::new(),
            caps,
            write: Box::new(write),
            replaced: OnceLock::new(),
            longest_scan: Arc::default(),
        }
    }
}

impl Read for TestEngine {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.memory.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let mut shown = 0;
        let scanned = self.memory.scan(range, &mut |key, value| {
            shown += 1;
            out(key, value)
        });
        self.longest_scan.fetch_max(shown, Ordering::Relaxed);
        scanned
    }
}

impl Engine for TestEngine {
    fn name(&self) -> &str {
        "test"
    }

    fn version(&self) -> &str {
        self.memory.version()
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn limits(&self) -> Limits {
        self.memory.limits()
    }

    fn mark(&self) -> Result<Mark> {
        self.memory.mark()
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        (self.write)(&self.memory, batch, mark)
    }

    fn sync(&self) -> Result<Mark> {
        self.memory.sync()
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        if !self.caps.contains(Caps::VIEW) {
            return Err(Error::unsupported("view"));
        }
        self.memory.view()
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.memory.replace(feed, mark)?;
        if let Some(replaced) = self.replaced.get() {
            replaced();
        }
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        self.memory.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.memory.properties()
    }

    fn compact(&self) -> Result<()> {
        self.memory.compact()
    }

    fn verify(&self) -> Result<()> {
        self.memory.verify()
    }

    fn close(&self) -> Result<()> {
        self.memory.close()
    }
}
