//! The figures of the engines' READMEs: keys of 16 bytes, values of 100, uniformly random.
//!
//! Shared by the engines' examples with `#[path]`.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kvd_plugin_api::{Backend, Caps, Feed, Flow, Mark, Op, OpenContext, Options, Range, Result};

const KEYS: u64 = 500_000;
const SYNC_EVERY: Duration = Duration::from_secs(1);

fn key(number: u64) -> [u8; 16] {
    // Spread over the key order, as hashed names are.
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = *b"key:            ";
    key[4..12].copy_from_slice(&spread.to_be_bytes());
    key[12..].copy_from_slice(&(number as u32).to_be_bytes());
    key
}

struct Writer<'a, B> {
    backend: &'a B,
    mark: u64,
    synced_at: Instant,
    syncs: Vec<Duration>,
}

impl<B: Backend> Writer<'_, B> {
    /// Writes entries in batches of `size` until `limit` or `count`; prints operations a second.
    fn run(
        &mut self,
        title: &str,
        size: usize,
        count: u64,
        limit: Duration,
        make: impl Fn(u64) -> u64,
    ) {
        let value = [b'v'; 100];
        let start = Instant::now();
        let mut done = 0;
        while done < count && start.elapsed() < limit {
            let keys: Vec<_> = (done..done + size as u64).map(|at| key(make(at))).collect();
            let ops: Vec<_> = keys.iter().map(|key| Op::Put(key, &value)).collect();
            self.write(&ops);
            done += size as u64;
            if self.synced_at.elapsed() > SYNC_EVERY {
                self.sync();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{title}, batches of {size}: {:.0} ops/s",
            done as f64 / seconds
        );
    }

    fn write(&mut self, ops: &[Op<'_>]) {
        self.mark += 1;
        let mark = Mark {
            index: self.mark,
            data: vec![7; 60],
        };
        self.backend.write(ops, &mark).unwrap();
    }

    fn sync(&mut self) {
        let start = Instant::now();
        self.backend.sync().unwrap();
        self.syncs.push(start.elapsed());
        self.synced_at = Instant::now();
    }

    fn report_syncs(&mut self) {
        let total: Duration = self.syncs.iter().sum();
        let max = self.syncs.iter().max().copied().unwrap_or_default();
        let mean = total / (self.syncs.len() as u32).max(1);
        println!(
            "syncs: {}, mean {mean:.1?}, longest {max:.1?}",
            self.syncs.len()
        );
        self.syncs.clear();
    }
}

fn timed<T>(title: &str, call: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = call();
    let seconds = start.elapsed().as_secs_f64();
    println!("{title}: {:.1} ms", seconds * 1000.0);
    (result, seconds)
}

struct Sorted(u64);

impl Feed for Sorted {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        if self.0 == KEYS {
            return Ok(false);
        }
        out(format!("fed:{:012}", self.0).as_bytes(), &[b'v'; 100]);
        self.0 += 1;
        Ok(true)
    }
}

/// Measures the engine with its default options.
pub(crate) fn run<B: Backend>() {
    let options = Options::parse(B::OPTIONS, []).unwrap();
    let open = |dir: &Path| {
        let options = &options;
        B::open(&OpenContext { dir, options }).unwrap()
    };
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut backend = open(dir.path());
    let mut writer = Writer {
        backend: &backend,
        mark: 0,
        synced_at: Instant::now(),
        syncs: Vec::new(),
    };
    writer.run("load", 1000, KEYS, Duration::MAX, |at| at);
    writer.sync();
    writer.report_syncs();
    let disk = |backend: &B| backend.property("kvd.disk.bytes").unwrap();
    println!("disk after load: {} bytes", disk(&backend));
    for size in [1, 100, 1000] {
        let spread = |at: u64| at.wrapping_mul(7_919) % KEYS;
        let limit = Duration::from_secs(4);
        writer.run("overwrite", size, u64::MAX, limit, spread);
        writer.sync();
        writer.report_syncs();
    }
    println!("disk after overwrites: {} bytes", disk(&backend));
    for threads in [1, 2] {
        let gets: u64 = 600_000;
        let ((), seconds) = timed("gets", || {
            thread::scope(|scope| {
                for thread in 0..threads {
                    let backend = &backend;
                    scope.spawn(move || {
                        for at in 0..gets {
                            let number = (at * 104_729 + thread * 31) % KEYS;
                            assert!(backend.get(&key(number), &mut |_| ()).unwrap());
                        }
                    });
                }
            });
        });
        println!(
            "get, {threads} threads: {:.0}/s",
            (gets * threads) as f64 / seconds
        );
    }
    for reverse in [false, true] {
        let mut entries = 0;
        let ((), seconds) = timed("scan", || {
            let all = Range {
                from: b"",
                to: None,
                reverse,
            };
            let count = &mut |_: &[u8], _: &[u8]| {
                entries += 1;
                Flow::Continue
            };
            backend.scan(all, count).unwrap();
        });
        println!(
            "scan, reverse {reverse}: {:.0} entries/s",
            f64::from(entries) / seconds
        );
    }

    let mut keys: Vec<_> = (0..KEYS).map(key).collect();
    keys.sort_unstable();
    let fifth = keys.len() / 5;
    let single: Vec<_> = keys[..fifth].iter().map(|key| Op::Delete(key)).collect();
    timed("delete 100000 neighbours one by one", || {
        writer.write(&single)
    });
    let range = [Op::DeleteRange(&keys[fifth], &keys[2 * fifth])];
    timed("delete 100000 neighbours as a range", || {
        writer.write(&range)
    });
    writer.sync();
    timed("compact 300000", || backend.compact().unwrap());
    println!("disk after compact: {} bytes", disk(&backend));
    timed("verify 300000", || backend.verify().unwrap());
    timed("delete the other 300000 as a range", || {
        writer.write(&[Op::DeleteRange(b"", b"\xff")]);
    });
    writer.sync();

    let mark = Mark {
        index: writer.mark + 1,
        data: vec![7; 60],
    };
    let ((), seconds) = timed("replace by 500000", || {
        backend.replace(&mut Sorted(0), &mark).unwrap();
    });
    println!("replace: {:.0} entries/s", KEYS as f64 / seconds);
    println!("disk after replace: {} bytes", disk(&backend));
    if B::CAPS.contains(Caps::VIEW) {
        let start = Instant::now();
        for _ in 0..100_000 {
            backend.view().unwrap();
        }
        println!("view: {:.0} ns", start.elapsed().as_secs_f64() * 1e9 / 1e5);
    }
    timed("close", || backend.close().unwrap());
    drop(backend);
    (backend, _) = timed("reopen", || open(dir.path()));
    assert_eq!(backend.mark().unwrap(), mark);
}
