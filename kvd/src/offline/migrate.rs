//! The same node on another engine: a stopped node's log and contents in a new directory.

use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Error, State, contents, engine_failed, fits, undamaged};
use crate::data_dir::{DataDir, DataDirError};
use crate::keyspace::{Limits, View, stream};
use crate::node::OpenEngine;
use crate::raft::log::{self, Scan};
use crate::storage::Store;

/// A node that was copied to another engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Its name.
    pub name: String,
    /// The last entry that the contents hold.
    pub applied: u64,
    /// The last entry of its log.
    pub last: u64,
    /// The number of keys.
    pub keys: u64,
    /// The digest of the contents, as `DEBUG DIGEST` of a node that has applied as much.
    pub digest: String,
}

/// A directory, and what opens its engine.
pub struct Place<'a> {
    /// The node's directory.
    pub path: &'a Path,
    /// The engine's name.
    pub backend: &'a str,
    /// Opens it.
    pub open_engine: &'a OpenEngine,
}

/// Makes in `to` the same node as in `from`, on another engine: its identity, starts and life
/// stage, its log byte for byte, and its contents entry by entry. What was written is opened again
/// and compared before it counts.
///
/// `from` is only read, but for what a start would finish there first. Cut off in the middle it is
/// given again; until then `to` cannot be used for anything else.
///
/// # Errors
///
/// One of the directories is in use, `from` is damaged or never held anything, `to` holds
/// something: nothing is made. Or something could not be read or written, or what was written is
/// not what was read.
pub fn migrate(from: &Place<'_>, to: &Place<'_>, limits: Limits) -> Result<Migrated, Error> {
    let source = DataDir::open_stopped(from.path)?;
    if source.identity().backend != from.backend {
        return Err(DataDirError::Backend {
            path: from.path.to_owned(),
            found: source.identity().backend.clone(),
            wanted: from.backend.to_owned(),
        }
        .into());
    }
    if source.identity().rebuilding {
        return Err(DataDirError::HalfRebuilt(from.path.to_owned()).into());
    }
    if !log::exists(&source.log()) {
        return Err(Error::Refused(format!(
            "{} holds nothing yet: start the node on an empty directory instead",
            from.path.display()
        )));
    }
    apart(from.path, to.path)?;
    let scan = log::scan(&source.log(), &mut |_| {})?;
    undamaged(&scan)?;
    let state = State::open(&source, from.open_engine, limits)?;
    fits(&source, &scan, &state)?;

    let mut copy = DataDir::begin_copy(to.path, source.identity(), to.backend)?;
    crash_point!("migrate_begun");
    log::copy(&source.log(), &copy.log())?;
    crash_point!("migrate_log_copied");
    let written = fill(&copy, to.open_engine, &state.store, &scan, limits)?;
    crash_point!("migrate_filled");
    let migrated = check(&copy, to.open_engine, &state, &scan, &written, limits)?;
    crash_point!("migrate_checked");
    copy.end_copy()?;
    crash_point!("migrate_after");
    state.close()?;
    Ok(migrated)
}

/// Refuses a directory within the other.
fn apart(from: &Path, to: &Path) -> Result<(), Error> {
    // What is not there yet is where its nearest folder is.
    let to = to.ancestors().find_map(|part| {
        let part = match part.as_os_str().is_empty() {
            true => Path::new("."),
            false => part,
        };
        part.canonicalize().ok()
    });
    if to.is_some_and(|to| from.canonicalize().is_ok_and(|from| to.starts_with(from))) {
        return Err(Error::Refused(
            "the new directory would be within the old one".to_owned(),
        ));
    }
    Ok(())
}

