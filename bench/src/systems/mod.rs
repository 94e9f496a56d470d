//! The systems that are measured: each is one or three processes on this machine.

mod etcd;
mod kvd;
mod ports;
mod redis;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub(crate) use self::etcd::Etcd;
pub(crate) use self::kvd::Kvd;
pub(crate) use self::redis::Redis;
use crate::redis_benchmark::{self, Target};
use crate::sample::{Load, Sample};
use crate::usage::{self, Usage};
use crate::work::{What, Work};

/// How long anything may take that is no measurement: a start, an election, a sync.
const PATIENCE: Duration = Duration::from_secs(120);

/// A kind of system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// kvd on so many nodes, with this storage engine.
    Kvd(u8, &'static str),
    /// redis-server with this `appendfsync`, or without a log.
    Redis(&'static str),
    /// etcd on so many nodes.
    Etcd(u8),
}

/// redis-server without a log.
pub(crate) const NO_LOG: &str = "off";

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Kvd(1, engine) => write!(f, "kvd, {engine}"),
            Kind::Kvd(nodes, engine) => write!(f, "kvd, {engine}, {nodes} nodes"),
            Kind::Redis(NO_LOG) => write!(f, "redis without a log"),
            Kind::Redis(fsync) => write!(f, "redis, {fsync}"),
            Kind::Etcd(1) => write!(f, "etcd"),
            Kind::Etcd(nodes) => write!(f, "etcd, {nodes} nodes"),
        }
    }
}

/// What a system is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The folder with kvd and its plugins.
    pub built: PathBuf,
    /// Where data goes.
    pub dir: PathBuf,
    /// How many keys what speaks RESP is filled with.
    pub keys: u64,
    /// How many keys etcd is filled with: it takes a hundred times longer.
    pub etcd_keys: u64,
}

/// A running system.
pub(crate) enum System {
    /// kvd.
    Kvd(Kvd),
    /// redis-server.
    Redis(Redis),
    /// etcd.
    Etcd(Etcd),
}

impl System {
    /// Starts one in fresh directories, and fills it with values of 3 bytes.
    ///
    /// # Errors
    ///
    /// It does not start, or refuses its keys.
    pub(crate) fn start(kind: Kind, setup: &Setup) -> Result<Self> {
        eprintln!("starting and filling {kind}");
        Ok(match kind {
            Kind::Kvd(nodes, engine) => {
                let kvd = Kvd::start(setup, nodes, engine, &[])?;
                kvd.fill(0..setup.keys, 3)?;
                System::Kvd(kvd)
            }
            Kind::Redis(fsync) => {
                let redis = Redis::start(setup, fsync)?;
                redis.fill(0..setup.keys, 3)?;
                System::Redis(redis)
            }
            Kind::Etcd(nodes) => {
                let mut etcd = Etcd::start(setup, nodes)?;
                etcd.fill(setup.etcd_keys)?;
                System::Etcd(etcd)
            }
        })
    }

    /// The processes of its servers.
    pub(crate) fn processes(&self) -> Vec<u32> {
        match self {
            System::Kvd(kvd) => kvd.processes(),
            System::Redis(redis) => redis.processes(),
            System::Etcd(etcd) => etcd.processes(),
        }
    }

    /// Gets it ready for `work`, for `time` at least, and returns the work that is measured with
    /// the commands a second that were seen. etcd is started anew before it is read from: after
    /// many puts its reads are slow until then.
    ///
    /// # Errors
    ///
    /// A command failed, or the system does not come to rest.
    pub(crate) fn warm_up(
        &mut self,
        work: &Work,
        time: Duration,
        setup: &Setup,
    ) -> Result<(Work, f64)> {
        match self {
            System::Etcd(etcd) => {
                if !work.writes() {
                    etcd.restart()?;
                }
                etcd.warm_up(work, time)
            }
            _ => {
                let target = self.target(work, setup)?;
                let rate = redis_benchmark::warm_up(&target, work, time)?;
                self.end_of(work)?;
                Ok((*work, rate))
            }
        }
    }

