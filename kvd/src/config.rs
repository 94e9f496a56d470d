//! Everything a person can set: flags, environment, a file, in this order of precedence.
//!
//! Every flag `--some-flag` is also `KVD_SOME_FLAG` in the environment and `some-flag` in the TOML
//! file that `--config` names. Single-dash spellings of long flags are accepted.

mod backend;
mod plugin;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::keyspace;
use crate::node::{ConfigLimits, ReadLevel, RedirectMode};
use crate::storage;

pub use self::backend::{BackendCommand, MigrateFlags};
pub use self::plugin::{
    PluginBenchFlags, PluginCheckFlags, PluginCommand, PluginNewFlags, PluginTrialFlags,
    engine_option,
};

/// Where clients connect by default.
pub const ADDR: &str = "localhost:6379";

/// Where peers connect by default.
pub const RAFT_ADDR: &str = "localhost:19000";

/// The engine used by default.
pub const BACKEND: &str = "redb";

/// Where data goes by default.
pub const DIRECTORY: &str = "./kvd-data";

/// Bytes of entries between two cuts of the log by default: a restart reads them in well under a
/// second.
pub const LOG_BYTES: u64 = 64 << 20;

/// Memory for values that were read lately, by default.
const READ_CACHE_BYTES: usize = 48 << 20;

/// What `--max-entry-bytes` may be.
const ENTRY_BYTES: RangeInclusive<usize> = 1 << 10..=512 << 20;

/// The longest key, however large an entry may be.
const KEY_BYTES_MAX: usize = 64 << 10;

/// Room in an entry beside the largest value: the command's other arguments and the framing.
const ENTRY_ROOM_BYTES: usize = 1 << 20;

/// kvd: a distributed key-value server that speaks the Redis protocol, replicated by Raft.
#[derive(Debug, Parser)]
#[command(name = "kvd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Anything but running a node.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Running a node.
    #[command(flatten)]
    pub run: RunFlags,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster of several nodes on this machine, for trying things out
    Dev(DevFlags),
    /// Look at storage plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Change the engine of a stopped node
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Copy a cluster's data, and make a new cluster of such a copy
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a new cluster of what is left after most members are lost for good
    Recover(RecoverFlags),
    /// Look at the Raft log of a stopped node, or repair it
    #[command(subcommand)]
    Log(LogCommand),
    /// Look at the data of a stopped node
    #[command(subcommand)]
    Data(DataCommand),
}

/// `kvd snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save all data of a running cluster, or of a stopped node, to a file
    Save {
        /// The new file
        file: PathBuf,
        /// Any member of a running cluster
        #[arg(long, env = "KVD_ADDR", value_name = "HOST:PORT", default_value = ADDR)]
        addr: String,
        /// Its password
        #[arg(long, env = "KVD_REQUIREPASS", value_name = "PASSWORD")]
        requirepass: Option<String>,
        /// A stopped node's directory instead
        #[arg(long, value_name = "DIRECTORY")]
        from: Option<PathBuf>,
        /// How the stopped node's directory is read
        #[command(flatten)]
        engine: EngineFlags,
    },
    /// Make the directory of a new cluster's only member from a saved file
    Restore {
        /// The saved file
        file: PathBuf,
        /// The new directory
        directory: PathBuf,
        /// The node's name [default: the last part of its directory]
        #[arg(long, env = "KVD_NAME")]
        name: Option<String>,
        /// How the directory is written
        #[command(flatten)]
        engine: EngineFlags,
    },
    /// Read a saved file and check all of it
    Verify {
        /// The saved file
        file: PathBuf,
    },
}

/// Flags of `kvd recover`.
#[derive(Debug, Args)]
pub struct RecoverFlags {
    /// Say that you mean it: members that are not lost after all can never come back to it
    #[arg(long, required = true)]
    pub force_new_cluster: bool,
    /// The directory of the stopped member that has the most
    pub directory: PathBuf,
    /// How it is read
    #[command(flatten)]
    pub engine: EngineFlags,
}

