//! Runs the blocks of the README, in order, as a reader would: only ports are other ones, the
//! directory is a temporary one, and the debug build stands in for the release build.
//!
//! What a reader has installed or builds is put into the path as small scripts: `redis-cli` and
//! `redis-benchmark` that begin with the first node's port, `cargo` that goes to the binary that
//! is already built, and `ultraman` that runs the lines of the `Procfile`.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kvd_tests::{Client, alone, built, free_port, repository, until};
use rustix::process::{Pid, Signal, kill_process_group};

/// A fenced block: the word behind the fence, and the lines.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (n, line) in page.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    language: language.to_owned(),
                    line: n + 1,
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block has no end");
    blocks
}

/// The first of three ports in a row that were free a moment ago.
fn three_free_ports() -> u16 {
    loop {
        let first = free_port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first < u16::MAX - 2 && free(first + 1) && free(first + 2) {
            return first;
        }
    }
}

/// A reader's terminal.
struct Reader {
    folder: PathBuf,
    path: String,
    port: u16,
    raft_port: u16,
    server: Option<Child>,
}

impl Reader {
    fn new(folder: &Path) -> Self {
        let port = three_free_ports();
        let raft_port = loop {
            let first = three_free_ports();
            if first.abs_diff(port) > 3 {
                break first;
            }
        };
        let bin = folder.join("bin");
        let reader = Reader {
            folder: folder.to_owned(),
            path: format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()),
            port,
            raft_port,
            server: None,
        };
        fs::create_dir(&bin).unwrap();
        symlink(repository().join("plugins"), folder.join("plugins")).unwrap();
        fs::create_dir(folder.join("target")).unwrap();
        symlink(built(), folder.join("target/release")).unwrap();
        let procfile = fs::read_to_string(repository().join("Procfile")).unwrap();
        fs::write(folder.join("Procfile"), reader.with_ports(&procfile)).unwrap();
        for tool in ["redis-cli", "redis-benchmark"] {
            let real = Command::new("sh")
                .args(["-c", &format!("command -v {tool}")])
                .output()
                .unwrap();
            assert!(
                real.status.success(),
                "{tool} is not installed; .ci/run does it"
            );
            let real = String::from_utf8(real.stdout).unwrap();
            let line = format!("exec {} -p {port} \"$@\"\n", real.trim());
            script(&bin.join(tool), &line);
        }
        let kvd = built().join("kvd");
        let cargo = format!(
            "case \"$1 $2 $3\" in\n\
             'run --release --') shift 3; exec {} \"$@\";;\n\
             'build --release ') exit 0;;\n\
             *) echo \"no part of the README: cargo $*\" >&2; exit 1;;\nesac\n",
            kvd.display()
        );
        script(&bin.join("cargo"), &cargo);
        script(
            &bin.join("ultraman"),
            "[ \"$1\" = start ] || exit 1\n\
             sed -n 's/^[a-z0-9]*: //p' Procfile > lines\n\
             while read -r line; do $line & done < lines\nwait\n",
        );
        reader
    }

    /// `text` with this reader's ports.
    fn with_ports(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for n in 0..3 {
            // By way of words that are no numbers: a new port may hold the digits of an old one.
            text = text.replace(&format!("{}", 6379 + n), &format!("<client {n}>"));
            text = text.replace(&format!("{}", 19000 + n), &format!("<raft {n}>"));
        }
        for n in 0..3 {
            text = text.replace(&format!("<client {n}>"), &format!("{}", self.port + n));
            text = text.replace(&format!("<raft {n}>"), &format!("{}", self.raft_port + n));
        }
        text
    }

    fn bash(&self, text: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-e", "-c", &self.with_ports(text)])
            .current_dir(&self.folder)
            .env("PATH", &self.path)
            // As for a reader at a terminal, replies come with their types.
            .env("FAKETTY", "1")
            .stdin(Stdio::null());
        command
    }

    /// Starts what runs until Ctrl-C, and waits until it serves.
    fn serve(&mut self, block: &Block) {
        self.stop();
        let log = self.folder.join("log");
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let server = self
            .bash(&block.text)
            .process_group(0)
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let ports = self.ports_of(block);
        for port in ports {
            until("a node of the README serves", || {
                let ended = self.server.as_mut().unwrap().try_wait().unwrap();
                assert!(ended.is_none(), "line {}: {}", block.line, self.log());
                Client::connect(&format!("127.0.0.1:{port}"))
                    .and_then(|mut client| client.try_call(&["PING"]))
                    .is_ok_and(|reply| !reply.is_error())
            });
        }
        if block.text.contains(" dev ") {
            until("the members have joined", || {
                self.log().contains("a cluster of 3 serves")
            });
        }
    }

    fn ports_of(&self, block: &Block) -> Vec<u16> {
        let several = block.text.contains("ultraman") || block.text.contains(" dev ");
        (0..if several { 3 } else { 1 })
            .map(|n| self.port + n)
            .collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ctrl-C.
    fn stop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let group = Pid::from_child(&server);
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::INT);
        server.wait().unwrap();
        // A runner may be gone before the nodes that it started.
        until("the nodes of the README have stopped", || {
            (0..3).all(|n| TcpStream::connect(("127.0.0.1", self.port + n)).is_err())
        });
    }

    /// Runs commands that end.
    fn run(&self, block: &Block) {
        let out = self.bash(&block.text).output().unwrap();
        assert!(
            out.status.success() && out.stderr.is_empty(),
            "line {}: {}\n{}{}",
            block.line,
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
    }

    /// Types each command of a dialogue and compares what comes with what the page says.
    fn talk(&self, block: &Block) {
        assert!(
            block.text.starts_with("$ "),
            "line {}: no command",
            block.line
        );
        // `$ ` within a line is no prompt.
        for part in block.text.trim_end().split("\n$ ") {
            let part = part.trim_start_matches("$ ");
            let (command, expected) = part.split_once('\n').unwrap_or((part, ""));
            let out = self.bash(command).output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(
                said.trim_end() == expected.trim_end() && out.status.success(),
                "line {}: {command}\nsaid:\n{said}{}\nthe page:\n{expected}\n{}",
                block.line,
                String::from_utf8_lossy(&out.stderr),
                self.log(),
            );
        }
    }

    /// Compiles the plugin as a crate outside the workspace would.
    fn compile(&self, block: &Block) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(repository())
            .args(["build", "--locked", "-p", "kvd-plugin-api"])
            .status()
            .unwrap();
        assert!(status.success());
        let crate_folder = self.folder.join("mine/target/release");
        fs::create_dir_all(&crate_folder).unwrap();
        let source = self.folder.join("mine/lib.rs");
        fs::write(&source, &block.text).unwrap();
        let api = built().join("libkvd_plugin_api.rlib");
        let out = Command::new("rustc")
            .current_dir(repository())
            .args(["--edition", "2024", "--crate-type", "cdylib"])
            .args(["--crate-name", "mine", "-D", "warnings"])
            .arg("--extern")
            .arg(format!("kvd_plugin_api={}", api.display()))
            .arg("-L")
            .arg(format!("dependency={}", built().join("deps").display()))
            .arg("--out-dir")
            .arg(&crate_folder)
            .arg(&source)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "line {}: {}",
            block.line,
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the nodes of the README\n{}", self.log());
        }
        if let Some(mut server) = self.server.take() {
            let _ = kill_process_group(Pid::from_child(&server), Signal::KILL);
            drop(server.wait());
        }
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/bash\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Every block of the README does what the page says.
#[test]
fn the_readme_works_as_written() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(repository().join("README.md")).unwrap();
    let mut reader = Reader::new(folder.path());
    let mut done = Vec::new();
    for block in blocks(&page) {
        let serves = ["cargo run", "ultraman"]
            .iter()
            .any(|word| block.text.contains(word));
        match block.language.as_str() {
            "sh" if serves => reader.serve(&block),
            "sh" => reader.run(&block),
            "console" => reader.talk(&block),
            "rust" => reader.compile(&block),
            other => panic!("line {}: nobody runs '{other}' blocks", block.line),
        }
        done.push(block.language);
    }
    reader.stop();
    for language in ["sh", "console", "rust"] {
        assert!(done.iter().any(|l| l == language), "no {language} block");
    }
}

/// The Procfile's nodes are those that the README joins.
#[test]
fn procfile_and_readme_name_the_same_ports() {
    let read = |file: &str| fs::read_to_string(repository().join(file)).unwrap();
    let (procfile, readme) = (read("Procfile"), read("README.md"));
    for n in 1..3 {
        let join = format!("JOIN node{n} localhost:{}", 19000 + n);
        assert!(procfile.contains(&join), "{join}");
        assert!(readme.contains(&join), "{join}");
        let line = format!("--raft-addr localhost:{} ./node{n}", 19000 + n);
        assert!(procfile.contains(&line), "{line}");
    }
}
