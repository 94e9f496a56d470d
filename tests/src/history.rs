//! Histories of calls on one key, and whether they are linearizable.
//!
//! The search is that of Wing and Gong with Lowe's memory of configurations already tried ("Testing
//! for linearizability", 2017): calls take effect one after another, each at some moment between
//! its beginning and its end, and with the reply that it got. A call whose outcome is unknown may
//! take effect at any moment after its beginning, or never.
//!
//! Calls of unknown outcome are what makes it long: any set of them may have taken effect, in any
//! order. Two rules cut that short and lose no order that explains the calls. Of counting up, the
//! one that began first goes first: each does the same, and it may go wherever a later one may.
//! And where text is only ever added to, it is at all times a beginning of the longest that was
//! read, or goes on from it if an answer tells of a longer one.

use std::collections::HashSet;

use kvd::outcome::{self, Fate};
use kvd::resp::Reply;

/// What a call does with the value of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Answers the value.
    Get,
    /// Sets it, and answers OK.
    Set(String),
    /// Sets it, and answers the value before.
    Swap(String),
    /// Adds one, and answers the sum.
    Incr,
    /// Adds text to its end, and answers the length.
    Append(String),
    /// Sets it if it is what was read before, by WATCH and a transaction; answers OK if it did.
    Replace(Option<String>, String),
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub op: Op,
    /// When it began, on one clock for all calls; no two events are at the same time.
    pub began: u64,
    /// When it ended and what it was answered; none where nobody knows whether it took effect.
    pub ended: Option<(u64, Option<String>)>,
}

impl Op {
    /// The command that does it; for [`Op::Replace`] the one inside its transaction.
    pub fn command<'a>(&'a self, key: &'a str) -> Vec<&'a str> {
        match self {
            Op::Get => vec!["GET", key],
            Op::Set(value) => vec!["SET", key, value],
            Op::Swap(value) => vec!["GETSET", key, value],
            Op::Incr => vec!["INCR", key],
            Op::Append(value) => vec!["APPEND", key, value],
            Op::Replace(_, value) => vec!["SET", key, value],
        }
    }

    /// One of many, by chance: on a key that holds anything, or on one that counts. What it writes
    /// must be unlike all else that is written.
    pub fn pick(chance: u64, value: String) -> (&'static str, Op) {
        let plain = PLAIN[(chance >> 8) as usize % PLAIN.len()];
        let counter = COUNTERS[(chance >> 8) as usize % COUNTERS.len()];
        match chance as u8 % 10 {
            0..=2 => (plain, Op::Set(value)),
            3 => (plain, Op::Swap(value)),
            4..=6 => (plain, Op::Get),
            7 | 8 => (counter, Op::Incr),
            _ => (counter, Op::Get),
        }
    }
}

/// The keys that hold anything, and those that count.
pub const PLAIN: [&str; 3] = ["a", "b", "c"];
const COUNTERS: [&str; 2] = ["m", "n"];

/// A key that text is only ever added to.
pub const TEXT: &str = "t";

/// Two keys that count, and are only ever counted up together, by one transaction.
pub const PAIR: [&str; 2] = ["p", "q"];

/// All keys of [`Op::pick`], the text and the pair.
pub fn keys() -> impl Iterator<Item = &'static str> {
    let others = COUNTERS.into_iter().chain([TEXT]).chain(PAIR);
    PLAIN.into_iter().chain(others)
}