/// `kvd log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show what a stopped node's log holds, record by record
    Inspect {
        /// The node's directory
        directory: PathBuf,
        /// From this entry on
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u64,
        /// Up to this entry
        #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
        to: u64,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Read a stopped node's log and check all of it; exits with 1 for an unfinished record at its
    /// end, and with 78 for any other damage
    Verify {
        /// The node's directory
        directory: PathBuf,
    },
    /// Cut damage off the end of a stopped node's log; what was there is kept beside it
    Repair {
        /// The node's directory
        directory: PathBuf,
        /// Cut off an unfinished record
        #[arg(long, required_unless_present = "drop_from")]
        drop_tail: bool,
        /// Drop this entry and all behind it
        #[arg(
            long,
            value_name = "INDEX",
            conflicts_with = "drop_tail",
            requires = "accept_data_loss"
        )]
        drop_from: Option<u64>,
        /// Say that entries of which clients were told that they are safe may go
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// `kvd data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read all data of a stopped node, and check log, engine, contents and snapshots
    Verify {
        /// The node's directory
        directory: PathBuf,
        /// How it is read
        #[command(flatten)]
        engine: EngineFlags,
    },
}

/// How a directory's engine is opened.
#[derive(Debug, Default, Args)]
pub struct EngineFlags {
    /// The storage engine: a plugin's name, file or folder [default: the one that wrote the
    /// directory, or redb]
    #[arg(long, env = "KVD_BACKEND", value_name = "NAME_OR_PATH")]
    pub backend: Option<String>,
    /// An option of the engine; may be repeated (see `kvd plugin info`)
    #[arg(
        long,
        env = "KVD_BACKEND_OPT",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub backend_opt: Vec<String>,
    /// The cluster's --max-entry-bytes [default: 67108864]
    #[arg(long, env = "KVD_MAX_ENTRY_BYTES", value_name = "BYTES")]
    pub max_entry_bytes: Option<usize>,
}

impl EngineFlags {
    /// The settings of a node with these, for a directory that `written_by` wrote.
    ///
    /// # Errors
    ///
    /// A value is wrong.
    pub fn settings(&self, written_by: Option<&str>) -> Result<Config, ConfigError> {
        Config::new(RunFlags {
            backend: self.backend.clone().or(written_by.map(str::to_owned)),
            backend_opt: Some(self.backend_opt.clone()),
            max_entry_bytes: self.max_entry_bytes,
            ..RunFlags::default()
        })
    }
}

/// Flags of `kvd dev`.
#[derive(Debug, Args)]
pub struct DevFlags {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// The first node's client port; the others follow
    #[arg(long, default_value_t = 6379)]
    pub port: u16,
    /// The first node's Raft port; the others follow
    #[arg(long, default_value_t = 19000)]
    pub raft_port: u16,
    /// The storage engine of all nodes
    #[arg(long, default_value = BACKEND)]
    pub backend: String,
    /// The folder for the nodes' data
    #[arg(default_value = "./kvd-dev")]
    pub directory: PathBuf,
}

