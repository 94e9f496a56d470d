//! `kvd snapshot`, `kvd recover`, `kvd backend`, `kvd log` and `kvd data`: what an operator does
//! beside running nodes.

mod backend;
mod log;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvd::config::{Config, DataCommand, EngineFlags, RecoverFlags, SnapshotCommand, default_name};
use kvd::data_dir::{Birth, DataDir, DataDirError};
use kvd::doors::Random;
use kvd::exit;
use kvd::keyspace::Limits;
use kvd::node::OpenEngine;
use kvd::offline::{self, Error, Reborn};
use kvd::raft::snapshot;
use kvd::resp::Reply;

pub(crate) use self::backend::backend;
pub(crate) use self::log::log;
use crate::client::Client;
use crate::output::say;
use crate::run::data_dir_failed;
use crate::{Failed, plugin};

/// A node may write its whole data to a file before it answers.
const BACKUP_TIME: Duration = Duration::from_secs(3600);

fn failed(error: Error) -> Failed {
    match error {
        Error::DataDir(error) => data_dir_failed(error),
        Error::Io(error) if error.kind() != std::io::ErrorKind::InvalidData => {
            Failed::new(exit::IO, error)
        }
        Error::Engine(ref engine) => Failed::new(exit::of_engine(engine), error),
        Error::Log(ref log) => Failed::new(exit::of_log(log), error),
        error => Failed::new(exit::CONFIG, error),
    }
}

/// The engine for a directory, and what decides how entries are carried out.
struct Engine {
    name: String,
    open: OpenEngine,
    limits: Limits,
}

fn engine(flags: &EngineFlags, written_by: Option<&str>) -> Result<Engine, Failed> {
    let Config {
        backend,
        backend_options,
        limits,
        ..
    } = flags
        .settings(written_by)
        .map_err(|error| Failed::new(exit::USAGE, error))?;
    let limits = limits.keyspace();
    let plugin = match written_by {
        // What is there was given to it by a node that it was large enough for.
        Some(_) => plugin::load(&backend)?,
        None => plugin::load_for(&backend, &limits)?,
    };
    let name = plugin.describe().name;
    Ok(Engine {
        name,
        open: plugin::opener(plugin, backend_options, std::sync::Arc::default()),
        limits,
    })
}

/// The engine that wrote a stopped node's directory.
fn engine_of(flags: &EngineFlags, directory: &Path) -> Result<Engine, Failed> {
    let dir = DataDir::open_stopped(directory).map_err(data_dir_failed)?;
    let engine = engine(flags, Some(&dir.identity().backend))?;
    if engine.name != dir.identity().backend {
        return Err(data_dir_failed(DataDirError::Backend {
            path: directory.to_owned(),
            found: dir.identity().backend.clone(),
            wanted: engine.name,
        }));
    }
    Ok(engine)
}

/// `kvd snapshot`.
pub(crate) fn snapshot(command: SnapshotCommand) -> Result<(), Failed> {
    match command {
        SnapshotCommand::Save {
            file,
            addr,
            requirepass,
            from: None,
            ..
        } => fetch(&file, &addr, requirepass.as_deref()),
        SnapshotCommand::Save {
            file,
            from: Some(directory),
            engine,
            ..
        } => {
            let engine = engine_of(&engine, &directory)?;
            let saved = offline::save_snapshot(&directory, &file, &engine.open, engine.limits)
                .map_err(failed)?;
            say!("saved {} up to entry {}", file.display(), saved.index);
            if saved.behind > 0 {
                say!(
                    "{} later entries are in the node's log, but it does not know that they are \
                     committed; a running cluster does",
                    saved.behind
                );
            }
            Ok(())
        }
        SnapshotCommand::Restore {
            file,
            directory,
            name,
            engine: flags,
        } => {
            let engine = engine(&flags, None)?;
            let birth = Birth {
                name: name.unwrap_or_else(|| default_name(&directory)),
                backend: engine.name.clone(),
                found: true,
            };
            let random = Random::from_os();
            let reborn = offline::restore_snapshot(
                &file,
                &directory,
                &birth,
                &engine.open,
                engine.limits,
                &random,
            )
            .map_err(failed)?;
            tell(&reborn, &directory, &engine.name);
            Ok(())
        }
        SnapshotCommand::Verify { file } => {
            let mark = snapshot::verify(&file).map_err(|error| failed(error.into()))?;
            say!(
                "{} is whole and ends at entry {}",
                file.display(),
                mark.index
            );
            Ok(())
        }
    }
}

