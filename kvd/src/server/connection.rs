//! Serves one client: requests in, runs of them to the node, replies out in order.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};

use super::backup::Copy;
use super::early::Hand;
use super::place::Place;
use super::{ClientEntry, ServerSettings, Service, Shared};
use crate::command::effect::ReplyMode;
use crate::command::{self, Flags, Spec};
use crate::doors::{self, Aside, BoxFuture, Stream};
use crate::keyspace;
use crate::node::{Early, RedirectMode};
use crate::raft::entry::{GroupBuilder, Rule};
use crate::resp::{self, OutputBuffer, Parsed, Protocol, Reply, RequestParser};

/// Requests that are taken on before replies are written; what a pipeline may hold in memory.
const RUN_COMMANDS_MAX: usize = 1024;
/// Bytes of requests that are taken on together, unless one alone is larger.
const RUN_BYTES_MAX: usize = 1 << 20;
/// Replies are written at the latest when so many bytes wait.
const WRITE_BYTES: usize = 256 << 10;
/// More replies than these are left to the connection to write.
const EARLY_REPLIES_MAX: usize = 16;
/// Pieces of the output that are written together.
const WRITE_PIECES_MAX: usize = 64;
/// Reads that may ride with writes in one group: their replies wait in memory together.
const RIDING_READS_MAX: usize = 128;
/// Room for input is made in steps of this size, whatever a client promises.
const INPUT_STEP: usize = 64 << 10;
/// A client that takes none of its replies for so long is closed.
const STALL: Duration = Duration::from_secs(60);
/// What a client may have sent just before the server stops is waited for, so that it is answered
/// rather than cut off.
const LAST_CALL: Duration = Duration::from_millis(100);

/// What is carried out at once also between MULTI and EXEC.
const AT_ONCE: [&str; 6] = ["exec", "discard", "multi", "watch", "quit", "reset"];

/// One request, as slices of the input.
pub(super) struct Request {
    pub(super) spec: &'static Spec,
    pub(super) args: Vec<Bytes>,
}

impl Request {
    fn bytes(&self) -> usize {
        self.args.iter().map(|arg| arg.len() + 8).sum::<usize>() + 8
    }

    pub(super) fn slices(&self) -> Vec<&[u8]> {
        self.args.iter().map(|arg| &arg[..]).collect()
    }
}

enum Item {
    Run(Request),
    Answer(Reply),
}

/// A transaction that is being queued.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) requests: Vec<Request>,
    pub(super) bytes: usize,
    pub(super) failed: bool,
}

pub(super) struct Connection<S: Service> {
    pub(super) shared: Arc<Shared<S>>,
    /// As they were when the last requests came.
    pub(super) settings: Arc<ServerSettings>,
    settings_changes: u64,
    stream: Stream,
    aside: Option<Arc<dyn Aside>>,
    pub(super) entry: Arc<ClientEntry>,
    input: BytesMut,
    parser: RequestParser,
    pub(super) out: OutputBuffer,
    pub(super) protocol: Protocol,
    pub(super) authenticated: bool,
    pub(super) aware: bool,
    pub(super) readonly: bool,
    pub(super) redirectable: bool,
    pub(super) monitor: Option<broadcast::Receiver<String>>,
    pub(super) copy: Option<Copy>,
    pub(super) last_write: u64,
    pub(super) queue: Option<Queue>,
    pub(super) reply_mode: ReplyMode,
    pub(super) watched: Vec<(Bytes, u64)>,
    items: Vec<Item>,
    run_bytes: usize,
    run_reads: usize,
    run_writes: bool,
    run_costly: bool,
    place: Place,
    pub(super) closing: bool,
}

/// Where the leader is.
pub(super) struct Elsewhere {
    addr: String,
    /// The client takes its whole connection there, not one slot.
    whole: bool,
}

struct Gone;

