//! One trial of an engine, in a process of its own: it may block, abort or be killed.

use std::fs::File;
use std::io::Write as _;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use kvd::config::PluginTrialFlags;
use kvd::exit;
use kvd_plugin_api::ErrorKind;
use kvd_plugin_api::host::Plugin;
use kvd_plugin_api::testkit::crash::Told;
use kvd_plugin_api::testkit::history::{Lives, Random};
use kvd_plugin_api::testkit::{Candidate, Clause, Kit, Outcome, crash};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use crate::Failed;

/// Describes the engine instead of trying it.
pub(super) const DESCRIBE: &str = "describe";

/// Opens the engine with the options that were given: are they ones?
pub(super) const OPTIONS: &str = "options";

/// Writes until it is killed, in the folder [`ENGINE`], and notes each promise in [`PROMISES`].
pub(super) const CRASH_WRITE: &str = "crash-write";

/// Looks at what such a process has left.
pub(super) const CRASH_VERIFY: &str = "crash-verify";

/// What came of the trial, as JSON.
pub(super) const OUTCOME: &str = "outcome";

/// The directory of the engine that is killed.
pub(super) const ENGINE: &str = "engine";

/// How long after a call has begun a process ends itself, at most.
const KILL_MICROS_MAX_BITS: u64 = 12;

/// A line for each mark that was durable.
pub(super) const PROMISES: &str = "promises";

/// `kvd plugin trial`.
pub(super) fn run(flags: &PluginTrialFlags) -> Result<(), Failed> {
    let outcome = try_it(flags);
    std::fs::write(flags.dir.join(OUTCOME), outcome.to_string())
        .map_err(|error| Failed::new(exit::IO, format!("{OUTCOME}: {error}")))?;
    // At once: what the engine has left running is of no interest any more.
    std::process::exit(exit::OK);
}

fn try_it(flags: &PluginTrialFlags) -> Value {
    let plugin = match Plugin::load(&flags.file) {
        Ok(plugin) => plugin,
        Err(error) => return json!({ "refused": error.to_string(), "hint": error.hint() }),
    };
    if flags.trial == DESCRIBE {
        let description = plugin.describe();
        return json!({
            "name": description.name,
            "version": description.version,
            "caps": description.caps.bits(),
            "limits": [
                description.limits.key_bytes_max,
                description.limits.value_bytes_max,
                description.limits.batch_bytes_max,
            ],
        });
    }
    if flags.trial == OPTIONS {
        let wrong = match plugin.open(&flags.dir, &flags.backend_opt) {
            Err(error) if error.kind() == ErrorKind::InvalidOption => Some(error.to_string()),
            // Whatever else is wrong breaks a clause.
            _ => None,
        };
        return json!({ "wrong": wrong });
    }
    let candidate = Candidate::loaded(&plugin);
    let options: Vec<(&str, &str)> = flags
        .backend_opt
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut kit = Kit::new(&candidate, &options).within(&flags.dir);
    if flags.quick {
        kit = kit.quick();
    }
    let engine = flags.dir.join(ENGINE);
    let Ok(lives) = flags.lives.parse::<Lives>() else {
        return json!({ "broken": "the lives are not numbers" });
    };
    match flags.trial.as_str() {
        CRASH_WRITE => json!({ "broken": write_until_killed(&kit, &lives, flags) }),
        CRASH_VERIFY => match crash::verify(&kit, &engine, flags.promised, &lives) {
            Ok(index) => json!({ "index": index }),
            Err(how) => json!({ "broken": how }),
        },
        name => match Clause::named(name).map(|clause| clause.try_on(&kit)) {
            Some(Outcome::Kept) => json!({}),
            Some(Outcome::Broken(how)) => json!({ "broken": how }),
            Some(Outcome::Skipped(why)) => json!({ "skipped": why }),
            None => json!({ "broken": format!("there is no clause {name}") }),
        },
    }
}

fn write_until_killed(kit: &Kit<'_>, lives: &Lives, flags: &PluginTrialFlags) -> String {
    let mut promises = match File::options()
        .create(true)
        .append(true)
        .open(flags.dir.join(PROMISES))
    {
        Ok(promises) => promises,
        Err(error) => return format!("{PROMISES}: {error}"),
    };
    // One write for each line: what the system has taken survives the kill.
    let mut promise = |index: u64| promises.write_all(format!("{index}\n").as_bytes());
    let mut unheard = None;
    let mut moment = flags.call.map(|call| (call, killer()));
    let how = crash::write_until_killed(
        kit,
        &flags.dir.join(ENGINE),
        lives,
        &mut |told| match told {
            Told::Promise(index) => unheard = promise(index).err(),
            Told::Call(call) => {
                if let Some((_, killer)) = moment.take_if(|(last, _)| *last == call) {
                    // It waits for nothing else.
                    let _ = killer.send(());
                }
            }
        },
    );
    unheard.map_or(how, |error| format!("{PROMISES}: {error}"))
}

/// A thread that kills this process when it is told to, or a little later: within the call that
/// begins now, or in one of those behind it, be they of microseconds or of milliseconds.
#[expect(
    clippy::disallowed_methods,
    reason = "kills this process at a random moment"
)]
fn killer() -> Sender<()> {
    let mut random = Random::new(crash::seed());
    let bits = random.below(KILL_MICROS_MAX_BITS + 1);
    let delay = Duration::from_micros(random.below(1 << bits));
    let (killer, told) = mpsc::channel();
    std::thread::spawn(move || {
        if told.recv().is_ok() {
            let told = Instant::now();
            // Sleeping is for longer times.
            while told.elapsed() < delay {
                std::hint::spin_loop();
            }
            let _ = kill_process(getpid(), Signal::KILL);
        }
    });
    killer
}
