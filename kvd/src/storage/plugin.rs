//! The engine of a plugin, behind the host's own trait.

use std::sync::{Arc, Mutex, PoisonError};

use kvd_plugin_api::host;

use super::{Caps, Engine, EngineView, Feed, Flow, Limits, Mark, Op, Range, Read, Result};

/// An engine that was opened in a loaded library.
pub struct PluginEngine {
    engine: host::Engine,
    calls: Arc<Calls>,
    /// The options that were given, as they are now.
    options: Mutex<Vec<(String, String)>>,
}

impl PluginEngine {
    /// Takes an opened engine.
    pub fn new(engine: host::Engine) -> Self {
        PluginEngine::watched(engine, Vec::new(), Arc::default())
    }

    /// The same of one that was opened with options, where somebody looks at what it is doing.
    pub fn watched(
        engine: host::Engine,
        options: Vec<(String, String)>,
        calls: Arc<Calls>,
    ) -> Self {
        PluginEngine {
            engine,
            calls,
            options: Mutex::new(options),
        }
    }
}

/// The call that an engine is in, of those that come one at a time: for whoever wonders why nothing
/// happens.
#[derive(Default)]
pub struct Calls(Mutex<Now>);

#[derive(Default)]
struct Now {
    call: Option<&'static str>,
    /// Tells a call from the next one of the same name.
    serial: u64,
}

impl Calls {
    /// Makes a call that can be seen from outside while it lasts.
    pub fn during<T>(&self, call: &'static str, make: impl FnOnce() -> T) -> T {
        struct End<'a>(&'a Calls);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.set(None);
            }
        }
        self.set(Some(call));
        let _end = End(self);
        make()
    }

    /// The call that is under way, and a number that no other call has.
    pub fn now(&self) -> Option<(&'static str, u64)> {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.call.map(|call| (call, now.serial))
    }

    fn set(&self, call: Option<&'static str>) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.call = call;
        now.serial += 1;
    }
}

impl Read for PluginEngine {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.engine.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.engine.scan(range, out)
    }
}

impl Engine for PluginEngine {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn version(&self) -> &str {
        self.engine.version()
    }

    fn caps(&self) -> Caps {
        self.engine.caps()
    }

    fn limits(&self) -> Limits {
        self.engine.limits()
    }

    fn mark(&self) -> Result<Mark> {
        self.engine.mark()
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.calls
            .during("write", || self.engine.write(batch, mark))
    }

    fn sync(&self) -> Result<Mark> {
        self.calls.during("sync", || self.engine.sync())
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        Ok(Box::new(PluginView(self.engine.view()?)))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.calls
            .during("replace", || self.engine.replace(feed, mark))
    }

    fn property(&self, name: &str) -> Option<String> {
        self.engine.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.engine.properties()
    }

    fn compact(&self) -> Result<()> {
        self.calls.during("compact", || self.engine.compact())
    }

    fn verify(&self) -> Result<()> {
        self.calls.during("verify", || self.engine.verify())
    }

    fn set_option(&self, name: &str, value: &str) -> Result<()> {
        let mut options = self.options.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = options.clone();
        changed.retain(|(known, _)| known != name);
        changed.push((name.to_owned(), value.to_owned()));
        self.engine.reconfigure(&changed)?;
        *options = changed;
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.calls.during("close", || self.engine.close())
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
