//! Reads of a connection: from one view each, on the socket's thread where they are quick.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::time::Instant;

use super::Service;
use super::connection::{Connection, Request, internal};
use crate::command::effect::ReplyMode;
use crate::command::{self, Call, Flags, REPLY_BYTES_MAX};
use crate::doors;
use crate::keyspace::{self, View};
use crate::node::{ReadLevel, Reading};
use crate::resp::{self, Reply};
use crate::storage;

/// Reads of a run go on in another step once their replies take so much.
const READ_BYTES_MAX: usize = 16 << 20;
/// Reads that may run on a socket's thread in one go.
const INLINE_READS_MAX: usize = 64;
/// How often a read that meets due keys waits for a tick.
const TICKS_MAX: usize = 4;

/// How much of a run was answered.
pub(super) struct Answered {
    pub(super) requests: usize,
    /// Of the run's answers, with those that stood beside the reads.
    pub(super) order: usize,
}

/// What reads that went straight into the output came to.
#[derive(Default)]
struct Ran {
    requests: usize,
    order: usize,
    hits: u64,
    misses: u64,
    /// One bit for each request.
    failed: u64,
    /// First words of errors.
    errors: Vec<String>,
    met_due: bool,
}

impl<S: Service> Connection<S> {
    /// Answers reads on this thread, where all of them are quick: a value is copied once, from the
    /// engine's memory into the output. None where it cannot be; nothing has been done then.
    pub(super) async fn answer_here(
        &mut self,
        requests: &[Request],
        order: &[Option<Reply>],
        started: Instant,
    ) -> Option<Answered> {
        let quick = |request: &Request| {
            request.spec.is_cheap(request.args.len()) && !request.spec.has(Flags::LOCAL)
        };
        let here = self.reply_mode == ReplyMode::On
            && requests.len() <= INLINE_READS_MAX
            && requests.iter().all(quick)
            && self.shared.service.reads_are_fast();
        if !here {
            return None;
        }
        let level = self.read_level();
        for attempt in 0.. {
            let reading = match self.shared.service.read(level, self.last_write).await {
                Ok(reading) => reading,
                Err(reply) => return Some(self.refuse(requests, order, &reply, started)),
            };
            let mark = self.out.mark();
            let ran = self.answer_from(&reading, requests, order);
            drop(reading);
            match ran {
                Ok(ran)
                    if ran.met_due && level == ReadLevel::Linearizable && attempt < TICKS_MAX =>
                {
                    self.out.roll_back(&mark);
                    if let Err(reply) = Box::pin(self.shared.service.tick()).await {
                        return Some(self.refuse(requests, order, &reply, started));
                    }
                }
                Ok(ran) => return Some(self.note(requests, &ran, started)),
                Err(error) => {
                    tracing::error!(%error, "engine read failed");
                    self.out.roll_back(&mark);
                    return Some(self.refuse(requests, order, &internal(), started));
                }
            }
        }
        unreachable!("the attempts are bounded")
    }

    fn answer_from(
        &mut self,
        reading: &Reading,
        requests: &[Request],
        order: &[Option<Reply>],
    ) -> Result<Ran, storage::Error> {
        let view = view_of(reading)?;
        let mut ran = Ran::default();
        let begin = self.out.len();
        let mut left = requests.iter();
        for answer in order {
            if ran.requests > 0 && self.out.len() - begin >= READ_BYTES_MAX {
                break;
            }
            ran.order += 1;
            if let Some(answer) = answer {
                ran.errors.extend(answer.error_prefix().map(str::to_owned));
                resp::write(answer, self.protocol, &mut self.out);
                continue;
            }
            let Some(request) = left.next() else { break };
            let is_get = request.spec.name == "get";
            let reply = if is_get {
                let out = &mut self.out;
                match command::run_get(request.spec, &request.args[1], &view, &mut |value| {
                    out.put_value(value);
                })? {
                    Ok(true) => {
                        ran.hits += 1;
                        ran.requests += 1;
                        continue;
                    }
                    Ok(false) => Reply::Null,
                    Err(reply) => reply,
                }
            } else {
                let call = Call {
                    args: &request.slices(),
                    seed: reading.seed.wrapping_add(ran.requests as u64),
                    room: REPLY_BYTES_MAX,
                };
                command::run_read(request.spec, &call, &view)?
            };
            match reply {
                Reply::Null if is_get => ran.misses += 1,
                _ if is_get => ran.hits += 1,
                _ => {}
            }
            if let Some(prefix) = reply.error_prefix() {
                ran.errors.push(prefix.to_owned());
                ran.failed |= 1 << ran.requests;
            }
            ran.requests += 1;
            resp::write(&reply, self.protocol, &mut self.out);
        }
        ran.met_due = view.met_due();
        Ok(ran)
    }

    /// Gives all reads the same error.
    fn refuse(
        &mut self,
        requests: &[Request],
        order: &[Option<Reply>],
        reply: &Reply,
        started: Instant,
    ) -> Answered {
        let replies = vec![reply.clone(); requests.len()];
        self.count(requests, &replies, started);
        for answer in order {
            self.put(answer.as_ref().unwrap_or(reply));
        }
        Answered {
            requests: requests.len(),
            order: order.len(),
        }
    }

