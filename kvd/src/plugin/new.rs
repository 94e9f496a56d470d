//! `kvd plugin new`: a crate to begin with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kvd::config::PluginNewFlags;
use kvd::exit;
use kvd_plugin_api::host::template;

use crate::Failed;
use crate::output::say;

/// The engines that come with kvd.
const SHIPPED: [&str; 7] = [
    "files", "fjall", "journal", "lmdb", "memory", "redb", "sled",
];

/// `kvd plugin new`.
pub(super) fn new(flags: &PluginNewFlags) -> Result<(), Failed> {
    let usage = |message: String| Failed::new(exit::USAGE, message);
    if SHIPPED.contains(&flags.name.as_str()) {
        return Err(usage(format!(
            "'{}' is an engine that comes with kvd: its directories and its library have this name",
            flags.name
        )));
    }
    let plugin_api = match &flags.plugin_api {
        None => None,
        Some(folder) => {
            let wrong = |why: &str| usage(format!("plugin-api {}: {why}", folder.display()));
            let whole = fs::canonicalize(folder).map_err(|error| wrong(&error.to_string()))?;
            let manifest = fs::read_to_string(whole.join("Cargo.toml")).unwrap_or_default();
            if !manifest.contains("kvd-plugin-api") {
                return Err(wrong("this is not the folder of kvd-plugin-api"));
            }
            Some(whole)
        }
    };
    let files = template::files(&flags.name, plugin_api.as_deref()).map_err(usage)?;
    let folder = match &flags.path {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("kvd-{}", flags.name)),
    };
    let failed = |path: &Path, error: io::Error| {
        Failed::new(exit::IO, format!("{}: {error}", path.display()))
    };
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("{}: the folder is not empty", folder.display());
        return Err(Failed::new(exit::CONFIG, message));
    }
    for (path, text) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        }
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    let library = format!("libkvd_{}.so", flags.name.replace('-', "_"));
    say!("the engine '{}' is in {}", flags.name, folder.display());
    say!("try it:   cd {} && cargo test", folder.display());
    say!("check it: cargo build --release && kvd plugin check target/release/{library}");
    Ok(())
}
