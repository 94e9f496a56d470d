//! The longest writes of many minutes, beside the longest syncs of a file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::closed_loop::{self, RespSetter, Seen};
use crate::histogram::Histogram;
use crate::outcome::Outcome;
use crate::rows::Row;
use crate::run::Sizes;
use crate::sample::Sample;
use crate::systems::{Kvd, Setup};
use crate::usage::{self, Usage};

/// Bytes of a value.
const VALUE_BYTES: u32 = 100;

/// How many clients write.
const CLIENTS: usize = 50;

/// Between two syncs beside it.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// Fills three nodes, and lets clients set their keys for a long time.
pub(crate) fn measure(row: &Row, setup: &Setup, sizes: &Sizes) -> Result<Outcome> {
    let kvd = Kvd::start(setup, 3, "redb", &[])?;
    kvd.fill(0..sizes.many, VALUE_BYTES)?;
    let (port, processes) = (kvd.leader()?.port(), kvd.processes());
    let before = Usage::of_all(&processes)?;
    let (seen, syncs) = beside(&setup.dir, || {
        closed_loop::runtime()?.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..CLIENTS {
                clients.push(RespSetter::connect(port, VALUE_BYTES).await?);
            }
            closed_loop::drive(clients, sizes.many, sizes.tail).await
        })
    })?;
    let used = Usage::of_all(&processes)? - before;
    let figure = seen.latencies.percentile_ms(0.9999);
    let sides = vec![(
        format!("kvd, redb, 3 nodes: SET c={CLIENTS} {VALUE_BYTES} B"),
        sample(&seen, used, usage::resident_bytes(&processes)?),
    )];
    let note = format!(
        "{} keys, {:.0} s, {} SETs: {}; a file of its own on the same disk, 4 KiB more and \
         fdatasync every {} ms: {}",
        sizes.many,
        seen.seconds,
        seen.latencies.count(),
        shares(&seen.latencies),
        PROBE_EVERY.as_millis(),
        shares(&syncs)
    );
    Ok(Outcome::new(row, vec![figure], sides).with_note(note))
}

fn sample(seen: &Seen, used: Usage, resident_bytes: u64) -> Sample {
    let (load, count) = (seen.load(), seen.latencies.count().max(1) as f64);
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

fn shares(latencies: &Histogram) -> String {
    let ms = |share| latencies.percentile_ms(share);
    format!(
        "p50 {:.2}, p99 {:.2}, p99.9 {:.2}, p99.99 {:.2}, longest {:.1} ms",
        ms(0.5),
        ms(0.99),
        ms(0.999),
        ms(0.9999),
        latencies.max_ms()
    )
}

/// Does `work`, and syncs a file of its own meanwhile.
fn beside<T>(dir: &Path, work: impl FnOnce() -> Result<T>) -> Result<(T, Histogram)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let probe = scope.spawn(|| -> Result<Histogram> {
            let mut file = File::create(dir.join("probe"))?;
            let mut syncs = Histogram::default();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all(&[1; 4096])?;
                file.sync_data()?;
                syncs.note(began.elapsed());
                thread::sleep(PROBE_EVERY.saturating_sub(began.elapsed()));
            }
            Ok(syncs)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let syncs = probe.join().ok().context("the probe panicked")??;
        Ok((worked?, syncs))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_synced_beside_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let (worked, syncs) = beside(dir.path(), || {
            thread::sleep(PROBE_EVERY * 3);
            Ok(7)
        })
        .unwrap();
        assert_eq!(worked, 7);
        assert!((1..=5).contains(&syncs.count()), "{} syncs", syncs.count());
        assert!(beside(dir.path(), || -> Result<()> { anyhow::bail!("failed") }).is_err());
    }
}
