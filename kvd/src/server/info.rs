//! INFO, and the settings that CONFIG shows and changes.

use std::cell::LazyCell;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::connection::Connection;
use super::{ServerSettings, Service, cluster};
use crate::command::REPLY_BYTES_MAX;
use crate::doors;
use crate::keyspace::View;
use crate::metrics::line;
use crate::node::{ReadLevel, RedirectMode};
use crate::resp::Reply;

/// The Redis version whose behaviour clients may expect.
pub(super) const REDIS_VERSION: &str = "7.0.15";

const DEFAULT: &[&str] = &[
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "cluster",
    "keyspace",
    "raft",
    "backend",
    "errorstats",
];

/// Longest slow log: each entry may take some kilobytes.
const SLOW_LOG_MAX: usize = 100_000;

/// What CONFIG GET knows, in the order of names.
pub(super) fn settings(settings: &ServerSettings) -> Vec<(&'static str, String)> {
    vec![
        ("appendonly", "yes".to_owned()),
        (
            "client-output-buffer-limit",
            format!("normal {REPLY_BYTES_MAX} 0 0 slave 0 0 0 pubsub 0 0 0"),
        ),
        ("cluster-enabled", "yes".to_owned()),
        ("databases", "1".to_owned()),
        (
            "follower-writes",
            match settings.follower_writes {
                RedirectMode::Auto => "auto",
                RedirectMode::Forward => "forward",
                RedirectMode::Redirect => "redirect",
            }
            .to_owned(),
        ),
        (
            "latency-monitor-threshold",
            settings.spike.as_millis().to_string(),
        ),
        ("maxclients", settings.clients_max.to_string()),
        ("maxmemory", "0".to_owned()),
        ("protected-mode", yes(settings.protected_mode)),
        (
            "read-level",
            match settings.read_level {
                ReadLevel::Linearizable => "linearizable",
                ReadLevel::Local => "local",
            }
            .to_owned(),
        ),
        ("requirepass", settings.password.clone().unwrap_or_default()),
        ("save", String::new()),
        (
            "slowlog-log-slower-than",
            settings
                .slower_than
                .map_or("-1".to_owned(), |time| time.as_micros().to_string()),
        ),
        ("slowlog-max-len", settings.slow_log_max.to_string()),
        ("timeout", settings.idle_timeout.as_secs().to_string()),
    ]
}

fn yes(on: bool) -> String {
    if on { "yes" } else { "no" }.to_owned()
}

/// The setting that is not the server's own: an option of the engine, as `name=value`.
pub(super) const BACKEND_OPTION: &str = "backend-opt";

/// A CONFIG SET that could not be.
pub(super) fn set_failed(name: &str, why: &str) -> Reply {
    Reply::error(format!(
        "ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"
    ))
}

/// CONFIG SET of one setting.
pub(super) fn set(settings: &mut ServerSettings, name: &str, value: &str) -> Result<(), Reply> {
    let failed = |why: &str| set_failed(name, why);
    match name {
        "maxclients" => {
            settings.clients_max = value
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| failed("argument must be a number above 0"))?;
        }
        "timeout" => {
            let seconds = value
                .parse::<u32>()
                .map_err(|_| failed("argument must be a number"))?;
            settings.idle_timeout = Duration::from_secs(u64::from(seconds));
        }
        "latency-monitor-threshold" => {
            let ms = value
                .parse::<u32>()
                .map_err(|_| failed("argument must be a number"))?;
            settings.spike = Duration::from_millis(u64::from(ms));
        }
        "slowlog-log-slower-than" => {
            let us = value
                .parse::<i64>()
                .map_err(|_| failed("argument couldn't be parsed into an integer"))?;
            settings.slower_than = u64::try_from(us).ok().map(Duration::from_micros);
        }
        "slowlog-max-len" => {
            settings.slow_log_max = value
                .parse::<usize>()
                .ok()
                .filter(|len| *len <= SLOW_LOG_MAX)
                .ok_or_else(|| failed("argument must be a number up to 100000"))?;
        }
        "requirepass" => settings.password = (!value.is_empty()).then(|| value.to_owned()),
        "protected-mode" => {
            settings.protected_mode = match value {
                "yes" => true,
                "no" => false,
                _ => return Err(failed("argument must be 'yes' or 'no'")),
            }
        }
        "read-level" => {
            settings.read_level = match value {
                "linearizable" => ReadLevel::Linearizable,
                "local" => ReadLevel::Local,
                _ => return Err(failed("argument must be 'linearizable' or 'local'")),
            }
        }
        "follower-writes" => {
            settings.follower_writes = match value {
                "auto" => RedirectMode::Auto,
                "forward" => RedirectMode::Forward,
                "redirect" => RedirectMode::Redirect,
                _ => return Err(failed("argument must be 'auto', 'forward' or 'redirect'")),
            }
        }
        _ if self::settings(settings)
            .iter()
            .any(|(known, _)| *known == name) =>
        {
            return Err(failed("can't set immutable config"));
        }
        _ => {
            return Err(Reply::error(format!(
                "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
            )));
        }
    }
    Ok(())
}

