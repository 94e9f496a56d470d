//! `kvd plugin`: what a library is and what it offers.

use std::sync::Arc;

use kvd::exit;
use kvd::node::OpenEngine;
use kvd::storage::PluginEngine;
use kvd_plugin_api::host::{self, Places, Plugin};

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
        Failed::new(exit::CONFIG, format!("backend '{spec}': {error}")).with_hint(error.hint())
    })
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

/// `kvd plugin info`.
pub(crate) fn info(spec: &str) -> Result<(), Failed> {
    let path = find(spec)?;
    let manifest = host::read_manifest(&path).map_err(|error| {
        Failed::new(exit::CONFIG, format!("backend '{spec}': {error}")).with_hint(error.hint())
    })?;
    println!("file          {}", path.display());
    println!("name          {} {}", manifest.name, manifest.version);
    println!(
        "plugin API    {} (plugin-api {})",
        manifest.api_version, manifest.plugin_api
    );
    println!("built         {} for {}", manifest.rustc, manifest.target);
    println!(
        "              {}",
        if manifest.debug {
            "without optimisation"
        } else {
            "optimised"
        }
    );
    let plugin = load(spec)?;
    let description = plugin.describe();
    println!("capabilities  {}", description.caps.names().join(", "));
    let limits = description.limits;
    let bytes = |limit: u64| {
        if limit == u64::MAX {
            "no limit".to_owned()
        } else {
            limit.to_string()
        }
    };
    println!("longest key   {}", bytes(limits.key_bytes_max));
    println!("longest value {}", bytes(limits.value_bytes_max));
    if description.options.is_empty() {
        println!("options       none");
    } else {
        println!("options");
        for option in &description.options {
            println!(
                "  {} ({}, default {})\n      {}",
                option.name,
                option.kind.name(),
                option.default,
                option.help
            );
        }
    }
    Ok(())
}
