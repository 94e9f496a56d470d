//! redis-server, which speaks RESP and keeps everything in memory.

use std::fs::{self, File};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use super::ports::free_port;
use super::{NO_LOG, Setup, until};
use crate::cleanup::Process;
use crate::resp::Client;
use crate::usage::field;

/// One server.
pub(crate) struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// Starts one with this `appendfsync`, or with [`NO_LOG`].
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub(crate) fn start(setup: &Setup, fsync: &str) -> Result<Self> {
        let port = free_port()?;
        let dir = setup.dir.join(format!("redis-{port}"));
        fs::create_dir(&dir)?;
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--databases", "1"])
            .args(["--port", &port.to_string()])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("log"))?);
        match fsync {
            NO_LOG => command.args(["--appendonly", "no"]),
            _ => command.args(["--appendonly", "yes", "--appendfsync", fsync]),
        };
        let mut redis = Redis {
            process: Process::start(&mut command)?,
            port,
        };
        until("redis answers", Duration::from_millis(5), || {
            if let Some(status) = redis.process.ended()? {
                bail!("redis-server ended with {status}");
            }
            Client::connect(port)?.call(&["PING"])
        })?;
        Ok(redis)
    }

    /// Sets the keys of these numbers.
    ///
    /// # Errors
    ///
    /// One was refused.
    pub(crate) fn fill(&self, numbers: Range<u64>, value_bytes: u32) -> Result<()> {
        Client::connect(self.port)?.fill(numbers, &vec![b'v'; value_bytes as usize])
    }

    /// Waits until it does not rewrite its log.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut client = Client::connect(self.port)?;
        until(
            "redis has rewritten its log",
            Duration::from_millis(20),
            || {
                let info = client.call(&["INFO", "persistence"])?.unwrap_or_default();
                let busy = ["aof_rewrite_in_progress:", "aof_rewrite_scheduled:"]
                    .iter()
                    .any(|name| field(&info, name).is_none_or(|value| value != "0"));
                Ok((!busy).then_some(()))
            },
        )
    }

    /// Where clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub(crate) fn processes(&self) -> Vec<u32> {
        vec![self.process.id()]
    }
}
