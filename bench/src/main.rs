//! Measures kvd beside redis-server and etcd on this machine, and prints the ratios.
//!
//! `docs/benchmarks.md` has the rows, what is wanted of each, and the last run.

mod cleanup;
mod closed_loop;
mod engine_share;
mod histogram;
mod many_keys;
mod memory;
mod outcome;
mod plot;
mod programs;
mod ready;
mod redis_benchmark;
mod resp;
mod rows;
mod run;
mod sample;
mod systems;
mod table;
mod tail;
mod usage;
mod work;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use self::cleanup::Workshop;
use self::outcome::Report;
use self::rows::{ROWS, Row};
use self::run::{Run, Sizes};
use self::systems::Setup;

/// Measures kvd beside redis-server and etcd on this machine, and prints the ratios
#[derive(Debug, Parser)]
struct Args {
    /// Rows and sets of rows: table, more, tail (ten minutes), scale, all
    #[arg(long, value_delimiter = ',', default_values = ["table", "more"])]
    rows: Vec<String>,
    /// Print the names of all rows and end
    #[arg(long)]
    list: bool,
    /// How often each figure is measured, in turns with what it is compared with
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of a measurement
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds of the measurements that last a minute
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    long: f64,
    /// Seconds of the measurement that lasts ten minutes
    #[arg(long, default_value_t = 600.0, value_parser = seconds)]
    tail: f64,
    /// Keys of the rows with ten million
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    keys: u64,
    /// One round of fractions of a second over few keys: whether all works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Where data goes, on the disk that shall be measured [default: beside the build]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A folder with kvd and its plugins, instead of building them
    #[arg(long, value_name = "DIR")]
    built: Option<PathBuf>,
    /// Write what was found as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show an earlier run's JSON too, where this one has no such row
    #[arg(long, value_name = "FILE")]
    merge: Option<PathBuf>,
    /// Measure throughput against latency, and draw it as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Up to a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 86400".to_owned()),
    }
}

impl Args {
    fn sizes(&self) -> Sizes {
        let time = Duration::from_secs_f64;
        if self.quick {
            return Sizes {
                rounds: 1,
                short: time(0.5),
                long: time(1.0),
                tail: time(2.0),
                many: 20_000,
                few: 2_000,
            };
        }
        Sizes {
            rounds: self.rounds,
            short: time(self.seconds),
            long: time(self.long),
            tail: time(self.tail),
            many: self.keys,
            few: (self.keys / 100).max(1),
        }
    }
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kvd-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row could be measured.
fn measure(args: &Args) -> Result<bool> {
    if args.list {
        for row in ROWS {
            println!(
                "{:16} {:6} {} against {}",
                row.id,
                row.set.name(),
                row.what,
                row.against
            );
        }
        return Ok(true);
    }
    let Some(rows) = rows::chosen(&args.rows) else {
        bail!("--rows {}: --list shows the names", args.rows.join(","));
    };
    let earlier = match &args.merge {
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            serde_json::from_str(&text).with_context(|| file.display().to_string())?
        }
        None => Report::default(),
    };
    cleanup::on_signals()?;
    let built = match &args.built {
        Some(built) => fs::canonicalize(built).with_context(|| built.display().to_string())?,
        None => programs::build()?,
    };
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| can_be_measured(row, &built))
        .collect();
    let etcd = args.plot.is_some() || rows.iter().any(|row| row.method.has_etcd());
    programs::install(etcd)?;
    let parent = match &args.dir {
        Some(dir) => dir.clone(),
        None => programs::target()?,
    };
    fs::create_dir_all(&parent)?;
    let workshop = Workshop::new(&fs::canonicalize(parent)?)?;
    let (keys, etcd_keys) = if args.quick {
        (10_000, 1_000)
    } else {
        (1_000_000, 100_000)
    };
    let setup = Setup {
        built: built.clone(),
        dir: workshop.path().to_owned(),
        keys,
        etcd_keys,
    };
    let mut report = Report {
        machine: programs::machine(workshop.path()),
        versions: programs::versions(&built, etcd),
        date: programs::first_line("date", &["-u", "+%F %H:%M"]).unwrap_or_default(),
        command: std::env::args()
            .skip(1)
            .fold("kvd-bench".to_owned(), |line, arg| line + " " + &arg),
        ..Report::default()
    };
    let mut run = Run::new(setup, args.sizes());
    let mut all = true;
    run.rows(&rows, |row, outcome| match outcome {
        Ok(mut outcome) => {
            outcome.date.clone_from(&report.date);
            eprintln!("{}", table::judged(&outcome));
            report.outcomes.push(outcome);
            // A run of hours that fails at its end has found something all the same.
            if let Err(error) = write_json(args, &report) {
                eprintln!("kvd-bench: {error:#}");
            }
        }
        Err(error) => {
            eprintln!("{} could not be measured: {error:#}", row.id);
            all = false;
        }
    });
    if let Some(file) = &args.plot {
        report.curves = run.curves()?;
        fs::write(file, plot::svg(&report.curves)).with_context(|| file.display().to_string())?;
    }
    report.merge(earlier);
    write_json(args, &report)?;
    print!("{}", table::text(&report));
    println!("\n{}", table::summary(&report));
    Ok(all)
}

/// Whether kvd has what the row needs; says so where it has not.
fn can_be_measured(row: &Row, built: &std::path::Path) -> bool {
    let engine = row.method.engine();
    let can = programs::has_engine(built, engine);
    if !can {
        eprintln!("{} is left out: there is no plugin for {engine}", row.id);
    }
    can
}

fn write_json(args: &Args, report: &Report) -> Result<()> {
    let Some(file) = &args.json else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(file, text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_fit_together() {
        Args::command().debug_assert();
        let args = Args::parse_from(["kvd-bench"]);
        assert_eq!(
            (args.rows.join(","), args.sizes().rounds),
            ("table,more".to_owned(), 5)
        );
        assert!(Args::try_parse_from(["kvd-bench", "--seconds", "0"]).is_err());
        let quick = Args::parse_from(["kvd-bench", "--quick"]).sizes();
        assert!(quick.tail < Duration::from_secs(5));
    }
}
