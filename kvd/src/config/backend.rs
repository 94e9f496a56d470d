//! `kvd backend`: flags of what changes a node's engine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::EngineFlags;

/// `kvd backend`.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Copy a stopped node to a new directory on another engine; it stays the same node
    Migrate(MigrateFlags),
}

/// `kvd backend migrate`. Nothing is taken from the environment, which speaks of one engine.
#[derive(Debug, Args)]
pub struct MigrateFlags {
    /// The stopped node's directory; it stays as it is
    #[arg(long, value_name = "DIRECTORY")]
    pub from: PathBuf,
    /// The new directory
    #[arg(long, value_name = "DIRECTORY")]
    pub to: PathBuf,
    /// The new storage engine: a plugin's name, file or folder
    #[arg(long, value_name = "NAME_OR_PATH")]
    pub backend: String,
    /// An option of the new engine; may be repeated (see `kvd plugin info`)
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub backend_opt: Vec<String>,
    /// The old storage engine [default: the one that wrote the directory]
    #[arg(long, value_name = "NAME_OR_PATH")]
    pub from_backend: Option<String>,
    /// An option of the old engine; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub from_backend_opt: Vec<String>,
    /// The cluster's --max-entry-bytes [default: 67108864]
    #[arg(long, value_name = "BYTES")]
    pub max_entry_bytes: Option<usize>,
}

impl MigrateFlags {
    /// How the old directory's engine is opened.
    pub fn old_engine(&self) -> EngineFlags {
        EngineFlags {
            backend: self.from_backend.clone(),
            backend_opt: self.from_backend_opt.clone(),
            max_entry_bytes: self.max_entry_bytes,
        }
    }

    /// How the new one is opened.
    pub fn new_engine(&self) -> EngineFlags {
        EngineFlags {
            backend: Some(self.backend.clone()),
            backend_opt: self.backend_opt.clone(),
            max_entry_bytes: self.max_entry_bytes,
        }
    }
}
