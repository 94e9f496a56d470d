//! The clauses that try one thing each, but for the random operations of [`super::model`].

mod contents;
mod life;
mod order;
mod replacing;
mod together;
mod views;

use crate::{Caps, Range};

use super::subject::{Bytes, Entries};
use super::{Clause, model};

macro_rules! clause {
    ($stage:literal, $module:ident::$name:ident, $needs:expr, $text:literal) => {
        Clause {
            name: stringify!($name),
            text: $text,
            stage: $stage,
            needs: $needs,
            try_on: |kit| $module::$name(kit).map(Into::into),
        }
    };
}

/// In the order in which they are tried. Without options no engine opens, and all others begin
/// with a new one; what is random comes last, when everything else holds.
#[rustfmt::skip]
pub(super) const ALL: &[Clause] = &[
    clause!(0, contents::options_are_specified, Caps::empty(), "names are plain, each option once, every default is valid, and an unknown option is refused"),
    clause!(1, contents::new_engine_is_empty, Caps::empty(), "an empty directory opens as an engine without keys and with the default mark"),
    clause!(2, contents::get_returns_what_was_put, Caps::empty(), "get hands out the value once and returns true, or returns false"),
    clause!(2, contents::keys_are_in_byte_order, Caps::empty(), "keys are visited in the order of their bytes"),
    clause!(2, contents::keys_and_values_are_any_bytes, Caps::empty(), "keys and values are any bytes, also none"),
    clause!(2, contents::empty_values_are_kept, Caps::empty(), "an empty value is a value"),
    clause!(2, contents::large_values_are_kept, Caps::empty(), "values up to the limit are kept whole"),
    clause!(2, contents::long_keys_are_kept, Caps::empty(), "keys up to the limit are kept whole"),
    clause!(2, contents::large_batches_are_kept, Caps::empty(), "a batch up to the limit is written as one"),
    clause!(2, contents::refused_batch_changes_nothing, Caps::empty(), "a batch above a limit is refused with TooLarge, and nothing of it is written"),
    clause!(2, contents::later_changes_of_a_batch_see_earlier_ones, Caps::empty(), "within a batch later changes see earlier ones"),
    clause!(2, contents::mark_comes_with_its_batch, Caps::empty(), "a write sets its mark with its batch, also with an empty one"),
    clause!(2, contents::unchanged_mark_is_kept, Caps::empty(), "a write with an unchanged mark is a write"),
    clause!(2, contents::sync_returns_the_durable_mark, Caps::empty(), "sync returns the mark of all that was written, or the default one without the capability durable"),
    clause!(2, order::range_delete_keeps_to_its_bounds, Caps::empty(), "a range delete takes the keys >= from and < to"),
    clause!(2, order::scan_keeps_to_its_bounds, Caps::empty(), "a scan visits the keys >= from and < to"),
    clause!(2, order::reverse_scan_goes_backwards, Caps::empty(), "a reverse scan visits the same keys backwards"),
    clause!(2, order::scan_stops_when_told, Caps::empty(), "a scan ends when its callback says stop"),
    clause!(2, together::readers_never_see_half_a_batch, Caps::empty(), "a reader beside a write sees all of its batch or nothing, and the mark that belongs to it"),
    clause!(2, views::view_stays_as_it_was, Caps::VIEW, "a view stays as it was, whatever is written later"),
    clause!(2, views::view_has_the_mark_of_its_moment, Caps::VIEW, "a view has the mark of its moment"),
    clause!(2, views::view_reads_as_its_engine_does, Caps::VIEW, "get and scan of a view keep the same rules as those of the engine"),
    clause!(2, views::view_outlives_replace, Caps::VIEW, "a view outlives replace"),
    clause!(2, views::view_may_end_after_its_engine, Caps::VIEW, "a view may be dropped after its engine was closed"),
    clause!(2, views::view_without_capability_is_unsupported, Caps::empty(), "without the capability view, view is Unsupported"),
    clause!(2, replacing::replace_swaps_the_whole_contents, Caps::empty(), "after replace there is what the feed had, under its mark, and nothing else"),
    clause!(2, replacing::replace_by_nothing_leaves_nothing, Caps::empty(), "replace by an empty feed leaves nothing but the mark"),
    clause!(2, replacing::replace_is_durable, Caps::empty(), "what replace has put in force is durable where the engine is"),
    clause!(2, replacing::failed_replace_leaves_old_contents_or_none, Caps::empty(), "replace returns its feed's error, and leaves the old contents or none"),
    clause!(2, life::reopened_engine_has_what_was_synced, Caps::empty(), "opened again, the engine has the state after some write, not older than what sync returned"),
    clause!(2, life::closed_engine_keeps_everything, Caps::DURABLE, "close makes everything durable"),
    clause!(2, life::second_opening_is_locked, Caps::DURABLE, "a directory that is open is Locked for a second opening, which does no harm"),
    clause!(2, life::compact_keeps_contents, Caps::empty(), "compact works where it is claimed, and changes no contents"),
    clause!(2, life::verify_accepts_sound_contents, Caps::empty(), "verify finds nothing wrong with sound contents"),
    clause!(2, life::properties_have_values, Caps::empty(), "each listed property has a value, and no other name has one"),
    clause!(2, life::reconfigure_keeps_contents, Caps::RECONFIGURE, "options that are in force may be given again while the engine is open, unknown ones are refused, and no contents change"),
    clause!(3, together::readers_never_see_half_a_replacement, Caps::empty(), "a reader beside replace sees the old contents or the new"),
    clause!(3, together::readers_go_on_beside_sync_and_compact, Caps::empty(), "sync and compact change nothing for a reader beside them"),
    clause!(3, model::reads_among_many_keys_match_a_model, Caps::empty(), "get and scan find the same among many keys, from anywhere, in both directions"),
    clause!(4, model::random_operations_match_a_model, Caps::empty(), "after any operations the engine is as a map would be"),
];

/// Why nothing can be said of what outlives an engine.
pub(super) const VOLATILE: &str =
    "nothing outlives the engine, and it does not claim the capability";

/// A to z, each with a value of its own.
fn letters() -> Entries {
    (b'a'..=b'z')
        .map(|letter| (vec![letter], format!("value {letter}").into_bytes()))
        .collect()
}

/// As many entries of a kilobyte: more than an engine is likely to take in one step.
fn some(count: u32) -> Entries {
    (0..count)
        .map(|at| {
            let value = vec![b'0' + (at % 10) as u8; 1 << 10];
            (format!("key-{at:04}").into_bytes(), value)
        })
        .collect()
}

/// The entries of a range, in ascending order.
fn within(full: &Entries, range: Range<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    full.iter()
        .filter(|(key, _)| {
            key.as_slice() >= range.from && range.to.is_none_or(|to| key.as_slice() < to)
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn names<'a>(keys: impl Iterator<Item = &'a [u8]>) -> String {
    let names: Vec<_> = keys.map(|key| Bytes(key).to_string()).collect();
    names.join(" ")
}
