//! Members greet each other: each learns of the others' starts, and how far their clocks differ.
//!
//! A follower has no reason to talk to the other followers. But the more members have seen a start
//! of a node, the fewer of them an old copy of its directory can deceive. And one that was taken out
//! while it was away learns it here: nobody else talks to it any more.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::core::Core;
use super::peer::{Request, Response};
use super::types::ReadLevel;
use crate::raft::{Member, NodeId};

/// A member that has not answered is greeted again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One that has, after this.
const GREET_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Clocks that differ by more are worth a line: expiries jump by so much when the leader changes.
const CLOCKS_DIFFER_MS: u64 = 1000;

/// What came of greeting a member.
enum Answer {
    /// By how many milliseconds its clock is ahead of this one's at least.
    Offset(i64),
    TakenOut,
    Nothing,
}

/// What is known of a member from greeting it.
struct Greeted {
    next: Instant,
    clocks_differ: bool,
}

impl Core {
    /// Greets the other members until one answers that this node was taken out. `was_member` tells
    /// whether it has been a member.
    pub(super) async fn run_greetings(&self, was_member: impl Fn() -> bool) {
        let mut known: BTreeMap<NodeId, Greeted> = BTreeMap::new();
        loop {
            let members = self.members();
            known.retain(|id, _| members.iter().any(|(member, _)| member == id));
            let due = members.into_iter().filter(|(id, _)| {
                let greeted = known.get(id);
                *id != self.id && greeted.is_none_or(|greeted| greeted.next <= Instant::now())
            });
            let answers = due.map(|(id, member)| {
                let was_member = was_member();
                async move {
                    let answer = self.greet(id, &member, was_member).await;
                    (id, member, answer)
                }
            });
            for (id, member, answer) in futures_util::future::join_all(answers).await {
                let greeted = known.entry(id).or_insert(Greeted {
                    next: Instant::now(),
                    clocks_differ: false,
                });
                let offset = match answer {
                    Answer::Offset(offset) => offset,
                    Answer::TakenOut => return,
                    Answer::Nothing => {
                        greeted.next = Instant::now() + RETRY_AFTER;
                        continue;
                    }
                };
                greeted.next = Instant::now() + GREET_AGAIN_AFTER;
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

    async fn greet(&self, id: NodeId, member: &Member, was_member: bool) -> Answer {
        let deadline = Instant::now() + RETRY_AFTER;
        let before = self.doors.clock.wall_ms();
        let request = Request::Greet { member: was_member };
        let answer = self.ask(id, member, &request, deadline).await;
        let after = self.doors.clock.wall_ms();
        match answer {
            // It looked at its clock somewhere between the two.
            Ok(Response::Greeting { wall_ms }) => Answer::Offset(outside(wall_ms, before, after)),
            Ok(Response::TakenOut) => Answer::TakenOut,
            _ => Answer::Nothing,
        }
    }

    /// Answers a node's greeting.
    pub(super) async fn greeted(&self, from: NodeId, was_member: bool) -> Response {
        let wall_ms = self.doors.clock.wall_ms();
        let unknown = self.members().iter().all(|(id, _)| *id != from);
        // It may have come in under a leader that this node has not heard of; what is applied after
        // a read's barrier holds every change that was answered by now.
        if unknown
            && was_member
            && self.read(ReadLevel::Linearizable, 0).await.is_ok()
            && !self.machine.position().has_member(from)
        {
            return Response::TakenOut;
        }
        Response::Greeting { wall_ms }
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