/// `kvd recover`.
pub(crate) fn recover(flags: &RecoverFlags) -> Result<(), Failed> {
    let engine = engine_of(&flags.engine, &flags.directory)?;
    let random = Random::from_os();
    let reborn = offline::force_new_cluster(&flags.directory, &engine.open, engine.limits, &random)
        .map_err(failed)?;
    tell(&reborn, &flags.directory, &engine.name);
    Ok(())
}

fn tell(reborn: &Reborn, directory: &Path, backend: &str) {
    say!(
        "{} is the only member of the new cluster {:032x}, with all up to entry {}",
        reborn.name,
        reborn.cluster,
        reborn.last
    );
    if reborn.applied > 0 {
        say!("{} entries came from its log", reborn.applied);
    }
    say!(
        "start it: kvd --backend {backend} {}; then JOIN empty nodes to it",
        directory.display()
    );
}

/// Fetches a copy from a running node.
fn fetch(file: &Path, addr: &str, password: Option<&str>) -> Result<(), Failed> {
    let at = |error: std::io::Error| Failed::new(exit::IO, format!("{addr}: {error}"));
    let in_file =
        |error: std::io::Error| Failed::new(exit::IO, format!("{}: {error}", file.display()));
    let mut client = Client::connect(addr, BACKUP_TIME).map_err(at)?;
    let refused = |reply: &Reply| {
        let text = match reply {
            Reply::Error(text) => text.to_string(),
            other => format!("unexpected answer {other:?}"),
        };
        Failed::new(exit::CONFIG, format!("{addr}: {text}"))
    };
    if let Some(password) = password {
        match client.call(&["AUTH", password]).map_err(at)? {
            Reply::Ok => {}
            other => return Err(refused(&other)),
        }
    }
    let opened = client.call(&["BACKUP", "OPEN"]).map_err(at)?;
    let bytes = match &opened {
        Reply::Array(parts) => match parts[..] {
            [Reply::Int(_), Reply::Int(bytes)] => bytes as u64,
            _ => return Err(refused(&opened)),
        },
        other => return Err(refused(other)),
    };
    let partial = with_suffix(file, ".part");
    if file.exists() {
        return Err(in_file(std::io::ErrorKind::AlreadyExists.into()));
    }
    let mut out = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .map_err(in_file)?;
    let mut got = 0;
    while got < bytes {
        let piece = client
            .call(&["BACKUP", "READ", &got.to_string()])
            .map_err(at)?;
        let Reply::Bulk(piece) = piece else {
            return Err(refused(&piece));
        };
        if piece.is_empty() {
            return Err(Failed::new(exit::IO, format!("{addr}: it ends too early")));
        }
        out.write_all(&piece).map_err(in_file)?;
        got += piece.len() as u64;
    }
    out.sync_all().map_err(in_file)?;
    let mark = snapshot::verify(&partial).map_err(|error| failed(error.into()))?;
    std::fs::rename(&partial, file).map_err(in_file)?;
    let folder = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    kvd::data_dir::sync_dir(folder.unwrap_or(Path::new("."))).map_err(in_file)?;
    say!(
        "saved {} up to entry {}, {bytes} bytes",
        file.display(),
        mark.index
    );
    Ok(())
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// `kvd data`.
pub(crate) fn data(command: DataCommand) -> Result<(), Failed> {
    let DataCommand::Verify { directory, engine } = command;
    let engine = engine_of(&engine, &directory)?;
    let report = offline::verify_data(&directory, &engine.open, engine.limits).map_err(failed)?;
    log::summary(&report.log);
    say!("engine      {}", report.backend);
    say!("applied     up to entry {}", report.applied);
    say!("keys        {}", report.keys);
    say!("digest      {}", report.digest);
    say!("snapshots   {}", report.snapshots.len());
    log::ended(&report.log.end)
}
