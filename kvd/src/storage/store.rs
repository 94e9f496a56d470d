//! One engine under the changes that it does not have yet, and consistent reads of both whether or
//! not the engine has views.
//!
//! Changes are visible as soon as they are [applied](Store::apply); the engine gets them
//! [later](Store::store_some), many at once, so nobody waits for it. Two threads change a store:
//! one applies, one stores. They may be the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::before::{self, Before, KEPT_BYTES_MAX, SHORT_GETS, Turn};
use super::cache::{ALWAYS, Cache, CacheCounts};
use super::waiting::{Amount, Step, Steps, Waiting};
use super::{
    Caps, Engine, EngineView, Error, ErrorKind, Feed, Flow, Layer, Mark, Op, Range, Read, Result,
    Stack, layer,
};

/// An engine with changes over it, for many readers.
pub struct Store {
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
    /// What was read lately, where anything is kept of that.
    cache: Option<Arc<Cache>>,
    /// What may be kept for long reads of an engine without views.
    kept_bytes_max: usize,
    /// What was stored, and may be looked at by readers: it is let go by who stores, and not by a
    /// reader, who would take long over it.
    stored: Mutex<Vec<Arc<Step>>>,
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
    /// How many changes were ever applied.
    changes: u64,
    /// Of the newest state, applied or stored; none until it is known.
    mark: Option<Arc<Mark>>,
    /// The cache's, once it knows of all that the engine was given.
    generation: u64,
    /// The readers of an engine without views, by the number of the newest step that they know.
    /// What they do not know must not get into the engine under them unseen.
    readers: BTreeMap<u64, Readers>,
    /// The engine's contents are being replaced: an engine without views has no readers meanwhile.
    replacing: bool,
}

/// Readers that know the same steps.
#[derive(Default)]
struct Readers {
    /// Those that are waited for: they will have gone soon.
    short: usize,
    /// Those for which is kept what the engine had.
    long: usize,
    /// The same, but they may fail.
    optional: usize,
    before: Arc<Before>,
}

impl Readers {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Short => &mut self.short,
            Kind::Long => &mut self.long,
            Kind::Optional => &mut self.optional,
        }
    }
}

/// How a reader of an engine without views is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Short,
    Long,
    Optional,
}

impl Table {
    /// The number of the newest step that the engine may get, for all that readers know.
    fn known(&self) -> u64 {
        let mut waited_for = self.readers.iter().filter(|(_, readers)| {
            readers.short > 0 || readers.long > 0 && readers.before.is_full()
        });
        waited_for.next().map_or(u64::MAX, |(number, _)| *number)
    }

    /// Those that do not know step `number` and for whom is kept what the engine had.
    fn kept_for(&self, number: u64) -> Vec<Arc<Before>> {
        let readers = self.readers.range(..number);
        let kept = readers.filter(|(_, readers)| {
            readers.long + readers.optional > 0 && !readers.before.is_full()
        });
        kept.map(|(_, readers)| readers.before.clone()).collect()
    }

    fn kept_bytes(&self) -> usize {
        let kept = self.readers.values().map(|readers| readers.before.bytes());
        kept.sum()
    }

