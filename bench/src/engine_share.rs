//! How much of what its engine can write kvd writes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cleanup;
use crate::outcome::Outcome;
use crate::rows::Row;
use crate::run::Sizes;
use crate::sample::Sample;
use crate::systems::{Kind, Setup, System};
use crate::table::grouped;
use crate::work::Work;

/// With `plugin bench`'s key of 16 bytes as much as kvd gives its engine for a key of 16 bytes and
/// a value of 3: 37 bytes of key and 17 of value.
const VALUE_BYTES: &str = "38";

/// The line of `plugin bench`, each batch of which is as large as a busy node's.
const LINE: &str = "write, batches of 1000";

/// How long each figure of `plugin bench` takes, in seconds; it has five.
const SECONDS_MAX: u64 = 10;

/// How long it may take to fill its engine.
const FILL_TIME: Duration = Duration::from_secs(300);

/// Measures the row, in turns.
pub(crate) fn measure(
    row: &Row,
    engine: &'static str,
    setup: &Setup,
    sizes: &Sizes,
) -> Result<Outcome> {
    let mut system = System::start(Kind::Kvd(1, engine), setup)?;
    let work = Work::set(50, 16);
    let warm = system.warm_up(&work, sizes.short, setup)?;
    let (mut samples, mut figures, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..sizes.rounds {
        let sample = system.measure(&warm, sizes.long, true, setup)?;
        let rate = of_engine(engine, setup, sizes)?;
        eprintln!(
            "  round {}: {}/s of {}/s",
            round + 1,
            grouped(sample.rate),
            grouped(rate)
        );
        figures.push(sample.rate / rate);
        samples.push(sample);
        alone.push(Sample {
            rate,
            ..Sample::default()
        });
    }
    let sides = vec![
        (
            format!("kvd, {engine}: {work}"),
            Sample::median_of(&samples),
        ),
        (format!("{engine} alone"), Sample::median_of(&alone)),
    ];
    Ok(Outcome::new(row, figures, sides))
}

fn of_engine(engine: &str, setup: &Setup, sizes: &Sizes) -> Result<f64> {
    let seconds = sizes.long.as_secs().clamp(1, SECONDS_MAX);
    let output = cleanup::run(
        Command::new(setup.built.join("kvd"))
            .args(["plugin", "bench", engine, "--value-bytes", VALUE_BYTES])
            .args(["--keys", &setup.keys.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .arg("--within")
            .arg(&setup.dir),
        &setup.dir,
        FILL_TIME + Duration::from_secs(20 * seconds),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).with_context(|| format!("plugin bench printed: {text}"))
}

fn parse(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(LINE))?;
    line.split_once("/s")?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_large_batches_is_found() {
        let text = "  write, batches of 100                  107000 /s        9.35 us each\n  \
                    write, batches of 1000                 145000 /s        6.90 us each\n";
        assert_eq!(parse(text), Some(145_000.0));
        assert_eq!(parse("  write, batches of 100    1 /s"), None);
    }
}
