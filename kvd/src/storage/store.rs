//! One engine under the changes that it does not have yet, and consistent reads of both whether or
//! not the engine has views.
//!
//! Changes are visible as soon as they are [applied](Store::apply); the engine gets them
//! [later](Store::store_some), many at once, so nobody waits for it. Two threads change a store:
//! one applies, one stores. They may be the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::waiting::{self, Amount, Steps, Waiting};
use super::{Caps, Engine, EngineView, Feed, Flow, Layer, Mark, Op, Range, Read, Result, Stack};

/// An engine with changes over it, for many readers.
pub struct Store {
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// Readers of an engine without views have gone.
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    waiting: Waiting,
    /// Of the newest state, applied or stored; none until it is known.
    mark: Option<Arc<Mark>>,
    /// How many readers of an engine without views know the steps up to each number. What they do
    /// not know must not get into the engine under them.
    readers: BTreeMap<u64, usize>,
    /// The engine's contents are being replaced: an engine without views has no readers meanwhile.
    replacing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while held")
    }

    fn wait<'t>(&self, table: MutexGuard<'t, Table>) -> MutexGuard<'t, Table> {
        self.changed.wait(table).expect("no panic while held")
    }
}

impl Store {
    /// Takes an opened engine.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Store {
            engine,
            shared: Arc::default(),
        }
    }

    /// The engine, for its names, properties and limits. Its contents may be behind.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whether a [`ReadView`] holds back what is stored as long as it lives.
    pub fn views_block_stores(&self) -> bool {
        !self.engine.caps().contains(Caps::VIEW)
    }

    /// How much waits for the engine.
    pub fn waiting(&self) -> Amount {
        self.shared.lock().waiting.amount()
    }

    /// A consistent read of the newest state.
    ///
    /// With an engine without views it holds back what is stored later: keep it short, and never
    /// wait for anything to be stored while it lives.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn read(&self) -> Result<ReadView> {
        if self.views_block_stores() {
            return self.read_pinned();
        }
        // First the steps, then the engine: it may have some of them by then, and none beyond them
        // unless it has them all.
        let steps = self.shared.lock().waiting.steps().clone();
        let view = self.engine.view()?;
        let stored = steps.iter().take_while(|step| step.is_in(view.mark()));
        Ok(ReadView {
            stored: stored.count(),
            steps,
            source: Source::View(view),
        })
    }

    fn read_pinned(&self) -> Result<ReadView> {
        let mut table = self.shared.lock();
        while table.replacing {
            table = self.shared.wait(table);
        }
        let mark = self.newest_mark(&mut table)?;
        let number = table.waiting.number();
        *table.readers.entry(number).or_default() += 1;
        Ok(ReadView {
            steps: table.waiting.steps().clone(),
            stored: 0,
            source: Source::Pinned {
                engine: self.engine.clone(),
                mark,
                _pin: Pin {
                    shared: self.shared.clone(),
                    number,
                },
            },
        })
    }

    /// The newest state, for the thread that applies: it stays consistent until the next
    /// [`apply`](Self::apply), though the engine gets steps meanwhile, because it knows them all.
    pub fn latest(&self) -> Latest {
        Latest {
            engine: self.engine.clone(),
            steps: self.shared.lock().waiting.steps().clone(),
        }
    }

    /// The mark of the newest state.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn mark(&self) -> Result<Mark> {
        let mut table = self.shared.lock();
        Ok(Mark::clone(&*self.newest_mark(&mut table)?))
    }

    fn newest_mark(&self, table: &mut Table) -> Result<Arc<Mark>> {
        match &table.mark {
            Some(mark) => Ok(mark.clone()),
            None => {
                let mark = Arc::new(self.engine.mark()?);
                Ok(table.mark.insert(mark).clone())
            }
        }
    }

    /// Makes changes visible, and the mark of the state behind them; the engine gets them later.
    /// For the one thread that applies.
    pub fn apply(&self, layer: Layer, mark: Mark) {
        let mut table = self.shared.lock();
        table.mark = Some(Arc::new(mark.clone()));
        table.waiting.push(layer, mark);
    }

    /// Makes one layer of many small ones, so that reads look through few. For the one thread that
    /// applies, when nobody waits for it.
    pub fn tidy(&self) {
        loop {
            let joining = self.shared.lock().waiting.to_join();
            let Some(joining) = joining else { return };
            let joined = joining.join();
            self.shared.lock().waiting.joined(joined, &joining);
        }
    }

    /// The number of the newest layer; they are counted as they are applied.
    pub fn newest(&self) -> u64 {
        self.shared.lock().waiting.number()
    }

    /// Gives the engine some of what waits, as one batch, if anything of the layers up to number
    /// `wanted` is among it; returns whether it was. For the one thread that stores.
    ///
    /// # Errors
    ///
    /// The engine's own failure; nothing more may be stored after one.
    pub fn store_some(&self, wanted: u64) -> Result<bool> {
        let steps = {
            let mut table = self.shared.lock();
            loop {
                let known = table.readers.first_key_value();
                let known = known.map_or(u64::MAX, |(number, _)| *number);
                let steps = table.waiting.take(wanted, known);
                let oldest = table.waiting.steps().first();
                if !steps.is_empty() || oldest.is_none_or(|step| step.first > wanted) {
                    break steps;
                }
                table = self.shared.wait(table);
            }
        };
        let Some(newest) = steps.last() else {
            return Ok(false);
        };
        crash_point!("store_taken");
        match &steps[..] {
            [step] => self.write_to_engine(&step.layer.ops(), &step.mark)?,
            _ => self.write_to_engine(&waiting::join(&steps).ops(), &newest.mark)?,
        }
        let before = self.shared.lock().waiting.stored();
        crash_point!("store_dropped");
        // Only now, outside of the lock.
        drop(before);
        Ok(true)
    }

    fn write_to_engine(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        crash_point!("engine_write_before");
        let written = self.engine.write(batch, mark);
        crash_point!("engine_write_after");
        written
    }

    /// Gives the engine all that has been applied until now. For the one thread that stores.
    ///
    /// # Errors
    ///
    /// As for [`store_some`](Self::store_some).
    pub fn store_all(&self) -> Result<()> {
        let wanted = self.newest();
        while self.store_some(wanted)? {}
        Ok(())
    }

    /// Gives the engine changes that no reader sees, with the mark that it has. For the one thread
    /// that stores.
    ///
    /// # Errors
    ///
    /// As for [`store_some`](Self::store_some).
    pub fn store_unseen(&self, batch: &[Op<'_>]) -> Result<()> {
        let mark = self.engine.mark()?;
        self.write_to_engine(batch, &mark)
    }

    /// Applies one batch and stores it, for whoever is alone with the store; see
    /// [`Engine::write`].
    ///
    /// # Errors
    ///
    /// As for [`store_some`](Self::store_some).
    pub fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut layer = Layer::new();
        for op in batch {
            layer.apply(*op);
        }
        self.apply(layer, mark.clone());
        self.store_all()
    }

    /// Makes all that has been applied until now durable, and returns the durable mark; see
    /// [`Engine::sync`]. For the one thread that stores.
    ///
    /// # Errors
    ///
    /// The engine's own failure; never called again after one.
    pub fn sync(&self) -> Result<Mark> {
        self.store_all()?;
        crash_point!("engine_sync_before");
        let durable = self.engine.sync();
        crash_point!("engine_sync_after");
        durable
    }

    /// Replaces the whole contents, and forgets what waits; see [`Engine::replace`]. For the one
    /// thread that stores, while nothing is applied.
    ///
    /// # Errors
    ///
    /// The feed's error or the engine's own; nothing more may be stored after one.
    pub fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        if self.views_block_stores() {
            let mut table = self.shared.lock();
            table.replacing = true;
            while !table.readers.is_empty() {
                table = self.shared.wait(table);
            }
        }
        crash_point!("engine_replace_before");
        let replaced = self.engine.replace(feed, mark);
        crash_point!("engine_replace_after");
        let mut table = self.shared.lock();
        let mut before = Steps::default();
        if replaced.is_ok() {
            // Not before: until then whoever reads would go back to what the engine had.
            before = table.waiting.clear();
            table.mark = Some(Arc::new(mark.clone()));
        }
        table.replacing = false;
        drop(table);
        self.shared.changed.notify_all();
        drop(before);
        replaced
    }
}