/// Flags of a node. `None` means not given.
#[derive(Debug, Default, Args)]
pub struct RunFlags {
    /// Where the node keeps its data [default: ./kvd-data]
    #[arg(env = "KVD_DIRECTORY")]
    pub directory: Option<PathBuf>,
    /// Where clients connect [default: localhost:6379]
    #[arg(
        long,
        env = "KVD_ADDR",
        value_name = "HOST:PORT",
        help_heading = "Addresses"
    )]
    pub addr: Option<String>,
    /// Where other nodes connect [default: localhost:19000]
    #[arg(
        long,
        env = "KVD_RAFT_ADDR",
        value_name = "HOST:PORT",
        help_heading = "Addresses"
    )]
    pub raft_addr: Option<String>,
    /// Where clients reach this node, if not at --addr
    #[arg(
        long,
        env = "KVD_ANNOUNCE_ADDR",
        value_name = "HOST:PORT",
        help_heading = "Addresses"
    )]
    pub announce_addr: Option<String>,
    /// Where other nodes reach this one, if not at --raft-addr
    #[arg(
        long,
        env = "KVD_ANNOUNCE_RAFT_ADDR",
        value_name = "HOST:PORT",
        help_heading = "Addresses"
    )]
    pub announce_raft_addr: Option<String>,
    /// The storage engine: a plugin's name, file or folder [default: redb]
    #[arg(
        long,
        env = "KVD_BACKEND",
        value_name = "NAME_OR_PATH",
        help_heading = "Storage"
    )]
    pub backend: Option<String>,
    /// An option of the engine; may be repeated (see `kvd plugin info`)
    #[arg(
        long,
        env = "KVD_BACKEND_OPT",
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        help_heading = "Storage"
    )]
    pub backend_opt: Option<Vec<String>>,
    /// Largest command that may enter the log, in bytes [default: 67108864]
    #[arg(
        long,
        env = "KVD_MAX_ENTRY_BYTES",
        value_name = "BYTES",
        help_heading = "Storage"
    )]
    pub max_entry_bytes: Option<usize>,
    /// Bytes of entries between two cuts of the log: what a restart reads [default: 67108864]
    #[arg(
        long,
        env = "KVD_MAX_LOG_BYTES",
        value_name = "BYTES",
        help_heading = "Storage"
    )]
    pub max_log_bytes: Option<u64>,
    /// Memory for values that were read lately, in bytes, over whatever engine; 0 keeps none
    /// [default: 50331648]
    #[arg(
        long,
        env = "KVD_READ_CACHE_BYTES",
        value_name = "BYTES",
        help_heading = "Storage"
    )]
    pub read_cache_bytes: Option<usize>,
    /// Free bytes of the disk below which commands that may grow the data are refused [default: a
    /// twentieth of the disk, between 16 and 256 MiB]
    #[arg(
        long,
        env = "KVD_MIN_FREE_BYTES",
        value_name = "BYTES",
        help_heading = "Storage"
    )]
    pub min_free_bytes: Option<u64>,
    /// The node's name [default: the last part of its directory]
    #[arg(long, env = "KVD_NAME", help_heading = "Cluster")]
    pub name: Option<String>,
    /// Do not found a cluster in an empty directory: wait to be taken in by JOIN
    #[arg(
        long,
        env = "KVD_NO_BOOTSTRAP",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Cluster"
    )]
    pub no_bootstrap: Option<bool>,
    /// Raft addresses of members that shall take this node in, if it is new; may be repeated
    #[arg(
        long,
        env = "KVD_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    pub join: Option<Vec<String>>,
    /// All members of a new cluster, the same list on each: the first by name founds it
    #[arg(
        long,
        env = "KVD_INITIAL_MEMBERS",
        value_name = "NAME=HOST:PORT",
        value_delimiter = ',',
        conflicts_with = "join",
        help_heading = "Cluster"
    )]
    pub initial_members: Option<Vec<String>>,
    /// How long commands wait while there is no leader, in milliseconds [default: 5000]
    #[arg(long, env = "KVD_HOLD", value_name = "MS", help_heading = "Cluster")]
    pub hold: Option<u64>,
    /// A file with the secret that all nodes of the cluster share
    #[arg(
        long,
        env = "KVD_CLUSTER_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    pub cluster_secret_file: Option<PathBuf>,
    /// Let a Raft port off loopback work without a secret: anyone who reaches it owns the data
    #[arg(
        long,
        env = "KVD_INSECURE_RAFT",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Cluster"
    )]
    pub insecure_raft: Option<bool>,
    /// How fresh reads are unless a client asks for less [default: linearizable]
    #[arg(long, env = "KVD_READ_LEVEL", help_heading = "Clients")]
    pub read_level: Option<ReadLevelFlag>,
    /// Refuse local reads of what is older than this, in milliseconds; 0 means never [default: 0]
    #[arg(
        long,
        env = "KVD_MAX_STALENESS",
        value_name = "MS",
        help_heading = "Clients"
    )]
    pub max_staleness: Option<u64>,
    /// What a follower does with writes [default: auto]
    #[arg(long, env = "KVD_FOLLOWER_WRITES", help_heading = "Clients")]
    pub follower_writes: Option<FollowerWritesFlag>,
    /// The password that clients must give
    #[arg(long, env = "KVD_REQUIREPASS", help_heading = "Clients")]
    pub requirepass: Option<String>,
    /// Most clients at a time [default: 10000]
    #[arg(long, env = "KVD_MAXCLIENTS", help_heading = "Clients")]
    pub maxclients: Option<usize>,
    /// Close connections that are idle for this many seconds; 0 means never [default: 0]
    #[arg(
        long,
        env = "KVD_TIMEOUT",
        value_name = "SECONDS",
        help_heading = "Clients"
    )]
    pub timeout: Option<u64>,
    /// Refuse clients from elsewhere while there is no password [default: yes]
    #[arg(long, env = "KVD_PROTECTED_MODE", help_heading = "Clients")]
    pub protected_mode: Option<YesNo>,
    /// How much is logged [default: info]
    #[arg(long, env = "KVD_LOG_LEVEL", help_heading = "Process")]
    pub log_level: Option<LogLevel>,
    /// A TOML file with the same settings
    #[arg(
        long,
        env = "KVD_CONFIG",
        value_name = "FILE",
        help_heading = "Process"
    )]
    pub config: Option<PathBuf>,
}

