//! What SLOWLOG and LATENCY remember: slow commands, and spikes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use crate::resp::Reply;

/// Arguments of a request that are kept; the last one tells how many more there were.
const ARGS_MAX: usize = 32;

/// Bytes of an argument that are kept.
const ARG_BYTES_MAX: usize = 128;

/// Spikes of one event that are kept.
const SPIKES_MAX: usize = 160;

struct Slow {
    id: u64,
    at_s: u64,
    took: Duration,
    args: Vec<Bytes>,
    addr: String,
    name: String,
}

/// The latest slow commands.
#[derive(Default)]
pub(super) struct SlowLog(Mutex<Slows>);

#[derive(Default)]
struct Slows {
    next: u64,
    entries: VecDeque<Slow>,
}

impl SlowLog {
    /// Notes a command, and drops the oldest ones beyond `len_max`.
    pub(super) fn note(
        &self,
        len_max: usize,
        at_s: u64,
        took: Duration,
        args: &[Bytes],
        addr: &str,
        name: &str,
    ) {
        let args = abridged(args);
        let mut slows = self.0.lock().expect("no panic while held");
        let id = slows.next;
        slows.next += 1;
        slows.entries.push_front(Slow {
            id,
            at_s,
            took,
            args,
            addr: addr.to_owned(),
            name: name.to_owned(),
        });
        slows.entries.truncate(len_max);
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().expect("no panic while held").entries.len()
    }

    pub(super) fn reset(&self) {
        self.0.lock().expect("no panic while held").entries.clear();
    }

    /// The latest first.
    pub(super) fn get(&self, count: Option<usize>) -> Reply {
        let slows = self.0.lock().expect("no panic while held");
        let entries = slows.entries.iter().take(count.unwrap_or(usize::MAX));
        let entries = entries.map(|slow| {
            Reply::Array(vec![
                Reply::Int(slow.id as i64),
                Reply::Int(slow.at_s as i64),
                Reply::Int(slow.took.as_micros() as i64),
                Reply::Array(slow.args.iter().cloned().map(Reply::Bulk).collect()),
                Reply::bulk(slow.addr.clone()),
                Reply::bulk(slow.name.clone()),
            ])
        });
        Reply::Array(entries.collect())
    }
}

/// A request, short enough to be kept; in Redis's words for what is left out. Copied, so that a
/// kept argument does not hold the whole input it is a slice of.
fn abridged(args: &[Bytes]) -> Vec<Bytes> {
    let kept = if args.len() > ARGS_MAX {
        ARGS_MAX - 1
    } else {
        args.len()
    };
    let mut short: Vec<Bytes> = args[..kept]
        .iter()
        .map(|arg| match arg.len().checked_sub(ARG_BYTES_MAX) {
            None | Some(0) => Bytes::copy_from_slice(arg),
            Some(more) => {
                let mut text = arg[..ARG_BYTES_MAX].to_vec();
                text.extend_from_slice(format!("... ({more} more bytes)").as_bytes());
                text.into()
            }
        })
        .collect();
    if kept < args.len() {
        short.push(format!("... ({} more arguments)", args.len() - kept).into());
    }
    short
}

/// When commands took long, by event.
#[derive(Default)]
pub(super) struct Spikes(Mutex<BTreeMap<&'static str, Event>>);

#[derive(Default)]
struct Event {
    longest_ms: u64,
    /// Second and milliseconds, one for each second at most.
    spikes: VecDeque<(u64, u64)>,
}

impl Spikes {
    pub(super) fn note(&self, event: &'static str, at_s: u64, took: Duration) {
        let ms = took.as_millis() as u64;
        let mut events = self.0.lock().expect("no panic while held");
        let event = events.entry(event).or_default();
        event.longest_ms = event.longest_ms.max(ms);
        match event.spikes.back_mut() {
            Some((second, longest)) if *second == at_s => *longest = ms.max(*longest),
            _ => event.spikes.push_back((at_s, ms)),
        }
        if event.spikes.len() > SPIKES_MAX {
            event.spikes.pop_front();
        }
    }

    pub(super) fn latest(&self) -> Reply {
        let events = self.0.lock().expect("no panic while held");
        let latest = events.iter().filter_map(|(name, event)| {
            let (second, ms) = event.spikes.back()?;
            Some(Reply::Array(vec![
                Reply::bulk(*name),
                Reply::Int(*second as i64),
                Reply::Int(*ms as i64),
                Reply::Int(event.longest_ms as i64),
            ]))
        });
        Reply::Array(latest.collect())
    }

    pub(super) fn history(&self, name: &str) -> Reply {
        let events = self.0.lock().expect("no panic while held");
        let spikes = events.get(name).into_iter().flat_map(|event| &event.spikes);
        let spikes = spikes.map(|(second, ms)| {
            Reply::Array(vec![Reply::Int(*second as i64), Reply::Int(*ms as i64)])
        });
        Reply::Array(spikes.collect())
    }

    /// Forgets these events, or all; tells how many there were.
    pub(super) fn reset(&self, names: &[String]) -> Reply {
        let mut events = self.0.lock().expect("no panic while held");
        let before = events.len();
        events.retain(|name, _| !names.is_empty() && !names.iter().any(|wanted| wanted == name));
        Reply::Int((before - events.len()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_requests_are_kept_short() {
        let long = Bytes::from(vec![b'x'; 130]);
        let mut args = vec![Bytes::from_static(b"SET"), long];
        let short = abridged(&args);
        assert_eq!(&short[0][..], b"SET");
        assert!(short[1].ends_with(b"x... (2 more bytes)"));
        args.resize(33, Bytes::from_static(b"a"));
        let short = abridged(&args);
        assert_eq!(short.len(), ARGS_MAX);
        assert_eq!(&short[31][..], b"... (2 more arguments)");
        assert_eq!(abridged(&args[..32]).len(), 32);
    }

    #[test]
    fn a_second_has_one_spike_the_longest() {
        let spikes = Spikes::default();
        for (second, ms) in [(1, 5), (1, 9), (1, 7), (2, 3)] {
            spikes.note("command", second, Duration::from_millis(ms));
        }
        let pair = |second, ms| Reply::Array(vec![Reply::Int(second), Reply::Int(ms)]);
        assert_eq!(
            spikes.history("command"),
            Reply::Array(vec![pair(1, 9), pair(2, 3)])
        );
        assert_eq!(
            spikes.latest(),
            Reply::Array(vec![Reply::Array(vec![
                Reply::bulk("command"),
                Reply::Int(2),
                Reply::Int(3),
                Reply::Int(9),
            ])])
        );
        assert_eq!(spikes.reset(&["other".to_owned()]), Reply::Int(0));
        assert_eq!(spikes.reset(&[]), Reply::Int(1));
        assert_eq!(spikes.latest(), Reply::Array(vec![]));
    }
}
