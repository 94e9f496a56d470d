//! What many keys cost, against few: filling, rates, memory, disk, restarts.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::outcome::Outcome;
use crate::redis_benchmark::{self, Target};
use crate::resp;
use crate::rows::Row;
use crate::run::Sizes;
use crate::sample::median;
use crate::systems::{Kvd, Setup};
use crate::table::grouped;
use crate::usage;
use crate::work::Work;

/// Bytes of a value.
const VALUE_BYTES: u32 = 100;

/// What is measured with few keys and with many.
const WORKS: [Work; 4] = [
    Work {
        value_bytes: VALUE_BYTES,
        ..Work::set(50, 1)
    },
    Work {
        value_bytes: VALUE_BYTES,
        ..Work::set(50, 16)
    },
    Work::get(50, 1),
    Work::get(50, 16),
];

/// Fills three nodes with few keys and measures, fills them with many and measures again.
pub(crate) fn measure(row: &Row, setup: &Setup, sizes: &Sizes) -> Result<Outcome> {
    let mut kvd = Kvd::start(setup, 3, "redb", &[])?;
    kvd.fill(0..sizes.few, VALUE_BYTES)?;
    let few = rates(&kvd, sizes.few, setup, sizes)?;
    let filling = Instant::now();
    kvd.fill(sizes.few..sizes.many, VALUE_BYTES)?;
    let filled = filling.elapsed().as_secs_f64();
    let many = rates(&kvd, sizes.many, setup, sizes)?;
    let resident = usage::resident_bytes(&kvd.processes())? / 3;
    let disk = bytes_of(kvd.leader()?.dir())?;
    let mut notes = vec![format!(
        "{} keys of {VALUE_BYTES} bytes: filled with {}/s by one client, acknowledged by a \
         majority and stored by all three; {} MiB resident a node, {} a key; {} MiB of disk a \
         node, {} a key",
        sizes.many,
        grouped((sizes.many - sizes.few) as f64 / filled),
        resident >> 20,
        resident / sizes.many,
        disk >> 20,
        disk / sizes.many
    )];
    for (n, work) in WORKS.iter().enumerate() {
        let [few, many] = [&few, &many].map(|rates| median(&rates[n]));
        notes.push(format!(
            "{work}: {}/s, with few {}/s",
            grouped(many),
            grouped(few)
        ));
    }
    let began = Instant::now();
    // At once: who stays behind alone has no majority to hand anything to.
    thread::scope(|scope| -> Result<()> {
        let stops: Vec<_> = kvd
            .nodes()
            .iter_mut()
            .map(|node| scope.spawn(|| node.stop()))
            .collect();
        for stop in stops {
            stop.join().ok().context("a stop panicked")??;
        }
        Ok(())
    })?;
    let stopped = began.elapsed().as_secs_f64();
    notes.push(format!(
        "all three stopped in order in {stopped:.2} s, {}",
        restart(&mut kvd)?
    ));
    for node in kvd.nodes() {
        node.kill();
    }
    notes.push(format!("`kill -9` of all three, {}", restart(&mut kvd)?));
    let figures = many[0]
        .iter()
        .zip(&few[0])
        .map(|(many, few)| many / few)
        .collect();
    let outcome = Outcome::new(row, figures, Vec::new());
    Ok(notes.into_iter().fold(outcome, Outcome::with_note))
}

/// The rates of each of [`WORKS`], round by round.
fn rates(kvd: &Kvd, keys: u64, setup: &Setup, sizes: &Sizes) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::new();
    for work in WORKS {
        let (port, dir) = (kvd.leader()?.port(), &*setup.dir);
        let target = Target { port, keys, dir };
        let rate = redis_benchmark::warm_up(&target, &work, sizes.short)?;
        let mut rates = Vec::new();
        for _ in 0..sizes.rounds {
            kvd.drain()?;
            rates.push(redis_benchmark::load(&target, &work, sizes.short, rate)?.rate());
        }
        eprintln!("  {keys} keys, {work}: {}/s", grouped(median(&rates)));
        all.push(rates);
    }
    Ok(all)
}

/// Starts all nodes, and says when the first of them gave a linearizable answer.
fn restart(kvd: &mut Kvd) -> Result<String> {
    let began = Instant::now();
    for node in kvd.nodes() {
        node.spawn()?;
    }
    kvd.nodes()[0].answers(&["GET", &resp::key(0)])?;
    let answered = began.elapsed().as_secs_f64();
    kvd.drain()?;
    Ok(format!(
        "started again: the first answer after {answered:.2} s, all level after {:.2} s",
        began.elapsed().as_secs_f64()
    ))
}

/// What the files of a directory take of the disk.
fn bytes_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => bytes_of(&entry.path())?,
            false => metadata.blocks() * 512,
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_all_folders_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        std::fs::write(dir.path().join("one"), [1; 5000]).unwrap();
        std::fs::write(dir.path().join("inner/two"), [1; 5000]).unwrap();
        assert!((10_000..100_000).contains(&bytes_of(dir.path()).unwrap()));
    }
}
