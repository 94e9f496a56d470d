//! Reads about the store as a whole.

use crate::command::args::{error, integer, is_word, syntax_error};
use crate::command::gather::Gather;
use crate::command::{Call, Failure};
use crate::keyspace::View;
use crate::resp::Reply;

type Answer = Result<Reply, Failure>;

/// The digest of this node's own applied contents, as 40 hex digits.
pub(super) fn debug_digest(_: &Call<'_>, view: &View<'_>) -> Answer {
    Ok(Reply::simple(crate::hex::text(&view.digest()?)))
}

/// The number of slots.
const SLOTS: i64 = 16384;

fn slot(arg: &[u8]) -> Result<u16, Reply> {
    let slot = integer(arg)?;
    if !(0..SLOTS).contains(&slot) {
        return error("ERR Invalid slot");
    }
    Ok(slot as u16)
}

pub(super) fn check_countkeysinslot(args: &[&[u8]]) -> Result<(), Reply> {
    slot(args[2]).map(|_| ())
}

pub(super) fn cluster_countkeysinslot(call: &Call<'_>, view: &View<'_>) -> Answer {
    Ok(Reply::Int(
        view.count_keys_in_slot(slot(call.args[2])?)? as i64
    ))
}

/// One answer holds no more keys than this, however many are asked for.
const KEYS_MAX: usize = 100_000;

fn slot_and_count(args: &[&[u8]]) -> Result<(u16, usize), Reply> {
    let (slot, count) = (integer(args[2])?, integer(args[3])?);
    if !(0..SLOTS).contains(&slot) || count < 0 {
        return error("ERR Invalid slot or number of keys");
    }
    let count = usize::try_from(count).map_or(KEYS_MAX, |count| count.min(KEYS_MAX));
    Ok((slot as u16, count))
}

pub(super) fn check_getkeysinslot(args: &[&[u8]]) -> Result<(), Reply> {
    slot_and_count(args).map(|_| ())
}

pub(super) fn cluster_getkeysinslot(call: &Call<'_>, view: &View<'_>) -> Answer {
    let (slot, count) = slot_and_count(call.args)?;
    let mut keys = Gather::new(call);
    let mut left = count;
    if count > 0 {
        view.keys_in_slot(slot, |key| {
            left -= 1;
            keys.push(Reply::bulk_from(key)) && left > 0
        })?;
    }
    keys.finish()
}

/// What a stored value takes beside the bytes of key and value: its header and the key's slot,
/// and an entry among the expiries where it has one.
const RECORD_BYTES: usize = 32;

pub(super) fn check_memory_usage(args: &[&[u8]]) -> Result<(), Reply> {
    match args[3..] {
        [] => Ok(()),
        [option, count] if is_word(option, "SAMPLES") => match integer(count)? {
            0.. => Ok(()),
            _ => Err(syntax_error()),
        },
        _ => Err(syntax_error()),
    }
}

pub(super) fn memory_usage(call: &Call<'_>, view: &View<'_>) -> Answer {
    check_memory_usage(call.args)?;
    let key = call.args[2];
    let mut bytes = 0;
    let found = view.string(key, |value| bytes = RECORD_BYTES + key.len() + value.len())?;
    Ok(if found {
        Reply::Int(bytes as i64)
    } else {
        Reply::Null
    })
}
