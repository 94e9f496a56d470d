//! A process that writes is killed again and again, and what it leaves is compared with the
//! [`history`](super::history) that it was writing.
//!
//! Each process writes values of its own, so that what an engine takes up again of writes that were
//! lost before is not mistaken for newer ones; every second process is killed soon after it was
//! opened, while that shows.
//!
//! Killing a process leaves what it told the system: this shows that a batch and its mark come
//! together and that nothing in memory was promised. What a disk keeps when its power is lost is
//! another matter, and tried by [`check_power`].

#![expect(
    clippy::disallowed_methods,
    reason = "kills real processes at random moments"
)]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Backend;

use super::history::{Change, Lives, Model, ModelFeed, Random, mark};
use super::power::{Disk, Shim};
use super::subject::{Verdict, compare, during, ensure, same_mark};
use super::{Candidate, Kit};

const DIR_VARIABLE: &str = "KVD_TESTKIT_CRASH_DIR";

/// The lives of the history, and the call in which the process is to be killed, if it is one.
const LIVES_VARIABLE: &str = "KVD_TESTKIT_CRASH_LIVES";
const CALL_VARIABLE: &str = "KVD_TESTKIT_CRASH_CALL";

/// A process that nobody kills ends by itself after this time.
const LIFE: Duration = Duration::from_secs(60);

/// How long after its first promise a process is killed, at most.
pub const DELAY_MAX: Duration = Duration::from_millis(250);

/// The last call in which a process is killed that is not given time.
const CALL_MAX_BITS: u64 = 8;

/// When a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long after its first promise, wherever it is by then.
    After(Duration),
    /// In this call of its engine, counted from 1: it has written little since it was opened, and
    /// promised little or nothing. What an opening has not put right shows only as long as not
    /// much was written over it, nor the whole contents replaced.
    In(u64),
}

impl Moment {
    /// One for this round, counted from 0: each kind in turn.
    pub fn of(round: u32, random: &mut Random) -> Moment {
        match round % 2 {
            0 => Moment::After(Duration::from_millis(
                random.below(DELAY_MAX.as_millis() as u64),
            )),
            _ => Moment::In(few(random)),
        }
    }
}

/// A number from 1 on, small ones as often as large ones.
fn few(random: &mut Random) -> u64 {
    let bits = random.below(CALL_MAX_BITS + 1);
    1 + random.below(1 << bits)
}

/// What a process that writes tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The call of the engine with this number begins.
    Call(u64),
    /// This mark is durable.
    Promise(u64),
}

/// A seed that is new each time.
pub fn seed() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::from(since.subsec_nanos()))
}

/// Opens the engine in `dir` and goes on with the history, as the last one of `lives`: writes, syncs,
/// replacements. `tell` hears each of these calls before it begins, and each mark that is durable
/// before anything else happens.
///
/// Returns why it could not go on, or that nobody has killed it for a minute.
pub fn write_until_killed(
    kit: &Kit<'_>,
    dir: &Path,
    lives: &Lives,
    tell: &mut dyn FnMut(Told),
) -> String {
    match try_writing(kit, dir, lives, tell) {
        Ok(()) => "nobody killed this process".to_owned(),
        Err(how) => how,
    }
}

fn try_writing(kit: &Kit<'_>, dir: &Path, lives: &Lives, tell: &mut dyn FnMut(Told)) -> Verdict {
    let start = Instant::now();
    let engine = kit.open_in(dir).map_err(during("open"))?;
    let mut index = engine.mark().map_err(during("mark"))?.index;
    let mut model = Model::after(lives, index);
    let mut random = Random::new(seed());
    let mut calls = 0;
    while start.elapsed() < LIFE {
        // Now and then only one, so that much that was synced is a few calls old.
        for _ in 0..few(&mut random) {
            index += 1;
            let changes = lives.batch(index);
            let ops: Vec<_> = changes.iter().map(Change::op).collect();
            calls += 1;
            tell(Told::Call(calls));
            engine.write(&ops, &mark(index)).map_err(during("write"))?;
            model.add(&changes);
        }
        let durable = if kit.is_durable() { index } else { 0 };
        calls += 1;
        tell(Told::Call(calls));
        let synced = engine.sync().map_err(during("sync"))?;
        same_mark("the return of sync", &synced, &mark(durable))?;
        tell(Told::Promise(durable));
        if index.is_multiple_of(11) {
            // The same contents that the batches alone would give, so the model needs no case.
            index += 1;
            model.add(&lives.batch(index));
            let entries = model.entries.clone().into_iter();
            calls += 1;
            tell(Told::Call(calls));
            engine
                .replace(&mut ModelFeed(entries), &mark(index))
                .map_err(during("replace"))?;
            tell(Told::Promise(if kit.is_durable() { index } else { 0 }));
        }
    }
    Ok(())
}

/// Opens the engine that a killed process, the last one of `lives`, has left in `dir`: its contents
/// must be those of the history at its mark, which is not below `promised`. Returns the mark's index.
///
/// # Errors
///
/// How this does not hold.
pub fn verify(kit: &Kit<'_>, dir: &Path, promised: u64, lives: &Lives) -> Result<u64, String> {
    let engine = kit.open_in(dir).map_err(during("open after a crash"))?;
    let found = engine.mark().map_err(during("mark"))?;
    let index = found.index;
    same_mark("after a crash", &found, &mark(index))?;
    ensure!(
        index >= promised,
        "after a crash the mark is {index}, but {promised} was promised by sync or replace"
    );
    let what = format!("after a crash with the mark {index}");
    compare(&what, &engine, &Model::after(lives, index).entries)?;
    Ok(index)
}