/// The same settings in a file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileSettings {
    directory: Option<PathBuf>,
    addr: Option<String>,
    raft_addr: Option<String>,
    announce_addr: Option<String>,
    announce_raft_addr: Option<String>,
    backend: Option<String>,
    backend_opt: Option<Vec<String>>,
    max_entry_bytes: Option<usize>,
    max_log_bytes: Option<u64>,
    read_cache_bytes: Option<usize>,
    min_free_bytes: Option<u64>,
    name: Option<String>,
    no_bootstrap: Option<bool>,
    join: Option<Vec<String>>,
    initial_members: Option<Vec<String>>,
    hold: Option<u64>,
    cluster_secret_file: Option<PathBuf>,
    insecure_raft: Option<bool>,
    read_level: Option<ReadLevelFlag>,
    max_staleness: Option<u64>,
    follower_writes: Option<FollowerWritesFlag>,
    requirepass: Option<String>,
    maxclients: Option<usize>,
    timeout: Option<u64>,
    protected_mode: Option<YesNo>,
    log_level: Option<LogLevel>,
}

/// `--read-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadLevelFlag {
    /// Every read sees every write that was acknowledged before it
    Linearizable,
    /// Reads see what this node has applied, also without a leader
    Local,
}

/// `--follower-writes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FollowerWritesFlag {
    /// MOVED for clients that know of clusters, forwarding for the others
    Auto,
    /// Always forward to the leader
    Forward,
    /// Always answer MOVED
    Redirect,
}

/// `yes` or `no`, as Redis writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum YesNo {
    /// Yes
    Yes,
    /// No
    No,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what is lost or does not work
    Error,
    /// Also the unexpected that was survived
    Warn,
    /// Also what an operator wants to know
    Info,
    /// Also what helps to find a fault
    Debug,
    /// Everything
    Trace,
}

/// The settings of a node, complete and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the node keeps its data.
    pub directory: PathBuf,
    /// Where clients connect.
    pub addr: String,
    /// Where peers connect.
    pub raft_addr: String,
    /// Where clients are told to connect.
    pub announce_addr: String,
    /// Where peers are told to connect.
    pub announce_raft_addr: String,
    /// The engine, as the operator named it.
    pub backend: String,
    /// The engine's options.
    pub backend_options: Vec<(String, String)>,
    /// Sizes that are refused before the log.
    pub limits: ConfigLimits,
    /// Bytes of entries between two cuts of the log.
    pub log_bytes_max: u64,
    /// Memory for values that were read lately.
    pub read_cache_bytes: usize,
    /// Free bytes of the disk below which data may not grow; none means a share of the disk.
    pub free_bytes_min: Option<u64>,
    /// The node's name.
    pub name: String,
    /// Found a cluster in an empty directory.
    pub bootstrap: bool,
    /// Raft addresses of members that shall take a new node in.
    pub join: Vec<String>,
    /// How long commands wait for a leader.
    pub hold: Duration,
    /// The file with the cluster's secret.
    pub cluster_secret_file: Option<PathBuf>,
    /// Let the Raft port work without a secret off loopback.
    pub insecure_raft: bool,
    /// How fresh reads are by default.
    pub read_level: ReadLevel,
    /// How old what a local read sees may be; none means that it may be of any age.
    pub staleness_max: Option<Duration>,
    /// What a follower does with writes.
    pub follower_writes: RedirectMode,
    /// The password that clients must give.
    pub requirepass: Option<String>,
    /// Most clients at a time.
    pub maxclients: usize,
    /// After how long an idle connection is closed; zero means never.
    pub timeout: Duration,
    /// Refuse clients from elsewhere while there is no password.
    pub protected_mode: bool,
    /// How much is logged.
    pub log_level: LogLevel,
}