/// What the system tells of this process; zeros where it does not.
#[derive(Default)]
struct Usage {
    resident_bytes: u64,
    resident_peak_bytes: u64,
    user_seconds: f64,
    system_seconds: f64,
}

/// Units of `/proc/self/stat` in a second, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

impl Usage {
    /// From Linux's `/proc`; see proc(5).
    fn now() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/self/status"), &read("/proc/self/stat"))
    }

    fn parse(status: &str, stat: &str) -> Self {
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib = line
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<u64>()
                .ok()?;
            Some(kib * 1024)
        };
        // The name, in parentheses, may hold blanks.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let seconds = |nth| {
            let ticks: f64 = fields.split_ascii_whitespace().nth(nth)?.parse().ok()?;
            Some(ticks / TICKS_PER_SECOND)
        };
        Usage {
            resident_bytes: bytes("VmRSS:").unwrap_or_default(),
            resident_peak_bytes: bytes("VmHWM:").unwrap_or_default(),
            user_seconds: seconds(11).unwrap_or_default(),
            system_seconds: seconds(12).unwrap_or_default(),
        }
    }
}

/// A size as Redis shows it to people: `1.50M`.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.2}{}", UNITS[unit]),
    }
}

impl<S: Service> Connection<S> {
    /// The text of INFO.
    pub(super) async fn info(&mut self, sections: &[String]) -> Reply {
        let whole = sections
            .iter()
            .any(|name| name == "all" || name == "everything");
        let plain = sections.is_empty() || sections.iter().any(|name| name == "default");
        let wanted = |name: &str| {
            whole
                || (plain && DEFAULT.contains(&name))
                || sections.iter().any(|section| section == name)
        };
        let service = &self.shared.service;
        let (status, metrics) = (service.status(), &self.shared.metrics);
        let settings = self.shared.settings();
        let usage = LazyCell::new(Usage::now);
        let mut out = String::new();
        let begin = |out: &mut String, title: &str| {
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            out.push_str("# ");
            out.push_str(title);
            out.push_str("\r\n");
        };
        let put = |out: &mut String, name: &str, value: u64| line(out, name, &value.to_string());
        if wanted("server") {
            begin(&mut out, "Server");
            line(&mut out, "redis_version", REDIS_VERSION);
            line(&mut out, "kvd_version", env!("CARGO_PKG_VERSION"));
            line(&mut out, "redis_mode", "cluster");
            line(&mut out, "os", std::env::consts::OS);
            line(&mut out, "arch_bits", &usize::BITS.to_string());
            put(&mut out, "process_id", u64::from(std::process::id()));
            line(&mut out, "run_id", &self.shared.run_id);
            let port = self
                .entry
                .local_addr
                .rsplit_once(':')
                .map_or("0", |(_, port)| port);
            line(&mut out, "tcp_port", port);
            let up = metrics.started.elapsed().as_secs();
            put(&mut out, "uptime_in_seconds", up);
            put(&mut out, "uptime_in_days", up / 86_400);
        }
        if wanted("clients") {
            begin(&mut out, "Clients");
            let count = self
                .shared
                .clients
                .lock()
                .expect("no panic while held")
                .len();
            put(&mut out, "connected_clients", count as u64);
            put(&mut out, "maxclients", settings.clients_max as u64);
            put(&mut out, "blocked_clients", 0);
        }
        if wanted("memory") {
            begin(&mut out, "Memory");
            for (name, bytes) in [
                ("used_memory", usage.resident_bytes),
                ("used_memory_rss", usage.resident_bytes),
                ("used_memory_peak", usage.resident_peak_bytes),
                ("maxmemory", 0),
            ] {
                put(&mut out, name, bytes);
                line(&mut out, &format!("{name}_human"), &human(bytes));
            }
            line(&mut out, "maxmemory_policy", "noeviction");
        }
        if wanted("persistence") {
            begin(&mut out, "Persistence");
            put(&mut out, "loading", u64::from(status.loading));
            put(&mut out, "aof_enabled", 1);
        }
        if wanted("stats") {
            begin(&mut out, "Stats");
            put(
                &mut out,
                "total_connections_received",
                metrics.connections.load(Relaxed),
            );
            put(
                &mut out,
                "total_commands_processed",
                metrics.commands.load(Relaxed),
            );
            put(
                &mut out,
                "instantaneous_ops_per_sec",
                metrics.ops_per_second(),
            );
            put(
                &mut out,
                "total_net_input_bytes",
                metrics.input_bytes.load(Relaxed),
            );
            put(
                &mut out,
                "total_net_output_bytes",
                metrics.output_bytes.load(Relaxed),
            );
            put(
                &mut out,
                "rejected_connections",
                metrics.rejected.load(Relaxed),
            );
            put(&mut out, "keyspace_hits", metrics.hits.load(Relaxed));
            put(&mut out, "keyspace_misses", metrics.misses.load(Relaxed));
            put(&mut out, "total_error_replies", metrics.error_total());
        }
        if wanted("replication") {
            begin(&mut out, "Replication");
            for (name, value) in cluster::replication(&status) {
                line(&mut out, &name, &value);
            }
        }
        if wanted("cpu") {
            begin(&mut out, "CPU");
            for (name, seconds) in [
                ("used_cpu_sys", usage.system_seconds),
                ("used_cpu_user", usage.user_seconds),
            ] {
                line(&mut out, name, &format!("{seconds:.6}"));
            }
        }
        if wanted("commandstats") {
            begin(&mut out, "Commandstats");
            metrics.command_lines(&mut out);
        }
        if wanted("latencystats") {
            begin(&mut out, "Latencystats");
            metrics.latency_lines(&mut out);
        }
        if wanted("errorstats") {
            begin(&mut out, "Errorstats");
            metrics.error_lines(&mut out);
        }
        if wanted("cluster") {
            begin(&mut out, "Cluster");
            put(&mut out, "cluster_enabled", 1);
        }
        if wanted("raft") {
            begin(&mut out, "Raft");
            for (name, value) in service.raft_info() {
                line(&mut out, &name, &value);
            }
        }
        if wanted("backend") {
            begin(&mut out, "Backend");
            for (name, value) in service.backend_info() {
                line(&mut out, &name, &value);
            }
        }
        if wanted("keyspace") {
            begin(&mut out, "Keyspace");
            // What this node has applied: INFO answers without a leader too.
            let counts = match service.read(ReadLevel::Local, 0).await {
                Ok(reading) => {
                    let count = move || {
                        let (replicated_ms, now_ms) = (reading.replicated_ms, reading.now_ms);
                        let view = View::new(&reading.view, replicated_ms, now_ms).ok()?;
                        Some((view.state().keys, view.state().expiring))
                    };
                    doors::blocking(&*self.shared.doors.workers, count)
                        .await
                        .flatten()
                }
                Err(_) => None,
            };
            if let Some((keys @ 1.., expiring)) = counts {
                let text = format!("keys={keys},expires={expiring},avg_ttl=0");
                line(&mut out, "db0", &text);
            }
        }
        Reply::text(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_is_read_from_proc() {
        let status = "Name:\tkvd\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 75 0 0 20 0 8 0 100 1 1";
        let usage = Usage::parse(status, stat);
        assert_eq!(usage.resident_bytes, 1 << 20);
        assert_eq!(usage.resident_peak_bytes, 2 << 20);
        assert_eq!((usage.user_seconds, usage.system_seconds), (2.5, 0.75));
        assert_eq!(Usage::parse("", "").resident_bytes, 0);
        if cfg!(target_os = "linux") {
            assert!(Usage::now().resident_bytes > 0);
        }
    }

    #[test]
    fn sizes_are_shown_as_redis_shows_them() {
        assert_eq!(human(0), "0B");
        assert_eq!(human(1023), "1023B");
        assert_eq!(human(1536), "1.50K");
        assert_eq!(human(3 << 30), "3.00G");
    }
}