/// What a connection that waits for requests is woken for.
enum Event {
    Input(std::io::Result<usize>),
    Line(Result<String, broadcast::error::RecvError>),
    Killed,
    Stop,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(shared: Arc<Shared<S>>, stream: Stream, entry: Arc<ClientEntry>) -> Self {
        let settings_changes = shared.settings_changes.load(SeqCst);
        let settings = shared.settings();
        let authenticated = settings.password.is_none();
        let mut parser = RequestParser::new(resp::Limits::default());
        parser.set_authenticated(authenticated);
        Connection {
            shared,
            settings,
            settings_changes,
            aside: stream.aside(),
            stream,
            entry,
            input: BytesMut::new(),
            parser,
            out: OutputBuffer::new(),
            protocol: Protocol::Resp2,
            authenticated,
            aware: false,
            readonly: false,
            redirectable: false,
            monitor: None,
            copy: None,
            last_write: 0,
            queue: None,
            reply_mode: ReplyMode::On,
            watched: Vec::new(),
            items: Vec::new(),
            run_bytes: 0,
            run_reads: 0,
            run_writes: false,
            run_costly: false,
            place: Place::home(),
            closing: false,
        }
    }

    pub(super) async fn run(mut self) {
        // `Err` is a client that has gone or is not worth waiting for: nobody to tell.
        if let Ok(Some(to)) = self.serve().await {
            return self.move_to(&to);
        }
        self.end();
    }

    /// Goes on to be served by another runtime.
    fn move_to(mut self, to: &Handle) {
        self.aside = None;
        match std::mem::replace(&mut self.stream, Box::new(tokio::io::duplex(1).0)).detach() {
            Ok(detached) => doors::spawn_on(to, async move {
                match detached() {
                    Ok(stream) => {
                        self.place.moved();
                        self.resume(stream).await;
                    }
                    Err(_) => self.end(),
                }
            }),
            Err(stream) => {
                self.place.stay();
                doors::spawn_on(&Handle::current(), self.resume(stream));
            }
        }
    }

