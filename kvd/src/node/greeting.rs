//! Members greet each other: each learns of the others' starts, and how far their clocks differ.
//!
//! A follower has no reason to talk to the other followers. But the more members have seen a start
//! of a node, the fewer of them an old copy of its directory can deceive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::core::Core;
use super::peer::{Request, Response};
use crate::raft::{Member, NodeId};

/// A member that has not answered is greeted again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One that has, after this.
const GREET_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Clocks that differ by more are worth a line: expiries jump by so much when the leader changes.
const CLOCKS_DIFFER_MS: u64 = 1000;

/// What is known of a member from greeting it.
struct Greeted {
    next: Instant,
    clocks_differ: bool,
}

impl Core {
    /// Greets the other members for as long as this one runs.
    pub(super) async fn run_greetings(self: Arc<Self>) {
        let mut known: BTreeMap<NodeId, Greeted> = BTreeMap::new();
        loop {
            let members = self.members();
            known.retain(|id, _| members.iter().any(|(member, _)| member == id));
            let due = members.into_iter().filter(|(id, _)| {
                let greeted = known.get(id);
                *id != self.id && greeted.is_none_or(|greeted| greeted.next <= Instant::now())
            });
            let answers = due.map(|(id, member)| {
                let core = &self;
                async move {
                    let offset = core.greet(id, &member).await;
                    (id, member, offset)
                }
            });
            for (id, member, offset) in futures_util::future::join_all(answers).await {
                let greeted = known.entry(id).or_insert(Greeted {
                    next: Instant::now(),
                    clocks_differ: false,
                });
                greeted.next = Instant::now()
                    + match offset {
                        Some(_) => GREET_AGAIN_AFTER,
                        None => RETRY_AFTER,
                    };
                let Some(offset) = offset else { continue };
                let differ = offset.unsigned_abs() > CLOCKS_DIFFER_MS;
                if differ && !greeted.clocks_differ {
                    tracing::warn!(
                        member = %member.name,
                        ahead_ms = offset,
                        "the clocks of two members differ; keys may expire early or late by as much"
                    );
                }
                greeted.clocks_differ = differ;
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// By how many milliseconds a member's clock is ahead of this one's at least; none when it
    /// does not answer.
    async fn greet(&self, id: NodeId, member: &Member) -> Option<i64> {
        let deadline = Instant::now() + RETRY_AFTER;
        let before = self.doors.clock.wall_ms();
        let answer = self.ask(id, member, &Request::Greet, deadline).await;
        let after = self.doors.clock.wall_ms();
        match answer {
            // It looked at its clock somewhere between the two.
            Ok(Response::Greeting { wall_ms }) => Some(outside(wall_ms, before, after)),
            _ => None,
        }
    }
}

/// How far `at` is after `to`, or before `from` as a negative number; 0 between the two.
fn outside(at: u64, from: u64, to: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    match () {
        () if at > to => signed(at - to),
        () if at < from => -signed(from - at),
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::outside;

    #[test]
    fn the_time_of_the_answer_counts_for_neither_clock() {
        assert_eq!(outside(150, 100, 200), 0);
        assert_eq!(outside(250, 100, 200), 50);
        assert_eq!(outside(40, 100, 200), -60);
    }
}