/// Writes the contents of `source` to the engine in `dir`, durably. Returns the checksum of what
/// was read.
fn fill(
    dir: &DataDir,
    open_engine: &OpenEngine,
    source: &Store,
    log: &Scan,
    limits: Limits,
) -> Result<[u8; 32], Error> {
    let mut state = State::open(dir, open_engine, limits)?;
    let engine = state.store.engine();
    if let Err(misfit) = limits.fit(&engine.limits()) {
        return Err(Error::Refused(format!("'{}' {misfit}", engine.name())));
    }
    let read = source.read().map_err(io::Error::other)?;
    let mark = read.mark().clone();
    let (receiver, sender) = io::pipe()?;
    let sum = std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let mut out = Summed::over(sender);
            stream::write(&read, &read.mark().clone(), &mut out).map(|_| out.sum())
        });
        let replaced = stream::Entries::open(receiver)
            .map_err(|error| Error::Refused(error.to_string()))
            .and_then(|mut feed| {
                let replaced = state.store.replace(&mut feed, &mark);
                replaced.map_err(Error::Engine)
            });
        // Its end of the pipe is closed, so a sender that nobody hears ends.
        let sent = sent.join().expect("it does not panic");
        match (sent, replaced) {
            // A pipe without a reader says nothing of the source.
            (Err(stream::StreamError::Io(_)), Err(replaced)) => Err(replaced),
            (Err(sent), _) => Err(Error::Refused(format!("contents: {sent}"))),
            (Ok(_), Err(replaced)) => Err(replaced),
            (Ok(sum), Ok(())) => Ok(sum),
        }
    })?;
    state.executor.reload().map_err(io::Error::other)?;
    state.make_durable()?;
    let ahead = state.position().log_id > log.state.last.max(log.state.purged);
    if ahead && state.snapshots.complete()?.is_empty() {
        // The proof that a state beyond the log is legitimate.
        let view = state.store.read().map_err(io::Error::other)?;
        let (position, spool) = state.snapshots.spool_out(view)?;
        state.snapshots.keep(&position, spool)?;
    }
    state.close()?;
    Ok(sum)
}

/// Opens what was written as a start would, and compares all of it with what it was made from.
fn check(
    dir: &DataDir,
    open_engine: &OpenEngine,
    source: &State,
    log: &Scan,
    read: &[u8; 32],
    limits: Limits,
) -> Result<Migrated, Error> {
    let differs = |what: &str| {
        Error::Refused(format!(
            "the copy is not used: its {what} not what was read"
        ))
    };
    let copied = log::scan(&dir.log(), &mut |_| {})?;
    if copied.state != log.state || copied.entries != log.entries {
        return Err(differs("log is"));
    }
    let state = State::open(dir, open_engine, limits)?;
    fits(dir, &copied, &state)?;
    if state.store.mark()? != source.store.mark()? {
        return Err(differs("position is"));
    }
    let (keys, sum) = contents::verify_contents(&state.store)?;
    if sum != *read {
        return Err(differs("contents are"));
    }
    let position = state.position();
    let view = state.store.read().map_err(io::Error::other)?;
    let digest = View::new(&view, position.time_ms, position.time_ms)
        .and_then(|view| view.digest())
        .map_err(engine_failed)?;
    drop(view);
    let migrated = Migrated {
        name: dir.identity().name.clone(),
        applied: position.index(),
        last: log
            .state
            .last
            .max(log.state.purged)
            .map_or(0, |id| id.index),
        keys,
        digest: crate::hex::text(&digest),
    };
    state.close()?;
    Ok(migrated)
}

/// Passes bytes on and sums them up.
pub(super) struct Summed<W> {
    out: W,
    sum: Sha256,
}

impl<W> Summed<W> {
    pub(super) fn over(out: W) -> Self {
        Summed {
            out,
            sum: Sha256::new(),
        }
    }

    pub(super) fn sum(self) -> [u8; 32] {
        self.sum.finalize().into()
    }
}

