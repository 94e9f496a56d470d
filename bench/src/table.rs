//! The report as text: tables in Markdown.

use std::fmt::Write as _;

use crate::outcome::{Outcome, Report};
use crate::rows::ROWS;
use crate::sample::median;

/// The whole report.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("{}, {} UTC", report.machine, report.date));
    line(String::new());
    line(format!("{}.", report.versions.join("; ")));
    line(String::new());
    line(format!("`{}`", report.command));
    line(String::new());
    line("| row | work | against | median | range | rounds | floor | stretch | |".to_owned());
    line("| --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned());
    for outcome in &report.outcomes {
        line(judged(outcome));
    }
    if report
        .outcomes
        .iter()
        .any(|outcome| !outcome.sides.is_empty())
    {
        line(String::new());
        line("Medians of the rounds; latencies in ms, processor time of all servers in us and bytes to the disk for one command, resident memory of all servers in MiB:".to_owned());
        line(String::new());
        line("| row | system | /s | p50 | p99 | max | us | bytes | MiB | commands/entry | entries/sync |".to_owned());
        line("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned());
    }
    for outcome in &report.outcomes {
        for (system, sample) in &outcome.sides {
            let maybe =
                |figure: Option<f64>| figure.map_or(String::new(), |figure| format!("{figure:.1}"));
            line(format!(
                "| `{}` | {system} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} | {:.0} | {} | {} |",
                outcome.id,
                grouped(sample.rate),
                sample.p50_ms,
                sample.p99_ms,
                sample.max_ms,
                sample.cpu_us,
                sample.written_bytes,
                sample.resident_bytes as f64 / f64::from(1 << 20),
                maybe(sample.commands_per_entry),
                maybe(sample.entries_per_sync)
            ));
        }
    }
    let notes: Vec<String> = report
        .outcomes
        .iter()
        .flat_map(|outcome| {
            outcome
                .notes
                .iter()
                .map(move |note| format!("- `{}`: {note}", outcome.id))
        })
        .collect();
    if !notes.is_empty() {
        line(String::new());
        notes.into_iter().for_each(line);
    }
    out
}

/// The line of one row.
pub(crate) fn judged(outcome: &Outcome) -> String {
    let row = ROWS.iter().find(|row| row.id == outcome.id);
    let (what, against) = row.map_or(("", ""), |row| (row.what, row.against));
    let (low, high) = outcome
        .figures
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), figure| {
            (low.min(*figure), high.max(*figure))
        });
    let figure = median(&outcome.figures);
    let goal = |wanted: fn(&crate::rows::Goal) -> f64| {
        outcome
            .goal
            .map_or("-".to_owned(), |goal| format!("{}", wanted(&goal)))
    };
    let verdict = outcome.goal.map_or("", |goal| goal.verdict(figure));
    let mut text = String::new();
    write!(
        text,
        "| `{}` | {what} | {against} | **{}** | {} to {} | {} | {} | {} | {verdict} |",
        outcome.id,
        short(figure),
        short(low),
        short(high),
        outcome.figures.len(),
        goal(|goal| goal.floor),
        goal(|goal| goal.stretch)
    )
    .expect("a string takes everything");
    text
}

/// How many floors are met, and which rows with one were not measured.
pub(crate) fn summary(report: &Report) -> String {
    let goals = || {
        report
            .outcomes
            .iter()
            .filter_map(|outcome| Some((outcome, outcome.goal?)))
    };
    let met = goals().filter(|(outcome, goal)| goal.verdict(median(&outcome.figures)) != "FAIL");
    let lacking: Vec<&str> = ROWS
        .iter()
        .filter(|row| row.goal.is_some())
        .map(|row| row.id)
        .filter(|id| !report.outcomes.iter().any(|outcome| outcome.id == *id))
        .collect();
    let mut text = format!("{} of {} floors are met.", met.count(), goals().count());
    if !lacking.is_empty() {
        text += &format!(" Not measured: {}.", lacking.join(", "));
    }
    text
}

/// Three digits that matter.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        1.0.. => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// A whole number, in groups of three digits.
pub(crate) fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Goal;
    use crate::sample::Sample;

    fn outcome(id: &str, figures: &[f64]) -> Outcome {
        Outcome {
            id: id.to_owned(),
            goal: Some(Goal {
                less: false,
                floor: 0.7,
                stretch: 0.9,
            }),
            figures: figures.to_vec(),
            sides: vec![("kvd".to_owned(), Sample::default())],
            notes: vec!["one thing".to_owned()],
            date: String::new(),
        }
    }

    #[test]
    fn a_row_is_judged_by_its_median() {
        let line = judged(&outcome("set-c1", &[0.5, 0.75, 2.0]));
        assert_eq!(
            line,
            "| `set-c1` | SET, 1 node, c=1 | redis, always | **0.750** | 0.500 to 2.00 | 3 | 0.7 | 0.9 | pass |"
        );
    }

    #[test]
    fn the_report_tells_what_failed_and_what_is_lacking() {
        let mut report = Report {
            outcomes: vec![outcome("set-c1", &[0.9])],
            ..Report::default()
        };
        assert!(summary(&report).starts_with("1 of 1 floors are met. Not measured: set-c50, "));
        report.outcomes.push(outcome("set-c50", &[0.1]));
        let summary = summary(&report);
        assert!(
            summary.starts_with("1 of 2 floors") && !summary.contains("scale"),
            "{summary}"
        );
        assert!(
            !summary.contains("set-c50") && summary.contains("tail"),
            "{summary}"
        );
        let text = text(&report);
        assert!(
            text.contains("| `set-c50` | kvd | 0 |") && text.contains("- `set-c50`: one thing")
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.4567, 4.567, 45.67, 456.7].map(short),
            ["0.457", "4.57", "45.7", "457"]
        );
        assert_eq!(
            [7.0, 999.6, 1234567.0].map(grouped),
            ["7", "1,000", "1,234,567"]
        );
    }
}
