//! The engine of a plugin, behind the host's own trait.

use kvd_plugin_api::host;

use super::{Caps, Engine, EngineView, Feed, Flow, Limits, Mark, Op, Range, Read, Result};

/// An engine that was opened in a loaded library.
pub struct PluginEngine(host::Engine);

impl PluginEngine {
    /// Takes an opened engine.
    pub fn new(engine: host::Engine) -> Self {
        PluginEngine(engine)
    }
}

impl Read for PluginEngine {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}

impl Engine for PluginEngine {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn version(&self) -> &str {
        self.0.version()
    }

    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn mark(&self) -> Result<Mark> {
        self.0.mark()
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.0.write(batch, mark)
    }

    fn sync(&self) -> Result<Mark> {
        self.0.sync()
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        Ok(Box::new(PluginView(self.0.view()?)))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.0.replace(feed, mark)
    }

    fn property(&self, name: &str) -> Option<String> {
        self.0.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.0.properties()
    }

    fn compact(&self) -> Result<()> {
        self.0.compact()
    }

    fn verify(&self) -> Result<()> {
        self.0.verify()
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}

struct PluginView(host::EngineView);

impl Read for PluginView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}

impl EngineView for PluginView {
    fn mark(&self) -> &Mark {
        self.0.mark()
    }
}
