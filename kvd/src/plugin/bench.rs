//! `kvd plugin bench`: the figures of an engine, and what the interface itself costs.

#![expect(
    clippy::disallowed_methods,
    reason = "measures how long calls really take"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use kvd::config::PluginBenchFlags;
use kvd::exit;
use kvd_plugin_api::host::{self, Engine};
use kvd_plugin_api::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, Mark, NoView, Op, OpenContext, Range, Result,
};

use super::{load, workshop};
use crate::Failed;
use crate::output::say;

const ALL: Range<'static> = Range {
    from: b"",
    to: None,
    reverse: false,
};

/// Between two syncs, as a node under load has it.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Calls between two looks at the clock.
const CALLS: u64 = 64;

/// `kvd plugin bench`.
pub(super) fn bench(flags: &PluginBenchFlags) -> std::result::Result<(), Failed> {
    let plugin = load(&flags.plugin)?;
    let folder = workshop(flags.within.as_deref())?;
    let failed = |error: Error| {
        let code = match error.kind() {
            ErrorKind::InvalidOption => exit::USAGE,
            _ => exit::IO,
        };
        Failed::new(code, format!("backend '{}': {error}", flags.plugin))
    };
    let open = || {
        plugin
            .open(folder.path(), &flags.backend_opt)
            .map_err(failed)
    };
    let manifest = plugin.manifest();
    say!(
        "{} {}, {}",
        manifest.name,
        manifest.version,
        plugin.path().display()
    );
    say!(
        "{} keys of 16 bytes, values of {} bytes, {} s for each figure",
        flags.keys,
        flags.value_bytes,
        flags.seconds
    );
    if manifest.debug {
        say!("built without optimisation: these are not the engine's figures");
    }
    let bench = Bench {
        engine: open()?,
        keys: flags.keys,
        value: vec![b'v'; flags.value_bytes as usize],
        time: Duration::from_secs(flags.seconds),
    };
    bench.run().map_err(failed)?;
    let disk = bench.engine.property("kvd.disk.bytes");
    let (closed, took) = timed(|| bench.engine.close());
    closed.map_err(failed)?;
    drop(bench);
    row("close", &ms(took));
    let (opened, took) = timed(open);
    let engine = opened?;
    let first = engine.mark().map_err(failed)?;
    row(
        "reopen",
        &format!("{}, with the mark {}", ms(took), first.index),
    );
    if let Some(disk) = disk {
        row("on disk", &format!("{disk} bytes"));
    }
    drop(engine);
    interface(folder.path()).map_err(failed)
}

fn row(what: &str, figure: &str) {
    say!("  {what:<32} {figure}");
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn rate(count: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!(
        "{:>12.0} /s  {:>10.2} us each",
        count as f64 / seconds,
        seconds * 1e6 / count.max(1) as f64
    )
}

fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = call();
    (result, start.elapsed())
}

/// Repeats `call`, which does `count` things with a number that grows, until the time is over.
fn repeat(
    time: Duration,
    count: u64,
    mut call: impl FnMut(u64) -> Result<()>,
) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < time {
        call(done)?;
        done += count;
    }
    Ok((done, start.elapsed()))
}

/// The key of a number: 16 bytes, spread over the order as hashed names are.
fn key(number: u64) -> [u8; 16] {
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = *b"key:            ";
    key[4..12].copy_from_slice(&spread.to_be_bytes());
    key[12..].copy_from_slice(&(number as u32).to_be_bytes());
    key
}

struct Bench {
    engine: Engine,
    keys: u64,
    value: Vec<u8>,
    time: Duration,
}

impl Bench {
    fn run(&self) -> Result<()> {
        let mut writer = Writer {
            bench: self,
            mark: self.engine.mark()?.index,
            synced: Instant::now(),
            syncs: Vec::new(),
        };
        let (filled, took) = timed(|| {
            (0..self.keys)
                .step_by(1000)
                .try_for_each(|at| writer.write((at..self.keys.min(at + 1000)).map(key).collect()))
        });
        filled?;
        writer.sync()?;
        row("fill, batches of 1000", &rate(self.keys, took));
        writer.syncs.clear();
        // Not in the order in which they were written.
        let spread = |at: u64| key(at.wrapping_mul(7919) % self.keys);
        let (gets, took) = repeat(self.time, CALLS, |at| {
            for at in at..at + CALLS {
                self.engine.get(&spread(at), &mut |value| {
                    black_box(value);
                })?;
            }
            Ok(())
        })?;
        row("get", &rate(gets, took));
        let mut entries = 0;
        let (_, took) = repeat(self.time, 1, |_| {
            self.engine.scan(ALL, &mut |key, value| {
                black_box((key, value));
                entries += 1;
                Flow::Continue
            })
        })?;
        row("scan, an entry", &rate(entries, took));
        for size in [1, 100, 1000] {
            let (written, took) = repeat(self.time, size, |at| {
                writer.write((at..at + size).map(spread).collect())?;
                writer.sync_when_due()
            })?;
            writer.sync()?;
            row(&format!("write, batches of {size}"), &rate(written, took));
            writer.report(size);
        }
        if self.engine.caps().contains(Caps::VIEW) {
            let (views, took) = repeat(self.time, 1, |_| self.engine.view().map(drop))?;
            row("view", &rate(views, took));
        }
        Ok(())
    }
}