/// A setting is wrong: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Completes and checks what was given.
    ///
    /// # Errors
    ///
    /// A value or the file is wrong.
    pub fn new(flags: RunFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => FileSettings::default(),
        };
        macro_rules! pick {
            ($name:ident) => {
                flags.$name.or(file.$name)
            };
        }
        let directory = pick!(directory).unwrap_or_else(|| DIRECTORY.into());
        let addr = address("addr", pick!(addr).unwrap_or_else(|| ADDR.to_owned()))?;
        let raft_addr = address(
            "raft-addr",
            pick!(raft_addr).unwrap_or_else(|| RAFT_ADDR.to_owned()),
        )?;
        let announce_addr = match pick!(announce_addr) {
            Some(announce) => address("announce-addr", announce)?,
            None => addr.clone(),
        };
        let name = match pick!(name) {
            Some(name) => name,
            None => default_name(&directory),
        };
        if name.is_empty() || name.len() > 255 || name.contains(char::is_whitespace) {
            return Err(ConfigError(format!(
                "name '{name}' is empty, too long or holds a space"
            )));
        }
        let join = pick!(join)
            .unwrap_or_default()
            .into_iter()
            .map(|addr| address("join", addr))
            .collect::<Result<Vec<_>, _>>()?;
        let no_bootstrap = pick!(no_bootstrap).unwrap_or(false);
        let birth = match pick!(initial_members) {
            Some(members) => initial(&members, &name)?,
            None => Initial {
                own_addr: None,
                founds: join.is_empty() && !no_bootstrap,
                others: join,
            },
        };
        let announce_raft_addr = match pick!(announce_raft_addr) {
            Some(announce) => address("announce-raft-addr", announce)?,
            None => birth.own_addr.unwrap_or_else(|| raft_addr.clone()),
        };
        let backend_options = pick!(backend_opt)
            .unwrap_or_default()
            .into_iter()
            .map(|option| engine_option(&option).map_err(ConfigError))
            .collect::<Result<_, _>>()?;
        let entry = pick!(max_entry_bytes).unwrap_or(64 << 20);
        if !ENTRY_BYTES.contains(&entry) {
            return Err(ConfigError(format!(
                "max-entry-bytes {entry} is not between {} and {}",
                ENTRY_BYTES.start(),
                ENTRY_BYTES.end()
            )));
        }
        let log_bytes_max = pick!(max_log_bytes).unwrap_or(LOG_BYTES);
        if log_bytes_max < 64 << 10 {
            return Err(ConfigError(format!(
                "max-log-bytes {log_bytes_max} is below 65536"
            )));
        }
        let maxclients = pick!(maxclients).unwrap_or(10_000);
        if maxclients == 0 {
            return Err(ConfigError("maxclients 0 would serve nobody".to_owned()));
        }
        Ok(Config {
            directory,
            addr,
            raft_addr,
            announce_addr,
            announce_raft_addr,
            backend: pick!(backend).unwrap_or_else(|| BACKEND.to_owned()),
            backend_options,
            limits: limits_of(entry),
            log_bytes_max,
            read_cache_bytes: pick!(read_cache_bytes).unwrap_or(READ_CACHE_BYTES),
            free_bytes_min: pick!(min_free_bytes),
            name,
            bootstrap: birth.founds,
            join: birth.others,
            hold: Duration::from_millis(pick!(hold).unwrap_or(5000)),
            cluster_secret_file: pick!(cluster_secret_file),
            insecure_raft: pick!(insecure_raft).unwrap_or(false),
            read_level: match pick!(read_level) {
                None | Some(ReadLevelFlag::Linearizable) => ReadLevel::Linearizable,
                Some(ReadLevelFlag::Local) => ReadLevel::Local,
            },
            staleness_max: match pick!(max_staleness) {
                None | Some(0) => None,
                Some(ms) => Some(Duration::from_millis(ms)),
            },
            follower_writes: match pick!(follower_writes) {
                None | Some(FollowerWritesFlag::Auto) => RedirectMode::Auto,
                Some(FollowerWritesFlag::Forward) => RedirectMode::Forward,
                Some(FollowerWritesFlag::Redirect) => RedirectMode::Redirect,
            },
            requirepass: pick!(requirepass).filter(|password| !password.is_empty()),
            maxclients,
            timeout: Duration::from_secs(pick!(timeout).unwrap_or(0)),
            protected_mode: pick!(protected_mode) != Some(YesNo::No),
            log_level: pick!(log_level).unwrap_or(LogLevel::Info),
        })
    }
}

