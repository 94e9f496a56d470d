//! `kvd plugin check`: whether an engine keeps the contract, as a library that was built.
//!
//! Each clause is tried in a process of its own, with a limit of time: an engine that blocks,
//! aborts or crashes fails that clause, and the others are tried all the same.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for processes, and kills them at random moments"
)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kvd::config::PluginCheckFlags;
use kvd::exit;
use kvd_plugin_api::testkit::crash::Moment;
use kvd_plugin_api::testkit::power::{self, Disk, Shim};
use kvd_plugin_api::testkit::{self, Outcome, crash, history};
use kvd_plugin_api::{Caps, Limits};
use serde_json::Value;

use super::{find, largest_entry, trial, workshop};
use crate::Failed;
use crate::output::{self, say};

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// So many rounds find what was planted, see the guide.
const ROUNDS_ENOUGH: u32 = 100;

/// The signal of `kill -9`.
const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();

/// The name of what is tried by killing.
const CRASH: &str = "kill_leaves_the_state_after_some_write";

const CRASH_TEXT: &str = "after a kill at any moment the state is that after some write, with its \
                          mark, not older than the mark that sync or replace last promised";

/// The name of what is tried by losing what was not synced.
const POWER: &str = "loss_of_power_leaves_the_state_after_some_write";

const POWER_TEXT: &str = "after a loss of power at any moment, with what was not synced gone in \
                          parts, the state is that after some write, with its mark, not older \
                          than the mark that sync or replace last promised";

/// `kvd plugin check`.
pub(super) fn check(flags: &PluginCheckFlags) -> Result<(), Failed> {
    let file = find(&flags.plugin)?;
    let folder = workshop(flags.within.as_deref())?;
    let trials = Trials {
        file,
        folder: folder.path(),
        flags,
    };
    let engine = trials.describe()?;
    let entry_bytes = largest_entry(&flags.plugin, &engine.limits)?;
    trials.options()?;
    say!(
        "{} {}, {}",
        engine.name,
        engine.version,
        trials.file.display()
    );
    if let Some(bytes) = entry_bytes {
        say!("its limits are for nodes with --max-entry-bytes {bytes} or less only");
    }
    let mut number = 0;
    let try_one = |clause: &testkit::Clause| {
        number += 1;
        let all = testkit::Clause::all().len();
        begin(&format!("{}, {number} of {all}", clause.name()));
        trials.clause(clause.name())
    };
    let report = testkit::run_with(&engine.name, engine.caps, try_one, |clause, outcome| {
        tell(clause.name(), clause.text(), outcome, None);
    });
    let mut broken: Vec<&str> = report.broken().map(|(name, _)| name).collect();
    let rounds = flags.crash.unwrap_or(if flags.quick { 1 } else { 5 });
    let is_durable = engine.caps.contains(Caps::DURABLE);
    let mut crashed = Vec::new();
    let crashes: [(_, _, _, &dyn Fn() -> (Outcome, u32)); 2] = [
        (CRASH, CRASH_TEXT, "kills", &|| {
            trials.crash(rounds, is_durable)
        }),
        (POWER, POWER_TEXT, "losses of power", &|| {
            trials.power(rounds, is_durable)
        }),
    ];
    for (name, text, what, try_it) in crashes {
        if rounds == 0 {
            break;
        }
        let (outcome, tried) = if report.is_ok() {
            try_it()
        } else {
            (Outcome::Skipped("an earlier clause is broken"), 0)
        };
        let tried = format!("{tried} {what}");
        tell(name, text, &outcome, Some(&tried));
        match outcome {
            Outcome::Kept => crashed.push(tried),
            Outcome::Broken(_) => broken.push(name),
            Outcome::Skipped(_) => {}
        }
    }
    if broken.is_empty() {
        say!(
            "{} {} keeps the contract, {}",
            engine.name,
            engine.version,
            as_far_as(&crashed, rounds)
        );
        return Ok(());
    }
    let message = format!(
        "backend '{}': breaks the contract: {}",
        flags.plugin,
        broken.join(", ")
    );
    Err(Failed::new(exit::CONFIG, message))
}

/// Says what is under way, where someone may be watching.
fn begin(name: &str) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        // To the end of the line: the one before may have been longer.
        output::write(format_args!("  ...      {name}\x1b[K\r"));
        // The line is for comfort only.
        let _ = out.flush();
    }
}

