//! A process that writes is killed again and again, and what it leaves is compared with the
//! [`history`](super::history) that it was writing.
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

use super::history::{Change, Model, ModelFeed, Random, batch, mark};
use super::power::{Disk, Shim};
use super::subject::{Verdict, compare, during, ensure, same_mark};
use super::{Candidate, Kit};

const DIR_VARIABLE: &str = "KVD_TESTKIT_CRASH_DIR";

/// A process that nobody kills ends by itself after this time.
const LIFE: Duration = Duration::from_secs(60);

/// How long after its first promise a process is killed, at most.
pub const DELAY_MAX: Duration = Duration::from_millis(250);

/// A moment to kill a process, after its first promise: another one at each call.
pub fn delay(random: &mut Random) -> Duration {
    Duration::from_millis(random.below(DELAY_MAX.as_millis() as u64))
}

/// A seed that is new each time.
pub fn seed() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::from(since.subsec_nanos()))
}

/// Opens the engine in `dir` and goes on with the history: writes, syncs, replacements. `promise`
/// is told each mark that is durable, before anything else happens.
///
/// Returns why it could not go on, or that nobody has killed it for a minute.
pub fn write_until_killed(kit: &Kit<'_>, dir: &Path, promise: &mut dyn FnMut(u64)) -> String {
    match try_writing(kit, dir, promise) {
        Ok(()) => "nobody killed this process".to_owned(),
        Err(how) => how,
    }
}

fn try_writing(kit: &Kit<'_>, dir: &Path, promise: &mut dyn FnMut(u64)) -> Verdict {
    let start = Instant::now();
    let engine = kit.open_in(dir).map_err(during("open"))?;
    let mut index = engine.mark().map_err(during("mark"))?.index;
    let mut model = Model::at(index);
    while start.elapsed() < LIFE {
        for _ in 0..20 {
            index += 1;
            let changes = batch(index);
            let ops: Vec<_> = changes.iter().map(Change::op).collect();
            engine.write(&ops, &mark(index)).map_err(during("write"))?;
            model.advance(index - 1, index);
        }
        let durable = if kit.is_durable() { index } else { 0 };
        let synced = engine.sync().map_err(during("sync"))?;
        same_mark("the return of sync", &synced, &mark(durable))?;
        promise(durable);
        if index.is_multiple_of(11) {
            // The same contents that the batches alone would give, so the model needs no case.
            index += 1;
            model.advance(index - 1, index);
            let entries = model.entries.clone().into_iter();
            engine
                .replace(&mut ModelFeed(entries), &mark(index))
                .map_err(during("replace"))?;
            promise(if kit.is_durable() { index } else { 0 });
        }
    }
    Ok(())
}

/// Opens the engine that a killed process has left in `dir`: its contents must be those of the
/// history at its mark, which is not below `promised`. Returns the mark's index.
///
/// # Errors
///
/// How this does not hold.
pub fn verify(kit: &Kit<'_>, dir: &Path, promised: u64) -> Result<u64, String> {
    let engine = kit.open_in(dir).map_err(during("open after a crash"))?;
    let found = engine.mark().map_err(during("mark"))?;
    let index = found.index;
    same_mark("after a crash", &found, &mark(index))?;
    ensure!(
        index >= promised,
        "after a crash the mark is {index}, but {promised} was promised by sync or replace"
    );
    let what = format!("after a crash with the mark {index}");
    compare(&what, &engine, &Model::at(index).entries)?;
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
        let synced = trial.kill_one(dir.path(), &[]);
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
        let synced = trial.kill_one(disk.engine(), &disk.environment(&shim));
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
        let how = write_until_killed(kit, Path::new(&dir), &mut |index| {
            println!("synced {index}");
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
        }
    }

    fn verify(&mut self, round: u32, dir: &Path, synced: u64) {
        let promised = if self.kit.is_durable() {
            synced.max(self.at)
        } else {
            0
        };
        let found = match verify(self.kit, dir, promised) {
            Ok(found) => found,
            Err(how) => panic!("round {round}: {how}"),
        };
        println!("round {round}: {} -> {found}, promised {synced}", self.at);
        self.at = found;
    }

    /// Starts the process, kills it some time after its first sync, and returns the last mark that
    /// it said was durable.
    fn kill_one(&mut self, dir: &Path, environment: &[(&str, OsString)]) -> u64 {
        let exe = std::env::current_exe().expect("a running program has a path");
        let mut child = Command::new(exe)
            .args(["--exact", self.name, "--nocapture", "--test-threads=1"])
            .env(DIR_VARIABLE, dir)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test's own binary runs");
        let stdout = child.stdout.take().expect("it was asked for");
        let (first, started) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut synced = None;
            // Read to the end of the pipe, also after the kill: a promise is a promise.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(index) = line.strip_prefix("synced ") {
                    synced = index.parse().ok();
                    // The other side has heard enough after one.
                    let _ = first.send(());
                }
            }
            synced
        });
        // An error means that the process has ended by itself, which the reader reports.
        let _ = started.recv();
        thread::sleep(delay(&mut self.random));
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().expect("a child can be waited for");
        let synced = reader.join().expect("the reader does not panic");
        synced.expect("the process ended before its first sync")
    }
}