    /// Notes what was carried out together, with an equal share of the time for each.
    fn note(&self, requests: &[Request], ran: &Ran, started: Instant) -> Answered {
        let done = &requests[..ran.requests];
        let each = started.elapsed() / done.len().max(1) as u32;
        let metrics = &self.shared.metrics;
        for (n, request) in done.iter().enumerate() {
            metrics.ran(request.spec, ran.failed >> n & 1 == 1, each);
        }
        metrics.hits.fetch_add(ran.hits, Relaxed);
        metrics.misses.fetch_add(ran.misses, Relaxed);
        for prefix in &ran.errors {
            metrics.error(prefix);
        }
        self.note_slow(done, each);
        Answered {
            requests: ran.requests,
            order: ran.order,
        }
    }

    pub(super) fn read_level(&self) -> ReadLevel {
        if self.readonly {
            ReadLevel::Local
        } else {
            self.settings.read_level
        }
    }

    /// Answers reads from one view: at least the first, and as many as fit a bound of bytes.
    pub(super) async fn read(&mut self, requests: Vec<Request>) -> (Vec<Request>, Vec<Reply>) {
        self.read_if(requests, Vec::new(), false).await
    }

    /// As [`Self::read`], or all `together`; nothing but a null when a watched key has changed.
    pub(super) async fn read_if(
        &mut self,
        mut requests: Vec<Request>,
        mut watched: Vec<(Bytes, u64)>,
        together: bool,
    ) -> (Vec<Request>, Vec<Reply>) {
        let local = requests
            .iter()
            .any(|request| request.spec.has(Flags::LOCAL));
        let level = if local {
            ReadLevel::Local
        } else {
            self.read_level()
        };
        let cheap = requests.len() <= INLINE_READS_MAX
            && requests
                .iter()
                .all(|request| request.spec.is_cheap(request.args.len()));
        for attempt in 0.. {
            let reading = match self.shared.service.read(level, self.last_write).await {
                Ok(reading) => reading,
                Err(reply) => {
                    let replies = vec![reply; requests.len()];
                    return (requests, replies);
                }
            };
            let seed = self.shared.doors.random.next();
            let outcome = if cheap && self.shared.service.reads_are_fast() {
                let outcome = run_reads(&reading, &requests, &watched, seed, together);
                drop(reading);
                outcome
            } else {
                let workers = self.shared.doors.workers.clone();
                let ran = doors::blocking(&*workers, move || {
                    let outcome = run_reads(&reading, &requests, &watched, seed, together);
                    (requests, watched, outcome)
                });
                let outcome;
                (requests, watched, outcome) =
                    Box::pin(ran).await.expect("a command's panic is contained");
                outcome
            };
            match outcome {
                Ok((_, true)) if level == ReadLevel::Linearizable && attempt < TICKS_MAX => {
                    if let Err(reply) = Box::pin(self.shared.service.tick()).await {
                        let replies = vec![reply; requests.len()];
                        return (requests, replies);
                    }
                }
                Ok((replies, _)) => return (requests, replies),
                Err(error) => {
                    tracing::error!(%error, "engine read failed");
                    let replies = vec![internal(); requests.len()];
                    return (requests, replies);
                }
            }
        }
        unreachable!("the attempts are bounded")
    }
}

fn failed(failure: keyspace::Failure) -> storage::Error {
    match failure {
        keyspace::Failure::Engine(error) => error,
        other => storage::Error::new(storage::ErrorKind::Corruption, other.to_string()),
    }
}

fn view_of(reading: &Reading) -> Result<View<'_>, storage::Error> {
    View::new(&reading.view, reading.replicated_ms, reading.now_ms).map_err(failed)
}

fn run_reads(
    reading: &Reading,
    requests: &[Request],
    watched: &[(Bytes, u64)],
    seed: u64,
    together: bool,
) -> Result<(Vec<Reply>, bool), storage::Error> {
    let view = view_of(reading)?;
    for (key, modified) in watched {
        if view.modified(key).map_err(failed)? != *modified {
            return Ok((vec![Reply::NullArray], view.met_due()));
        }
    }
    let (mut replies, mut bytes) = (Vec::with_capacity(requests.len()), 0);
    for (n, request) in requests.iter().enumerate() {
        let call = Call {
            args: &request.slices(),
            seed: seed.wrapping_add(n as u64),
            room: match together {
                true => REPLY_BYTES_MAX.saturating_sub(bytes),
                false => REPLY_BYTES_MAX,
            },
        };
        let reply = command::run_read(request.spec, &call, &view)?;
        bytes += reply.bytes();
        replies.push(reply);
        if bytes >= READ_BYTES_MAX && !together {
            break;
        }
    }
    Ok((replies, view.met_due()))
}

/// The indices of the last changes of keys, as WATCH remembers them.
pub(super) fn modified(reading: &Reading, keys: &[Bytes]) -> Result<Vec<u64>, keyspace::Failure> {
    let view = View::new(&reading.view, reading.replicated_ms, reading.now_ms)?;
    keys.iter().map(|key| view.modified(key)).collect()
}
