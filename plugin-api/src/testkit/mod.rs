//! The conformance suite: what every engine owes its host, as clauses with names.
//!
//! An engine's author calls [`check`] in a test, and `kvd plugin check` tries the same clauses on a
//! library that was built. Each clause works in a directory of its own and needs as little as it
//! can of what the other clauses are about, so that a fault is reported under its own name.
//! What a crash leaves is tried by [`crash`].
//!
//! # What is asked, and how it is known that the answer can be no
//!
//! A clause of which an engine leaves nothing to try is skipped, and says why.
//!
//! Each clause has been seen to fail: an engine with one fault each breaks it, and no other clause.
//!
//! | asked | clause | broken engines |
//! | --- | --- | --- |
//! | names are plain, each option once, every default is valid, and an unknown option is refused | `options_are_specified` | `wrong_default_is_found` |
//! | an empty directory opens as an engine without keys and with the default mark | `new_engine_is_empty` | `engine_that_never_opens_is_found`, `mark_of_a_new_engine_is_found` |
//! | get hands out the value once and returns true, or returns false | `get_returns_what_was_put` | `two_calls_for_one_get_are_found` |
//! | keys are visited in the order of their bytes | `keys_are_in_byte_order` | `wrong_order_is_found` |
//! | keys and values are any bytes, also none | `keys_and_values_are_any_bytes` | `text_keys_are_found` |
//! | an empty value is a value | `empty_values_are_kept` | `lost_empty_value_is_found` |
//! | values up to the limit are kept whole | `large_values_are_kept` | `cut_value_is_found` |
//! | keys up to the limit are kept whole | `long_keys_are_kept` | `cut_key_is_found` |
//! | a batch up to the limit is written as one | `large_batches_are_kept` | `cut_batch_is_found` |
//! | a batch above a limit is refused with TooLarge, and nothing of it is written | `refused_batch_changes_nothing` | `limits_that_are_not_kept_are_found`, `part_of_a_refused_batch_is_found` |
//! | within a batch later changes see earlier ones | `later_changes_of_a_batch_see_earlier_ones` | `range_delete_that_misses_its_own_batch_is_found` |
//! | a write sets its mark with its batch, also with an empty one | `mark_comes_with_its_batch` | `lost_bytes_of_a_mark_are_found`, `lost_mark_of_an_empty_batch_is_found` |
//! | a write with an unchanged mark is a write | `unchanged_mark_is_kept` | `lost_unchanged_mark_is_found` |
//! | sync returns the mark of all that was written, or the default one without the capability durable | `sync_returns_the_durable_mark` | `sync_without_a_mark_is_found`, `sync_that_a_volatile_engine_boasts_of_is_found` |
//! | a range delete takes the keys >= from and < to | `range_delete_keeps_to_its_bounds` | `range_delete_beyond_its_end_is_found`, `range_delete_after_its_start_is_found`, `panic_is_found` |
//! | a scan visits the keys >= from and < to | `scan_keeps_to_its_bounds` | `scan_beyond_its_end_is_found`, `scan_after_its_start_is_found` |
//! | a reverse scan visits the same keys backwards | `reverse_scan_goes_backwards` | `ignored_reverse_is_found` |
//! | a scan ends when its callback says stop | `scan_stops_when_told` | `ignored_stop_is_found`, `ignored_stop_of_a_reverse_scan_is_found` |
//! | a reader beside a write sees all of its batch or nothing, and the mark that belongs to it | `readers_never_see_half_a_batch` | `half_a_batch_in_a_view_is_found`, `half_a_batch_in_a_scan_is_found` |
//! | a view stays as it was, whatever is written later | `view_stays_as_it_was` | `view_that_changes_is_found` |
//! | a view has the mark of its moment | `view_has_the_mark_of_its_moment` | `view_without_its_mark_is_found` |
//! | get and scan of a view keep the same rules as those of the engine | `view_reads_as_its_engine_does` | `two_calls_for_one_get_in_a_view_are_found`, `scan_beyond_its_end_in_a_view_is_found`, `ignored_stop_in_a_view_is_found` |
//! | a view outlives replace | `view_outlives_replace` | `view_that_ends_with_replace_is_found` |
//! | a view may be dropped after its engine was closed | `view_may_end_after_its_engine` | `view_that_outlives_its_engine_badly_is_found` |
//! | without the capability view, view is Unsupported | `view_without_capability_is_unsupported` | `unclaimed_view_is_found` |
//! | after replace there is what the feed had, under its mark, and nothing else | `replace_swaps_the_whole_contents` | `old_keys_after_replace_are_found`, `lost_mark_of_replace_is_found` |
//! | replace by an empty feed leaves nothing but the mark | `replace_by_nothing_leaves_nothing` | `ignored_empty_feed_is_found` |
//! | what replace has put in force is durable where the engine is | `replace_is_durable` | `lazy_replace_is_found` |
//! | replace returns its feed's error, and leaves the old contents or none | `failed_replace_leaves_old_contents_or_none` | `part_of_a_failed_replace_is_found`, `hidden_error_of_a_feed_is_found` |
//! | opened again, the engine has the state after some write, not older than what sync returned | `reopened_engine_has_what_was_synced` | `lazy_sync_is_found`, `mark_ahead_of_its_batch_is_found` |
//! | close makes everything durable | `closed_engine_keeps_everything` | `lazy_close_is_found` |
//! | a directory that is open is Locked for a second opening, which does no harm | `second_opening_is_locked` | `second_opening_is_found` |
//! | compact works where it is claimed, and changes no contents | `compact_keeps_contents` | `compaction_that_loses_is_found`, `claimed_compaction_that_is_not_there_is_found` |
//! | verify finds nothing wrong with sound contents | `verify_accepts_sound_contents` | `false_alarm_of_verify_is_found` |
//! | each listed property has a value, and no other name has one | `properties_have_values` | `property_without_value_is_found`, `invented_property_is_found` |
//! | options that are in force may be given again while the engine is open, unknown ones are refused, and no contents change | `reconfigure_keeps_contents` | `reconfiguration_that_loses_is_found`, `claimed_reconfiguration_that_is_not_there_is_found` |
//! | a reader beside replace sees the old contents or the new | `readers_never_see_half_a_replacement` | `half_a_replacement_is_found`, `half_a_replacement_in_a_scan_is_found` |
//! | sync and compact change nothing for a reader beside them | `readers_go_on_beside_sync_and_compact` | `compaction_that_readers_see_is_found` |
//! | get and scan find the same among many keys, from anywhere, in both directions | `reads_among_many_keys_match_a_model` | `fault_of_long_scans_is_found` |
//! | after any operations the engine is as a map would be | `random_operations_match_a_model` | `rare_fault_is_found` |
//!
//! [`crash`] is tried on what engines leave that lose what they promised, or that tear a mark from
//! its batch, and on one that keeps its promises when it is dropped; [`power`] on a disk that only
//! says it has synced. Not tried are: damage to files (`Corruption`), foreign files
//! (`Incompatible`) and full disks (`NoSpace`), which only the engine's author can make; and that a
//! callback is not called when its method has returned, which safe Rust cannot do.