struct Writer<'a> {
    bench: &'a Bench,
    mark: u64,
    synced: Instant,
    syncs: Vec<Duration>,
}

impl Writer<'_> {
    fn write(&mut self, keys: Vec<[u8; 16]>) -> Result<()> {
        let ops: Vec<_> = keys
            .iter()
            .map(|key| Op::Put(key, &self.bench.value))
            .collect();
        self.mark += 1;
        let mark = Mark {
            index: self.mark,
            // As long as kvd's own.
            data: vec![7; 60],
        };
        self.bench.engine.write(&ops, &mark)
    }

    fn sync_when_due(&mut self) -> Result<()> {
        if self.synced.elapsed() < SYNC_EVERY {
            return Ok(());
        }
        self.sync()
    }

    fn sync(&mut self) -> Result<()> {
        let (synced, took) = timed(|| self.bench.engine.sync());
        self.syncs.push(took);
        self.synced = Instant::now();
        synced.map(drop)
    }

    fn report(&mut self, size: u64) {
        let total: Duration = self.syncs.iter().sum();
        let longest = self.syncs.iter().max().copied().unwrap_or_default();
        let mean = total / (self.syncs.len() as u32).max(1);
        let figure = format!("mean {}, longest {}", ms(mean), ms(longest));
        row(&format!("  sync, each second, of {size}"), &figure);
        self.syncs.clear();
    }
}

/// An engine that does nothing: what is left is the call.
struct Nothing;

impl Backend for Nothing {
    const NAME: &'static str = "nothing";
    const VERSION: &'static str = "1";
    type View = NoView<Self>;

    fn open(_cx: &OpenContext<'_>) -> Result<Self> {
        Ok(Nothing)
    }

    fn mark(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        out(key);
        Ok(true)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        for _ in 0..CALLS {
            if out(range.from, range.from) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: &[Op<'_>], _mark: &Mark) -> Result<()> {
        black_box(batch);
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn view(&self) -> Result<Self::View> {
        Err(Error::unsupported("view"))
    }

    fn replace(&self, _feed: &mut dyn Feed, _mark: &Mark) -> Result<()> {
        Err(Error::unsupported("replace"))
    }
}

/// Calls an engine that does nothing, directly and through the interface.
fn interface(dir: &std::path::Path) -> Result<()> {
    // Calls of nanoseconds need less time than those of an engine.
    let time = Duration::from_millis(250);
    let direct = &Nothing;
    let bordered = host::open_linked::<Nothing>(dir, &[])?;
    let key = key(1);
    let batch = [Op::Put(&key, &key)];
    let mark = Mark::default();
    let get = [
        nanoseconds(time, || {
            direct.get(black_box(&key), &mut drop_value).map(drop)
        })?,
        nanoseconds(time, || {
            bordered.get(black_box(&key), &mut drop_value).map(drop)
        })?,
    ];
    let scan = [
        nanoseconds(time, || direct.scan(black_box(ALL), &mut go_on))?,
        nanoseconds(time, || bordered.scan(black_box(ALL), &mut go_on))?,
    ]
    .map(|whole| whole / CALLS as f64);
    let write = [
        nanoseconds(time, || direct.write(black_box(&batch), &mark))?,
        nanoseconds(time, || bordered.write(black_box(&batch), &mark))?,
    ];
    say!("the call itself, by an engine that does nothing: direct, through the interface");
    for (what, [direct, bordered]) in [("get", get), ("scan, an entry", scan), ("write", write)] {
        let more = bordered - direct;
        row(
            what,
            &format!("{direct:.1} ns, {bordered:.1} ns: {more:.1} ns more"),
        );
    }
    if cfg!(debug_assertions) {
        say!("this kvd is built without optimisation: these are not the interface's figures");
    }
    Ok(())
}

fn drop_value(value: &[u8]) {
    black_box(value);
}

fn go_on(key: &[u8], value: &[u8]) -> Flow {
    black_box((key, value));
    Flow::Continue
}

/// The best of many short measurements: what else the machine does makes calls of nanoseconds slower,
/// never faster.
fn nanoseconds(time: Duration, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    const PIECES: u32 = 50;
    let mut best = f64::INFINITY;
    for _ in 0..PIECES {
        let (calls, took) = repeat(time / PIECES, CALLS, |_| {
            (0..CALLS).try_for_each(|_| call())
        })?;
        best = best.min(took.as_secs_f64() * 1e9 / calls as f64);
    }
    Ok(best)
}
