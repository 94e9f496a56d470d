//! The phases of a write on this node, each with the times it took.
//!
//! | phase | from | to |
//! | --- | --- | --- |
//! | queue | a client's group waits, or comes from another node | it is part of an entry |
//! | append | the entry is given to Raft | it is given to the log |
//! | fsync | a flush of the log begins | it has ended |
//! | quorum | an entry is given to the log | it is known to be committed, and on this node's disk |
//! | apply | it is given to the apply worker | it was carried out, and can be read |
//! | engine | the engine is given some of what was carried out | it has it |
//!
//! Nobody waits for the last.
//!
//! A follower has no queue and append of its own; its quorum also waits to be told.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::Instant;

use crate::timing::{Timing, percentile};

/// So many batches are remembered while they wait for a quorum; of more the oldest go unmeasured.
const WAITING_MAX: usize = 4096;

/// The times of each phase.
#[derive(Debug, Default)]
pub struct Phases {
    /// One for each entry: its oldest group.
    pub queue: Timing,
    /// One for each entry.
    pub append: Timing,
    /// One for each flush.
    pub fsync: Timing,
    /// One for each batch of entries that came into the log together.
    pub quorum: Timing,
    /// One for each batch that was carried out together.
    pub apply: Timing,
    /// One for each batch that was stored together.
    pub engine: Timing,
    /// The last index of what came into the log together, and when.
    waiting: Mutex<VecDeque<(u64, Instant)>>,
}

impl Phases {
    /// Entries up to `last` came into the log.
    pub fn appended(&self, last: u64) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        // What was cut off again is not committed.
        while waiting.back().is_some_and(|(index, _)| *index >= last) {
            waiting.pop_back();
        }
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back((last, Instant::now()));
    }

    /// Entries up to `last` are committed, and on this node's disk.
    pub fn committed(&self, last: u64) {
        let now = Instant::now();
        let mut waiting = self.waiting.lock().expect("no panic while held");
        while let Some((index, since)) = waiting.front().copied()
            && index <= last
        {
            waiting.pop_front();
            self.quorum.note(now.saturating_duration_since(since));
        }
    }

    /// The lines of INFO.
    pub fn lines(&self) -> Vec<(String, String)> {
        [
            ("queue", &self.queue),
            ("append", &self.append),
            ("fsync", &self.fsync),
            ("quorum", &self.quorum),
            ("apply", &self.apply),
            ("engine", &self.engine),
        ]
        .map(|(name, timing)| {
            let (count, bounds) = (timing.count(), timing.bounds());
            let average = timing.us() as f64 / count.max(1) as f64;
            let text = format!(
                "count={count},avg_us={average:.1},p50_us={},p99_us={},max_us={}",
                percentile(&bounds, 0.5),
                percentile(&bounds, 0.99),
                timing.us_max()
            );
            (format!("raft_phase_{name}"), text)
        })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_quorum_is_waited_for_from_the_append_to_the_commit() {
        let phases = Phases::default();
        phases.appended(3);
        tokio::time::advance(Duration::from_millis(2)).await;
        phases.appended(5);
        // Another leader's entries in the place of 4 and 5.
        phases.appended(4);
        phases.committed(2);
        assert_eq!(phases.quorum.count(), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        phases.committed(4);
        assert_eq!(phases.quorum.count(), 2);
        assert_eq!(phases.quorum.us(), 4000);
        assert_eq!(phases.quorum.us_max(), 3000);
    }
}
