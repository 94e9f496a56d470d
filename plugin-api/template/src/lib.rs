//! A storage engine for kvd: engine-name.
//!
//! This one keeps everything in memory, and is right as it stands. Put your own in its place, and
//! answer the questions on the way; the first page of `kvd_plugin_api`'s documentation has the
//! contract that they come from, and `cargo test` says where it is not kept.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Contents, Feed, Flow, Limits, Mark, Op, OpenContext, OptionSpec, Range, Result,
    View as _,
};

/// The opened engine.
#[derive(Debug, Default)]
pub struct Engine(RwLock<Contents>);

kvd_plugin_api::export_backend!(Engine);

impl Backend for Engine {
    const NAME: &'static str = "engine-name";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    // What `kvd plugin list` says below the name: what it is good for, or what to know before.
    const ABOUT: &'static str = "";

    // Question 1: what can it do? Claim DURABLE when a mark that `sync` returned survives the loss
    // of power, VIEW when a read can stay as it is while writes go on, FAST_READ when a `get`
    // usually takes a few microseconds, FAST_DELETE_RANGE, COMPACT and VERIFY when they do
    // something, RECONFIGURE when options may change while it is open. kvd asks for nothing that
    // is not claimed. With DURABLE, the README's table is to be changed as well.
    const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ);

    // Question 2: how large may keys and values be? What is above is refused by `write` with
    // TooLarge, as a whole; kvd's own limits must fit below. Batches have no bound that kvd could
    // keep to.
    const LIMITS: Limits = Limits::UNBOUNDED;

    // Question 3: what may an operator set? Each option has a kind, a default and a help text; kvd
    // has checked names and values when `open` is called.
    const OPTIONS: &'static [OptionSpec] = &[];

    type View = Contents;

    // Question 4: what makes a directory yours, and what keeps a second process out? An empty one
    // is created, a foreign one is Incompatible, one that is open elsewhere is Locked.
    // `kvd_plugin_api::GenDir` does both.
    fn open(_cx: &OpenContext<'_>) -> Result<Self> {
        Ok(Engine::default())
    }

    // Question 5: which write was the last that survived? This mark decides what kvd applies again.
    fn mark(&self) -> Result<Mark> {
        Ok(self.contents().mark().clone())
    }

    // Question 6: can reads come from many threads, also during a write? They never see half of it.
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.contents().get(key, out)
    }

    // Question 7: are keys in the order of their bytes, in both directions, and does the scan end
    // when `out` says stop?
    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.contents().scan(range, out)
    }

    // Question 8: do batch and mark come together, for readers and after a crash? It need not be
    // durable: kvd's log is the write-ahead log. It may be lost, together with all later writes.
    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        contents.write(batch, mark);
        Ok(())
    }

    // Question 9: what is on the disk, not only with the system, when this returns? kvd forgets
    // its log up to the mark. An engine without DURABLE returns the default one.
    fn sync(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    // Question 10: what does a view cost while it is held? kvd holds one for minutes, to send a
    // snapshot. Without VIEW, `type View = NoView<Self>`, and this returns Unsupported.
    fn view(&self) -> Result<Contents> {
        Ok(self.contents().clone())
    }

    // Question 11: what is there after a crash in the middle? The old contents, the new ones, or
    // nothing with the default mark. Views that were taken before stay as they were.
    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let contents = Contents::from_feed(feed, mark)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = contents;
        Ok(())
    }

    // Question 12: what would an operator like to know, and to change while the node runs? See
    // `properties`, `property`, `compact`, `verify`, `reconfigure` and `close`, which have defaults.
}

impl Engine {
    /// What is there now; a write waits until this is let go.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
