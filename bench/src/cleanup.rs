//! What must not outlive the run: processes and directories. They go when their owner is dropped,
//! and all at once when a signal ends the run.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a run that a signal ended, as shells have it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(5);

/// Whoever holds it starts or ends a process; a signal holds it to the end.
static LIVE: Mutex<Live> = Mutex::new(Live {
    processes: BTreeSet::new(),
    directories: BTreeSet::new(),
});

struct Live {
    processes: BTreeSet<u32>,
    directories: BTreeSet<PathBuf>,
}

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on SIGINT, SIGTERM and SIGHUP end every process, remove every directory, and then end
/// this one.
///
/// # Errors
///
/// The system refuses a thread or the handlers.
pub(crate) fn on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let mut signals = runtime.block_on(async {
        kinds
            .map(signal)
            .into_iter()
            .collect::<io::Result<Vec<_>>>()
    })?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(std::future::poll_fn(|cx| {
                match signals
                    .iter_mut()
                    .any(|signal| signal.poll_recv(cx).is_ready())
                {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            }));
            let live = live();
            for process in &live.processes {
                end(*process);
            }
            for directory in &live.directories {
                // What cannot be removed is nothing that can be helped now.
                let _ = std::fs::remove_dir_all(directory);
            }
            eprintln!("\nended by a signal; all servers are ended, all data is removed");
            std::process::exit(INTERRUPTED);
        })?;
    Ok(())
}

/// `kill -9`, and waits for the end.
fn end(process: u32) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

/// A process that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut live = live();
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        live.processes.insert(child.id());
        Ok(Process { child })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let mut live = live();
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            live.processes.remove(&self.child.id());
        }
        Ok(ended)
    }

    /// SIGTERM, and `kill -9` to what does not end within `patience`.
    ///
    /// # Errors
    ///
    /// The system does not say whether it ended.
    pub(crate) fn terminate(&mut self, patience: Duration) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        if self.wait(patience)?.is_none() {
            self.kill();
        }
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut live = live();
        if live.processes.remove(&self.child.id()) {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.ended()?;
            if ended.is_some() || Instant::now() > deadline {
                return Ok(ended);
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end, which must be a success and come within `patience`.
///
/// Its outputs go to files of `dir`, so that it never waits for this process.
///
/// # Errors
///
/// It fails, or takes longer.
pub(crate) fn run(command: &mut Command, dir: &Path, patience: Duration) -> Result<Output> {
    let name = command.get_program().display().to_string();
    let (mut stdout, mut stderr) = (tempfile::tempfile_in(dir)?, tempfile::tempfile_in(dir)?);
    command
        .stdin(std::process::Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let mut process = Process::start(command)?;
    let Some(status) = process.wait(patience)? else {
        bail!("{name} took longer than {} s", patience.as_secs());
    };
    let output = Output {
        status,
        stdout: all_of(&mut stdout)?,
        stderr: all_of(&mut stderr)?,
    };
    if !status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {status}: {}", said.trim());
    }
    Ok(output)
}

fn all_of(file: &mut std::fs::File) -> io::Result<Vec<u8>> {
    use io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A new directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Workshop {
    path: PathBuf,
}

impl Workshop {
    /// Makes one within `parent`.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let mut live = live();
        let made = tempfile::Builder::new()
            .prefix("kvd-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("no directory in {}", parent.display()))?;
        let path = made.keep();
        live.directories.insert(path.clone());
        Ok(Workshop { path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let mut live = live();
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} was not removed: {error}", self.path.display());
        }
        live.directories.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(process: u32) -> bool {
        Path::new(&format!("/proc/{process}")).exists()
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let process = Process::start(Command::new("sleep").arg("1000")).unwrap();
        let id = process.id();
        assert!(runs(id) && live().processes.contains(&id));
        drop(process);
        assert!(!runs(id) && !live().processes.contains(&id));
    }

    #[test]
    fn a_process_is_asked_to_end_before_it_is_killed() {
        let mut process = Process::start(Command::new("sleep").arg("1000")).unwrap();
        process.terminate(Duration::from_secs(60)).unwrap();
        assert!(!runs(process.id()));
    }

    #[test]
    fn a_directory_goes_with_all_that_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let workshop = Workshop::new(parent.path()).unwrap();
        let path = workshop.path().to_owned();
        std::fs::write(path.join("file"), "text").unwrap();
        drop(workshop);
        assert!(!path.exists());
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let shell = |script: &str, patience| {
            run(
                Command::new("sh").args(["-c", script]),
                dir.path(),
                patience,
            )
        };
        let patience = Duration::from_secs(60);
        assert_eq!(shell("echo out", patience).unwrap().stdout, b"out\n");
        let error = shell("echo why >&2; exit 3", patience).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
        let error = shell("sleep 1000", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("took longer"), "{error}");
    }
}