/// What all clients of a run did.
#[derive(Default)]
pub struct Record {
    clock: u64,
    calls: Vec<(&'static str, Call)>,
    /// How many were told that they did not happen. No history may need them.
    pub refused: u64,
    /// The first thing that was seen and no order of calls explains.
    broken: Option<String>,
}

impl Record {
    /// A call begins; returns when.
    pub fn begin(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A call that began at `began` has ended, with this reply and what that says of it; no reply
    /// means that the connection was lost.
    pub fn end(
        &mut self,
        key: &'static str,
        op: Op,
        began: u64,
        reply: Option<&Reply>,
        fate: Option<Fate>,
    ) {
        self.clock += 1;
        let ended = match fate {
            Some(Fate::NotDone | Fate::Refused) => {
                self.refused += 1;
                return;
            }
            // What was not read was not read.
            Some(Fate::Unknown) if op == Op::Get => return,
            Some(Fate::Unknown) => None,
            None => Some((self.clock, reply.and_then(text))),
        };
        self.calls.push((key, Call { op, began, ended }));
    }

    /// The same for one transaction that counts the pair up, or for one read of both.
    pub fn end_pair(&mut self, op: Op, began: u64, reply: Option<&Reply>, fate: Option<Fate>) {
        let both = match reply {
            Some(Reply::Array(both)) if both.len() == 2 => [Some(&both[0]), Some(&both[1])],
            other => [other, other],
        };
        if both[0] != both[1] {
            self.broken(format!("{op:?} of the pair gave {reply:?}"));
        }
        for (key, reply) in PAIR.into_iter().zip(both) {
            self.end(key, op.clone(), began, reply, fate);
        }
    }

    /// Something was seen that must not be.
    pub fn broken(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// How many calls ended with a reply, and of how many nobody knows.
    pub fn counts(&self) -> (usize, usize) {
        let ended = self.calls.iter().filter(|(_, call)| call.ended.is_some());
        let ended = ended.count();
        (ended, self.calls.len() - ended)
    }

    /// All calls of which something is known, a line for each.
    pub fn lines(&self) -> String {
        let lines = self
            .calls
            .iter()
            .map(|(key, call)| format!("{key} {call:?}\n"));
        lines.collect()
    }

    /// Whether the calls on each key are linearizable.
    ///
    /// # Errors
    ///
    /// Those of one key are not, or half of a transaction was seen.
    pub fn check(&self) -> Result<(), String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        for key in keys() {
            let calls = self.calls.iter().filter(|(of, _)| *of == key);
            let calls: Vec<Call> = calls.map(|(_, call)| call.clone()).collect();
            linearizable(&calls).map_err(|error| format!("key {key}: {error}"))?;
        }
        Ok(())
    }
}

/// What a reply says of a call; a connection that was lost says that nobody knows.
pub fn fate(reply: Option<&Reply>) -> Option<Fate> {
    reply.map_or(Some(Fate::Unknown), outcome::fate)
}

fn text(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Ok => Some("OK".to_owned()),
        Reply::Int(number) => Some(number.to_string()),
        Reply::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Reply::Simple(text) => Some(text.to_string()),
        _ => None,
    }
}

type Value = Option<String>;

fn step(value: &Value, op: &Op) -> (Value, Value) {
    match op {
        Op::Get => (value.clone(), value.clone()),
        Op::Set(new) => (Some(new.clone()), Some("OK".to_owned())),
        Op::Swap(new) => (Some(new.clone()), value.clone()),
        Op::Incr => {
            let number = value.as_ref().and_then(|value| value.parse().ok());
            let sum = (number.unwrap_or(0_i64) + 1).to_string();
            (Some(sum.clone()), Some(sum))
        }
        Op::Append(text) => {
            let joined = value.clone().unwrap_or_default() + text;
            let length = joined.len().to_string();
            (Some(joined), Some(length))
        }
        Op::Replace(old, new) if old == value => (Some(new.clone()), Some("OK".to_owned())),
        Op::Replace(..) => (value.clone(), None),
    }
}

/// Leaves out calls of unknown outcome whose value nobody saw: if any order explains the others,
/// one does in which these never took effect.
fn without_the_unseen(calls: &[Call]) -> Vec<Call> {
    let derived = |call: &Call| matches!(call.op, Op::Incr | Op::Append(_));
    if calls.iter().any(derived) {
        return calls.to_vec();
    }
    let replies = calls.iter().filter_map(|call| call.ended.as_ref());
    let seen: HashSet<&String> = replies.filter_map(|(_, reply)| reply.as_ref()).collect();
    let counts = |call: &&Call| match &call.op {
        Op::Set(value) | Op::Swap(value) | Op::Replace(_, value) => {
            call.ended.is_some() || seen.contains(value)
        }
        _ => call.ended.is_some(),
    };
    calls.iter().filter(counts).cloned().collect()
}

/// For each call that counts up with an unknown outcome, the one that goes before it.
fn counted_before(calls: &[Call]) -> Vec<Option<usize>> {
    let mut of_unknown: Vec<usize> = (0..calls.len())
        .filter(|n| calls[*n].op == Op::Incr && calls[*n].ended.is_none())
        .collect();
    of_unknown.sort_unstable_by_key(|n| calls[*n].began);
    let mut before = vec![None; calls.len()];
    for pair in of_unknown.windows(2) {
        before[pair[1]] = Some(pair[0]);
    }
    before
}

/// What is known of text that is only ever added to.
struct Text<'c> {
    /// The longest that was read.
    read: &'c str,
    /// There was a longer one.
    went_on: bool,
}

