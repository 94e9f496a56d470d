//! The engines of the members, what a loss of power leaves of them, and bugs that sit between kvd
//! and its engine.

use std::sync::Arc;

use kvd::doors::Clock;
use kvd::keyspace::encoding;
use kvd::storage::{
    Caps, Engine, EngineView, Feed, Flow, Limits, Mark, MemoryEngine, Op, Range, Read, Result,
};

use crate::plant::{Plant, planted};
use crate::world::MEMBERS;

/// One member's engine keeps nothing itself, so its snapshots and its log must. All have views: a
/// reader of one without holds writers back, and here both are the same thread.
pub(crate) fn of_member(n: usize) -> MemoryEngine {
    match n % MEMBERS {
        2 => MemoryEngine::with_caps(Caps::VIEW.with(Caps::FAST_READ)),
        _ => MemoryEngine::new(),
    }
}

/// What a node is given for its engine.
pub(crate) fn opened(engine: &Arc<MemoryEngine>, clock: Arc<dyn Clock>) -> Arc<dyn Engine> {
    let engine = engine.clone();
    if planted(Plant::LocalExpiry) {
        Arc::new(OwnClock { engine, clock })
    } else {
        engine
    }
}

/// The power goes.
pub(crate) fn crash(engine: &MemoryEngine) {
    let mut kept = Vec::new();
    if planted(Plant::LostMark) {
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        let kept = &mut kept;
        let read = engine.scan(all, &mut |key, value| {
            kept.push((key.to_vec(), value.to_vec()));
            Flow::Continue
        });
        read.expect("memory is read");
    }
    engine.crash();
    let batch: Vec<Op<'_>> = kept
        .iter()
        .map(|(key, value)| Op::Put(key, value))
        .collect();
    let mark = engine.mark().expect("memory is read");
    engine.write(&batch, &mark).expect("memory takes it");
}

/// The planted bug that a record is gone as soon as the node's own clock says so.
struct OwnClock {
    engine: Arc<MemoryEngine>,
    clock: Arc<dyn Clock>,
}

impl OwnClock {
    /// Whether the record has expired by this node's clock; see the layout in kvd's `keyspace`.
    fn due(&self, key: &[u8], record: &[u8]) -> bool {
        let expires = || {
            let at: [u8; 8] = record.get(14..22)?.try_into().ok()?;
            (record[1] & 1 == 1).then_some(u64::from_le_bytes(at))
        };
        key.first() == Some(&encoding::RECORD)
            && expires().is_some_and(|at| at <= self.clock.wall_ms())
    }
}

impl Read for OwnClock {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let mut due = false;
        let found = self.engine.get(key, &mut |value| {
            due = self.due(key, value);
            if !due {
                out(value);
            }
        })?;
        Ok(found && !due)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.engine.scan(range, &mut |key, value| {
            if self.due(key, value) {
                return Flow::Continue;
            }
            out(key, value)
        })
    }
}

impl Engine for OwnClock {
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
        self.engine.write(batch, mark)
    }

    fn sync(&self) -> Result<Mark> {
        self.engine.sync()
    }

    fn view(&self) -> Result<Box<dyn EngineView>> {
        self.engine.view()
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.engine.replace(feed, mark)
    }

    fn property(&self, name: &str) -> Option<String> {
        self.engine.property(name)
    }

    fn properties(&self) -> Vec<String> {
        self.engine.properties()
    }

    fn compact(&self) -> Result<()> {
        self.engine.compact()
    }

    fn verify(&self) -> Result<()> {
        self.engine.verify()
    }

    fn close(&self) -> Result<()> {
        self.engine.close()
    }
}