/// Kills a process that writes `rounds` times, and verifies what each left.
///
/// `name` is the path of the calling test, such as `tests::survives_crashes`: the test's own
/// binary is run again as the process, with this test alone.
///
/// # Panics
///
/// The engine breaks its promises, or hardly wrote anything.
pub fn check<B: Backend>(name: &str, rounds: u32, options: &[(&str, &str)]) {
    let candidate = Candidate::of::<B>();
    let kit = Kit::new(&candidate, options);
    write_if_asked(&kit);
    let dir = must("temporary directory", tempfile::tempdir());
    let mut trial = Trial::new(name, &kit);
    for round in 0..rounds {
        let synced = trial.kill_one(round, dir.path(), &[]);
        trial.verify(round, dir.path(), synced);
    }
    assert!(
        trial.at > u64::from(rounds) || !kit.is_durable(),
        "the process hardly wrote anything"
    );
}

/// As [`check`], and each time the power is lost: what was not synced is on the disk in parts, or
/// not at all ([`power`](super::power)). Goes on until something was lost.
///
/// # Panics
///
/// The engine breaks its promises, or nothing was ever unsynced; or the machine has no C compiler.
pub fn check_power<B: Backend>(name: &str, rounds: u32, options: &[(&str, &str)]) {
    let candidate = Candidate::of::<B>();
    let kit = Kit::new(&candidate, options);
    write_if_asked(&kit);
    let shim = match Shim::build() {
        Ok(shim) => shim,
        Err(how) => panic!("{how}"),
    };
    let root = must("temporary directory", tempfile::tempdir());
    let mut trial = Trial::new(name, &kit);
    let mut disk = must("disk", Disk::new(root.path(), trial.seed));
    let mut lost = 0;
    for round in 0.. {
        let synced = trial.kill_one(round, disk.engine(), &disk.environment(&shim));
        lost += must("loss of power", disk.lose_power());
        trial.verify(round, disk.engine(), synced);
        must("disk", disk.settle());
        if round + 1 >= rounds && lost > 0 {
            return;
        }
        assert!(round < 10 * rounds, "nothing was ever unsynced");
    }
}

/// In the process that is to be killed: writes until that happens.
fn write_if_asked(kit: &Kit<'_>) {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        println!();
        let number = |variable| std::env::var(variable).ok()?.parse().ok();
        let lives = std::env::var(LIVES_VARIABLE).unwrap_or_default();
        let lives = lives.parse().expect("the parent's own numbers");
        let last: Option<u64> = number(CALL_VARIABLE);
        let how = write_until_killed(kit, Path::new(&dir), &lives, &mut |told| {
            match told {
                Told::Promise(index) => println!("synced {index}"),
                Told::Call(call) if Some(call) == last => println!("called {call}"),
                Told::Call(_) => return,
            }
            // A promise that is not heard binds nobody.
            let _ = std::io::stdout().flush();
        });
        panic!("{how}");
    }
}

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A process that is killed again and again.
struct Trial<'a> {
    name: &'a str,
    kit: &'a Kit<'a>,
    seed: u64,
    random: Random,
    /// The mark that was found last.
    at: u64,
    lives: Lives,
}

impl<'a> Trial<'a> {
    fn new(name: &'a str, kit: &'a Kit<'a>) -> Self {
        let seed = seed();
        println!("seed {seed}");
        Trial {
            name,
            kit,
            seed,
            random: Random::new(seed),
            at: 0,
            lives: Lives::default(),
        }
    }

    fn verify(&mut self, round: u32, dir: &Path, synced: u64) {
        let promised = if self.kit.is_durable() {
            synced.max(self.at)
        } else {
            0
        };
        let found = match verify(self.kit, dir, promised, &self.lives) {
            Ok(found) => found,
            Err(how) => panic!("round {round}: {how}"),
        };
        println!("round {round}: {} -> {found}, promised {synced}", self.at);
        self.at = found;
    }

    /// Starts the process, kills it at some moment, and returns the last mark that it said was
    /// durable.
    fn kill_one(&mut self, round: u32, dir: &Path, environment: &[(&str, OsString)]) -> u64 {
        let moment = Moment::of(round, &mut self.random);
        self.lives.begin(self.at);
        let call = match moment {
            Moment::After(_) => None,
            Moment::In(call) => Some(call.to_string()),
        };
        let exe = std::env::current_exe().expect("a running program has a path");
        let mut child = Command::new(exe)
            .args(["--exact", self.name, "--nocapture", "--test-threads=1"])
            .env(DIR_VARIABLE, dir)
            .env(LIVES_VARIABLE, self.lives.to_string())
            .envs(call.map(|call| (CALL_VARIABLE, call)))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test's own binary runs");
        let stdout = child.stdout.take().expect("it was asked for");
        let (come, moment_came) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut synced = 0;
            // Read to the end of the pipe, also after the kill: a promise is a promise.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let promise = line.strip_prefix("synced ");
                if let Some(index) = promise.and_then(|index| index.parse().ok()) {
                    synced = index;
                }
                let is_moment = match moment {
                    Moment::After(_) => promise.is_some(),
                    Moment::In(_) => line.starts_with("called "),
                };
                if is_moment {
                    // The other side has heard enough after one.
                    let _ = come.send(());
                }
            }
            synced
        });
        let came = moment_came.recv();
        if let Moment::After(delay) = moment {
            thread::sleep(delay);
        }
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().expect("a child can be waited for");
        let synced = reader.join().expect("the reader does not panic");
        // An error means that the process has ended by itself.
        came.expect("the process ended before it was to be killed");
        synced
    }
}
