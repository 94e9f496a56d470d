//! kvd: one node, or a cluster on this machine.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::ports::free_port;
use super::{Setup, until};
use crate::cleanup::Process;
use crate::resp::Client;
use crate::sample::LogCounters;
use crate::usage::field;

/// How long an orderly stop may take.
const STOP_TIME: Duration = Duration::from_secs(30);

/// Between two looks at a node that works.
const LOOK: Duration = Duration::from_millis(10);

/// A cluster.
pub(crate) struct Kvd {
    nodes: Vec<Node>,
}

/// One of its nodes; its process comes and goes, its directory and ports stay.
pub(crate) struct Node {
    name: String,
    command: Command,
    dir: PathBuf,
    port: u16,
    raft_port: u16,
    process: Option<Process>,
}

impl Kvd {
    /// Starts `nodes` nodes with an engine and more flags, and makes a cluster of them.
    ///
    /// # Errors
    ///
    /// One does not answer, or is not taken in.
    pub(crate) fn start(setup: &Setup, nodes: u8, engine: &str, flags: &[&str]) -> Result<Self> {
        let nodes = (0..nodes)
            .map(|n| Node::new(setup, format!("node{n}"), engine, flags))
            .collect::<Result<_>>()?;
        let mut kvd = Kvd { nodes };
        for node in &mut kvd.nodes {
            node.spawn()?;
            node.ready()?;
        }
        let (first, others) = kvd.nodes.split_first().context("a node at least")?;
        for node in others {
            let addr = format!("127.0.0.1:{}", node.raft_port);
            // The first may not lead yet.
            until("a node is taken in", LOOK, || {
                first.client()?.call(&["JOIN", &node.name, &addr])
            })?;
        }
        Ok(kvd)
    }

    /// The node that leads.
    ///
    /// # Errors
    ///
    /// There is none for long.
    pub(crate) fn leader(&self) -> Result<&Node> {
        self.leader_index().map(|leader| &self.nodes[leader])
    }

    /// A node that does not lead.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn follower(&self) -> Result<&Node> {
        let leader = self.leader_index()?;
        let follower = self.nodes.iter().enumerate().find(|(n, _)| *n != leader);
        Ok(follower.context("one node has no followers")?.1)
    }

    fn leader_index(&self) -> Result<usize> {
        until("there is a leader", LOOK, || {
            for (n, node) in self.nodes.iter().enumerate() {
                if node.info()?.text("raft_role") == Some("leader") {
                    return Ok(Some(n));
                }
            }
            Ok(None)
        })
    }

    /// Its nodes.
    pub(crate) fn nodes(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Sets the keys of these numbers.
    ///
    /// # Errors
    ///
    /// One was refused.
    pub(crate) fn fill(&self, numbers: Range<u64>, value_bytes: u32) -> Result<()> {
        let leader = self.leader()?;
        leader
            .client()?
            .fill(numbers, &vec![b'v'; value_bytes as usize])?;
        self.drain()
    }

    /// Waits until what was acknowledged is carried out on all nodes, and on disk in engines that
    /// can be.
    ///
    /// # Errors
    ///
    /// It does not get there.
    pub(crate) fn drain(&self) -> Result<()> {
        let last = self.leader()?.info()?.number("raft_last_log_index")?;
        for node in &self.nodes {
            until("a node has stored everything", LOOK, || {
                let info = node.info()?;
                let durable = match info.text("backend_capabilities") {
                    Some(caps) if caps.split(',').any(|cap| cap == "durable") => {
                        info.number("backend_durable_index")?
                    }
                    _ => u64::MAX,
                };
                let stored = info.number("raft_applied_index")?.min(durable);
                Ok((stored >= last).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Which node leads, and its counters.
    ///
    /// # Errors
    ///
    /// There is no leader, or INFO has no such fields.
    pub(crate) fn log_counters(&self) -> Result<(usize, LogCounters)> {
        let leader = self.leader_index()?;
        let info = self.nodes[leader].info()?;
        let counters = LogCounters {
            entries: info.number("raft_proposed_entries")?,
            commands: info.number("raft_proposed_commands")?,
            logged: info.number("raft_log_entries")?,
            syncs: info.number("raft_log_syncs")?,
        };
        Ok((leader, counters))
    }

    /// The processes of its nodes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .filter_map(|node| Some(node.process.as_ref()?.id()))
            .collect()
    }
}

impl Node {
    fn new(setup: &Setup, name: String, engine: &str, flags: &[&str]) -> Result<Self> {
        let (port, raft_port) = (free_port()?, free_port()?);
        let dir = setup.dir.join(format!("kvd-{port}"));
        let mut command = Command::new(setup.built.join("kvd"));
        command
            .args(["--addr", &format!("127.0.0.1:{port}")])
            .args(["--raft-addr", &format!("127.0.0.1:{raft_port}")])
            .args(["--name", &name, "--backend", engine])
            .args(flags)
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(Node {
            name,
            command,
            dir,
            port,
            raft_port,
            process: None,
        })
    }

    /// Starts the process and does not wait for it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        self.process = Some(Process::start(self.command.stderr(log))?);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// Waits until it answers PING.
    ///
    /// # Errors
    ///
    /// It ended, or does not answer.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.answers(&["PING"])
    }

    /// Waits until it gives this command an answer that is no error.
    ///
    /// # Errors
    ///
    /// It ended, or does not.
    pub(crate) fn answers(&mut self, args: &[&str]) -> Result<()> {
        let mut ended = None;
        until("a node answers", Duration::from_millis(1), || {
            let process = self.process.as_mut().context("it was not started")?;
            ended = process.ended()?;
            match ended {
                Some(_) => Ok(Some(None)),
                None => Ok(Some(Client::connect(self.port)?.call(args)?)),
            }
        })?;
        match ended {
            None => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                bail!("kvd ended with {status}: {}", log.trim())
            }
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// An orderly stop.
    ///
    /// # Errors
    ///
    /// The system does not say whether it ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.terminate(STOP_TIME),
            None => Ok(()),
        }
    }

    /// Where clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its data is.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// A connection.
    ///
    /// # Errors
    ///
    /// There is none to be had.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(self.port)
    }

    /// Changes a setting.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        self.client()?
            .call(&["CONFIG", "SET", name, value])
            .map(drop)
    }

    /// What INFO says.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub(crate) fn info(&self) -> Result<Info> {
        let text = self.client()?.call(&["INFO", "everything"])?;
        Ok(Info(text.unwrap_or_default()))
    }
}

/// The text of INFO.
pub(crate) struct Info(String);

impl Info {
    /// A field.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        field(&self.0, &format!("{name}:"))
    }

    /// A field that is a number.
    ///
    /// # Errors
    ///
    /// It is absent, or no number.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        let text = self
            .text(name)
            .with_context(|| format!("INFO has no {name}"))?;
        text.parse().with_context(|| format!("{name} is {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_info_are_found_by_their_whole_name() {
        let info = Info(
            "# Raft\r\nraft_log_entries:12\r\nraft_log_entries_x:1\r\nraft_role:leader\r\n"
                .to_owned(),
        );
        assert_eq!(info.number("raft_log_entries").unwrap(), 12);
        assert_eq!(info.text("raft_role"), Some("leader"));
        assert!(info.number("raft_role").is_err());
        assert!(info.number("raft_log").is_err());
    }
}