/// The newest state as the thread that applies reads it.
pub struct Latest {
    engine: Arc<dyn Engine>,
    steps: Steps,
}

impl Latest {
    fn stack(&self) -> Stack<'_, Arc<waiting::Step>> {
        Stack::new(&*self.engine, &self.steps)
    }
}

impl Read for Latest {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.stack().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.stack().scan(range, out)
    }
}

/// A consistent read: owned, and free to move to another thread.
pub struct ReadView {
    source: Source,
    steps: Steps,
    /// So many of the oldest steps are in the source.
    stored: usize,
}

enum Source {
    View(Box<dyn EngineView>),
    Pinned {
        engine: Arc<dyn Engine>,
        mark: Arc<Mark>,
        _pin: Pin,
    },
}

/// Keeps from the engine what a reader does not know.
struct Pin {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let readers = table.readers.get_mut(&self.number);
        let readers = readers.expect("this one is among them");
        *readers -= 1;
        if *readers == 0 {
            table.readers.remove(&self.number);
            self.shared.changed.notify_all();
        }
    }
}

impl ReadView {
    /// The mark of the state that is read.
    pub fn mark(&self) -> &Mark {
        match (&self.source, self.steps[self.stored..].last()) {
            (_, Some(step)) => &step.mark,
            (Source::View(view), None) => view.mark(),
            (Source::Pinned { mark, .. }, None) => mark,
        }
    }

    fn stack(&self) -> Stack<'_, Arc<waiting::Step>> {
        let base: &dyn Read = match &self.source {
            Source::View(view) => &**view,
            Source::Pinned { engine, .. } => &**engine,
        };
        Stack::new(base, &self.steps[self.stored..])
    }
}

impl Read for ReadView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.stack().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.stack().scan(range, out)
    }
}
