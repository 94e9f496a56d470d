//! The engine of a plugin, behind the host's own trait, with what its calls cost.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kvd_plugin_api::host;

use super::{
    Call, Caps, Costs, Engine, EngineView, Feed, Flow, Limits, Mark, Op, Range, Read, Result,
    Stopwatch,
};

/// An opened engine of a loaded library.
pub struct PluginEngine {
    engine: host::Engine,
    plugin: host::Plugin,
    costs: Arc<Costs>,
    calls: Arc<Calls>,
    /// The options that were given, as they are now.
    options: Mutex<Vec<(String, String)>>,
}

/// Where an engine comes from, and how it is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The library.
    pub file: String,
    /// The interface that it was built for.
    pub interface: u32,
    /// The version of `kvd-plugin-api` that it was built with.
    pub plugin_api: String,
    /// It was built without optimisation.
    pub debug: bool,
    /// The options in force, in the library's order: as they were given, or their defaults.
    pub options: Vec<(String, String)>,
}

impl PluginEngine {
    /// Opens the engine of a loaded library in a directory that exists. What its calls cost is
    /// measured by `stopwatch`, and `calls` shows the one that it is in.
    ///
    /// # Errors
    ///
    /// The engine's own.
    pub fn open(
        plugin: &host::Plugin,
        dir: &Path,
        options: &[(String, String)],
        stopwatch: Stopwatch,
        calls: Arc<Calls>,
    ) -> Result<Self> {
        Ok(PluginEngine {
            engine: calls.during("open", || plugin.open(dir, options))?,
            plugin: plugin.clone(),
            costs: Arc::new(Costs::new(stopwatch)),
            calls,
            options: Mutex::new(options.to_vec()),
        })
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
        self.costs.count(Call::Get, || self.engine.get(key, out))
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.costs
            .count(Call::Scan, || self.engine.scan(range, out))
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
        let write = || self.engine.write(batch, mark);
        self.costs.changed(batch.len());
        self.costs
            .count(Call::Write, || self.calls.during("write", write))
    }

    fn sync(&self) -> Result<Mark> {
        let sync = || self.engine.sync();
        self.costs
            .count(Call::Sync, || self.calls.during("sync", sync))
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        let view = self.costs.count(Call::View, || self.engine.view())?;
        Ok(Box::new(PluginView {
            view,
            costs: self.costs.clone(),
        }))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let replace = || self.engine.replace(feed, mark);
        self.costs
            .count(Call::Replace, || self.calls.during("replace", replace))
    }

    fn property(&self, name: &str) -> Option<String> {
        self.engine.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.engine.properties()
    }

    fn compact(&self) -> Result<()> {
        let compact = || self.engine.compact();
        self.costs
            .count(Call::Compact, || self.calls.during("compact", compact))
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

    fn origin(&self) -> Option<Origin> {
        let given = self.options.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = |option: host::OptionInfo| {
            // The last one counts where one is given twice.
            let given = given.iter().rev().find(|(name, _)| *name == option.name);
            let value = given.map_or(option.default, |(_, value)| value.clone());
            (option.name, value)
        };
        let manifest = self.plugin.manifest();
        let options = self.plugin.describe().options.into_iter().map(in_force);
        Some(Origin {
            file: self.plugin.path().display().to_string(),
            interface: manifest.api_version,
            plugin_api: manifest.plugin_api.clone(),
            debug: manifest.debug,
            options: options.collect(),
        })
    }

    fn costs(&self) -> Option<&Costs> {
        Some(&self.costs)
    }
}

struct PluginView {
    view: host::EngineView,
    costs: Arc<Costs>,
}

impl Read for PluginView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.costs.count(Call::Get, || self.view.get(key, out))
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.costs.count(Call::Scan, || self.view.scan(range, out))
    }
}

impl EngineView for PluginView {
    fn mark(&self) -> &Mark {
        self.view.mark()
    }
}