impl<'c> Text<'c> {
    fn of(calls: &'c [Call]) -> Option<Self> {
        let (mut read, mut length) = (None, 0);
        for call in calls {
            let answer = call.ended.as_ref().and_then(|(_, reply)| reply.as_deref());
            match (&call.op, answer) {
                (Op::Get, Some(text)) if read.is_none_or(|read: &str| read.len() < text.len()) => {
                    read = Some(text);
                }
                (Op::Append(_), Some(number)) => length = length.max(number.parse().ok()?),
                (Op::Get, _) | (Op::Append(_), None) => {}
                _ => return None,
            }
        }
        let read = read?;
        let went_on = length > read.len();
        Some(Text { read, went_on })
    }

    fn may_be(&self, text: &str) -> bool {
        self.read.starts_with(text) || self.went_on && text.starts_with(self.read)
    }
}

/// One event of the search's list: a call's beginning or its end.
struct Event {
    call: usize,
    begins: bool,
    next: usize,
    previous: usize,
}

/// The search gives up when it has tried so many configurations: a few seconds, and at most some
/// hundred MB.
const TRIED_MAX: usize = 1 << 20;

/// Whether calls on one key, which is absent at first, are linearizable.
///
/// # Errors
///
/// They are not: the calls around the first end that cannot be explained. Or it is not decided,
/// which is no less of an error: nothing was shown.
pub fn linearizable(calls: &[Call]) -> Result<(), String> {
    let calls = &without_the_unseen(calls)[..];
    let mut order: Vec<(u64, usize, bool)> = Vec::new();
    for (n, call) in calls.iter().enumerate() {
        order.push((call.began, n, true));
        if let Some((ended, _)) = &call.ended {
            order.push((*ended, n, false));
        }
    }
    order.sort_unstable();
    // The list's first element is none of the events.
    let mut events = vec![Event {
        call: usize::MAX,
        begins: false,
        next: usize::from(!order.is_empty()),
        previous: 0,
    }];
    let (mut begin_of, mut end_of) = (vec![0; calls.len()], vec![0; calls.len()]);
    for (n, (_, call, begins)) in order.iter().enumerate() {
        let place = if *begins { &mut begin_of } else { &mut end_of };
        place[*call] = n + 1;
        events.push(Event {
            call: *call,
            begins: *begins,
            next: if n + 1 == order.len() { 0 } else { n + 2 },
            previous: n,
        });
    }
    let unlink = |events: &mut Vec<Event>, n: usize| {
        let (previous, next) = (events[n].previous, events[n].next);
        events[previous].next = next;
        if next != 0 {
            events[next].previous = previous;
        }
    };
    let relink = |events: &mut Vec<Event>, n: usize| {
        let (previous, next) = (events[n].previous, events[n].next);
        events[previous].next = n;
        if next != 0 {
            events[next].previous = n;
        }
    };
    let mut left = calls.iter().filter(|call| call.ended.is_some()).count();
    let mut value: Value = None;
    let mut done = vec![0_u64; calls.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, Value)> = HashSet::new();
    let mut taken: Vec<(usize, Value)> = Vec::new();
    let (counted_before, text) = (counted_before(calls), Text::of(calls));
    let may_be = |value: &Value| match (&text, value) {
        (Some(text), Some(value)) => text.may_be(value),
        _ => true,
    };
    let (mut at, mut furthest) = (events[0].next, 0);
    while left > 0 {
        if at != 0 && events[at].begins {
            let call = events[at].call;
            let (after, reply) = step(&value, &calls[call].op);
            let fits = match &calls[call].ended {
                Some((_, answered)) => *answered == reply,
                None => counted_before[call].is_none_or(|n| done[n / 64] >> (n % 64) & 1 == 1),
            };
            if fits && may_be(&after) {
                done[call / 64] |= 1 << (call % 64);
                if tried.len() >= TRIED_MAX {
                    return Err(format!("undecided after {TRIED_MAX} configurations"));
                }
                if tried.insert((done.clone(), after.clone())) {
                    taken.push((call, std::mem::replace(&mut value, after)));
                    unlink(&mut events, begin_of[call]);
                    if calls[call].ended.is_some() {
                        unlink(&mut events, end_of[call]);
                        left -= 1;
                    }
                    at = events[0].next;
                    continue;
                }
                done[call / 64] &= !(1 << (call % 64));
            }
            at = events[at].next;
            continue;
        }
        // A call ends here that has not taken effect, so it must do so before: try other orders.
        furthest = furthest.max(at);
        let Some((call, before)) = taken.pop() else {
            return Err(explain(calls, events[furthest].call));
        };
        value = before;
        done[call / 64] &= !(1 << (call % 64));
        if calls[call].ended.is_some() {
            relink(&mut events, end_of[call]);
            left += 1;
        }
        relink(&mut events, begin_of[call]);
        at = events[begin_of[call]].next;
    }
    Ok(())
}