    fn resume(mut self, stream: Stream) -> BoxFuture<'static, ()> {
        self.aside = stream.aside();
        self.stream = stream;
        Box::pin(self.run())
    }

    fn end(&mut self) {
        self.stop_monitoring();
        let id = self.entry.id;
        self.shared
            .clients
            .lock()
            .expect("no panic while held")
            .remove(&id);
    }

    /// Returns where to go on, or nothing when the connection is closed.
    async fn serve(&mut self) -> Result<Option<Handle>, Gone> {
        loop {
            let changes = self.shared.settings_changes.load(SeqCst);
            if changes != self.settings_changes {
                (self.settings, self.settings_changes) = (self.shared.settings(), changes);
            }
            let needed = self.take_requests().await?;
            self.finish_run().await?;
            self.write_out().await?;
            // A client that has just had its answer finds the connection closed before it asks
            // again.
            let is_done = needed == 0 && !self.place.must_leave();
            self.closing |= is_done && self.shared.is_stopping();
            if self.closing {
                let _ = self.stream.shutdown().await;
                return Ok(None);
            }
            let next = self.place.next(|| self.shared.service.leading_runtime());
            if next.is_some() {
                return Ok(next);
            }
            self.fill(needed).await?;
            self.place.heard(&self.shared.turns, self.entry.id);
        }
    }

    /// Waits for more input; a monitor is shown what others do meanwhile.
    async fn fill(&mut self, needed: usize) -> Result<(), Gone> {
        let count = loop {
            self.input.reserve(needed.clamp(INPUT_STEP / 4, INPUT_STEP));
            let idle = self.settings.idle_timeout;
            let event = if idle.is_zero() {
                self.next_event().await
            } else {
                timeout(idle, self.next_event()).await.map_err(|_| Gone)?
            };
            match event {
                Event::Input(count) => break count.map_err(|_| Gone)?,
                Event::Killed => return Err(Gone),
                Event::Stop => {
                    let last = timeout(LAST_CALL, self.stream.read_buf(&mut self.input));
                    break last.await.map_err(|_| Gone)?.map_err(|_| Gone)?;
                }
                Event::Line(Ok(line)) => {
                    resp::write(&Reply::simple(line), self.protocol, &mut self.out);
                    self.write_out().await?;
                }
                Event::Line(Err(_)) => {
                    tracing::warn!(client = %self.entry.addr, "a monitor that does not keep up is closed");
                    return Err(Gone);
                }
            }
        };
        if count == 0 {
            return Err(Gone);
        }
        self.shared
            .metrics
            .input_bytes
            .fetch_add(count as u64, Relaxed);
        Ok(())
    }

    async fn next_event(&mut self) -> Event {
        let monitors = self.monitor.is_some();
        let (shared, entry) = (&self.shared, &self.entry);
        let mut read = pin!(self.stream.read_buf(&mut self.input));
        let mut line = pin!(next_line(&mut self.monitor));
        poll_fn(|cx| {
            // A client that never lets anyone wait can be killed too.
            if entry.is_killed() {
                return Poll::Ready(Event::Killed);
            }
            if let Poll::Ready(read) = read.as_mut().poll(cx) {
                return Poll::Ready(Event::Input(read));
            }
            if monitors && let Poll::Ready(shown) = line.as_mut().poll(cx) {
                return Poll::Ready(Event::Line(shown));
            }
            entry.called.register(cx.waker());
            if entry.is_killed() {
                Poll::Ready(Event::Killed)
            } else if shared.is_stopping() {
                Poll::Ready(Event::Stop)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    pub(super) fn stop_monitoring(&mut self) {
        if self.monitor.take().is_some() {
            self.shared.monitors.left();
        }
    }

    /// Waits for something that may take long, unless the client goes: then the connection closes.
    pub(super) async fn while_connected<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let (shared, entry) = (self.shared.clone(), self.entry.clone());
        tokio::pin!(what);
        loop {
            // More than this is left to the socket.
            let room = RUN_BYTES_MAX.saturating_sub(self.input.len());
            self.input.reserve(room.min(INPUT_STEP));
            let called = poll_fn(|cx| {
                entry.called.register(cx.waker());
                match entry.is_killed() || shared.is_stopping() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            });
            let gone = tokio::select! {
                done = &mut what => return Some(done),
                read = self.stream.read_buf(&mut self.input), if room > 0 => {
                    !read.is_ok_and(|count| count > 0)
                }
                () = called => true,
            };
            if gone {
                self.closing = true;
                return None;
            }
        }
    }

    /// Takes on every whole request of the input; returns how many bytes the next one lacks.
    async fn take_requests(&mut self) -> Result<usize, Gone> {
        loop {
            if self.closing {
                return Ok(0);
            }
            if self.input.is_empty() {
                return Ok(0);
            }
            self.parser.set_authenticated(self.authenticated);
            let (consumed, ranges, copied) = match self.parser.parse(&self.input) {
                Parsed::Incomplete { needed } => {
                    let bytes = self.input.len();
                    return Ok(match self.place.admits(None, bytes, 0) {
                        true => needed,
                        false => 0,
                    });
                }
                Parsed::Nothing { consumed } => {
                    self.input.advance(consumed);
                    continue;
                }
                Parsed::Error(error) => {
                    self.push_answer(error.to_reply());
                    self.closing = true;
                    return Ok(0);
                }
                Parsed::Command { args, consumed } => match args.ranges() {
                    Some(ranges) => (consumed, ranges.collect::<Vec<_>>(), None),
                    None => {
                        let args = args.iter().map(Bytes::copy_from_slice);
                        (consumed, Vec::new(), Some(args.collect::<Vec<_>>()))
                    }
                },
            };
            let name = ranges.first().map(|range| &self.input[range.clone()]);
            if !self.place.admits(name, consumed, self.items.len()) {
                return Ok(0);
            }
            let taken = self.input.split_to(consumed).freeze();
            let args = copied
                .unwrap_or_else(|| ranges.into_iter().map(|range| taken.slice(range)).collect());
            // A browser that was led here must not get to its body's lines.
            if args[0].eq_ignore_ascii_case(b"post") || args[0].eq_ignore_ascii_case(b"host:") {
                tracing::warn!(client = %self.entry.addr, "an HTTP request on the client port");
                self.finish_run().await?;
                return Err(Gone);
            }
            // What waits for nothing has no part in the size of this future, which is moved for
            // every request.
            match self.admit(args).and_then(|request| self.join_run(request)) {
                None => {}
                Some(request) => Box::pin(self.take(request)).await?,
            }
            self.bound_run().await?;
        }
    }

    /// Looks at a request; one that is refused has its answer.
    fn admit(&mut self, args: Vec<Bytes>) -> Option<Request> {
        let mut aborted = false;
        let spec = {
            let slices: Vec<&[u8]> = args.iter().map(|arg| &arg[..]).collect();
            command::lookup(&slices).and_then(|spec| {
                if !self.authenticated && !spec.has(Flags::NO_AUTH) {
                    return Err(Reply::error("NOAUTH Authentication required."));
                }
                let limits = self.shared.service.limits().keyspace();
                let validate = match &self.queue {
                    Some(_) => command::validate_queued,
                    None => command::validate,
                };
                if let Err(reply) = validate(spec, &slices, &limits) {
                    self.shared.metrics.refused(spec);
                    let text = match &reply {
                        Reply::Error(text) => text.trim_start_matches("ERR "),
                        _ => "",
                    };
                    if spec.name != "exec" {
                        return Err(reply);
                    }
                    // An EXEC that is refused is an EXEC all the same.
                    aborted = true;
                    return Err(Reply::error(format!(
                        "EXECABORT Transaction discarded because of: {text}"
                    )));
                }
                if self.queue.is_some() && spec.has(Flags::NO_MULTI) {
                    return Err(Reply::error("ERR Command not allowed inside a transaction"));
                }
                if spec.has(Flags::DEBUG) && !super::listener::is_loopback(&self.entry.addr) {
                    return Err(Reply::error(
                        "ERR DEBUG command not allowed. If the enable-debug-command option is \
                         set to \"local\", you can run it from a local connection, otherwise you \
                         need to set this option in the configuration file, and then restart the \
                         server.",
                    ));
                }
                Ok(spec)
            })
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err(reply) => {
                if aborted {
                    self.queue = None;
                    self.watched.clear();
                    self.entry.queued(None);
                }
                if let Some(queue) = &mut self.queue {
                    queue.failed = true;
                }
                self.push_answer(reply);
                return None;
            }
        };
        Some(Request { spec, args })
    }

    /// Adds a request to the run, where nothing has to happen before; otherwise gives it back.
    fn join_run(&mut self, request: Request) -> Option<Request> {
        let spec = request.spec;
        let bytes = request.bytes();
        let runs = spec.is_write() || spec.is_read();
        let local = spec.has(Flags::LOCAL);
        let waits = self.queue.is_some() || self.shared.pause.any();
        let full = self.run_bytes + bytes > self.group_bytes_max();
        if !runs || local || waits || full {
            return Some(request);
        }
        let costly = !spec.is_cheap(request.args.len());
        let rides = self.run_writes || spec.is_write();
        let apart = costly && spec.is_read() && self.run_writes
            || spec.is_write() && self.run_costly
            || rides && self.run_reads >= RIDING_READS_MAX;
        if apart {
            return Some(request);
        }
        self.show(&request);
        self.push(request, costly);
        None
    }

    fn push(&mut self, request: Request, costly: bool) {
        let spec = request.spec;
        self.run_reads += usize::from(!spec.is_write());
        self.run_writes |= spec.is_write();
        self.run_costly |= costly && spec.is_read();
        self.run_bytes += request.bytes();
        self.items.push(Item::Run(request));
    }

    async fn take(&mut self, request: Request) -> Result<(), Gone> {
        let spec = request.spec;
        self.wait_for_pause(spec).await?;
        self.show(&request);
        if request.bytes() > self.group_bytes_max() {
            if let Some(queue) = &mut self.queue {
                queue.failed = true;
            }
            let max = self.group_bytes_max();
            self.push_answer(Reply::error(format!(
                "ERR request is longer than {max} bytes"
            )));
            return Ok(());
        }
        let at_once = AT_ONCE.contains(&spec.name);
        if let Some(queue) = &mut self.queue
            && !at_once
        {
            queue.bytes += request.bytes();
            let full = queue.bytes > self.shared.service.limits().group_bytes_max;
            if full {
                queue.failed = true;
                queue.requests.clear();
                self.push_answer(Reply::error("ERR transaction is too large"));
            } else {
                queue.requests.push(request);
                self.entry.queued(Some(queue));
                self.push_answer(Reply::queued());
            }
            return Ok(());
        }
        if !spec.is_write() && !spec.is_read() {
            return self.take_session(request).await;
        }
        let costly = !request.spec.is_cheap(request.args.len()) || spec.has(Flags::LOCAL);
        let local = spec.has(Flags::LOCAL);
        if local || (costly && spec.is_read() && self.run_writes) {
            self.finish_run().await?;
        }
        if spec.is_write() && self.run_costly
            || self.run_bytes + request.bytes() > self.group_bytes_max()
        {
            self.finish_run().await?;
        }
        // Reads beside a write are carried out by the apply worker, which holds their replies.
        let rides = self.run_writes || spec.is_write();
        if rides && self.run_reads >= RIDING_READS_MAX {
            self.finish_run().await?;
        }
        self.push(request, costly);
        match local {
            true => self.finish_run().await,
            false => Ok(()),
        }
    }

    /// Waits while CLIENT PAUSE holds such a command. CLIENT itself goes on, to end the pause.
    async fn wait_for_pause(&mut self, spec: &'static Spec) -> Result<(), Gone> {
        if !self.shared.pause.any() {
            return Ok(());
        }
        let writes = match &self.queue {
            Some(queue) if spec.name == "exec" => {
                queue.requests.iter().any(|queued| queued.spec.is_write())
            }
            _ => spec.is_write(),
        };
        if spec.name.starts_with("client|") || !self.shared.pause.holds(writes) {
            return Ok(());
        }
        self.finish_run().await?;
        self.write_out().await?;
        let shared = self.shared.clone();
        match self.while_connected(shared.pause.over(writes)).await {
            Some(()) => Ok(()),
            None => Err(Gone),
        }
    }

    /// Shows a request to those who watch; a queued one when it is carried out.
    fn show(&self, request: &Request) {
        let monitors = &self.shared.monitors;
        if !monitors.any() {
            return;
        }
        let queued = match &self.queue {
            Some(queue) if request.spec.name == "exec" => &queue.requests[..],
            Some(_) if !AT_ONCE.contains(&request.spec.name) => return,
            _ => &[],
        };
        let at_us = self.shared.doors.clock.wall_us();
        for request in queued.iter().chain([request]) {
            // Passwords are for nobody else.
            let secret = ["auth", "hello"].contains(&request.spec.name);
            if !secret && !request.spec.has(Flags::ADMIN) {
                monitors.show(at_us, &self.entry.addr, &request.args);
            }
        }
    }

    async fn take_session(&mut self, request: Request) -> Result<(), Gone> {
        let effect = match command::session(request.spec, &request.slices()) {
            Some(Ok(command::Effect::Reply(reply)) | Err(reply)) => {
                let failed = reply.is_error();
                self.shared
                    .metrics
                    .ran(request.spec, failed, Duration::ZERO);
                self.push_answer(reply);
                return Ok(());
            }
            Some(Ok(effect)) => effect,
            None => unreachable!("the caller has looked at the kind"),
        };
        self.finish_run().await?;
        let started = Instant::now();
        let reply = Box::pin(self.perform(effect)).await;
        self.settings = self.shared.settings();
        let failed = reply.as_ref().is_some_and(Reply::is_error);
        self.shared
            .metrics
            .ran(request.spec, failed, started.elapsed());
        self.note_slow(std::slice::from_ref(&request), started.elapsed());
        self.entry.queued(self.queue.as_ref());
        if let Some(reply) = reply {
            self.put(&reply);
        }
        self.relieve().await
    }

    fn group_bytes_max(&self) -> usize {
        self.shared.service.limits().group_bytes_max
    }

    fn push_answer(&mut self, reply: Reply) {
        self.items.push(Item::Answer(reply));
    }

    async fn bound_run(&mut self) -> Result<(), Gone> {
        if self.items.len() >= RUN_COMMANDS_MAX || self.run_bytes >= RUN_BYTES_MAX {
            self.finish_run().await?;
        }
        Ok(())
    }

    /// Carries out what was taken on.
    async fn finish_run(&mut self) -> Result<(), Gone> {
        let items = std::mem::take(&mut self.items);
        let writes = std::mem::take(&mut self.run_writes);
        (self.run_bytes, self.run_reads, self.run_costly) = (0, 0, false);
        if items.is_empty() {
            return Ok(());
        }
        let (mut requests, mut order) = (Vec::new(), Vec::with_capacity(items.len()));
        let moved = self.leader_elsewhere();
        for item in items {
            match item {
                Item::Answer(reply) => order.push(Some(reply)),
                Item::Run(request) => match self.redirected(&request, moved.as_ref()) {
                    Some(reply) => order.push(Some(reply)),
                    None => {
                        requests.push(request);
                        order.push(None);
                    }
                },
            }
        }
        if let Some(last) = requests.last() {
            self.entry
                .about
                .lock()
                .expect("no panic while held")
                .command = last.spec.name;
        }
        let started = Instant::now();
        let writes = writes && requests.iter().any(|request| request.spec.is_write());
        if writes {
            let hand = self.hand(&requests, &order);
            let early = hand.as_ref().map(Hand::early);
            let outcome = self.propose(&requests, &[], early).await;
            let written = hand.and_then(|hand| hand.withdraw());
            let replies = match outcome {
                Ok(replies) => replies,
                Err(reply) => vec![reply; requests.len()],
            };
            self.count(&requests, &replies, started);
            if let Some((rest, sent)) = written {
                self.out = rest;
                self.shared
                    .metrics
                    .output_bytes
                    .fetch_add(sent as u64, Relaxed);
                for prefix in replies.iter().filter_map(Reply::error_prefix) {
                    self.shared.metrics.error(prefix);
                }
                return Ok(());
            }
            let mut replies = replies.into_iter();
            for answer in order {
                let reply = answer.or_else(|| replies.next()).unwrap_or_else(internal);
                self.put(&reply);
                self.relieve().await?;
            }
            return Ok(());
        }
        let mut next = 0;
        while !requests.is_empty() {
            if let Some(answered) = self.answer_here(&requests, &order[next..], started).await {
                next += answered.order;
                requests.drain(..answered.requests);
                self.relieve().await?;
                continue;
            }
            let (mut left, replies) = self.read(requests).await;
            let done = replies.len();
            self.count(&left[..done], &replies, started);
            for (request, reply) in left.drain(..done).zip(replies) {
                // Answers that stand before this read.
                while let Some(answer) = order.get(next) {
                    next += 1;
                    match answer {
                        Some(answer) => self.put(answer),
                        None => break,
                    }
                }
                if request.spec.name == "get" {
                    let metrics = &self.shared.metrics;
                    let counter = if reply == Reply::Null {
                        &metrics.misses
                    } else {
                        &metrics.hits
                    };
                    counter.fetch_add(1, Relaxed);
                }
                self.put(&reply);
                self.relieve().await?;
            }
            requests = left;
        }
        for answer in order[next..].iter().flatten() {
            self.put(answer);
        }
        self.relieve().await
    }

    /// Notes what was carried out together, with an equal share of the time for each.
    pub(super) fn count(&self, requests: &[Request], replies: &[Reply], started: Instant) {
        let each = started.elapsed() / requests.len().max(1) as u32;
        for (request, reply) in requests.iter().zip(replies) {
            let failed = reply.is_error();
            self.shared.metrics.ran(request.spec, failed, each);
        }
        self.note_slow(requests, each);
    }

    /// Notes commands that took so long each, if that is slow, or a spike.
    pub(super) fn note_slow(&self, requests: &[Request], took: Duration) {
        let settings = &self.settings;
        let slow = settings.slower_than.is_some_and(|limit| took >= limit);
        let spike = !settings.spike.is_zero() && took >= settings.spike;
        if !slow && !spike {
            return;
        }
        let at_s = self.shared.doors.clock.wall_ms() / 1000;
        let name = {
            let about = self.entry.about.lock().expect("no panic while held");
            about.name.clone()
        };
        for request in requests {
            if spike {
                let event = match request.spec.has(Flags::FAST) {
                    true => "fast-command",
                    false => "command",
                };
                self.shared.spikes.note(event, at_s, took);
            }
            if slow && !request.spec.has(Flags::SKIP_SLOWLOG) {
                self.shared.slow_log.note(
                    settings.slow_log_max,
                    at_s,
                    took,
                    &request.args,
                    &self.entry.addr,
                    &name,
                );
            }
        }
    }

    /// The leader, where this connection is to be sent there.
    pub(super) fn leader_elsewhere(&self) -> Option<Elsewhere> {
        let redirects = match self.settings.follower_writes {
            RedirectMode::Auto => self.aware || self.redirectable,
            RedirectMode::Forward => false,
            RedirectMode::Redirect => true,
        };
        if !redirects {
            return None;
        }
        let addr = self.shared.service.redirect()?.client_addr;
        Some(Elsewhere {
            addr,
            whole: self.redirectable && !self.aware,
        })
    }

    pub(super) fn redirected(
        &self,
        request: &Request,
        leader: Option<&Elsewhere>,
    ) -> Option<Reply> {
        let Elsewhere { addr, whole } = leader?;
        let slices = request.slices();
        let slot = request.spec.keys_of(&slices).next().map(keyspace::slot);
        if !request.spec.is_write() && (self.readonly || slot.is_none()) {
            return None;
        }
        Some(Reply::error(match whole {
            true => format!("REDIRECT {addr}"),
            false => format!("MOVED {} {addr}", slot.unwrap_or(0)),
        }))
    }

    /// Where the replies may be written ahead, when they are all that there is to write.
    fn hand(&self, requests: &[Request], order: &[Option<Reply>]) -> Option<Arc<Hand>> {
        let only = self.reply_mode == ReplyMode::On
            && self.out.is_empty()
            && requests.len() == order.len()
            && requests.len() <= EARLY_REPLIES_MAX;
        let aside = self.aside.as_ref().filter(|_| only)?;
        Some(Hand::new(aside.clone(), self.protocol))
    }

    /// Proposes requests as one group; one reply for each, or a single null for a precondition
    /// that did not hold. An error is one for all of them: it says what became of the group.
    pub(super) async fn propose(
        &mut self,
        requests: &[Request],
        watched: &[(Bytes, u64)],
        early: Option<Early>,
    ) -> Result<Vec<Reply>, Reply> {
        let mut group = GroupBuilder::new(Rule::Each);
        for (key, modified) in watched {
            group.require(key, *modified);
        }
        for request in requests {
            group.command(&request.args);
        }
        let written = self.shared.service.propose(group.finish(), early).await?;
        self.last_write = self.last_write.max(written.index);
        Ok(written.replies)
    }

    pub(super) fn put(&mut self, reply: &Reply) {
        match self.reply_mode {
            ReplyMode::On => {}
            ReplyMode::Off => return,
            ReplyMode::Skip => {
                self.reply_mode = ReplyMode::On;
                return;
            }
        }
        if let Some(prefix) = reply.error_prefix() {
            self.shared.metrics.error(prefix);
        }
        resp::write(reply, self.protocol, &mut self.out);
    }

    /// Writes replies when many wait.
    async fn relieve(&mut self) -> Result<(), Gone> {
        if self.out.len() >= WRITE_BYTES {
            self.write_out().await
        } else {
            Ok(())
        }
    }

    async fn write_out(&mut self) -> Result<(), Gone> {
        // Most replies fit into the socket's buffer: nothing is set up to wait for.
        let mut patient = false;
        while !self.out.is_empty() {
            self.entry.queued_bytes.store(self.out.len(), Relaxed);
            let written = if patient {
                timeout(STALL, self.write_some()).await
            } else {
                patient = true;
                match self.write_some().now_or_never() {
                    Some(written) => Ok(written),
                    None => continue,
                }
            };
            match written {
                Ok(Ok(count)) if count > 0 => {
                    self.shared
                        .metrics
                        .output_bytes
                        .fetch_add(count as u64, Relaxed);
                }
                Ok(_) => return Err(Gone),
                Err(_) => {
                    tracing::warn!(client = %self.entry.addr, "a client that does not read is closed");
                    return Err(Gone);
                }
            }
        }
        self.entry.queued_bytes.store(0, Relaxed);
        self.entry.about.lock().expect("no panic while held").last = Instant::now();
        self.stream.flush().await.map_err(|_| Gone)
    }

    /// Writes what the socket takes; nothing, to a client that was killed.
    async fn write_some(&mut self) -> std::io::Result<usize> {
        let Connection {
            stream, out, entry, ..
        } = self;
        poll_fn(|cx| {
            // One piece is what most replies are, and cheaper than a list of one.
            let stream = Pin::new(&mut *stream);
            let written = if out.is_one_piece() {
                stream.poll_write(cx, out.chunk())
            } else {
                let mut pieces = [IoSlice::new(&[]); WRITE_PIECES_MAX];
                let count = out.chunks_vectored(&mut pieces);
                stream.poll_write_vectored(cx, &pieces[..count])
            };
            if let Poll::Ready(written) = written {
                return Poll::Ready(written.inspect(|count| out.advance(*count)));
            }
            entry.called.register(cx.waker());
            match entry.is_killed() {
                true => Poll::Ready(Ok(0)),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// The next line for a monitor; never, for other connections.
async fn next_line(
    monitor: &mut Option<broadcast::Receiver<String>>,
) -> Result<String, broadcast::error::RecvError> {
    match monitor {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) fn internal() -> Reply {
    Reply::error("ERR internal error")
}
