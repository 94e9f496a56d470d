//! What processes have used, from Linux's `/proc`; see proc(5).

use std::ops::{Add, Sub};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What processes have used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processor time, in user and system mode.
    pub cpu: Duration,
    /// Bytes that went to the disk.
    pub written_bytes: u64,
}

impl Usage {
    /// Of one process.
    ///
    /// # Errors
    ///
    /// It does not run, or its files are not readable.
    pub(crate) fn of(process: u32) -> Result<Self> {
        Self::parse(&read(process, "stat")?, &read(process, "io")?)
            .with_context(|| format!("/proc/{process} has another form"))
    }

    fn parse(stat: &str, io: &str) -> Option<Self> {
        // The name, in parentheses, may hold blanks.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let ticks = |nth: usize| fields.get(nth)?.parse::<u64>().ok();
        let ticks = ticks(11)? + ticks(12)?;
        Some(Usage {
            cpu: Duration::from_secs_f64(
                ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
            written_bytes: field(io, "write_bytes:")?.parse().ok()?,
        })
    }

    /// Of all of them.
    ///
    /// # Errors
    ///
    /// As for [`of`](Self::of).
    pub(crate) fn of_all(processes: &[u32]) -> Result<Self> {
        processes.iter().try_fold(Usage::default(), |sum, process| {
            Ok(sum + Usage::of(*process)?)
        })
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            cpu: self.cpu + other.cpu,
            written_bytes: self.written_bytes + other.written_bytes,
        }
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// The bytes of memory that are resident, of all these processes.
///
/// # Errors
///
/// One does not run, or its files are not readable.
pub(crate) fn resident_bytes(processes: &[u32]) -> Result<u64> {
    processes.iter().try_fold(0, |sum, process| {
        let kib: u64 = field(&read(*process, "status")?, "VmRSS:")
            .and_then(|text| text.strip_suffix("kB")?.trim().parse().ok())
            .with_context(|| format!("process {process} has no resident memory"))?;
        Ok(sum + kib * 1024)
    })
}

fn read(process: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{process}/{file}");
    std::fs::read_to_string(&path).with_context(|| path)
}

/// What follows `name` in its line.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_proc() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 75 0 0 20 0 8 0 100 1 1";
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\n";
        let usage = Usage::parse(stat, io).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(usage.cpu, Duration::from_secs_f64(325.0 / ticks));
        assert_eq!(usage.written_bytes, 4096);
        assert_eq!(Usage::parse("7 (a) S", io), None);
    }

    #[test]
    fn this_process_uses_something() {
        let own = std::process::id();
        assert!(resident_bytes(&[own]).unwrap() > 100_000);
        assert!(resident_bytes(&[own, own]).unwrap() > resident_bytes(&[own]).unwrap());
        Usage::of_all(&[own]).unwrap();
        assert!(Usage::of(u32::MAX).is_err());
    }
}
