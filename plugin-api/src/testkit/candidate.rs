//! What is tried: an engine that is linked in, or the one of a library.

use std::path::Path;

#[cfg(feature = "host")]
use crate::host;
use crate::{
    Backend, Caps, Feed, Flow, Limits, Mark, Op, OpenContext, OptionSpec, Options, Range, Result,
    View,
};

type Open = dyn Fn(&Path, &[(&str, &str)]) -> Result<Box<dyn Opened>> + Send + Sync;

/// An engine that can be opened and tried, wherever its code is.
pub struct Candidate {
    pub(super) name: String,
    pub(super) caps: Caps,
    pub(super) limits: Limits,
    pub(super) options: Vec<OptionSpec>,
    open: Box<Open>,
}

impl Candidate {
    /// An engine that is linked in.
    pub fn of<B: Backend>() -> Self {
        Candidate {
            name: B::NAME.to_owned(),
            caps: B::CAPS,
            limits: B::LIMITS,
            options: B::OPTIONS.to_vec(),
            open: Box::new(|dir, given| {
                let options = &Options::parse(B::OPTIONS, given.iter().copied())?;
                Ok(Box::new(Linked(B::open(&OpenContext { dir, options })?)))
            }),
        }
    }

    /// The engine of a loaded library: every call crosses the border, as kvd's calls do.
    #[cfg(feature = "host")]
    pub fn loaded(plugin: &host::Plugin) -> Self {
        // Like the library itself, which is never unloaded.
        let keep = |text: &str| -> &'static str { Box::leak(text.into()) };
        let description = plugin.describe();
        let plugin = plugin.clone();
        Candidate {
            options: description
                .options
                .iter()
                .map(|option| OptionSpec {
                    name: keep(&option.name),
                    kind: option.kind,
                    default: keep(&option.default),
                    help: keep(&option.help),
                })
                .collect(),
            name: description.name,
            caps: description.caps,
            limits: description.limits,
            open: Box::new(move |dir, given| {
                let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
                let given: Vec<(String, String)> = given.iter().map(owned).collect();
                Ok(Box::new(plugin.open(dir, &given)?))
            }),
        }
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it claims.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    pub(super) fn open(&self, dir: &Path, options: &[(&str, &str)]) -> Result<Box<dyn Opened>> {
        (self.open)(dir, options)
    }
}

/// [`Backend`], once it is opened, as an object.
pub(super) trait Opened: Send + Sync {
    fn mark(&self) -> Result<Mark>;
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool>;
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()>;
    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()>;
    fn sync(&self) -> Result<Mark>;
    fn view(&self) -> Result<Box<dyn View>>;
    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()>;
    fn property(&self, name: &str) -> Option<String>;
    fn properties(&self) -> Vec<String>;
    fn compact(&self) -> Result<()>;
    fn verify(&self) -> Result<()>;
    fn reconfigure(&self, given: &[(&str, &str)]) -> Result<()>;
    fn close(&self) -> Result<()>;
}

struct Linked<B>(B);

impl<B: Backend> Opened for Linked<B> {
    fn mark(&self) -> Result<Mark> {
        self.0.mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.0.write(batch, mark)
    }

    fn sync(&self) -> Result<Mark> {
        self.0.sync()
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(self.0.view()?))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.0.replace(feed, mark)
    }

    fn property(&self, name: &str) -> Option<String> {
        self.0.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.0.properties().into_iter().map(str::to_owned).collect()
    }

    fn compact(&self) -> Result<()> {
        self.0.compact()
    }

    fn verify(&self) -> Result<()> {
        self.0.verify()
    }

    fn reconfigure(&self, given: &[(&str, &str)]) -> Result<()> {
        let options = Options::parse(B::OPTIONS, given.iter().copied())?;
        self.0.reconfigure(&options)
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}

#[cfg(feature = "host")]
impl Opened for host::Engine {
    fn mark(&self) -> Result<Mark> {
        self.mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.write(batch, mark)
    }

    fn sync(&self) -> Result<Mark> {
        self.sync()
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(LoadedView(self.view()?)))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.replace(feed, mark)
    }

    fn property(&self, name: &str) -> Option<String> {
        self.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.properties()
    }

    fn compact(&self) -> Result<()> {
        self.compact()
    }

    fn verify(&self) -> Result<()> {
        self.verify()
    }

    fn reconfigure(&self, given: &[(&str, &str)]) -> Result<()> {
        let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        let given: Vec<(String, String)> = given.iter().map(owned).collect();
        self.reconfigure(&given)
    }

    fn close(&self) -> Result<()> {
        self.close()
    }
}

#[cfg(feature = "host")]
struct LoadedView(host::EngineView);

#[cfg(feature = "host")]
impl View for LoadedView {
    fn mark(&self) -> &Mark {
        self.0.mark()
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.scan(range, out)
    }
}
