//! What a node has voted for, and what it knows to be committed, at the very moment it does: Raft's
//! own news of both come some time later.
//!
//! A vote is noted before it is written, so before anybody can count it; a commit before any peer
//! is told of it and before it is carried out, so before anybody can have an answer that is owed
//! to it. So two questions can be answered without Raft's thread: whether a later leader may have
//! been elected with this node's vote, and what a leader's reads have to wait for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::watch;

use super::types::LogId;

/// The newest vote and commit of a node.
#[derive(Debug, Default)]
pub struct Standing {
    term: AtomicU64,
    committed: Mutex<Option<LogId>>,
    wanted: watch::Sender<()>,
}

impl Standing {
    /// Of a node that starts with this vote's term.
    pub fn new(term: u64) -> Self {
        Standing {
            term: AtomicU64::new(term),
            ..Standing::default()
        }
    }

    /// A vote of this term is about to be given, or a leader of it to be followed.
    pub fn note_term(&self, term: u64) {
        self.term.fetch_max(term, SeqCst);
    }

    /// The highest term of a vote that was given or a leader that was followed.
    pub fn term(&self) -> u64 {
        self.term.load(SeqCst)
    }

    /// Whether this node has given no vote of a term behind `term`, and followed no such leader.
    pub fn stands_by(&self, term: u64) -> bool {
        self.term() <= term || planted!("unheld_barrier")
    }

    /// This entry, and all before it, is committed.
    pub fn note_committed(&self, id: LogId) {
        let mut committed = self.committed.lock().expect("no panic while held");
        *committed = (*committed).max(Some(id));
    }

    /// Somebody waits until a peer knows what is committed.
    pub fn want_news(&self) {
        self.wanted.send_replace(());
    }

    /// Changes whenever somebody waits for that.
    pub fn news_wanted(&self) -> watch::Receiver<()> {
        self.wanted.subscribe()
    }

    /// The last entry that is known to be committed, once it is one of `term`: then it is not
    /// before any that an earlier leader committed.
    pub fn committed_in(&self, term: u64) -> Option<LogId> {
        let committed = *self.committed.lock().expect("no panic while held");
        committed.filter(|id| id.leader_id.term == term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log_id;

    #[test]
    fn a_term_is_stood_by_until_a_later_one_is_voted_for() {
        let standing = Standing::new(3);
        assert!(!standing.stands_by(2));
        assert!(standing.stands_by(3) && standing.stands_by(4));
        standing.note_term(5);
        standing.note_term(4);
        assert!(!standing.stands_by(4) && standing.stands_by(5));
    }

    #[test]
    fn what_is_committed_counts_for_reads_of_its_own_term_only() {
        let standing = Standing::default();
        assert_eq!(standing.committed_in(2), None);
        standing.note_committed(log_id(2, 7));
        standing.note_committed(log_id(2, 6));
        assert_eq!(standing.committed_in(2), Some(log_id(2, 7)));
        assert_eq!(
            standing.committed_in(3),
            None,
            "its own first entry may be before 7"
        );
        standing.note_committed(log_id(3, 9));
        assert_eq!(standing.committed_in(3), Some(log_id(3, 9)));
        assert_eq!(standing.committed_in(2), None);
    }
}
