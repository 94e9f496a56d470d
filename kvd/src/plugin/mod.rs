//! Plugins: finding and loading them for a node, and `kvd plugin`.

mod bench;
mod check;
mod info;
mod new;
mod trial;

use std::sync::Arc;

use kvd::config::PluginCommand;
use kvd::exit;
use kvd::node::OpenEngine;
use kvd::storage::PluginEngine;
use kvd_plugin_api::host::{self, LoadError, Places, Plugin};

use crate::Failed;

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

/// Opens its engine, in whichever directory, with these options.
pub(crate) fn opener(plugin: Plugin, options: Vec<(String, String)>) -> OpenEngine {
    Arc::new(move |path| {
        let engine = plugin
            .open(path, &options)
            .map_err(|error| error.to_string())?;
        Ok(Arc::new(PluginEngine::new(engine)))
    })
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
