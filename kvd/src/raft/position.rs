//! What an engine's mark means to kvd: where the state stands in the log, and what belongs to it.
//!
//! ```text
//! mark data = format u8 | time ms u64 | feature level u16 | term u64 | membership
//! ```
//!
//! The index is the mark's own. Because the mark is written with the data, contents and position
//! cannot part.

use bytes::Bytes;

use super::codec::{self, Malformed, Reader};
use super::types::{LogId, NodeId, StoredMembership, log_id};
use crate::storage::Mark;

const FORMAT: u8 = 1;

/// Where a state stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Position {
    /// The last applied entry.
    pub log_id: Option<LogId>,
    /// The membership in force, with its own log id.
    pub membership: StoredMembership,
    /// Replicated time: the stamp of the last applied entry.
    pub time_ms: u64,
    /// The feature level in force.
    pub level: u16,
}

impl Position {
    /// The index of the last applied entry; 0 before the first.
    pub fn index(&self) -> u64 {
        self.log_id.map_or(0, |id| id.index)
    }

    /// Whether `node` is a member, voting or not.
    pub fn has_member(&self, node: NodeId) -> bool {
        self.membership.membership().get_node(&node).is_some()
    }

    /// The mark that an engine stores.
    pub fn to_mark(&self) -> Mark {
        let Some(id) = &self.log_id else {
            return Mark::default();
        };
        let mut data = Vec::with_capacity(256);
        data.push(FORMAT);
        data.extend_from_slice(&self.time_ms.to_le_bytes());
        data.extend_from_slice(&self.level.to_le_bytes());
        data.extend_from_slice(&id.leader_id.term.to_le_bytes());
        codec::put_stored_membership(&mut data, &self.membership);
        Mark {
            index: id.index,
            data,
        }
    }

    /// Reads a mark.
    ///
    /// # Errors
    ///
    /// It is not one of ours, or a newer version wrote it.
    pub fn from_mark(mark: &Mark) -> Result<Self, Malformed> {
        if mark.data.is_empty() {
            return Ok(Position::default());
        }
        let mut r = Reader::new(Bytes::copy_from_slice(&mark.data));
        if r.u8("mark")? != FORMAT {
            return Err(Malformed("mark: unknown format"));
        }
        let (time_ms, level, term) = (r.u64("mark")?, r.u16("mark")?, r.u64("mark")?);
        let membership = codec::read_stored_membership(&mut r)?;
        r.finish("mark")?;
        Ok(Position {
            log_id: Some(log_id(term, mark.index)),
            membership,
            time_ms,
            level,
        })
    }

    /// Replicated time alone, without reading the rest of the mark.
    pub fn time_of(mark: &Mark) -> u64 {
        mark.data.get(1..9).map_or(0, |bytes| {
            u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_round_trip() {
        let position = Position {
            log_id: Some(log_id(3, 12)),
            membership: StoredMembership::default(),
            time_ms: 1_700_000_000_123,
            level: 1,
        };
        let mark = position.to_mark();
        assert_eq!(mark.index, 12);
        assert_eq!(Position::time_of(&mark), position.time_ms);
        assert_eq!(Position::from_mark(&mark), Ok(position));
    }

    #[test]
    fn nothing_written_is_the_default_position() {
        assert_eq!(
            Position::from_mark(&Mark::default()),
            Ok(Position::default())
        );
        assert_eq!(Position::default().to_mark(), Mark::default());
    }
}