/// What `--max-entry-bytes` limits.
fn limits_of(entry_bytes: usize) -> ConfigLimits {
    ConfigLimits {
        key_bytes_max: KEY_BYTES_MAX.min(entry_bytes),
        value_bytes_max: entry_bytes,
        group_bytes_max: entry_bytes + ENTRY_ROOM_BYTES,
    }
}

/// The largest `--max-entry-bytes` with which an engine of these limits can be used, if there is
/// one.
///
/// # Errors
///
/// Why there is none: the limit that is too low for the least one.
pub fn entry_bytes_within(engine: &storage::Limits) -> Result<usize, keyspace::Misfit> {
    limits_of(*ENTRY_BYTES.start()).keyspace().fit(engine)?;
    let within = keyspace::Limits::within(engine);
    let mut entry = within.value_bytes_max;
    if within.key_bytes_max < KEY_BYTES_MAX as u64 {
        entry = entry.min(within.key_bytes_max);
    }
    Ok(entry.min(*ENTRY_BYTES.end() as u64) as usize)
}

/// What a node is born to, by the list of all members.
struct Initial {
    own_addr: Option<String>,
    founds: bool,
    others: Vec<String>,
}

fn initial(members: &[String], name: &str) -> Result<Initial, ConfigError> {
    let mut known = std::collections::BTreeMap::new();
    for member in members {
        let Some((name, addr)) = member.split_once('=') else {
            return Err(ConfigError(format!(
                "initial-members '{member}' is not NAME=HOST:PORT"
            )));
        };
        let addr = address("initial-members", addr.trim().to_owned())?;
        if known.insert(name.trim(), addr).is_some() {
            return Err(ConfigError(format!("initial-members names '{name}' twice")));
        }
    }
    // Whatever the order on each node, they agree on who is first.
    let first = known.keys().next().copied();
    let Some(own_addr) = known.remove(name) else {
        return Err(ConfigError(format!(
            "initial-members does not name this node, '{name}'"
        )));
    };
    let founds = first == Some(name);
    Ok(Initial {
        own_addr: Some(own_addr),
        founds,
        others: match founds {
            true => Vec::new(),
            false => known.into_values().collect(),
        },
    })
}

fn read_file(path: &Path) -> Result<FileSettings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("config {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        ConfigError(format!(
            "config {} line {line}: {}",
            path.display(),
            error.message()
        ))
    })
}

fn address(name: &str, text: String) -> Result<String, ConfigError> {
    let wrong = || ConfigError(format!("{name} '{text}' is not HOST:PORT"));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    if port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    // `:6379` means every address of this machine, as elsewhere.
    Ok(if host.is_empty() {
        format!("0.0.0.0:{port}")
    } else {
        text
    })
}

/// The name of a node in this directory, unless it is given one.
pub fn default_name(directory: &Path) -> String {
    let whole = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    match whole.file_name().and_then(|name| name.to_str()) {
        Some(name) => name.replace(char::is_whitespace, "_"),
        None => "kvd".to_owned(),
    }
}

