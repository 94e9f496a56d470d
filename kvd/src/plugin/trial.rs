//! One trial of an engine, in a process of its own: it may block, abort or be killed.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use kvd::config::PluginTrialFlags;
use kvd::exit;
use kvd_plugin_api::ErrorKind;
use kvd_plugin_api::host::Plugin;
use kvd_plugin_api::testkit::{Candidate, Clause, Kit, Outcome, crash};
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
    match flags.trial.as_str() {
        CRASH_WRITE => json!({ "broken": write_until_killed(&kit, &flags.dir) }),
        CRASH_VERIFY => match crash::verify(&kit, &flags.dir.join(ENGINE), flags.promised) {
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

fn write_until_killed(kit: &Kit<'_>, dir: &Path) -> String {
    let mut promises = match File::options()
        .create(true)
        .append(true)
        .open(dir.join(PROMISES))
    {
        Ok(promises) => promises,
        Err(error) => return format!("{PROMISES}: {error}"),
    };
    // One write for each line: what the system has taken survives the kill.
    let mut promise = |index: u64| promises.write_all(format!("{index}\n").as_bytes());
    let mut unheard = None;
    let how = crash::write_until_killed(kit, &dir.join(ENGINE), &mut |index| {
        unheard = promise(index).err();
    });
    unheard.map_or(how, |error| format!("{PROMISES}: {error}"))
}
