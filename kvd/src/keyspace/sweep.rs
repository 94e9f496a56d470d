//! What earlier epochs left behind, removed in small steps.
//!
//! No reader, digest or snapshot sees these entries, so a node removes them when it likes, with a
//! write of an unchanged mark.

use bytes::Bytes;

use super::{Failure, encoding};
use crate::storage::{Flow, Op, Range, Read};

/// One step of removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    ranges: Vec<(Bytes, Bytes)>,
    /// The number of entries that the step removes; less than was asked for when none is left
    /// after it.
    pub entries: usize,
}

impl Leftovers {
    /// The step as a batch, to be written with the mark that the engine has.
    pub fn ops(&self) -> Vec<Op<'_>> {
        self.ranges
            .iter()
            .map(|(from, to)| Op::DeleteRange(from, to))
            .collect()
    }
}

/// Finds up to `max` entries of epochs before `epoch`, which must be the one of the state in
/// `read`.
///
/// # Errors
///
/// The engine's failure.
pub fn sweep(read: &dyn Read, epoch: u32, max: usize) -> Result<Leftovers, Failure> {
    let mut found = Leftovers::default();
    for first_byte in encoding::OF_EPOCHS {
        if found.entries == max {
            break;
        }
        let from = encoding::epoch_from(first_byte, Some(0));
        let to = encoding::epoch_from(first_byte, Some(epoch));
        let range = Range {
            from: from.as_slice(),
            to: Some(to.as_slice()),
            reverse: false,
        };
        let mut first: Option<Bytes> = None;
        let mut last = Vec::new();
        read.scan(range, &mut |key, _| {
            if first.is_none() {
                first = Some(Bytes::copy_from_slice(key));
            }
            last.clear();
            last.extend_from_slice(key);
            found.entries += 1;
            if found.entries == max {
                Flow::Stop
            } else {
                Flow::Continue
            }
        })?;
        if let Some(first) = first {
            // The least key after the last one.
            last.push(0);
            found.ranges.push((first, last.into()));
        }
    }
    Ok(found)
}
