//! An engine as an author wrote it for the interface's first release: volatile, with views, an
//! option, a property and a word for the log.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Contents, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, OpenContext,
    OptionKind, OptionSpec, Range, Result, View as _,
};

pub struct First {
    contents: RwLock<Contents>,
    label: String,
}

kvd_plugin_api::export_backend!(First);

impl Backend for First {
    const NAME: &'static str = "first";
    const VERSION: &'static str = "1.0.0";
    const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ);
    const LIMITS: Limits = Limits::UNBOUNDED;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "label",
        kind: OptionKind::String,
        default: "none",
        help: "what the property first.label says",
    }];
    type View = Contents;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let label = cx.options.str("label").to_owned();
        if label.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOption, "the label is empty"));
        }
        log::info!("opened with the label {label}");
        Ok(First {
            contents: RwLock::default(),
            label,
        })
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
        let mut contents = self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
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
        *self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner) = contents;
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        (name == "first.label").then(|| self.label.clone())
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["first.label"]
    }
}

impl First {
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }
}
