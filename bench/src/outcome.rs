//! What a run has found, as it is written to a file and shown.

use serde::{Deserialize, Serialize};

use crate::rows::{Goal, ROWS, Row};
use crate::sample::Sample;

/// A run, or several that were merged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The machine.
    pub machine: String,
    /// The programs.
    pub versions: Vec<String>,
    /// When, as `YYYY-MM-DD HH:MM` in UTC.
    pub date: String,
    /// The command line.
    pub command: String,
    /// What was measured.
    pub outcomes: Vec<Outcome>,
    /// Throughput against latency.
    pub curves: Vec<Curve>,
}

/// What came of a row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The row.
    pub id: String,
    /// What is wanted.
    pub goal: Option<Goal>,
    /// The figure of each round.
    pub figures: Vec<f64>,
    /// What was seen of each side: medians of the rounds.
    pub sides: Vec<(String, Sample)>,
    /// What else there is to say.
    pub notes: Vec<String>,
    /// When, as in [`Report::date`].
    pub date: String,
}

/// A system under more and more clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// Its name.
    pub name: String,
    /// Clients, commands a second, p50 and p99 in milliseconds.
    pub points: Vec<(u32, f64, f64, f64)>,
}

impl Outcome {
    /// The figures of a row, and what was seen of each side.
    pub(crate) fn new(row: &Row, figures: Vec<f64>, sides: Vec<(String, Sample)>) -> Self {
        Outcome {
            id: row.id.to_owned(),
            goal: row.goal,
            figures,
            sides,
            notes: Vec::new(),
            date: String::new(),
        }
    }

    /// Says something more.
    #[must_use]
    pub(crate) fn with_note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }
}

impl Report {
    /// Takes over from an earlier run what this one has not.
    pub(crate) fn merge(&mut self, earlier: Report) {
        let has = |id: &str| self.outcomes.iter().any(|outcome| outcome.id == id);
        let kept: Vec<_> = earlier
            .outcomes
            .into_iter()
            .filter(|outcome| !has(&outcome.id))
            .collect();
        self.outcomes.extend(kept);
        let place = |outcome: &Outcome| ROWS.iter().position(|row| row.id == outcome.id);
        self.outcomes.sort_by_key(place);
        if self.curves.is_empty() {
            self.curves = earlier.curves;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ids: &[(&str, f64)]) -> Report {
        let outcome = |(id, figure): &(&str, f64)| Outcome {
            id: (*id).to_owned(),
            goal: None,
            figures: vec![*figure],
            sides: Vec::new(),
            notes: Vec::new(),
            date: String::new(),
        };
        Report {
            outcomes: ids.iter().map(outcome).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn a_merged_report_has_the_newest_of_each_row_in_the_tables_order() {
        let mut newer = report(&[("ready", 2.0), ("set-c50", 2.0)]);
        newer.merge(report(&[("set-c50", 1.0), ("set-c1", 1.0)]));
        let merged: Vec<_> = newer
            .outcomes
            .iter()
            .map(|outcome| (outcome.id.as_str(), outcome.figures[0]))
            .collect();
        assert_eq!(merged, [("set-c1", 1.0), ("set-c50", 2.0), ("ready", 2.0)]);
    }
}