    /// Measures `work` for about `time` after everything has come to rest. Where it is `drained`,
    /// the time counts until what was written is in the engine, on disk.
    ///
    /// # Errors
    ///
    /// A command failed, or the system does not come to rest.
    pub(crate) fn measure(
        &mut self,
        (work, rate): &(Work, f64),
        time: Duration,
        drained: bool,
        setup: &Setup,
    ) -> Result<Sample> {
        self.settle()?;
        let processes = self.processes();
        let (usage, log) = (Usage::of_all(&processes)?, self.log_counters()?);
        let mut load = match self {
            System::Etcd(etcd) => etcd.load(work, time)?,
            _ => redis_benchmark::load(&self.target(work, setup)?, work, time, *rate)?,
        };
        if drained {
            let ended = Instant::now();
            self.drain()?;
            load.seconds += ended.elapsed().as_secs_f64();
        }
        let used = Usage::of_all(&processes)? - usage;
        let mut sample = sample(&load, used, usage::resident_bytes(&processes)?);
        if work.writes()
            && let (Some((leader, before)), Some((same, after))) = (log, self.log_counters()?)
            && leader == same
        {
            let per = |of: u64, to: u64| (to > 0).then(|| of as f64 / to as f64);
            sample.commands_per_entry = per(
                after.commands - before.commands,
                after.entries - before.entries,
            );
            sample.entries_per_sync = per(after.logged - before.logged, after.syncs - before.syncs);
        }
        self.end_of(work)?;
        Ok(sample)
    }

    fn log_counters(&self) -> Result<Option<(usize, crate::sample::LogCounters)>> {
        match self {
            System::Kvd(kvd) => kvd.log_counters().map(Some),
            _ => Ok(None),
        }
    }

    /// Where `work` goes.
    fn target<'a>(&self, work: &Work, setup: &'a Setup) -> Result<Target<'a>> {
        let port = match self {
            System::Kvd(kvd) => match work.what {
                What::Set | What::Get => kvd.leader()?.port(),
                What::FollowerGet => kvd.follower()?.port(),
                What::LocalGet => {
                    let follower = kvd.follower()?;
                    follower.set("read-level", "local")?;
                    follower.port()
                }
            },
            System::Redis(redis) => redis.port(),
            System::Etcd(_) => bail!("etcd does not speak RESP"),
        };
        Ok(Target {
            port,
            keys: setup.keys,
            dir: &setup.dir,
        })
    }

    /// Takes back what [`target`](Self::target) has set.
    fn end_of(&self, work: &Work) -> Result<()> {
        match self {
            System::Kvd(kvd) if work.what == What::LocalGet => {
                kvd.follower()?.set("read-level", "linearizable")
            }
            _ => Ok(()),
        }
    }

    /// Waits until all that was acknowledged is in the engine, on disk.
    fn drain(&self) -> Result<()> {
        match self {
            System::Kvd(kvd) => kvd.drain(),
            // Redis's log is its storage, and etcd's log is cut by snapshots of its storage alone.
            System::Redis(_) | System::Etcd(_) => Ok(()),
        }
    }

    /// Waits until nothing goes on behind the clients' backs.
    fn settle(&self) -> Result<()> {
        match self {
            System::Kvd(kvd) => kvd.drain(),
            System::Redis(redis) => redis.settle(),
            System::Etcd(_) => Ok(()),
        }
    }
}

fn sample(load: &Load, used: Usage, resident_bytes: u64) -> Sample {
    let count = load.count.max(1) as f64;
    Sample {
        rate: load.rate(),
        p50_ms: load.p50_ms,
        p99_ms: load.p99_ms,
        max_ms: load.max_ms,
        cpu_us: used.cpu.as_secs_f64() * 1e6 / count,
        written_bytes: used.written_bytes as f64 / count,
        resident_bytes,
        ..Sample::default()
    }
}

/// Asks again and again until there is an answer, for [`PATIENCE`] at most.
pub(crate) fn until<T>(
    what: &str,
    pause: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = ask();
        if let Ok(Some(answer)) = last {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return match last {
                Err(error) => Err(error.context(format!("waited in vain: {what}"))),
                Ok(_) => bail!("waited in vain: {what}"),
            };
        }
        thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_costs_is_what_was_used_over_what_was_answered() {
        let load = Load {
            count: 1000,
            seconds: 2.0,
            ..Load::default()
        };
        let used = Usage {
            cpu: Duration::from_millis(30),
            written_bytes: 64_000,
        };
        let sample = sample(&load, used, 7);
        assert_eq!((sample.rate, sample.resident_bytes), (500.0, 7));
        assert!((sample.cpu_us - 30.0).abs() < 1e-9);
        assert_eq!(sample.written_bytes, 64.0);
    }

    #[test]
    fn waiting_ends_with_the_first_answer() {
        let mut asked = 0;
        let answer = until("it", Duration::ZERO, || {
            asked += 1;
            match asked {
                1 => bail!("not yet there"),
                2 => Ok(None),
                _ => Ok(Some("there")),
            }
        });
        assert_eq!((answer.unwrap(), asked), ("there", 3));
    }
}
