//! Whether log and state fit together at a start. Raft itself accepts some of these states
//! silently, and panics on others later.

use crate::raft::types::{LogId, Vote};

/// What a node finds when it starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestartState {
    /// The last entry that the state holds.
    pub applied: Option<LogId>,
    /// The last entry that was purged from the log.
    pub purged: Option<LogId>,
    /// The last entry of the log, or the last one that was purged.
    pub last: Option<LogId>,
    /// The last entry known to be committed.
    pub committed: Option<LogId>,
    /// The vote.
    pub vote: Option<Vote>,
    /// Where the newest complete snapshot file ends.
    pub newest_spool: Option<u64>,
    /// The node has been a member of its cluster, so log and state have held something.
    pub member: bool,
}

/// Log and state do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestartError {
    /// Nothing is left of a member's log and state.
    #[error(
        "this node was a member of its cluster, but its log and its state are empty: they were \
         lost, and it could vote twice; wipe its data directory and join it again as a new member"
    )]
    Lost,
    /// Entries between state and log are missing.
    #[error(
        "the state ends at entry {applied} but the log begins behind {purged}: entries are \
         missing; wipe this node's data directory and join it again as a new member"
    )]
    Gap {
        /// Where the state ends; 0 for an empty one.
        applied: u64,
        /// Where the log begins.
        purged: u64,
    },
    /// The log is older than the state.
    #[error(
        "the state ends at entry {applied} but the log at {last}: the log was lost or replaced; \
         wipe this node's data directory and join it again as a new member"
    )]
    StateAhead {
        /// Where the state ends.
        applied: u64,
        /// Where the log ends.
        last: u64,
    },
    /// State and log disagree about one entry.
    #[error(
        "entry {index} is of term {applied} in the state and of term {log} in the log: one of \
         them is not this node's; wipe its data directory and join it again as a new member"
    )]
    TermMismatch {
        /// The entry.
        index: u64,
        /// Its term as applied.
        applied: u64,
        /// Its term in the log.
        log: u64,
    },
    /// The vote is missing or older than log or state.
    #[error(
        "log or state hold entries of term {term} but there is no vote of that term: this node \
         could vote twice; wipe its data directory and join it again as a new member"
    )]
    Vote {
        /// The term of the last entry.
        term: u64,
    },
    /// Committed entries were lost.
    #[error(
        "entries up to {committed} are committed but the log ends at {last}: committed entries \
         were lost; wipe this node's data directory and join it again as a new member"
    )]
    CommittedLost {
        /// Where the committed entries end.
        committed: u64,
        /// Where the log ends.
        last: u64,
    },
}

/// Checks that a node may start from `state`.
///
/// # Errors
///
/// See [`RestartError`].
pub fn check_restart(state: &RestartState) -> Result<(), RestartError> {
    let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
    let RestartState {
        applied,
        purged,
        last,
        committed,
        vote,
        newest_spool,
        member,
    } = *state;
    let last = last.max(purged);
    if member && last.is_none() && applied.is_none() {
        return Err(RestartError::Lost);
    }
    if purged.is_some() && index(applied) < index(purged) {
        return Err(RestartError::Gap {
            applied: index(applied),
            purged: index(purged),
        });
    }
    if applied.is_some() && (last.is_none() || index(applied) > index(last)) {
        // Only an installed snapshot may be ahead of the log, and its file is kept as the proof.
        if newest_spool != Some(index(applied)) {
            return Err(RestartError::StateAhead {
                applied: index(applied),
                last: index(last),
            });
        }
        // The vote is durable before a snapshot is taken: without it, the log is not this node's.
        return voted(vote, applied);
    }
    if let (Some(applied), Some(purged)) = (applied, purged)
        && applied.index == purged.index
        && applied.leader_id.term != purged.leader_id.term
    {
        return Err(RestartError::TermMismatch {
            index: applied.index,
            applied: applied.leader_id.term,
            log: purged.leader_id.term,
        });
    }
    if let (Some(applied), Some(last)) = (applied, last)
        && applied.leader_id.term > last.leader_id.term
    {
        return Err(RestartError::TermMismatch {
            index: applied.index,
            applied: applied.leader_id.term,
            log: last.leader_id.term,
        });
    }
    voted(vote, last)?;
    if committed.is_some() && index(committed) > index(last) {
        return Err(RestartError::CommittedLost {
            committed: index(committed),
            last: index(last),
        });
    }
    Ok(())
}

