//! Parses arguments, starts a node, runs it until a signal, returns an exit code.

mod allocator;
mod client;
mod dev;
mod maintenance;
mod output;
mod plugin;
mod run;
mod signals;

use clap::Parser as _;
use clap::error::ErrorKind;
use kvd::config::{Cli, Command, Config, rewrite_arguments};
use kvd::exit;

/// A start or a command that failed: one line, perhaps a hint, and an exit code.
pub(crate) struct Failed {
    code: i32,
    message: String,
    hint: Option<String>,
}

impl Failed {
    pub(crate) fn new(code: i32, message: impl std::fmt::Display) -> Self {
        Failed {
            code,
            message: message.to_string(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(self, hint: Option<&str>) -> Self {
        Failed {
            hint: hint.map(str::to_owned),
            ..self
        }
    }
}

fn main() {
    let cli = match Cli::try_parse_from(rewrite_arguments(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            if asked {
                // A closed pipe is the reader's choice.
                drop(error.print());
                std::process::exit(exit::OK);
            }
            let text = error.to_string();
            // What is missing stands on lines of its own, up to an empty one.
            let lines = text.lines().take_while(|line| !line.trim().is_empty());
            let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
            eprintln!("kvd: {}", line.trim_start_matches("error: "));
            eprintln!("     hint: kvd --help");
            std::process::exit(exit::USAGE);
        }
    };
    let done = match cli.command {
        None => Config::new(cli.run)
            .map_err(|error| Failed::new(exit::USAGE, error))
            .and_then(run::run),
        Some(Command::Dev(flags)) => dev::run(&flags),
        Some(Command::Snapshot(command)) => maintenance::snapshot(command),
        Some(Command::Backend(command)) => maintenance::backend(command),
        Some(Command::Recover(flags)) => maintenance::recover(&flags),
        Some(Command::Log(command)) => maintenance::log(command),
        Some(Command::Data(command)) => maintenance::data(command),
        Some(Command::Plugin(command)) => plugin::command(command),
    };
    if let Err(failed) = done {
        eprintln!("kvd: {}", failed.message);
        if let Some(hint) = failed.hint {
            eprintln!("     hint: {hint}");
        }
        std::process::exit(failed.code);
    }
}
