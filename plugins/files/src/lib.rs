//! A storage engine for kvd over plain files: the example of one that is written from nothing.
//!
//! A file has a record for each write; where the value of each key lies in it is in memory. `sync`
//! is the file's `fdatasync`. When the file has become much longer than what is in force, a new one
//! is written beside it and takes its place, and so it is with `replace`. There are no views: kvd
//! reads and writes in turn.

mod log;

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, GenDir, Mark, NoView, Op, OpenContext, OptionKind,
    OptionSpec, Options, Range, Result,
};

use self::log::{Index, Log, Record};

/// A new file is written in records of about as many bytes.
const RECORD_BYTES: usize = 1 << 20;

/// What a key costs beside its bytes and those of its value, in a record.
const PUT_BYTES: u64 = 17;

/// The opened engine.
pub struct Files {
    /// Reads hold it while they read; a write takes it for itself when its record is in the file.
    state: RwLock<State>,
    dir: Mutex<GenDir>,
    slack: AtomicU64,
}

kvd_plugin_api::export_backend!(Files);

struct State {
    log: Log,
    index: Index,
    mark: Mark,
}

impl State {
    /// Makes a record that is in the file part of the state.
    fn take(&mut self, record: &[u8]) -> Result<()> {
        self.mark = log::carry_out(record, self.log.end(), &mut self.index)?;
        self.log.grow(record);
        Ok(())
    }

    /// The bytes that a file with nothing but what is in force would have, about.
    fn live_bytes(&self) -> u64 {
        let puts = self.index.iter();
        puts.map(|(key, place)| key.len() as u64 + place.len + PUT_BYTES)
            .sum()
    }
}

/// A state that is being written, in a file of its own.
struct Draft {
    state: State,
    record: Record,
    mark: Mark,
}

impl Draft {
    fn new(path: &Path, mark: &Mark) -> Result<Self> {
        Ok(Draft {
            state: State {
                log: Log::create(path)?,
                index: Index::new(),
                mark: Mark::default(),
            },
            record: Record::new(mark),
            mark: mark.clone(),
        })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.record.change(&Op::Put(key, value));
        if self.record.len() < RECORD_BYTES {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let record = std::mem::replace(&mut self.record, Record::new(&self.mark)).finish();
        self.state.log.write(&record)?;
        self.state.take(&record)
    }

    /// The state, whole and durable.
    fn finish(mut self) -> Result<State> {
        // Also without changes: the mark is in it.
        self.flush()?;
        self.state.log.sync()?;
        Ok(self.state)
    }
}

/// Writes a state into a new generation and puts that in force, durably.
fn write_anew(
    dir: &mut GenDir,
    mark: &Mark,
    fill: impl FnOnce(&mut Draft) -> Result<()>,
) -> Result<State> {
    let next = dir.prepare()?;
    let mut draft = Draft::new(next.path(), mark)?;
    fill(&mut draft)?;
    let state = draft.finish()?;
    dir.switch(&next)?;
    Ok(state)
}

impl Files {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other contents in the place of those that are there.
    fn replace_by(&self, mark: &Mark, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<()> {
        let mut dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        let state = write_anew(&mut dir, mark, fill)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        dir.remove_stale()
    }
}

impl Backend for Files {
    const NAME: &'static str = "files";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "an example over plain files: keys in memory, values on disk";
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::FAST_READ)
        .with(Caps::COMPACT)
        .with(Caps::VERIFY)
        .with(Caps::RECONFIGURE);
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "slack",
        kind: OptionKind::Size,
        default: "64MiB",
        help: "the file is written anew when it has as many bytes more than twice what is in force",
    }];
    type View = NoView<Self>;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let mut dir = GenDir::open(cx.dir, "kvd-files 1")?;
        let state = match dir.current() {
            None => write_anew(&mut dir, &Mark::default(), |_| Ok(()))?,
            Some(file) => {
                let (mut index, mut mark) = (Index::new(), Mark::default());
                let log = Log::open(file.path(), |record, at| {
                    mark = log::carry_out(record, at, &mut index)?;
                    Ok(())
                })?;
                State { log, index, mark }
            }
        };
        Ok(Files {
            state: RwLock::new(state),
            dir: Mutex::new(dir),
            slack: AtomicU64::new(cx.options.size("slack")),
        })
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.state().mark.clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let state = self.state();
        let Some(place) = state.index.get(key) else {
            return Ok(false);
        };
        let mut value = Vec::new();
        state.log.read(*place, &mut value)?;
        out(&value);
        Ok(true)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        if range.to.is_some_and(|to| to <= range.from) {
            return Ok(());
        }
        let state = self.state();
        let end = range.to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = state
            .index
            .range::<[u8], _>((Bound::Included(range.from), end));
        let mut value = Vec::new();
        while let Some((key, place)) = if range.reverse {
            entries.next_back()
        } else {
            entries.next()
        } {
            state.log.read(*place, &mut value)?;
            if out(key, &value) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut record = Record::new(mark);
        batch.iter().for_each(|op| record.change(op));
        let record = record.finish();
        // Nobody else writes; readers go on until the record is there as a whole.
        self.state().log.write(&record)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.take(&record)
    }

    fn sync(&self) -> Result<Mark> {
        let is_long = {
            let state = self.state();
            let slack = self.slack.load(Ordering::Relaxed);
            // The sum over all keys is taken only where it may matter.
            state.log.end() > slack && state.log.end() - slack > 2 * state.live_bytes()
        };
        if is_long {
            self.compact()?;
        } else {
            self.state().log.sync()?;
        }
        // Nobody writes meanwhile: this is the mark of what was made durable.
        self.mark()
    }

    fn view(&self) -> Result<Self::View> {
        Err(Error::unsupported("view"))
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        self.replace_by(mark, |draft| {
            let mut put = Ok(());
            while feed.next(&mut |key, value| put = draft.put(key, value))? {
                std::mem::replace(&mut put, Ok(()))?;
            }
            Ok(())
        })
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["kvd.disk.bytes", "kvd.keys", "files.bytes.live"]
    }

    fn property(&self, name: &str) -> Option<String> {
        let state = self.state();
        let number = match name {
            "kvd.disk.bytes" => state.log.end(),
            "kvd.keys" => state.index.len() as u64,
            "files.bytes.live" => state.live_bytes(),
            _ => return None,
        };
        Some(number.to_string())
    }

    fn compact(&self) -> Result<()> {
        let mark = self.mark()?;
        self.replace_by(&mark, |draft| {
            let state = self.state();
            let mut value = Vec::new();
            for (key, place) in &state.index {
                state.log.read(*place, &mut value)?;
                draft.put(key, &value)?;
            }
            Ok(())
        })
    }

    fn verify(&self) -> Result<()> {
        let state = self.state();
        let (mut at, mut index, mut mark) = (0, Index::new(), Mark::default());
        while let Some(record) = state.log.record(at)? {
            mark = log::carry_out(&record, at, &mut index)?;
            at += record.len() as u64;
        }
        if at != state.log.end() || mark != state.mark || index.len() != state.index.len() {
            let message = format!("the file is whole up to {at} of {} bytes", state.log.end());
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        Ok(())
    }

    fn reconfigure(&self, options: &Options) -> Result<()> {
        self.slack.store(options.size("slack"), Ordering::Relaxed);
        Ok(())
    }
}
