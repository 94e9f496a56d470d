//! One engine, one writer, and consistent reads whether or not the engine has views.

use std::sync::{Arc, Condvar, Mutex};

use super::{Caps, Engine, EngineView, Feed, Flow, Mark, Op, Range, Read, Result};

/// An engine with consistent reads for many readers and writes for one writer.
pub struct Store {
    engine: Arc<dyn Engine>,
    /// Only for an engine without views.
    gate: Option<Arc<Gate>>,
}

impl Store {
    /// Takes an opened engine.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        let gate = (!engine.caps().contains(Caps::VIEW)).then(Arc::default);
        Store { engine, gate }
    }

    /// The engine, for what needs no consistency with anything else: its names, properties,
    /// limits, and single point reads.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whether a [`ReadView`] holds back writes as long as it lives.
    pub fn views_block_writes(&self) -> bool {
        self.gate.is_some()
    }

    /// A consistent read of the latest write.
    ///
    /// With an engine without views it waits for a write in progress and holds back the next one:
    /// keep it short, and while it lives, never open a second one in the same thread (a writer that
    /// waits between them would make both wait for ever) and never wait for anything to be applied.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn read(&self) -> Result<ReadView> {
        let source = match &self.gate {
            None => Source::View(self.engine.view()?),
            Some(gate) => {
                let pass = Gate::enter(gate);
                Source::Locked {
                    mark: self.engine.mark()?,
                    engine: self.engine.clone(),
                    _pass: pass,
                }
            }
        };
        Ok(ReadView { source })
    }

    /// The mark of the latest write.
    ///
    /// # Errors
    ///
    /// The engine's own failure.
    pub fn mark(&self) -> Result<Mark> {
        self.engine.mark()
    }

    /// Writes one batch with its mark; see [`Engine::write`]. For the single writer only.
    ///
    /// # Errors
    ///
    /// The engine's own failure; nothing more may be written after one.
    pub fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let _alone = self.gate.as_deref().map(Gate::alone);
        crash_point!("engine_write_before");
        let written = self.engine.write(batch, mark);
        crash_point!("engine_write_after");
        written
    }

    /// Makes all earlier writes durable; see [`Engine::sync`]. For the single writer only.
    ///
    /// # Errors
    ///
    /// The engine's own failure; never called again after one.
    pub fn sync(&self) -> Result<Mark> {
        crash_point!("engine_sync_before");
        let durable = self.engine.sync();
        crash_point!("engine_sync_after");
        durable
    }

    /// Replaces the whole contents; see [`Engine::replace`]. For the single writer only.
    ///
    /// # Errors
    ///
    /// The feed's error or the engine's own.
    pub fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let _alone = self.gate.as_deref().map(Gate::alone);
        crash_point!("engine_replace_before");
        let replaced = self.engine.replace(feed, mark);
        crash_point!("engine_replace_after");
        replaced
    }
}

/// A consistent read: owned, and free to move to another thread.
pub struct ReadView {
    source: Source,
}

enum Source {
    View(Box<dyn EngineView>),
    Locked {
        engine: Arc<dyn Engine>,
        mark: Mark,
        _pass: Pass,
    },
}

impl ReadView {
    /// The mark of the state that is read.
    pub fn mark(&self) -> &Mark {
        match &self.source {
            Source::View(view) => view.mark(),
            Source::Locked { mark, .. } => mark,
        }
    }
}

impl Read for ReadView {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match &self.source {
            Source::View(view) => view.get(key, out),
            Source::Locked { engine, .. } => engine.get(key, out),
        }
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        match &self.source {
            Source::View(view) => view.scan(range, out),
            Source::Locked { engine, .. } => engine.scan(range, out),
        }
    }
}

/// A read-write lock whose read side is owned and may be released by another thread, which the
/// standard library's is not. A waiting writer goes before new readers, so readers cannot starve
/// it.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    readers: usize,
    writer_waits: bool,
    writing: bool,
}

/// The read side, held.
struct Pass(Arc<Gate>);

/// The write side, held.
struct Alone<'a>(&'a Gate);

impl Gate {
    fn enter(gate: &Arc<Gate>) -> Pass {
        let mut state = gate.state.lock().expect("no panic while held");
        while state.writing || state.writer_waits {
            state = gate.changed.wait(state).expect("no panic while held");
        }
        state.readers += 1;
        Pass(gate.clone())
    }

    fn alone(&self) -> Alone<'_> {
        let mut state = self.state.lock().expect("no panic while held");
        while state.readers > 0 || state.writing {
            state.writer_waits = true;
            state = self.changed.wait(state).expect("no panic while held");
        }
        state.writer_waits = false;
        state.writing = true;
        Alone(self)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().expect("no panic while held");
        state.readers -= 1;
        if state.readers == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.state.lock().expect("no panic while held").writing = false;
        self.0.changed.notify_all();
    }
}