/// What the verdict rests upon.
fn as_far_as(crashed: &[String], rounds: u32) -> String {
    let few = match rounds {
        0..ROUNDS_ENOUGH => format!(": few, --crash {ROUNDS_ENOUGH} shows more"),
        _ => String::new(),
    };
    match crashed {
        [] if rounds > 0 => "of which no crash can show anything".to_owned(),
        [] => format!("as far as it shows without crashes{few}"),
        _ => format!("as far as {} show{few}", crashed.join(" and ")),
    }
}

/// `tried` is how often, where that is the question.
fn tell(name: &str, text: &str, outcome: &Outcome, tried: Option<&str>) {
    if std::io::stdout().is_terminal() {
        output::write(format_args!("\x1b[K"));
    }
    match outcome {
        Outcome::Kept => match tried {
            Some(tried) => say!("  ok       {name}: {tried}"),
            None => say!("  ok       {name}"),
        },
        Outcome::Skipped(why) => say!("  n/a      {name}: {why}"),
        Outcome::Broken(how) => {
            say!("  FAILED   {name}");
            say!("           the clause: {text}");
            say!("           {}", how.replace('\n', "\n           "));
        }
    }
}

/// What an engine says of itself.
struct Engine {
    name: String,
    version: String,
    caps: Caps,
    limits: Limits,
}

struct Trials<'a> {
    file: PathBuf,
    folder: &'a Path,
    flags: &'a PluginCheckFlags,
}

