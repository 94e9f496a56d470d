//! A cluster in one process on simulated time: network, disks, clocks and chance come from one
//! number, so a run that fails is run again bit for bit.
//!
//! ```text
//! cargo test -p kvd-tests --test simulation                  a few seeds
//! KVD_SEEDS=1000 cargo test -p kvd-tests --test simulation    more of them, from KVD_SEED on (1)
//! cargo test -p kvd-tests --test simulation -- --seed 42      one of them, with all its events
//! KVD_PLANT=early-sync cargo test ... -- --seed 42            the same with a planted bug
//! ```
//!
//! Without `--seed` it also runs each of the planted bugs (see [`plant`]) until one of the seeds shows
//! it: a simulation that does not find those finds nothing.
//!
//! Each seed runs in a process of its own: tokio's own choices (which task a `watch` wakes first)
//! hang on a counter of the process and on the operating system's randomness, so both must be the
//! same. [`getrandom`] gives that randomness here.

#![allow(
    clippy::disallowed_methods,
    reason = "the simulated world stands where the operating system does"
)]

mod clients;
mod disk;
mod engine;
mod net;
mod plant;
mod run;
mod world;

use std::io::Read as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Seeds of a smoke run.
const SEEDS: u64 = 24;

/// Seeds of which one must show a planted bug.
const PLANTED_SEEDS: u64 = 90;

/// A run takes seconds; one that takes this long hangs.
const RUN_TIME: Duration = Duration::from_secs(300);

static SEEDED: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// The operating system's randomness: in a run it comes from the seed (SplitMix64).
///
/// # Safety
///
/// As for getrandom(2): `buf` has room for `len` bytes.
#[expect(
    unsafe_code,
    reason = "it takes the place of a function of the C library"
)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buf: *mut u8, len: usize, flags: u32) -> isize {
    if !SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the caller's promise is passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buf, len, flags) as isize };
    }
    for at in 0..len {
        let mut z = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // SAFETY: the caller has room for `len` bytes.
        unsafe { *buf.add(at) = (z ^ (z >> 31)) as u8 };
    }
    len as isize
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--seed") {
        let seed = args.get(at + 1).and_then(|seed| seed.parse().ok());
        return one(seed.expect("--seed wants a number"));
    }
    if args.iter().any(|arg| arg == "--list") {
        println!("simulation: test");
        return ExitCode::SUCCESS;
    }
    // The filter of a run that is about other tests.
    let options_with_values = ["--test-threads", "--skip", "--format", "--color"];
    let mut filters = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if options_with_values.contains(&arg.as_str()) {
            args.next();
        } else if !arg.starts_with('-') {
            filters.push(arg);
        }
    }
    if !filters.is_empty()
        && !filters
            .iter()
            .any(|filter| "simulation".contains(&**filter))
    {
        return ExitCode::SUCCESS;
    }
    all()
}

/// One run, in a fresh thread of a fresh process.
fn one(seed: u64) -> ExitCode {
    RANDOM.store(seed, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
    // A panic in a task would end that task only.
    std::panic::set_hook(Box::new(|info| {
        if !kvd::command::panic_is_contained() {
            eprintln!("panic: {info}");
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
            std::process::exit(1);
        }
    }));
    plant::sow();
    let run = std::thread::spawn(move || run::run(seed));
    match run.join() {
        Ok(Ok(report)) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Ok(Err(violation)) => {
            eprintln!("violation: {violation}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn number(name: &str, unless_told: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(unless_told, |told| told.parse().expect("a number"))
}

/// Runs the seeds, as many at a time as there are processors.
fn all() -> ExitCode {
    let (first, count) = (number("KVD_SEED", 1), number("KVD_SEEDS", SEEDS));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let totals = Mutex::new((0_u64, 0_u64));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    // The first one twice: the same number gives the same run.
                    let runs = if seed == first { 2 } else { 1 };
                    let reports: Vec<_> = (0..runs).map(|_| child(seed, None)).collect();
                    for report in &reports {
                        match report {
                            Ok(report) => {
                                let number = |name: &str| {
                                    let mut words = report.split_whitespace();
                                    let found = words.find_map(|word| word.strip_prefix(name));
                                    found.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
                                };
                                let mut totals = totals.lock().unwrap();
                                totals.0 += number("done=");
                                totals.1 += number("faults=");
                            }
                            Err(said) => fail(&failed, seed, said.clone()),
                        }
                    }
                    if let [Ok(once), Ok(again)] = &reports[..]
                        && once != again
                    {
                        let said = format!("it is not the same again: {once} and {again}");
                        fail(&failed, seed, said);
                    }
                }
            });
        }
    });
    let missed = find_planted(threads);
    let failed = failed.into_inner().unwrap();
    let (done, faults) = totals.into_inner().unwrap();
    println!(
        "simulation: {count} seeds from {first} in {:.0} s, {done} calls done, {faults} faults, {} \
         failed",
        began.elapsed().as_secs_f64(),
        failed.len()
    );
    for name in &missed {
        println!("the planted bug {name} was not found");
    }
    if failed.is_empty() && missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Says at once what failed: a long run may be looked at before its end.
fn fail(failed: &Mutex<Vec<u64>>, seed: u64, said: String) {
    println!("seed {seed}: {said}");
    println!("again: cargo test -p kvd-tests --test simulation -- --seed {seed}");
    failed.lock().unwrap().push(seed);
}

/// Runs each planted bug until a seed shows it; returns those that none shows.
fn find_planted(threads: usize) -> Vec<&'static str> {
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((name, _)) = plant::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let shown = (1..=PLANTED_SEEDS)
                        .find_map(|seed| Some((seed, child(seed, Some(name)).err()?)));
                    match shown {
                        None => missed.lock().unwrap().push(*name),
                        Some((seed, said)) => {
                            let line = said.lines().next().unwrap_or("it fails");
                            let line: String = line.chars().take(120).collect();
                            println!("planted {name}: shown by seed {seed}: {line}");
                        }
                    }
                }
            });
        }
    });
    missed.into_inner().unwrap()
}

/// Runs one seed in a process of its own.
fn child(seed: u64, plant: Option<&str>) -> Result<String, String> {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--seed", &seed.to_string()])
        .envs(plant.map(|plant| (plant::VARIABLE, plant)))
        .env("KVD_SIMULATION_QUIET", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program runs again");
    let deadline = Instant::now() + RUN_TIME;
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut pipe) = pipe {
                drop(pipe.read_to_string(&mut text));
            }
            text
        })
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let err = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                give_up(&mut child);
                break None;
            }
            None => std::thread::park_timeout(Duration::from_millis(5)),
        }
    };
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    match status {
        Some(status) if status.success() => Ok(out.trim().to_owned()),
        Some(_) => Err(err.trim().to_owned()),
        None => Err(format!("it hangs: {}", err.trim())),
    }
}

fn give_up(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}
