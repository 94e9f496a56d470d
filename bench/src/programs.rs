//! The programs that are measured: kvd is built, its peers are installed where they are missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A program, and Debian's package with it.
const PEERS: [(&str, &str); 2] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
];

const ETCD: (&str, &str) = ("etcd", "etcd-server");

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("bench/ lies in the root")
        .to_owned()
}

/// Builds kvd and its plugins as the README's command does, and returns their folder.
///
/// # Errors
///
/// The build fails.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = target()?.join("release");
    let built = cargo(&["build", "--release", "--locked"])
        .stdout(Stdio::null())
        .status()
        .context("cargo cannot be started")?;
    ensure!(built.success(), "the build of kvd failed");
    Ok(folder)
}

/// Where cargo puts what it builds of the workspace.
///
/// # Errors
///
/// Cargo does not say.
pub(crate) fn target() -> Result<PathBuf> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout).context("cargo's metadata")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("a target directory")?;
    Ok(target.into())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(repository());
    command
}

/// Installs the peers that are missing, from Debian's packages.
///
/// # Errors
///
/// They cannot be installed.
pub(crate) fn install(etcd: bool) -> Result<()> {
    let missing: Vec<&str> = PEERS
        .into_iter()
        .chain(etcd.then_some(ETCD))
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(", "));
    for args in [&["update", "-qq"][..], &["install", "-y", "-qq"]] {
        let packages = if args[0] == "install" {
            &missing[..]
        } else {
            &[]
        };
        let status = Command::new("apt-get")
            .args(args)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("install {}: there is no apt-get here", missing.join(", ")))?;
        ensure!(status.success(), "apt-get {} ended with {status}", args[0]);
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether kvd has this storage engine.
pub(crate) fn has_engine(built: &Path, engine: &str) -> bool {
    built.join(format!("libkvd_{engine}.so")).is_file()
}

/// The first line that a program prints.
pub(crate) fn first_line(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(repository())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}

/// The programs' versions.
pub(crate) fn versions(built: &Path, etcd: bool) -> Vec<String> {
    let mut versions = Vec::new();
    let mut add = |line: Option<String>| versions.extend(line);
    let commit = first_line("git", &["log", "-1", "--format=%h"]);
    add(first_line(built.join("kvd"), &["--version"])
        .map(|version| format!("{version} at {}", commit.as_deref().unwrap_or("no commit"))));
    // The numbers of the build behind it say nothing to anyone.
    add(first_line("redis-server", &["--version"]).and_then(|line| {
        Some(format!(
            "redis-server {}",
            line.split("v=").nth(1)?.split(' ').next()?
        ))
    }));
    if etcd {
        add(first_line("etcd", &["--version"]));
    }
    versions
}

/// The machine, in a line.
pub(crate) fn machine(dir: &Path) -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let gib = crate::usage::field(&memory, "MemTotal:")
        .and_then(|text| text.strip_suffix("kB")?.trim().parse::<f64>().ok())
        .map_or(0.0, |kib| kib / f64::from(1 << 20));
    let system = first_line("uname", &["-sr"]).unwrap_or_default();
    let dir = dir.to_string_lossy();
    let disk = first_line("stat", &["-f", "-c", "%T", &dir]).unwrap_or_default();
    format!("{model}, {cores} cores, {gib:.0} GiB, {system}, {disk}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_asked() {
        assert!(is_there("sh") && !is_there("no-such-program"));
        assert_eq!(first_line("echo", &["one"]).as_deref(), Some("one"));
        assert_eq!(first_line("false", &[]), None);
        assert_eq!(first_line("no-such-program", &[]), None);
    }

    #[test]
    fn the_machine_is_described() {
        let machine = machine(Path::new("/"));
        assert!(
            machine.contains("Linux") && machine.contains("cores"),
            "{machine}"
        );
    }
}