mod candidate;
mod clauses;
pub mod crash;
pub mod fixture;
pub mod history;
mod model;
pub mod power;
mod subject;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Backend, Caps};

pub use self::candidate::Candidate;
pub use self::subject::Kit;

/// What came of one clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The engine keeps the clause.
    Kept,
    /// The engine breaks the clause, in this way.
    Broken(String),
    /// The clause was not tried, for this reason.
    Skipped(&'static str),
}

/// What came of all clauses. Its text has a line for each.
#[derive(Debug, Clone)]
pub struct Report {
    engine: String,
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Whether no clause is broken.
    pub fn is_ok(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The clauses by name, in the order in which they were tried.
    pub fn outcomes(&self) -> &[(&'static str, Outcome)] {
        &self.outcomes
    }

    /// The broken clauses, and how they were broken.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.outcomes
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                Outcome::Broken(how) => Some((*name, how.as_str())),
                Outcome::Kept | Outcome::Skipped(_) => None,
            })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine {}", self.engine)?;
        for (name, outcome) in &self.outcomes {
            match outcome {
                Outcome::Kept => write!(f, "\n  kept    {name}")?,
                Outcome::Broken(how) => write!(f, "\n  broken  {name}: {how}")?,
                Outcome::Skipped(why) => write!(f, "\n  skipped {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// A clause: its name, what an engine must offer for it to apply, and the trial.
pub struct Clause {
    name: &'static str,
    text: &'static str,
    /// When a clause of an earlier stage is broken, this one would fail for the same reason.
    stage: u8,
    needs: Caps,
    try_on: fn(&Kit<'_>) -> Result<Tried, String>,
}

/// How much of a clause could be tried on an engine that keeps it.
enum Tried {
    /// What there is to try.
    All,
    /// Nothing, for this reason: what the engine is leaves nothing of the clause.
    Nothing(&'static str),
}

impl From<()> for Tried {
    fn from((): ()) -> Self {
        Tried::All
    }
}

impl Clause {
    /// All of them, in the order in which they are tried.
    pub fn all() -> &'static [Clause] {
        clauses::ALL
    }

    /// The clause of this name.
    pub fn named(name: &str) -> Option<&'static Clause> {
        clauses::ALL.iter().find(|clause| clause.name == name)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it asks of an engine, as a sentence without a full stop.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Tries it; a panic is a way to break it.
    pub fn try_on(&self, kit: &Kit<'_>) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| (self.try_on)(kit))) {
            Ok(Ok(Tried::All)) => Outcome::Kept,
            Ok(Ok(Tried::Nothing(why))) => Outcome::Skipped(why),
            Ok(Err(how)) => Outcome::Broken(how),
            Err(panic) => Outcome::Broken(format!("panic: {}", panic_text(&*panic))),
        }
    }
}

/// How much is tried.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Random operations in a row.
    steps: u32,
    /// Whether a seed that is new each time is tried beside the fixed one.
    is_seeded_anew: bool,
    /// How many times reads and writes must meet.
    meetings: u64,
    /// Values up to this size are tried, and the engine's limit where it is below.
    value_bytes: u64,
    /// Entries of a kilobyte where there should be many.
    entries: u32,
}

impl Effort {
    const FULL: Effort = Effort {
        steps: 400,
        is_seeded_anew: true,
        meetings: 200,
        value_bytes: 8 << 20,
        entries: 3000,
    };
    const QUICK: Effort = Effort {
        steps: 60,
        is_seeded_anew: false,
        meetings: 20,
        value_bytes: 1 << 20,
        entries: 300,
    };
}

/// Tries all clauses on engines that are opened with `options` in temporary directories.
///
/// When the engine does not open, or a clause is broken, the clauses that rest upon it are
/// skipped. The last ones use random numbers: a failure names its seed, and the variable
/// `KVD_TESTKIT_SEED` of the environment repeats it.
pub fn run<B: Backend>(options: &[(&str, &str)]) -> Report {
    run_candidate(&Candidate::of::<B>(), options)
}

/// As [`run`], for an engine wherever its code is.
pub fn run_candidate(candidate: &Candidate, options: &[(&str, &str)]) -> Report {
    let kit = Kit::new(candidate, options);
    let try_one = |clause: &Clause| clause.try_on(&kit);
    run_with(&candidate.name, candidate.caps, try_one, |_, _| {})
}

/// As [`run`], but each clause that applies to an engine with `caps` is tried by `try_one`, in a
/// process of its own for example; `told` hears what came of each, also of those that are skipped.
pub fn run_with(
    name: &str,
    caps: Caps,
    mut try_one: impl FnMut(&Clause) -> Outcome,
    mut told: impl FnMut(&Clause, &Outcome),
) -> Report {
    let mut outcomes = Vec::new();
    let mut broken_stage = u8::MAX;
    for clause in Clause::all() {
        let outcome = if clause.stage > broken_stage {
            Outcome::Skipped("an earlier clause is broken")
        } else if !caps.contains(clause.needs) {
            Outcome::Skipped("the engine does not claim the capability")
        } else {
            try_one(clause)
        };
        if matches!(outcome, Outcome::Broken(_)) {
            broken_stage = broken_stage.min(clause.stage);
        }
        told(clause, &outcome);
        outcomes.push((clause.name, outcome));
    }
    Report {
        engine: name.to_owned(),
        outcomes,
    }
}

/// As [`run`], for use as a test.
///
/// # Panics
///
/// When a clause is broken, with the names of all that are.
pub fn check<B: Backend>(options: &[(&str, &str)]) {
    let report = run::<B>(options);
    if !report.is_ok() {
        let broken: Vec<_> = report
            .broken()
            .map(|(name, how)| format!("{name}: {how}"))
            .collect();
        panic!(
            "engine {} breaks the contract\n{}",
            B::NAME,
            broken.join("\n")
        );
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "without a text"
    }
}