fn explain(calls: &[Call], failed: usize) -> String {
    let Some(call) = calls.get(failed) else {
        return "no order explains these calls".to_owned();
    };
    let (ended, _) = call
        .ended
        .as_ref()
        .expect("only an end cannot be explained");
    let mut near: Vec<&Call> = calls
        .iter()
        .filter(|other| {
            let end = other.ended.as_ref().map_or(u64::MAX, |(end, _)| *end);
            other.began <= *ended && end >= call.began.saturating_sub(200)
        })
        .collect();
    near.sort_by_key(|call| call.began);
    let lines: Vec<String> = near.iter().map(|call| format!("  {call:?}")).collect();
    format!("no order explains {call:?} among\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(op: Op, began: u64, ended: u64, reply: Option<&str>) -> Call {
        Call {
            op,
            began,
            ended: Some((ended, reply.map(str::to_owned))),
        }
    }

    fn set(value: &str, began: u64, ended: u64) -> Call {
        call(Op::Set(value.to_owned()), began, ended, Some("OK"))
    }

    fn get(value: Option<&str>, began: u64, ended: u64) -> Call {
        call(Op::Get, began, ended, value)
    }

    fn replace(old: &str, new: &str, began: u64, ended: u64) -> Call {
        let op = Op::Replace(Some(old.to_owned()), new.to_owned());
        call(op, began, ended, Some("OK"))
    }

    fn append(text: &str, length: &str, began: u64, ended: u64) -> Call {
        call(Op::Append(text.to_owned()), began, ended, Some(length))
    }

    fn unknown(op: Op, began: u64) -> Call {
        Call {
            op,
            began,
            ended: None,
        }
    }

    #[test]
    fn histories_that_one_copy_could_give_are_accepted() {
        let incr = |sum: &str, began, ended| call(Op::Incr, began, ended, Some(sum));
        for good in [
            vec![],
            vec![get(None, 1, 2), set("a", 3, 4), get(Some("a"), 5, 6)],
            // Two writes at once, seen in either order.
            vec![set("a", 1, 10), set("b", 2, 9), get(Some("a"), 11, 12)],
            vec![set("a", 1, 10), set("b", 2, 9), get(Some("b"), 11, 12)],
            // A read beside a write sees it, and a later one beside it too.
            vec![set("a", 1, 20), get(None, 2, 3), get(Some("a"), 4, 5)],
            // An unknown write may happen late, or never.
            vec![
                unknown(Op::Set("a".to_owned()), 1),
                get(None, 2, 3),
                get(Some("a"), 4, 5),
            ],
            vec![unknown(Op::Set("a".to_owned()), 1), get(None, 2, 3)],
            vec![incr("1", 1, 5), incr("2", 2, 6), get(Some("2"), 7, 8)],
            // One of two replacements of the same value, and one of unknown outcome that was late.
            vec![
                set("a", 1, 2),
                replace("a", "b", 3, 6),
                get(Some("b"), 7, 8),
            ],
            vec![
                set("a", 1, 2),
                unknown(Op::Replace(Some("a".to_owned()), "b".to_owned()), 3),
                set("c", 4, 5),
                get(Some("c"), 6, 7),
            ],
            vec![
                call(Op::Append("ab".to_owned()), 1, 2, Some("2")),
                call(Op::Swap("c".to_owned()), 3, 4, Some("ab")),
                get(Some("c"), 5, 6),
            ],
        ] {
            assert_eq!(linearizable(&good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn histories_that_no_single_copy_gives_are_refused() {
        let incr = |sum: &str, began, ended| call(Op::Incr, began, ended, Some(sum));
        for bad in [
            // A stale read.
            vec![set("a", 1, 2), set("b", 3, 4), get(Some("a"), 5, 6)],
            // A write that is gone.
            vec![set("a", 1, 2), get(None, 3, 4)],
            // A value that nobody wrote, as of a write that was refused.
            vec![get(Some("a"), 1, 2)],
            // Seen, and then not any more.
            vec![set("a", 1, 20), get(Some("a"), 2, 3), get(None, 4, 5)],
            // An unknown write that is seen, undone and seen again.
            vec![
                set("b", 1, 2),
                unknown(Op::Set("a".to_owned()), 3),
                get(Some("a"), 4, 5),
                get(Some("b"), 6, 7),
            ],
            // A lost update, and one that counts twice.
            vec![incr("1", 1, 5), incr("1", 2, 6)],
            vec![incr("1", 1, 2), get(Some("2"), 3, 4)],
            // Two replacements of the same value, one of a value that was gone, and text that went
            // in twice, or into another's place.
            vec![
                set("a", 1, 2),
                replace("a", "b", 3, 6),
                replace("a", "c", 4, 5),
            ],
            vec![set("a", 1, 2), set("b", 3, 4), replace("a", "c", 5, 6)],
            vec![append("ab", "2", 1, 2), get(Some("abab"), 3, 4)],
            vec![
                append("ab", "2", 1, 2),
                append("cd", "4", 3, 4),
                get(Some("cdab"), 5, 6),
            ],
            // Two reads that see two writes in different orders.
            vec![
                set("a", 1, 20),
                set("b", 2, 21),
                get(Some("a"), 22, 23),
                get(Some("b"), 24, 25),
            ],
        ] {
            assert!(linearizable(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_takes_too_long_is_undecided_and_no_success() {
        // Each of these may be the last, after any set of the others.
        let mut calls: Vec<Call> = (0..40).map(|n| set(&n.to_string(), n, 100 + n)).collect();
        calls.push(get(Some("nothing of it"), 200, 201));
        let error = linearizable(&calls).unwrap_err();
        assert!(error.starts_with("undecided"), "{error}");
    }

    #[test]
    fn many_appends_of_unknown_outcome_are_decided() {
        let text =
            |numbers: &[u64]| -> String { numbers.iter().map(|n| format!("{n},")).collect() };
        let mut calls: Vec<Call> = (0..60)
            .map(|n| unknown(Op::Append(format!("{n},")), n))
            .collect();
        let (few, many) = (text(&[7, 3, 59]), text(&[7, 3, 59, 30, 0, 41]));
        calls.push(get(Some(&few), 100, 103));
        calls.push(get(Some(&many), 101, 102));
        assert_eq!(linearizable(&calls), Ok(()));
        let read_late = [calls.clone(), vec![get(Some(&few), 104, 105)]].concat();
        assert!(linearizable(&read_late).is_err());
        let other = text(&[7, 3, 30]);
        let read_other = [calls.clone(), vec![get(Some(&other), 104, 105)]].concat();
        assert!(linearizable(&read_other).is_err());
        let twice = text(&[7, 3, 59, 30, 0, 41, 7]);
        let read_twice = [calls, vec![get(Some(&twice), 104, 105)]].concat();
        assert!(linearizable(&read_twice).is_err());
    }

    #[test]
    fn many_counts_of_unknown_outcome_are_decided() {
        let mut calls: Vec<Call> = (0..60).map(|n| unknown(Op::Incr, n)).collect();
        calls.push(get(Some("30"), 100, 101));
        calls.push(call(Op::Incr, 102, 103, Some("40")));
        calls.push(get(Some("61"), 104, 105));
        assert_eq!(linearizable(&calls), Ok(()));
        let too_many = [calls.clone(), vec![get(Some("62"), 106, 107)]].concat();
        assert!(linearizable(&too_many).is_err());
        // One that began late cannot have been counted early.
        let early = [
            calls,
            vec![unknown(Op::Incr, 108), get(Some("62"), 109, 110)],
        ]
        .concat();
        assert_eq!(linearizable(&early), Ok(()));
        let late = vec![get(Some("1"), 1, 2), unknown(Op::Incr, 3)];
        assert!(linearizable(&late).is_err());
    }

    #[test]
    fn long_histories_with_many_clients_are_decided_quickly() {
        let mut calls = Vec::new();
        let mut clock = 0;
        for round in 0..300 {
            // Eight clients write at once, and one of them was last.
            for client in 0..8 {
                calls.push(set(
                    &format!("{round}:{client}"),
                    clock + client,
                    clock + 20 - client,
                ));
            }
            calls.push(get(
                Some(&format!("{round}:{}", round % 8)),
                clock + 30,
                clock + 31,
            ));
            calls.push(unknown(Op::Set(format!("{round}:lost")), clock + 32));
            clock += 40;
        }
        assert_eq!(linearizable(&calls), Ok(()));
        calls.push(get(Some("3:3"), clock, clock + 1));
        assert!(linearizable(&calls).is_err());
    }
}
