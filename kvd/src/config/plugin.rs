//! `kvd plugin`: flags of what looks at engines, tries and measures them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `kvd plugin`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the plugins in the folders where names are looked for
    List {
        /// One JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// Say what a plugin is and what it offers, even if it cannot be used
    Info {
        /// A plugin's file, folder or name
        plugin: String,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Try whether a plugin's engine keeps the contract, each clause in a process of its own
    Check(PluginCheckFlags),
    /// Measure a plugin's engine
    Bench(PluginBenchFlags),
    /// Write a crate with a new engine to begin with
    New(PluginNewFlags),
    /// One trial of `check`, in the process that it starts
    #[command(hide = true)]
    Trial(PluginTrialFlags),
}

/// `kvd plugin check`.
#[derive(Debug, Args)]
pub struct PluginCheckFlags {
    /// A plugin's file, folder or name
    pub plugin: String,
    /// An option of the engine; may be repeated (see `kvd plugin info`)
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = engine_option)]
    pub backend_opt: Vec<(String, String)>,
    /// Try less of each clause: seconds instead of a minute
    #[arg(long)]
    pub quick: bool,
    /// How often a process that writes is killed [default: 5, with --quick 1]
    #[arg(long, value_name = "N")]
    pub crash: Option<u32>,
    /// How long one clause may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub time_limit: u64,
    /// Where the engines' directories are made, to try a certain disk [default: the system's
    /// folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub within: Option<PathBuf>,
}

/// `kvd plugin trial`.
#[derive(Debug, Args)]
pub struct PluginTrialFlags {
    /// The library
    pub file: PathBuf,
    /// A clause, or `describe`, `crash-write`, `crash-verify`
    pub trial: String,
    /// Where it works, and leaves what came of it in the file `outcome`
    pub dir: PathBuf,
    /// An option of the engine
    #[arg(long, value_name = "KEY=VALUE", value_parser = engine_option)]
    pub backend_opt: Vec<(String, String)>,
    /// Try less
    #[arg(long)]
    pub quick: bool,
    /// The mark that was promised before the crash
    #[arg(long, default_value_t = 0)]
    pub promised: u64,
    /// The marks from which the processes that write went on, this one's last
    #[arg(long, default_value = "", hide_default_value = true)]
    pub lives: String,
    /// The call of the engine in which the process ends itself
    #[arg(long)]
    pub call: Option<u64>,
}

/// `kvd plugin bench`.
#[derive(Debug, Args)]
pub struct PluginBenchFlags {
    /// A plugin's file, folder or name
    pub plugin: String,
    /// An option of the engine; may be repeated (see `kvd plugin info`)
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = engine_option)]
    pub backend_opt: Vec<(String, String)>,
    /// How long each figure is measured
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How many keys there are, of 16 bytes
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub keys: u64,
    /// How long a value is
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=64 << 20))]
    pub value_bytes: u64,
    /// Where the engine's directory is made, to measure a certain disk [default: the system's
    /// folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub within: Option<PathBuf>,
}

/// `kvd plugin new`.
#[derive(Debug, Args)]
pub struct PluginNewFlags {
    /// The engine's name: lower-case letters, digits, - and _, beginning with a letter
    pub name: String,
    /// The new crate's folder [default: ./kvd-NAME]
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// The folder of kvd-plugin-api, to build with it instead of with the published one
    #[arg(long, value_name = "DIR")]
    pub plugin_api: Option<PathBuf>,
}

/// `KEY=VALUE`, as `--backend-opt` takes it.
///
/// # Errors
///
/// There is no `=`.
pub fn engine_option(option: &str) -> Result<(String, String), String> {
    match option.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(format!("backend-opt '{option}' is not KEY=VALUE")),
    }
}