    /// Those for whom nothing more should be kept, since too much is, and whether some of them
    /// need what there is.
    fn too_much(&self, bytes_max: usize) -> Option<(Arc<Before>, bool)> {
        let kept = || {
            self.readers
                .values()
                .filter(|readers| readers.before.bytes() > 0)
        };
        if self.kept_bytes() < bytes_max || kept().any(|readers| readers.before.is_full()) {
            return None;
        }
        let most = kept().max_by_key(|readers| readers.before.bytes())?;
        Some((most.before.clone(), most.long > 0))
    }
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
            cache: None,
            kept_bytes_max: KEPT_BYTES_MAX,
            stored: Mutex::default(),
        }
    }

    /// Keeps values that are read, in so many bytes of memory at most; 0 keeps none.
    #[must_use]
    pub fn with_cache(mut self, bytes_max: usize) -> Self {
        self.cache = Cache::new(bytes_max).map(Arc::new);
        self
    }

    /// What the cache of values has done.
    pub fn cache_counts(&self) -> CacheCounts {
        let cache = self.cache.as_ref();
        cache.map_or(CacheCounts::default(), |cache| cache.counts())
    }

    #[cfg(test)]
    pub(super) fn bound_kept(&mut self, bytes_max: usize) {
        self.kept_bytes_max = bytes_max;
    }

    /// The engine, for its names, properties and limits. Its contents may be behind.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whether a [`ReadView`] holds back what is stored, while it is short.
    pub fn views_block_stores(&self) -> bool {
        !self.engine.caps().contains(Caps::VIEW)
    }

    /// What is kept for long reads of an engine without views takes this much, about.
    pub fn kept_bytes(&self) -> usize {
        self.shared.lock().kept_bytes()
    }

    /// How much waits for the engine.
    pub fn waiting(&self) -> Amount {
        self.shared.lock().waiting.amount()
    }

    /// How many changes were applied since this was opened.
    pub fn changes(&self) -> u64 {
        self.shared.lock().changes
    }

    /// A consistent read of the newest state.
    ///
    /// With an engine without views it holds back what is stored later, until it has read more
    /// than a little: then what the engine had is kept for it. So never wait for anything to be
    /// stored while it lives.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn read(&self) -> Result<ReadView> {
        if self.views_block_stores() {
            return self.read_pinned(Kind::Short);
        }
        // First the steps, then the engine: it may have some of them by then, and none beyond them
        // unless it has them all.
        let (steps, generation) = {
            let table = self.shared.lock();
            (table.waiting.steps().clone(), table.generation)
        };
        let view = self.engine.view()?;
        let stored = steps.iter().take_while(|step| step.is_in(view.mark()));
        Ok(ReadView {
            stored: stored.count(),
            steps,
            source: Source::View(view),
            cache: self.cache_at(generation),
        })
    }

    fn cache_at(&self, generation: u64) -> Option<(Arc<Cache>, u64)> {
        Some((self.cache.clone()?, generation))
    }

    /// The same for what takes its time and may be begun anew, as a snapshot: nothing waits for it
    /// at all. It fails where more than [`KEPT_BYTES_MAX`] would have to be kept for it.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn read_at_length(&self) -> Result<ReadView> {
        if self.views_block_stores() {
            return self.read_pinned(Kind::Optional);
        }
        self.read()
    }

    fn read_pinned(&self, kind: Kind) -> Result<ReadView> {
        let mut table = self.shared.lock();
        while table.replacing {
            table = self.shared.wait(table);
        }
        let mark = self.newest_mark(&mut table)?;
        let number = table.waiting.number();
        let readers = table.readers.entry(number).or_default();
        *readers.of(kind) += 1;
        let before = readers.before.clone();
        Ok(ReadView {
            steps: table.waiting.steps().clone(),
            stored: 0,
            cache: self.cache_at(table.generation),
            source: Source::Pinned {
                engine: self.engine.clone(),
                mark,
                pin: Pin {
                    shared: self.shared.clone(),
                    number,
                    before,
                    optional: kind == Kind::Optional,
                    long: AtomicBool::new(false),
                    gets: AtomicUsize::new(0),
                },
            },
        })
    }

    /// The newest state, for the thread that applies: it stays consistent until the next
    /// [`apply`](Self::apply), though the engine gets steps meanwhile, because it knows them all.
    pub fn latest(&self) -> Latest {
        Latest {
            engine: self.engine.clone(),
            cache: self.cache.clone(),
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
    /// Returns how many bytes more wait for it. For the one thread that applies.
    pub fn apply(&self, layer: Layer, mark: Mark) -> usize {
        let newest = Arc::new(mark.clone());
        let step = Step::new(layer, mark);
        let mut table = self.shared.lock();
        table.mark = Some(newest);
        table.changes += step.layer.len() as u64;
        table.waiting.push(step)
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
    /// `wanted` is among it; returns how many bytes fewer wait, 0 if it was not. For the one thread
    /// that stores.
    ///
    /// # Errors
    ///
    /// The engine's own failure; nothing more may be stored after one.
    pub fn store_some(&self, wanted: u64) -> Result<usize> {
        let (steps, readers) = {
            let mut table = self.shared.lock();
            loop {
                if let Some((before, needed)) = table.too_much(self.kept_bytes_max) {
                    drop(table);
                    before.keep_no_more(needed);
                    table = self.shared.lock();
                }
                let known = table.known();
                let steps = table.waiting.take(wanted, known);
                let oldest = table.waiting.steps().first();
                if !steps.is_empty() || oldest.is_none_or(|step| step.first > wanted) {
                    let newest = steps.last().map_or(0, |step| step.number);
                    break (steps, table.kept_for(newest));
                }
                table = self.shared.wait(table);
            }
        };
        let Some(newest) = steps.last() else {
            self.let_go(Vec::new());
            return Ok(0);
        };
        crash_point!("store_taken");
        let batch = layer::batch_of(&steps);
        self.write_under(&readers, &batch, &newest.mark)?;
        let generation = self.renew_cache(&batch);
        drop(batch);
        let before = {
            let mut table = self.shared.lock();
            table.generation = generation;
            table.waiting.stored()
        };
        crash_point!("store_dropped");
        drop(before);
        let bytes = steps.iter().map(|step| step.bytes).sum();
        self.let_go(steps);
        Ok(bytes)
    }

    /// Tells the cache what the engine has got; the generation that begins with it.
    fn renew_cache(&self, batch: &[Op<'_>]) -> u64 {
        let Some(cache) = &self.cache else { return 0 };
        let generation = cache.begin();
        for op in batch {
            match op {
                Op::Put(key, value) => cache.changed(key, Some(value)),
                Op::Delete(key) => cache.changed(key, None),
                Op::DeleteRange(..) => cache.clear(),
            }
        }
        generation
    }

    /// Forgets what was stored, but for what readers look at.
    fn let_go(&self, steps: Vec<Arc<Step>>) {
        let mut stored = self.stored.lock().expect("no panic while held");
        stored.extend(steps);
        stored.retain(|step| Arc::strong_count(step) > 1);
    }

    fn write_under(&self, readers: &[Arc<Before>], batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        before::write_under(readers, &*self.engine, batch, || {
            self.write_to_engine(batch, mark)
        })
    }

    fn write_to_engine(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        crash_point!("engine_write_before");
        let written = self.engine.write(batch, mark);
        crash_point!("engine_write_after");
        written.map_err(|error| match error.kind() {
            // Its limits were looked at when it was opened, and keys and values before they came.
            ErrorKind::TooLarge => refused(batch, &error),
            _ => error,
        })
    }

    /// Gives the engine all that has been applied until now. For the one thread that stores.
    ///
    /// # Errors
    ///
    /// As for [`store_some`](Self::store_some).
    pub fn store_all(&self) -> Result<()> {
        let wanted = self.newest();
        while self.store_some(wanted)? > 0 {}
        Ok(())
    }

    /// Gives the engine changes that no reader of the newest state sees or ever will, with the mark
    /// that the engine has: what the cache knows of them is what earlier readers may see. For the
    /// one thread that stores.
    ///
    /// # Errors
    ///
    /// As for [`store_some`](Self::store_some).
    pub fn store_unseen(&self, batch: &[Op<'_>]) -> Result<()> {
        let mark = self.engine.mark()?;
        // Long readers may be of a state before.
        let readers = self.shared.lock().kept_for(u64::MAX);
        self.write_under(&readers, batch, &mark)
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
        // Before the engine holds anything else: readers of this generation, whose views may be of
        // either contents, find nothing here from now on, and add nothing.
        let generation = self.cache.as_ref().map_or(0, |cache| {
            let generation = cache.begin();
            cache.clear();
            generation
        });
        crash_point!("engine_replace_before");
        let replaced = self.engine.replace(feed, mark);
        crash_point!("engine_replace_after");
        let mut table = self.shared.lock();
        let mut before = Steps::default();
        if replaced.is_ok() {
            // Not before: until then whoever reads would go back to what the engine had.
            before = table.waiting.clear();
            table.generation = generation;
            table.mark = Some(Arc::new(mark.clone()));
        }
        table.replacing = false;
        drop(table);
        self.shared.changed.notify_all();
        drop(before);
        replaced
    }
}

/// What an engine says of a batch that is within its limits.
fn refused(batch: &[Op<'_>], error: &Error) -> Error {
    let bytes = |op: &Op<'_>| match op {
        Op::Put(a, b) | Op::DeleteRange(a, b) => a.len() + b.len(),
        Op::Delete(key) => key.len(),
    };
    let message = format!(
        "it refused a batch of {} changes and {} bytes as too large, which is within its limits: \
         {error}",
        batch.len(),
        batch.iter().map(bytes).sum::<usize>()
    );
    Error::new(ErrorKind::TooLarge, message)
}

/// The newest state as the thread that applies reads it.
pub struct Latest {
    engine: Arc<dyn Engine>,
    cache: Option<Arc<Cache>>,
    steps: Steps,
}

impl Read for Latest {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match &self.cache {
            Some(cache) => {
                let cached = cache.over(ALWAYS, &*self.engine);
                Stack::new(&cached, &self.steps).get(key, out)
            }
            None => Stack::new(&*self.engine, &self.steps).get(key, out),
        }
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        Stack::new(&*self.engine, &self.steps).scan(range, out)
    }
}

/// A consistent read: owned, and free to move to another thread.
pub struct ReadView {
    source: Source,
    steps: Steps,
    /// So many of the oldest steps are in the source.
    stored: usize,
    /// The cache, and the generation to which the steps belong.
    cache: Option<(Arc<Cache>, u64)>,
}

enum Source {
    View(Box<dyn EngineView>),
    Pinned {
        engine: Arc<dyn Engine>,
        mark: Arc<Mark>,
        pin: Pin,
    },
}

/// One reader of an engine without views.
struct Pin {
    shared: Arc<Shared>,
    number: u64,
    before: Arc<Before>,
    optional: bool,
    long: AtomicBool,
    gets: AtomicUsize,
}

impl Pin {
    fn kind(&self) -> Kind {
        match (self.optional, self.long.load(Ordering::Relaxed)) {
            (true, _) => Kind::Optional,
            (false, true) => Kind::Long,
            (false, false) => Kind::Short,
        }
    }

    /// Nobody waits for this reader any more, if anybody did.
    fn become_long(&self) {
        if self.optional || self.long.load(Ordering::Relaxed) {
            return;
        }
        let mut table = self.shared.lock();
        // Several threads may read.
        if self.long.swap(true, Ordering::Relaxed) {
            return;
        }
        let readers = table.readers.get_mut(&self.number);
        let readers = readers.expect("this one is among them");
        readers.short -= 1;
        readers.long += 1;
        self.shared.changed.notify_all();
    }

    /// Begins a turn, in which `engine` is read as it was when the reader came.
    fn turn<'a>(&'a self, engine: &'a dyn Engine) -> Result<Turn<'a>> {
        let turn = Turn::begin(engine, &self.before);
        if self.optional && self.before.is_full() {
            let mib = KEPT_BYTES_MAX >> 20;
            return Err(Error::new(
                ErrorKind::Other,
                format!("more than {mib} MiB were changed while it was read: begin anew"),
            ));
        }
        Ok(turn)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let readers = table.readers.get_mut(&self.number);
        let readers = readers.expect("this one is among them");
        *readers.of(self.kind()) -= 1;
        let mut gone = None;
        if readers.short + readers.long + readers.optional == 0 {
            gone = table.readers.remove(&self.number);
        }
        self.shared.changed.notify_all();
        drop(table);
        // Much may be kept for it: not under the lock.
        drop(gone);
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

    /// The steps that are not in the source.
    fn over<'a>(&'a self, base: &'a dyn Read) -> Stack<'a, Arc<Step>> {
        Stack::new(base, &self.steps[self.stored..])
    }

    fn get_from(&self, base: &dyn Read, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let Some((cache, generation)) = &self.cache else {
            return self.over(base).get(key, out);
        };
        // All steps: what the source has got of them by now, the cache of its generation has not.
        Stack::new(&cache.over(*generation, base), &self.steps).get(key, out)
    }
}

impl Read for ReadView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let (engine, pin) = match &self.source {
            Source::View(view) => return self.get_from(&**view, key, out),
            Source::Pinned { engine, pin, .. } => (engine, pin),
        };
        if pin.gets.fetch_add(1, Ordering::Relaxed) == SHORT_GETS {
            pin.become_long();
        }
        let turn = pin.turn(&**engine)?;
        self.get_from(&turn, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let (engine, pin) = match &self.source {
            Source::View(view) => return self.over(&**view).scan(range, out),
            Source::Pinned { engine, pin, .. } => (engine, pin),
        };
        let mut edge: Option<Vec<u8>> = None;
        loop {
            let rest = match (&edge, range.reverse) {
                (None, _) => range,
                (Some(edge), false) => Range {
                    from: edge,
                    ..range
                },
                (Some(edge), true) => Range {
                    to: Some(edge),
                    ..range
                },
            };
            let turn = pin.turn(&**engine)?;
            let mut show = |key: &[u8], value: &[u8]| turn.show(key, value, out);
            self.over(&turn).scan(rest, &mut show)?;
            let Some(mut last) = turn.edge() else {
                return Ok(());
            };
            if !range.reverse {
                // The first key behind it.
                last.push(0);
            }
            edge = Some(last);
            pin.become_long();
        }
    }
}