/// Whether an address can only be reached from this machine.
pub fn is_loopback(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Turns `-raft-addr` into `--raft-addr`: single-dash long flags were the original's spelling.
pub fn rewrite_arguments(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    args.into_iter()
        .map(|arg| {
            only_values |= arg == "--";
            let long = arg.to_str().is_some_and(|text| {
                let mut letters = text.chars();
                letters.next() == Some('-')
                    && letters.next().is_some_and(char::is_alphabetic)
                    && letters
                        .next()
                        .is_some_and(|c| c.is_alphabetic() || c == '-')
            });
            if long && !only_values {
                let mut double = OsString::from("-");
                double.push(arg);
                double
            } else {
                arg
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let args = rewrite_arguments(args.iter().map(OsString::from));
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        Config::new(cli.run).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flags_are_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let config = parse(&["kvd"]).unwrap();
        assert_eq!(config.addr, ADDR);
        assert_eq!(config.raft_addr, RAFT_ADDR);
        assert_eq!(
            (config.backend.as_str(), config.name.as_str()),
            ("redb", "kvd-data")
        );
        assert!(config.bootstrap && config.protected_mode && !config.insecure_raft);
        assert_eq!(config.limits.value_bytes_max, 64 << 20);
    }

    #[test]
    fn a_switch_does_not_take_the_directory_for_its_value() {
        let config = parse(&["kvd", "--insecure-raft", "--no-bootstrap", "./node1"]).unwrap();
        assert!(!config.bootstrap && config.insecure_raft);
        assert_eq!(config.directory, PathBuf::from("./node1"));
        assert!(parse(&["kvd", "--no-bootstrap=false"]).unwrap().bootstrap);
    }

    #[test]
    fn the_originals_single_dashes_are_understood() {
        let config = parse(&[
            "kvd",
            "-addr",
            "localhost:6380",
            "-raft-addr",
            "localhost:19001",
            "./node1",
        ])
        .unwrap();
        assert_eq!(config.addr, "localhost:6380");
        assert_eq!(config.raft_addr, "localhost:19001");
        assert_eq!(
            (config.directory.as_path(), config.name.as_str()),
            (Path::new("./node1"), "node1")
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (args, part) in [
            (
                &["kvd", "--addr", "6379"][..],
                "addr '6379' is not HOST:PORT",
            ),
            (
                &["kvd", "--backend-opt", "cache"],
                "backend-opt 'cache' is not KEY=VALUE",
            ),
            (&["kvd", "--nope"], "unexpected argument '--nope'"),
            (&["kvd", "--maxclients", "0"], "maxclients 0"),
            (
                &["kvd", "--config", "/does/not/exist"],
                "config /does/not/exist: ",
            ),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn entries_that_fit_into_an_engine_are_the_largest_that_do() {
        let engine = |key, value, batch| storage::Limits {
            key_bytes_max: key,
            value_bytes_max: value,
            batch_bytes_max: batch,
        };
        const ANY: u64 = u64::MAX;
        for (limits, entry) in [
            (engine(ANY, ANY, ANY), 512 << 20),
            (engine(65_557, 1 << 20, ANY), (1 << 20) - 34),
            (engine(65_556, ANY, ANY), 65_535),
            (engine(2021, 2000, ANY), 1966),
            (engine(2021, 3000, ANY), 2000),
        ] {
            assert_eq!(entry_bytes_within(&limits), Ok(entry), "{limits:?}");
            let fits = |entry| limits_of(entry).keyspace().fit(&limits).is_ok();
            assert!(fits(entry) && (!fits(entry + 1) || entry == 512 << 20));
        }
        for limits in [
            engine(511, ANY, ANY),
            engine(ANY, 1024, ANY),
            engine(ANY, ANY, 1 << 40),
        ] {
            assert!(entry_bytes_within(&limits).is_err(), "{limits:?}");
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvd.toml");
        std::fs::write(
            &file,
            "addr = \"localhost:7000\"\nhold = 100\nread-level = \"local\"\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let config = parse(&["kvd", "--config", file, "--hold", "200"]).unwrap();
        assert_eq!(config.addr, "localhost:7000");
        assert_eq!(config.hold, Duration::from_millis(200));
        assert_eq!(config.read_level, ReadLevel::Local);
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvd.toml");
        std::fs::write(&file, "hold = 100\nadress = \"localhost:7000\"\n").unwrap();
        let error = parse(&["kvd", "--config", file.to_str().unwrap()]).unwrap_err();
        assert!(error.contains("line 2: unknown field `adress`"), "{error}");
    }

    #[test]
    fn loopback_addresses_are_told_apart() {
        for addr in ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(is_loopback(addr), "{addr}");
        }
        for addr in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.org:1"] {
            assert!(!is_loopback(addr), "{addr}");
        }
    }

    #[test]
    fn the_first_of_the_initial_members_founds_and_the_others_ask() {
        let list = "b=h2:1,a=h1:1,c=h3:1";
        let of = |name: &str| {
            parse(&["kvd", "--name", name, "--initial-members", list, "./node"]).unwrap()
        };
        let (first, second) = (of("a"), of("b"));
        assert!(first.bootstrap && first.join.is_empty());
        assert_eq!(first.announce_raft_addr, "h1:1");
        assert!(!second.bootstrap);
        assert_eq!(second.join, ["h1:1", "h3:1"]);
        for wrong in ["a", "a=h", "a=h:1,a=h:2", "b=h:1"] {
            let parsed = parse(&["kvd", "--name", "a", "--initial-members", wrong]);
            assert!(parsed.unwrap_err().contains("initial-members"), "{wrong}");
        }
        let joining = parse(&["kvd", "--join", "h1:1,h2:1", "--join", "h3:1"]).unwrap();
        assert!(!joining.bootstrap);
        assert_eq!(joining.join, ["h1:1", "h2:1", "h3:1"]);
    }
}
