//! How soon a node that was killed while it wrote answers again.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::outcome::Outcome;
use crate::resp;
use crate::rows::Row;
use crate::run::Sizes;
use crate::systems::{Kvd, Setup};

/// Bytes of a value.
const VALUE_BYTES: u32 = 100;

/// How long a node writes before it is killed: its engine is synced after so many changes, and each
/// round dies at another place in between.
const WRITES: Duration = Duration::from_millis(2100);

/// See [`WRITES`].
const WRITES_MORE: Duration = Duration::from_millis(400);

/// Kills and starts one node again and again.
pub(crate) fn measure(row: &Row, setup: &Setup, sizes: &Sizes) -> Result<Outcome> {
    let mut kvd = Kvd::start(setup, 1, "redb", &[])?;
    kvd.fill(0..setup.keys, VALUE_BYTES)?;
    let (mut figures, mut behind) = (Vec::new(), Vec::new());
    let node = &mut kvd.nodes()[0];
    for round in 0..sizes.rounds {
        let mut writer = node.client()?;
        let keys = setup.keys;
        thread::scope(|scope| {
            scope.spawn(move || {
                let value = vec![b'w'; VALUE_BYTES as usize];
                // Until it is killed.
                while writer.fill(0..keys, &value).is_ok() {}
            });
            thread::sleep(WRITES + WRITES_MORE * (round % 5));
            let info = node.info();
            node.kill();
            let info = info?;
            let durable = info.number("backend_durable_index")?;
            behind.push(info.number("raft_last_log_index")?.saturating_sub(durable));
            anyhow::Ok(())
        })?;
        let began = Instant::now();
        node.spawn()?;
        node.answers(&["GET", &resp::key(0)])?;
        let took = began.elapsed().as_secs_f64();
        ensure!(
            node.client()?.call(&["GET", &resp::key(0)])?.is_some(),
            "the key is gone"
        );
        eprintln!("  round {}: {took:.3} s", round + 1);
        figures.push(took);
    }
    let longest = figures
        .iter()
        .fold(0.0_f64, |longest, took| longest.max(*took));
    let note = format!(
        "redb, {} keys of {VALUE_BYTES} bytes, the longest {longest:.3} s; entries of up to 1000 \
         commands that the engine had not on disk shortly before: {behind:?}",
        setup.keys
    );
    Ok(Outcome::new(row, figures, Vec::new()).with_note(note))
}