/// Whether the vote is not older than an entry.
fn voted(vote: Option<Vote>, entry: Option<LogId>) -> Result<(), RestartError> {
    let term = entry.map_or(0, |id| id.leader_id.term);
    // The first entry of a founded cluster is of term 0, before any vote.
    if term > 0 && vote.is_none_or(|vote| vote.leader_id.term < term) {
        return Err(RestartError::Vote { term });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::log_id;

    fn state(applied: u64, purged: u64, last: u64, committed: u64) -> RestartState {
        let id = |index| (index > 0).then(|| log_id(1, index));
        RestartState {
            applied: id(applied),
            purged: id(purged),
            last: id(last),
            committed: id(committed),
            vote: Some(Vote::new_committed(1, 1)),
            newest_spool: None,
            member: applied + last > 0,
        }
    }

    #[test]
    fn states_that_raft_can_go_on_from_are_accepted() {
        for fits in [
            state(0, 0, 0, 0),
            state(40, 0, 100, 100),
            state(0, 0, 100, 100),
            state(50, 50, 100, 0),
            state(60, 50, 100, 100),
            state(80, 0, 100, 40),
            state(100, 100, 100, 100),
        ] {
            assert_eq!(check_restart(&fits), Ok(()), "{fits:?}");
        }
    }

    #[test]
    fn a_gap_between_state_and_log_is_refused() {
        for gap in [
            state(0, 50, 100, 100),
            state(40, 50, 100, 100),
            state(40, 50, 100, 0),
        ] {
            assert!(
                matches!(check_restart(&gap), Err(RestartError::Gap { .. })),
                "{gap:?}"
            );
        }
    }

    #[test]
    fn a_state_beyond_the_log_needs_the_snapshot_it_came_from() {
        let ahead = state(120, 0, 100, 100);
        assert_eq!(
            check_restart(&ahead),
            Err(RestartError::StateAhead {
                applied: 120,
                last: 100
            })
        );
        let empty_log = RestartState {
            vote: None,
            ..state(120, 0, 0, 0)
        };
        assert!(check_restart(&empty_log).is_err());
        assert_eq!(
            check_restart(&RestartState {
                newest_spool: Some(120),
                ..ahead
            }),
            Ok(())
        );
        let empty_log_that_voted = RestartState {
            newest_spool: Some(120),
            ..state(120, 0, 0, 0)
        };
        assert_eq!(check_restart(&empty_log_that_voted), Ok(()));
        assert!(
            check_restart(&RestartState {
                newest_spool: Some(110),
                ..ahead
            })
            .is_err()
        );
    }

    #[test]
    fn a_log_that_was_lost_is_refused_although_a_snapshot_is_there() {
        let lost = RestartState {
            newest_spool: Some(120),
            vote: None,
            ..state(120, 0, 0, 0)
        };
        assert_eq!(check_restart(&lost), Err(RestartError::Vote { term: 1 }));
    }

    #[test]
    fn a_lost_vote_is_refused() {
        let lost = RestartState {
            vote: None,
            ..state(40, 0, 100, 100)
        };
        assert_eq!(check_restart(&lost), Err(RestartError::Vote { term: 1 }));
        let older = RestartState {
            vote: Some(Vote::new(0, 1)),
            ..state(40, 0, 100, 100)
        };
        assert_eq!(check_restart(&older), Err(RestartError::Vote { term: 1 }));
    }

    #[test]
    fn lost_committed_entries_are_refused() {
        assert_eq!(
            check_restart(&state(90, 0, 100, 120)),
            Err(RestartError::CommittedLost {
                committed: 120,
                last: 100
            })
        );
    }

    #[test]
    fn a_state_of_a_later_term_than_the_log_is_refused() {
        let foreign = RestartState {
            applied: Some(log_id(9, 100)),
            ..state(0, 0, 100, 100)
        };
        assert_eq!(
            check_restart(&foreign),
            Err(RestartError::TermMismatch {
                index: 100,
                applied: 9,
                log: 1
            })
        );
    }

    #[test]
    fn a_member_whose_log_and_state_are_gone_is_refused_and_a_newcomer_is_not() {
        let nothing = RestartState::default();
        assert_eq!(check_restart(&nothing), Ok(()));
        let member = RestartState {
            member: true,
            ..nothing
        };
        assert_eq!(check_restart(&member), Err(RestartError::Lost));
    }
}
