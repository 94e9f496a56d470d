//! redis-benchmark: the load on what speaks RESP.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cleanup;
use crate::sample::Load;
use crate::work::Work;

/// Requests of the runs that warm up, for each client and place in the pipeline.
const WARM_UP_REQUESTS: u64 = 50;

/// A run may take this, or [`SLOWNESS_MAX`] times what it should.
const PATIENCE_MIN: Duration = Duration::from_secs(120);

/// See [`PATIENCE_MIN`].
const SLOWNESS_MAX: u32 = 20;

/// How long each run of a longer load is: between two of them the server has some milliseconds.
const PIECE: Duration = Duration::from_secs(10);

/// How a load comes to its server.
pub(crate) struct Target<'a> {
    /// The port of this machine.
    pub port: u16,
    /// How many keys there are.
    pub keys: u64,
    /// Where outputs may be put.
    pub dir: &'a Path,
}

/// Warms the server up for about `time`, and returns its commands a second.
///
/// # Errors
///
/// As for [`load`].
pub(crate) fn warm_up(target: &Target<'_>, work: &Work, time: Duration) -> Result<f64> {
    let rate = once(target, work, least(work), Duration::ZERO)?.rate();
    Ok(load(target, work, time, rate)?.rate())
}

/// Runs `work` for about `time` on a server that manages about `rate` commands a second.
///
/// # Errors
///
/// redis-benchmark fails: it ends at the first error that a server answers.
pub(crate) fn load(
    target: &Target<'_>,
    work: &Work,
    time: Duration,
    mut rate: f64,
) -> Result<Load> {
    let mut total = Load::default();
    let began = Instant::now();
    loop {
        let left = time.saturating_sub(began.elapsed()).min(PIECE);
        let count = (rate * left.as_secs_f64()) as u64;
        let piece = once(target, work, count.max(least(work)), left)?;
        rate = piece.rate();
        total = Load {
            count: total.count + piece.count,
            seconds: total.seconds + piece.seconds,
            // Of several pieces the worst.
            p50_ms: total.p50_ms.max(piece.p50_ms),
            p99_ms: total.p99_ms.max(piece.p99_ms),
            max_ms: total.max_ms.max(piece.max_ms),
        };
        if began.elapsed() >= time.mul_f64(0.9) {
            return Ok(total);
        }
    }
}

fn least(work: &Work) -> u64 {
    (u64::from(work.clients * work.pipeline) * WARM_UP_REQUESTS).max(500)
}

fn once(target: &Target<'_>, work: &Work, count: u64, time: Duration) -> Result<Load> {
    let test = if work.writes() { "set" } else { "get" };
    let output = cleanup::run(
        Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "--csv", "-t", test])
            .args(["-p", &target.port.to_string()])
            .args(["-c", &work.clients.to_string()])
            .args(["-P", &work.pipeline.to_string()])
            .args(["-n", &count.to_string()])
            .args(["-r", &target.keys.to_string()])
            .args(["-d", &work.value_bytes.to_string()]),
        target.dir,
        PATIENCE_MIN.max(time * SLOWNESS_MAX),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text, count).with_context(|| format!("redis-benchmark printed: {text}"))
}

/// A heading, and a line of figures in quotes.
fn parse(csv: &str, count: u64) -> Option<Load> {
    let cells = |line: &str| -> Vec<String> {
        line.split(',')
            .map(|cell| cell.trim().trim_matches('"').to_owned())
            .collect()
    };
    let mut lines = csv.lines().filter(|line| line.starts_with('"'));
    let (heading, figures) = (cells(lines.next()?), cells(lines.next()?));
    let figure = |name: &str| {
        let at = heading.iter().position(|cell| cell == name)?;
        figures.get(at)?.parse::<f64>().ok()
    };
    Some(Load {
        count,
        seconds: count as f64 / figure("rps").filter(|rate| *rate > 0.0)?,
        p50_ms: figure("p50_latency_ms")?,
        p99_ms: figure("p99_latency_ms")?,
        max_ms: figure("max_latency_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                       \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                       \"SET\",\"2000.00\",\"2.419\",\"0.280\",\"1.423\",\"6.391\",\"7.247\",\"10.711\"\n";

    #[test]
    fn figures_are_found_by_their_headings() {
        let load = parse(CSV, 1000).unwrap();
        assert_eq!((load.count, load.seconds, load.rate()), (1000, 0.5, 2000.0));
        assert_eq!(
            (load.p50_ms, load.p99_ms, load.max_ms),
            (1.423, 7.247, 10.711)
        );
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for text in ["", "Error from server: ERR", CSV.lines().next().unwrap()] {
            assert_eq!(parse(text, 1000), None);
        }
        assert_eq!(parse(&CSV.replace("2000.00", "0.00"), 1000), None);
    }
}
