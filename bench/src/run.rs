//! Measures rows: those that share systems follow each other, and rounds take turns.

use std::time::Duration;

use anyhow::Result;

use crate::outcome::{Curve, Outcome};
use crate::rows::{Method, Row, Side};
use crate::sample::Sample;
use crate::systems::{Kind, Setup, System};
use crate::table::grouped;
use crate::work::Work;
use crate::{engine_share, many_keys, memory, ready, tail};

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Rounds of each row.
    pub rounds: u32,
    /// One measurement.
    pub short: Duration,
    /// One measurement that no buffer hides.
    pub long: Duration,
    /// The measurement of the longest writes.
    pub tail: Duration,
    /// Many keys.
    pub many: u64,
    /// Few keys.
    pub few: u64,
}

/// Clients of a curve's points.
const CURVE_CLIENTS: [u32; 8] = [1, 2, 5, 10, 25, 50, 100, 200];

/// What is drawn.
const CURVES: [Kind; 4] = [
    Kind::Redis("always"),
    Kind::Kvd(1, "redb"),
    Kind::Kvd(3, "redb"),
    Kind::Etcd(3),
];

/// A run.
pub(crate) struct Run {
    setup: Setup,
    sizes: Sizes,
    systems: Vec<(Kind, System)>,
}

impl Run {
    /// A run that has started nothing yet.
    pub(crate) fn new(setup: Setup, sizes: Sizes) -> Self {
        Run {
            setup,
            sizes,
            systems: Vec::new(),
        }
    }

    /// Measures the rows one after the other and hands over what came of each.
    pub(crate) fn rows(&mut self, rows: &[Row], mut each: impl FnMut(&Row, Result<Outcome>)) {
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by_key(|row| row.method.stage());
        for row in rows {
            let shared = row.method.shared();
            self.systems.retain(|(kind, _)| shared.contains(kind));
            eprintln!("{}: {} against {}", row.id, row.what, row.against);
            let outcome = self.row(row);
            if outcome.is_err() {
                // What failed once may be in any state.
                self.systems.clear();
            }
            each(row, outcome);
        }
        self.systems.clear();
    }

    fn row(&mut self, row: &Row) -> Result<Outcome> {
        let (setup, sizes) = (self.setup.clone(), self.sizes.clone());
        match row.method {
            Method::Rates { ours, theirs, long } => self.rates(row, ours, theirs, long),
            Method::EngineShare(engine) => engine_share::measure(row, engine, &setup, &sizes),
            Method::Tail => tail::measure(row, &setup, &sizes),
            Method::Memory => memory::measure(row, &setup, &sizes),
            Method::Ready => ready::measure(row, &setup, &sizes),
            Method::Scale => many_keys::measure(row, &setup, &sizes),
        }
    }

    fn system(&mut self, kind: Kind) -> Result<&mut System> {
        if let Some(at) = self.systems.iter().position(|(known, _)| *known == kind) {
            return Ok(&mut self.systems[at].1);
        }
        self.systems.push((kind, System::start(kind, &self.setup)?));
        Ok(&mut self.systems.last_mut().expect("it was added").1)
    }

    fn warm_up(&mut self, side: Side) -> Result<(Work, f64)> {
        let (setup, time) = (self.setup.clone(), self.sizes.short);
        self.system(side.kind)?.warm_up(&side.work, time, &setup)
    }

    fn rates(&mut self, row: &Row, ours: Side, theirs: Side, long: bool) -> Result<Outcome> {
        let setup = self.setup.clone();
        let time = if long {
            self.sizes.long
        } else {
            self.sizes.short
        };
        // Both run before either is warmed up: a start is no rest for the other.
        self.system(ours.kind)?;
        self.system(theirs.kind)?;
        let warm = [self.warm_up(ours)?, self.warm_up(theirs)?];
        let mut samples = [Vec::new(), Vec::new()];
        let mut figures = Vec::new();
        for round in 0..self.sizes.rounds {
            // Who goes first alternates, so that neither always has the other behind it.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let kind = [ours.kind, theirs.kind][side];
                let sample = self
                    .system(kind)?
                    .measure(&warm[side], time, long, &setup)?;
                samples[side].push(sample);
            }
            let [our, their] = [0, 1].map(|side| samples[side][round as usize].rate);
            figures.push(our / their);
            eprintln!(
                "  round {}: {}/s against {}/s, {:.2}",
                round + 1,
                grouped(our),
                grouped(their),
                our / their
            );
        }
        let name = |side: usize, kind: Kind| format!("{kind}: {}", warm[side].0);
        let sides = vec![
            (name(0, ours.kind), Sample::median_of(&samples[0])),
            (name(1, theirs.kind), Sample::median_of(&samples[1])),
        ];
        Ok(Outcome::new(row, figures, sides))
    }

    /// Measures each system under more and more clients that set values.
    ///
    /// # Errors
    ///
    /// A command failed.
    pub(crate) fn curves(&mut self) -> Result<Vec<Curve>> {
        let (setup, time) = (self.setup.clone(), self.sizes.short);
        let mut curves = Vec::new();
        for kind in CURVES {
            self.systems.clear();
            eprintln!("curve of {kind}");
            let mut points = Vec::new();
            for clients in CURVE_CLIENTS {
                let system = self.system(kind)?;
                let warm = system.warm_up(&Work::set(clients, 1), time, &setup)?;
                let sample = system.measure(&warm, time, false, &setup)?;
                points.push((clients, sample.rate, sample.p50_ms, sample.p99_ms));
            }
            curves.push(Curve {
                name: kind.to_string(),
                points,
            });
        }
        self.systems.clear();
        Ok(curves)
    }
}