impl Trials<'_> {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.flags.time_limit)
    }

    /// A folder for one trial.
    fn place(&self, trial: &str) -> Result<PathBuf, String> {
        let dir = self.folder.join(trial);
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(dir)
    }

    fn spawn(
        &self,
        trial: &str,
        dir: &Path,
        more: &[String],
        environment: &[(&str, OsString)],
    ) -> Result<Child, String> {
        let failed = |error: std::io::Error| format!("a process of its own: {error}");
        // What an earlier process in this place has left would be taken for the new one's.
        let _ = fs::remove_file(dir.join(trial::OUTCOME));
        let exe = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(exe);
        command.args(["plugin", "trial"]).arg(&self.file).arg(trial);
        command.arg(dir).args(more);
        if self.flags.quick {
            command.arg("--quick");
        }
        for (name, value) in &self.flags.backend_opt {
            command.arg(format!("--backend-opt={name}={value}"));
        }
        command
            .env("TMPDIR", dir)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("stderr")).map_err(failed)?)
            .spawn()
            .map_err(failed)
    }

    /// Runs one trial to its end.
    fn try_it(&self, trial: &str, dir: &Path, more: &[String]) -> Result<Value, String> {
        let mut child = self.spawn(trial, dir, more, &[])?;
        let ended = wait(&mut child, self.limit(), || false)?;
        if ended.is_none() {
            kill(&mut child);
        }
        self.outcome(dir, ended)
    }

    /// What a process has left behind; how it ended, where that is nothing.
    fn outcome(&self, dir: &Path, ended: Option<ExitStatus>) -> Result<Value, String> {
        let outcome = fs::read_to_string(dir.join(trial::OUTCOME)).ok();
        if let Some(outcome) = outcome.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            return match outcome["broken"].as_str() {
                Some(how) => Err(how.to_owned()),
                None => Ok(outcome),
            };
        }
        let said = fs::read_to_string(dir.join("stderr")).unwrap_or_default();
        let said: Vec<&str> = said.lines().rev().filter(|line| !line.is_empty()).collect();
        let said: Vec<&str> = said.into_iter().take(3).rev().collect();
        let how = match ended {
            None => format!("it did not end within {} s", self.flags.time_limit),
            Some(status) => match status.signal() {
                Some(signal) => format!("the process was ended by signal {signal}"),
                None => format!("the process ended by itself, with {status}"),
            },
        };
        Err(if said.is_empty() {
            how
        } else {
            format!("{how}\n{}", said.join("\n"))
        })
    }

    fn describe(&self) -> Result<Engine, Failed> {
        let failed = |how: String| {
            let message = format!("backend '{}': {how}", self.flags.plugin);
            Failed::new(exit::CONFIG, message.replace('\n', "; "))
        };
        let dir = self.place(trial::DESCRIBE).map_err(failed)?;
        let said = self.try_it(trial::DESCRIBE, &dir, &[]).map_err(failed)?;
        if let Some(refused) = said["refused"].as_str() {
            return Err(failed(refused.to_owned()).with_hint(said["hint"].as_str()));
        }
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        Ok(Engine {
            name: text("name"),
            version: text("version"),
            caps: Caps::from_bits(said["caps"].as_u64().unwrap_or_default()),
            limits: Limits {
                key_bytes_max: said["limits"][0].as_u64().unwrap_or_default(),
                value_bytes_max: said["limits"][1].as_u64().unwrap_or_default(),
                batch_bytes_max: said["limits"][2].as_u64().unwrap_or_default(),
            },
        })
    }

    /// Options that are wrong say nothing of the engine: nothing else is tried with them.
    fn options(&self) -> Result<(), Failed> {
        if self.flags.backend_opt.is_empty() {
            return Ok(());
        }
        let tried = { self.place(trial::OPTIONS) }
            .and_then(|dir| self.try_it(trial::OPTIONS, &dir, &[]))
            .unwrap_or_default();
        match tried["wrong"].as_str() {
            None => Ok(()),
            Some(wrong) => {
                let message = format!("backend '{}': {wrong}", self.flags.plugin);
                let hint = format!("kvd plugin info {}", self.flags.plugin);
                Err(Failed::new(exit::USAGE, message).with_hint(Some(&hint)))
            }
        }
    }

    fn clause(&self, name: &str) -> Outcome {
        let tried = self.place(name).and_then(|dir| {
            let tried = self.try_it(name, &dir, &[]);
            // Each may leave much behind.
            let _ = fs::remove_dir_all(dir);
            tried
        });
        match tried.and_then(accepted) {
            Err(how) => Outcome::Broken(how),
            Ok(tried) => match tried["skipped"].as_str() {
                // A few words for each clause, kept to the end of the process.
                Some(why) => Outcome::Skipped(Box::leak(why.into())),
                None => Outcome::Kept,
            },
        }
    }

    /// Kills a process that writes, and looks at what it has left, again and again.
    fn crash(&self, rounds: u32, is_durable: bool) -> (Outcome, u32) {
        let tried = self.place("crash").and_then(|dir| {
            fs::create_dir(dir.join(trial::ENGINE)).map_err(|error| error.to_string())?;
            let mut victim = Victim::new(self, dir, is_durable);
            for round in 0..rounds {
                begin(&format!("{CRASH}, {} of {rounds}", round + 1));
                { victim.write_and_die(round, &[], |_| ()) }
                    .and_then(|promised| victim.look(promised))
                    .map_err(|how| format!("kill {} of {rounds}: {how}", round + 1))?;
            }
            Ok(victim.farthest)
        });
        let outcome = match tried {
            Err(how) => Outcome::Broken(how),
            Ok(0) => Outcome::Skipped("nothing outlives the engine that could be looked at"),
            Ok(_) => Outcome::Kept,
        };
        (outcome, rounds)
    }

    /// The same, and each time what was not synced is lost, in parts. It is done more often where
    /// nothing was lost.
    fn power(&self, rounds: u32, is_durable: bool) -> (Outcome, u32) {
        if !is_durable {
            let why = "the engine does not claim the capability";
            return (Outcome::Skipped(why), 0);
        }
        let Ok(shim) = Shim::build() else {
            let why = "it needs a C compiler (cc) to watch what is synced";
            return (Outcome::Skipped(why), 0);
        };
        let (mut unseen, mut lost, mut losses) = (None, 0, 0);
        let tried = self.place("power").and_then(|dir| {
            let disk_failed = |error: std::io::Error| format!("the simulated disk: {error}");
            let mut disk = Disk::new(&dir, crash::seed()).map_err(disk_failed)?;
            let mut victim = Victim::new(self, dir, is_durable);
            while losses < rounds || lost == 0 && losses < 10 * rounds {
                begin(&format!("{POWER}, {} of {rounds}", losses + 1));
                let environment = disk.environment(&shim);
                let promised = victim.write_and_die(losses, &environment, |process| {
                    unseen = power::unseen(process, disk.engine());
                })?;
                if unseen.is_some() {
                    break;
                }
                lost += disk.lose_power().map_err(disk_failed)?;
                losses += 1;
                { victim.look(promised) }
                    .map_err(|how| format!("loss {losses} of {rounds}: {how}"))?;
                disk.settle().map_err(disk_failed)?;
            }
            Ok(())
        });
        let outcome = match (tried, unseen) {
            (Err(how), _) => Outcome::Broken(how),
            (Ok(()), Some(why)) => Outcome::Skipped(why),
            (Ok(()), None) if lost == 0 => {
                Outcome::Skipped("all was synced whenever the power was lost")
            }
            (Ok(()), None) => Outcome::Kept,
        };
        (outcome, losses)
    }
}

