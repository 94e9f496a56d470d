//! `kvd plugin list` and `kvd plugin info`: what libraries are and what they offer.

use std::path::Path;

use kvd_plugin_api::Limits;
use kvd_plugin_api::host::{self, Description, LoadError, Manifest, Places, Plugin};
use serde_json::{Value, json};

use super::{find, refused};
use crate::Failed;
use crate::output::say;

/// `kvd plugin list`.
pub(super) fn list(json: bool) -> Result<(), Failed> {
    let found = host::found(&Places::of_process());
    if found.is_empty() && !json {
        say!("no plugins; they are looked for in KVD_PLUGIN_PATH and beside the executable");
    }
    for found in found {
        let manifest = host::peek_manifest(&found.path);
        let loaded = Plugin::load(&found.path);
        let warning = manifest.as_ref().ok().and_then(|manifest| {
            // As it stands in the file's name.
            (found.name != manifest.name.replace('-', "_")).then(|| {
                format!(
                    "--backend {} finds it, but its engine is '{}', and that is what its \
                     directories are known by",
                    found.name, manifest.name
                )
            })
        });
        if json {
            let mut value = as_json(&found.path, manifest.as_ref().ok(), loaded.as_ref());
            value["hidden_by"] = json!(found.hidden_by);
            value["warning"] = json!(warning);
            say!("{value}");
            continue;
        }
        let (name, interface) = match &manifest {
            Ok(manifest) => (
                format!("{} {}", manifest.name, manifest.version),
                format!("interface {}", manifest.api_version),
            ),
            Err(_) => ("?".to_owned(), "interface ?".to_owned()),
        };
        let state = match (&loaded, &found.hidden_by) {
            (Err(error), _) => format!("cannot be loaded: {error}"),
            (Ok(_), Some(first)) => format!("hidden by {}", first.display()),
            (Ok(_), None) => "ok".to_owned(),
        };
        say!("{name:<20} {interface}  {}  {state}", found.path.display());
        if let Ok(manifest) = &manifest
            && !manifest.about.is_empty()
        {
            say!("    {}", manifest.about);
        }
        if let Some(warning) = warning {
            say!("    warning: {warning}");
        }
    }
    Ok(())
}

/// `kvd plugin info`.
pub(super) fn info(spec: &str, json: bool) -> Result<(), Failed> {
    let path = find(spec)?;
    let loaded = Plugin::load(&path);
    let manifest = match &loaded {
        Ok(plugin) => Some(plugin.manifest().clone()),
        // The manifest is data, and can be read where nothing can be called.
        Err(_) => host::peek_manifest(&path).ok(),
    };
    if json {
        if manifest.is_some() {
            say!("{}", as_json(&path, manifest.as_ref(), loaded.as_ref()));
        }
    } else if let Some(manifest) = &manifest {
        print_manifest(&path, manifest);
    }
    let plugin = loaded.map_err(|error| refused(spec, &error))?;
    if !json {
        print_description(&plugin.describe());
    }
    Ok(())
}

fn print_manifest(path: &Path, manifest: &Manifest) {
    say!("file          {}", path.display());
    say!("name          {} {}", manifest.name, manifest.version);
    if !manifest.about.is_empty() {
        say!("about         {}", manifest.about);
    }
    say!(
        "plugin API    {} ({} {})",
        manifest.api_version,
        if manifest.is_c {
            "kvd_plugin.h"
        } else {
            "plugin-api"
        },
        manifest.plugin_api
    );
    say!("built         {} for {}", manifest.rustc, manifest.target);
    say!(
        "              {}",
        if manifest.debug {
            "without optimisation"
        } else {
            "optimised"
        }
    );
}

fn print_description(description: &Description) {
    say!("capabilities  {}", description.caps.names().join(", "));
    let Limits {
        key_bytes_max,
        value_bytes_max,
        batch_bytes_max,
    } = description.limits;
    let bytes = |limit: u64| match limited(limit) {
        Some(limit) => limit.to_string(),
        None => "no limit".to_owned(),
    };
    say!("longest key   {}", bytes(key_bytes_max));
    say!("longest value {}", bytes(value_bytes_max));
    say!("largest batch {}", bytes(batch_bytes_max));
    if description.options.is_empty() {
        say!("options       none");
        return;
    }
    say!("options");
    for option in &description.options {
        say!(
            "  {} ({}, default {})\n      {}",
            option.name,
            option.kind.name(),
            option.default,
            option.help
        );
    }
}

fn limited(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

/// What is known of a library; without a manifest only why.
fn as_json(path: &Path, manifest: Option<&Manifest>, loaded: Result<&Plugin, &LoadError>) -> Value {
    let mut value = json!({
        "file": path,
        "loads": loaded.is_ok(),
        "reason": loaded.err().map(ToString::to_string),
    });
    if let Some(manifest) = manifest {
        value["name"] = json!(manifest.name);
        value["version"] = json!(manifest.version);
        value["about"] = json!((!manifest.about.is_empty()).then_some(&manifest.about));
        value["interface"] = json!(manifest.api_version);
        value["language"] = json!(if manifest.is_c { "C" } else { "Rust" });
        value["plugin_api"] = json!(manifest.plugin_api);
        value["rustc"] = json!(manifest.rustc);
        value["target"] = json!(manifest.target);
        value["optimised"] = json!(!manifest.debug);
    }
    if let Ok(plugin) = loaded {
        let description = plugin.describe();
        let options = description.options.iter().map(|option| {
            json!({
                "name": option.name,
                "kind": option.kind.name(),
                "default": option.default,
                "help": option.help,
            })
        });
        let limits = description.limits;
        value["capabilities"] = json!(description.caps.names());
        value["limits"] = json!({
            "key_bytes_max": limited(limits.key_bytes_max),
            "value_bytes_max": limited(limits.value_bytes_max),
            "batch_bytes_max": limited(limits.batch_bytes_max),
        });
        value["options"] = options.collect();
    }
    value
}
