//! Plugins: finding and loading them for a node, and `kvd plugin`.

mod bench;
mod check;
mod info;
mod new;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use kvd::config::PluginCommand;
use kvd::exit;
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
