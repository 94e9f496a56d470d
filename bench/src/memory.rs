//! Resident memory over many keys, beside redis's.

use anyhow::Result;

use crate::outcome::Outcome;
use crate::redis_benchmark::{self, Target};
use crate::rows::Row;
use crate::run::Sizes;
use crate::sample::Sample;
use crate::systems::{Kvd, Redis, Setup};
use crate::usage;
use crate::work::Work;

/// Bytes of a value.
const VALUE_BYTES: u32 = 100;

/// What the engine may cache.
const CACHE: &str = "cache_size=64MiB";

/// Memory hardly differs from round to round.
const ROUNDS_MAX: u32 = 3;

/// Fills both anew in each round, reads for a while, and compares.
pub(crate) fn measure(row: &Row, setup: &Setup, sizes: &Sizes) -> Result<Outcome> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..sizes.rounds.min(ROUNDS_MAX) {
        let kvd = Kvd::start(setup, 1, "redb", &["--backend-opt", CACHE])?;
        kvd.fill(0..setup.keys, VALUE_BYTES)?;
        ours.push(resident(
            kvd.leader()?.port(),
            &kvd.processes(),
            setup,
            sizes,
        )?);
        drop(kvd);
        let redis = Redis::start(setup, "always")?;
        redis.fill(0..setup.keys, VALUE_BYTES)?;
        redis.settle()?;
        theirs.push(resident(redis.port(), &redis.processes(), setup, sizes)?);
        let mib = |sample: &Sample| sample.resident_bytes >> 20;
        let (kvd, redis) = (&ours[round as usize], &theirs[round as usize]);
        eprintln!(
            "  round {}: {} MiB against {} MiB",
            round + 1,
            mib(kvd),
            mib(redis)
        );
    }
    let ratio = |(ours, theirs): (&Sample, &Sample)| {
        ours.resident_bytes as f64 / theirs.resident_bytes as f64
    };
    let figures = ours.iter().zip(&theirs).map(ratio).collect();
    let sides = vec![
        (
            format!("kvd, redb, {CACHE}: GET c=50 P=16 behind it"),
            Sample::median_of(&ours),
        ),
        (
            "redis, always: the same".to_owned(),
            Sample::median_of(&theirs),
        ),
    ];
    let note = format!("{} keys with values of {VALUE_BYTES} bytes", setup.keys);
    Ok(Outcome::new(row, figures, sides).with_note(note))
}

/// The memory behind reads of all that is there.
fn resident(port: u16, processes: &[u32], setup: &Setup, sizes: &Sizes) -> Result<Sample> {
    let (keys, dir) = (setup.keys, &*setup.dir);
    let rate =
        redis_benchmark::warm_up(&Target { port, keys, dir }, &Work::get(50, 16), sizes.short)?;
    Ok(Sample {
        rate,
        resident_bytes: usage::resident_bytes(processes)?,
        ..Sample::default()
    })
}
