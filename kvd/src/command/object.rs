//! OBJECT: how values are held, as far as that means something here.

use crate::command::{Call, Failure};
use crate::keyspace::View;
use crate::resp::{Reply, number};

type Answer = Result<Reply, Failure>;

/// The longest string that Redis keeps in one piece with its header.
const EMBEDDED_BYTES_MAX: usize = 44;

/// What Redis 7 chooses for a string that was set as a whole.
pub(super) fn encoding(call: &Call<'_>, view: &View<'_>) -> Answer {
    let mut name = "raw";
    let found = view.string(call.args[2], |value| {
        if number::parse_int(value).is_some() {
            name = "int";
        } else if value.len() <= EMBEDDED_BYTES_MAX {
            name = "embstr";
        }
    })?;
    Ok(if found {
        Reply::bulk(name)
    } else {
        Reply::Null
    })
}

pub(super) fn freq(call: &Call<'_>, view: &View<'_>) -> Answer {
    if !view.exists(call.args[2])? {
        return Ok(Reply::Null);
    }
    Err(Reply::error(
        "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
         that when switching between policies at runtime LRU and LFU data will take some time to \
         adjust.",
    )
    .into())
}

pub(super) fn idletime(call: &Call<'_>, view: &View<'_>) -> Answer {
    number_if_there(call, view, 0)
}

pub(super) fn refcount(call: &Call<'_>, view: &View<'_>) -> Answer {
    number_if_there(call, view, 1)
}

fn number_if_there(call: &Call<'_>, view: &View<'_>, number: i64) -> Answer {
    let there = view.exists(call.args[2])?;
    Ok(if there {
        Reply::Int(number)
    } else {
        Reply::Null
    })
}