impl<W: io::Write> io::Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::EntryPayload;

    use super::*;
    use crate::data_dir::Birth;
    use crate::doors::Random;
    use crate::offline::restore_snapshot;
    use crate::raft::entry::{self, GroupBuilder, Rule, Stamp};
    use crate::raft::snapshot;
    use crate::raft::{Entry, Proposal, log_id};
    use crate::storage::{
        Caps, Engine, EngineView, Feed, Flow, Limits as EngineLimits, Mark, MemoryEngine, Op,
        Range, Read, Result as EngineResult,
    };

    /// An engine in memory that changes the last value that it is fed.
    struct Careless(MemoryEngine);

    struct Altered<'a>(&'a mut dyn Feed);

    impl Feed for Altered<'_> {
        fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> EngineResult<bool> {
            self.0.next(&mut |key, value| {
                let mut value = value.to_vec();
                if value.ends_with(b"right") {
                    let end = value.len() - 5;
                    value[end..].copy_from_slice(b"wrong");
                }
                out(key, &value);
            })
        }
    }

    impl Read for Careless {
        fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> EngineResult<bool> {
            self.0.get(key, out)
        }

        fn scan(
            &self,
            range: Range<'_>,
            out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
        ) -> EngineResult<()> {
            self.0.scan(range, out)
        }
    }

    impl Engine for Careless {
        fn name(&self) -> &str {
            "careless"
        }

        fn version(&self) -> &str {
            self.0.version()
        }

        fn caps(&self) -> Caps {
            self.0.caps()
        }

        fn limits(&self) -> EngineLimits {
            self.0.limits()
        }

        fn mark(&self) -> EngineResult<Mark> {
            self.0.mark()
        }

        fn write(&self, batch: &[Op<'_>], mark: &Mark) -> EngineResult<()> {
            self.0.write(batch, mark)
        }

        fn sync(&self) -> EngineResult<Mark> {
            self.0.sync()
        }

        fn view(&self) -> EngineResult<Box<dyn EngineView>> {
            self.0.view()
        }

        fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> EngineResult<()> {
            self.0.replace(&mut Altered(feed), mark)
        }

        fn property(&self, name: &str) -> Option<String> {
            self.0.property(name)
        }

        fn properties(&self) -> Vec<String> {
            self.0.properties()
        }

        fn compact(&self) -> EngineResult<()> {
            self.0.compact()
        }

        fn verify(&self) -> EngineResult<()> {
            self.0.verify()
        }

        fn close(&self) -> EngineResult<()> {
            self.0.close()
        }
    }

    /// A stopped node with one key, on an engine that keeps nothing.
    fn stopped_node(root: &Path, open: &OpenEngine) -> std::path::PathBuf {
        let random = Random::from_seed(1);
        let birth = Birth {
            name: "node0".to_owned(),
            backend: "memory".to_owned(),
            found: true,
        };
        let scratch = DataDir::create(&root.join("scratch"), &birth, &random).unwrap();
        let mut state = State::open(&scratch, open, Limits::default()).unwrap();
        let mut group = GroupBuilder::new(Rule::Each);
        group.command(&["SET", "a", "all is right"]);
        let stamp = Stamp {
            level: state.position().level,
            time_ms: 1,
            seed: 1,
        };
        let proposal = Proposal::new(entry::encode(stamp, &[group.finish()]));
        let entry = Entry {
            log_id: log_id(0, 1),
            payload: EntryPayload::Normal(proposal),
        };
        state.carry_out(&[entry]).unwrap();
        let file = root.join("one.snap");
        snapshot::export(&state.store, &file).unwrap();
        let path = root.join("node0");
        restore_snapshot(&file, &path, &birth, open, Limits::default(), &random).unwrap();
        path
    }

    #[test]
    fn a_copy_that_differs_does_not_count() {
        let temp = tempfile::tempdir().unwrap();
        let volatile = || MemoryEngine::with_caps(Caps::VIEW);
        let memory: OpenEngine = Arc::new(move |_| Ok(Arc::new(volatile())));
        let careless: OpenEngine = Arc::new(move |_| Ok(Arc::new(Careless(volatile()))));
        let path = stopped_node(temp.path(), &memory);
        let to = temp.path().join("node1");
        let copy = |open_engine| {
            let from = Place {
                path: &path,
                backend: "memory",
                open_engine: &memory,
            };
            let to = Place {
                path: &to,
                backend: "other",
                open_engine,
            };
            migrate(&from, &to, Limits::default())
        };
        let differs = copy(&careless).unwrap_err().to_string();
        assert_eq!(
            differs,
            "the copy is not used: its contents are not what was read"
        );
        let refused = DataDir::open_stopped(&to).unwrap_err();
        assert!(
            matches!(refused, DataDirError::HalfMigrated(_)),
            "{refused}"
        );
        // What was half made is no obstacle to a better engine.
        assert_eq!(copy(&memory).unwrap().keys, 1);
        let dir = DataDir::open_stopped(&to).unwrap();
        assert_eq!(dir.identity().backend, "other");
        let old = DataDir::open_stopped(&path).unwrap();
        assert_eq!(dir.identity().node, old.identity().node);
    }
}
