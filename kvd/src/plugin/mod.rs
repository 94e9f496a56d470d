//! Plugins: finding and loading them for a node, and `kvd plugin`.

mod bench;
mod check;
mod info;
mod new;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use kvd::config::{PluginCommand, entry_bytes_within};
use kvd::exit;
use kvd::keyspace::{Limits, Misfit};
use kvd::node::OpenEngine;
use kvd::storage::{Calls, PluginEngine};
use kvd_plugin_api::host::{self, LoadError, Places, Plugin};
use tokio::time::Instant;

use crate::Failed;

/// How long a call of the engine may take before its node says so; each next time takes twice as
/// long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a node looks whether the engine is still in the same call.
const LOOK: Duration = Duration::from_millis(500);

/// Finds the library that an operator named.
pub(crate) fn find(spec: &str) -> Result<std::path::PathBuf, Failed> {
    host::resolve(spec, &Places::of_process()).map_err(|error| {
        Failed::new(exit::CONFIG, format!("backend '{spec}': {error}")).with_hint(error.hint())
    })
}

/// Finds and loads it.
pub(crate) fn load(spec: &str) -> Result<Plugin, Failed> {
    Plugin::load(&find(spec)?).map_err(|error| {
        if let Some(details) = error.details() {
            tracing::debug!(backend = spec, details, "the plugin does not fit");
        }
        refused(spec, &error)
    })
}

/// Finds and loads it for a node with these limits, which it must be able to keep.
pub(crate) fn load_for(spec: &str, limits: &Limits) -> Result<Plugin, Failed> {
    let plugin = load(spec)?;
    let engine = plugin.describe().limits;
    let Err(misfit) = limits.fit(&engine) else {
        return Ok(plugin);
    };
    let hint = match entry_bytes_within(&engine) {
        Ok(entry) => Some(format!(
            "--max-entry-bytes {entry} makes kvd's keys and values short enough; it must be the \
             same on every member"
        )),
        Err(misfit) => author_hint(misfit),
    };
    Err(Failed::new(exit::CONFIG, format!("backend '{spec}': {misfit}")).with_hint(hint.as_deref()))
}

/// The largest `--max-entry-bytes` that an engine of these limits is for, where a node with the
/// default is not; a failure where it is for no node.
fn largest_entry(spec: &str, engine: &kvd_plugin_api::Limits) -> Result<Option<usize>, Failed> {
    let entry = entry_bytes_within(engine).map_err(|misfit| {
        let failed = Failed::new(exit::CONFIG, format!("backend '{spec}': {misfit}"));
        failed.with_hint(author_hint(misfit).as_deref())
    })?;
    Ok(Limits::default().fit(engine).is_err().then_some(entry))
}

/// What the author of an engine that is too small for every node can do.
fn author_hint(misfit: Misfit) -> Option<String> {
    let hint =
        "no setting makes kvd's keys so short; LongKeys of kvd-plugin-api stores longer ones";
    matches!(misfit, Misfit::Key { .. }).then(|| hint.to_owned())
}

fn refused(spec: &str, error: &LoadError) -> Failed {
    Failed::new(exit::CONFIG, format!("backend '{spec}': {error}")).with_hint(error.hint())
}

/// Opens its engine, in whichever directory, with these options; `calls` shows what it is doing.
pub(crate) fn opener(
    plugin: Plugin,
    options: Vec<(String, String)>,
    calls: Arc<Calls>,
) -> OpenEngine {
    Arc::new(move |path| {
        let (options, calls) = (&options, calls.clone());
        let engine = PluginEngine::open(&plugin, path, options, kvd::doors::stopwatch, calls)?;
        Ok(Arc::new(engine))
    })
}

/// Says so where a call of the engine takes long: nothing can end it, but its node need not be
/// silent about what it waits for.
pub(crate) async fn watch(engine: String, calls: Arc<Calls>) {
    let (mut seen, mut since, mut patience) = (None, Instant::now(), PATIENCE);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = calls.now();
        if now != seen || now.is_none() {
            (seen, since, patience) = (now, Instant::now(), PATIENCE);
            continue;
        }
        if let Some((call, _)) = now
            && since.elapsed() >= patience
        {
            let seconds = since.elapsed().as_secs();
            tracing::warn!("the engine '{engine}' has not returned from {call} for {seconds} s");
            patience *= 2;
        }
    }
}

/// `kvd plugin`.
pub(crate) fn command(command: PluginCommand) -> Result<(), Failed> {
    match command {
        PluginCommand::List { json } => info::list(json),
        PluginCommand::Info { plugin, json } => info::info(&plugin, json),
        PluginCommand::Check(flags) => check::check(&flags),
        PluginCommand::Bench(flags) => bench::bench(&flags),
        PluginCommand::New(flags) => new::new(&flags),
        PluginCommand::Trial(flags) => trial::run(&flags),
    }
}

/// A directory for engines, which goes away with the value.
fn workshop(within: Option<&std::path::Path>) -> Result<tempfile::TempDir, Failed> {
    let made = match within {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    made.map_err(|error| Failed::new(exit::IO, format!("a temporary directory: {error}")))
}