/// A process that goes on writing and dies, again and again.
struct Victim<'a> {
    trials: &'a Trials<'a>,
    dir: PathBuf,
    is_durable: bool,
    random: history::Random,
    lives: history::Lives,
    /// The mark that was found last, and the greatest one.
    at: u64,
    farthest: u64,
}

impl<'a> Victim<'a> {
    fn new(trials: &'a Trials<'a>, dir: PathBuf, is_durable: bool) -> Self {
        Victim {
            trials,
            dir,
            is_durable,
            random: history::Random::new(crash::seed()),
            lives: history::Lives::default(),
            at: 0,
            farthest: 0,
        }
    }

    /// Starts the process, sees to it that it is killed, and returns its last promise. `seen` is told
    /// the process while it still runs, where it is killed after a time.
    fn write_and_die(
        &mut self,
        round: u32,
        environment: &[(&str, OsString)],
        seen: impl FnOnce(u32),
    ) -> Result<u64, String> {
        let (trials, dir) = (self.trials, &self.dir);
        let promises = dir.join(trial::PROMISES);
        let _ = fs::remove_file(&promises);
        self.lives.begin(self.at);
        let mut more = vec![format!("--lives={}", self.lives)];
        let moment = Moment::of(round, &mut self.random);
        if let Moment::In(call) = moment {
            more.push(format!("--call={call}"));
        }
        let mut child = trials.spawn(trial::CRASH_WRITE, dir, &more, environment)?;
        let promised = || fs::metadata(&promises).is_ok_and(|meta| meta.len() > 0);
        let died = match moment {
            Moment::After(delay) => {
                let ended = wait(&mut child, trials.limit(), promised)?;
                let has_promised = promised();
                if ended.is_none() && has_promised {
                    std::thread::sleep(delay);
                    seen(child.id());
                }
                kill(&mut child);
                match (ended, has_promised) {
                    (None, true) => Ok(()),
                    (None, false) => Err(None),
                    (Some(ended), _) => Err(Some(ended)),
                }
            }
            // It kills itself.
            Moment::In(_) => {
                let ended = wait(&mut child, trials.limit(), || false)?;
                kill(&mut child);
                match ended {
                    Some(ended) if ended.signal() == Some(SIGKILL) => Ok(()),
                    ended => Err(ended),
                }
            }
        };
        if let Err(ended) = died {
            let how = trials.outcome(dir, ended).err();
            return Err(how.unwrap_or_else(|| "nothing was ever synced".to_owned()));
        }
        // There is none where it had promised nothing yet. A line that has no end was never a
        // promise.
        let told = fs::read_to_string(&promises).unwrap_or_default();
        let last = told.rsplit('\n').nth(1).and_then(|line| line.parse().ok());
        Ok(last.unwrap_or(0))
    }

    /// Looks at what the process has left.
    fn look(&mut self, promised: u64) -> Result<(), String> {
        let promised = if self.is_durable {
            promised.max(self.at)
        } else {
            0
        };
        let more = [
            format!("--promised={promised}"),
            format!("--lives={}", self.lives),
        ];
        let found = self.trials.try_it(trial::CRASH_VERIFY, &self.dir, &more);
        let found = accepted(found?)?;
        self.at = found["index"].as_u64().unwrap_or_default();
        self.farthest = self.farthest.max(self.at);
        Ok(())
    }
}

/// An outcome, unless it is that the library could not be loaded.
fn accepted(outcome: Value) -> Result<Value, String> {
    match outcome["refused"].as_str() {
        Some(refused) => Err(refused.to_owned()),
        None => Ok(outcome),
    }
}

/// Waits until the process has ended, `is_enough` says so, or the time is over.
fn wait(
    child: &mut Child,
    limit: Duration,
    is_enough: impl Fn() -> bool,
) -> Result<Option<ExitStatus>, String> {
    let start = Instant::now();
    loop {
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        if ended.is_some() || is_enough() || start.elapsed() > limit {
            return Ok(ended);
        }
        std::thread::sleep(LOOK);
    }
}

fn kill(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}
