//! One connection to a peer from the dialing side: made when needed, kept, made again.
//!
//! Requests of any number of callers share it; answers find their caller by the request's number.
//! One task owns the socket. For each request it is known whether its writing had begun, so that a
//! failure tells "never sent" from "lost".

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::frame::{Burst, FLAG_FAILED, FLAG_RESPONSE, Frame, WireError};
use super::handshake::{Conn, HandshakeError, Refusal, dial};
use super::message::{KEEPALIVE, Message};
use super::{ConnKind, Context, Throttle};
use crate::doors;
use crate::raft::NodeId;
use crate::raft::codec::{Malformed, Reader};

/// Frames are gathered into one write until they are this many bytes.
pub(super) const BURST_BYTES: usize = 256 * 1024;

/// Lines about a peer that cannot be reached, in a second.
const FAILURE_LINES_PER_SECOND: u32 = 1;

/// What became of a request that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No byte of it was written: the peer cannot have seen it.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was sent, or partly; whether the peer carried it out is unknown.
    #[error("lost: {0}")]
    Lost(String),
    /// The peer, or this node, refused the connection; nothing was sent.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A connection to one peer for one purpose; whoever holds it keeps it.
pub(super) struct Link {
    ctx: Arc<Context>,
    kind: ConnKind,
    target: NodeId,
    addr: String,
    slot: Mutex<Slot>,
    failures: Throttle,
}

enum Slot {
    Idle,
    Connecting(Vec<oneshot::Sender<Result<Arc<Live>, CallError>>>),
    Live(Arc<Live>),
}

/// An established connection. Dropping it closes the connection.
pub(super) struct Live {
    queue: mpsc::UnboundedSender<(u32, Message)>,
    state: Arc<Mutex<State>>,
    requests_max: usize,
    bytes_max: usize,
    since: Instant,
}

/// What is on its way over a connection.
struct State {
    dead: Option<String>,
    next: u32,
    waiting: BTreeMap<u32, Waiting>,
    /// Of all that wait, together.
    bytes: usize,
    /// When something was last sent or received.
    used: Instant,
    /// Since when the peer owes a sign of life. Requests that were given up count too: a caller
    /// with little patience must not hide that the peer is gone.
    due_since: Option<Instant>,
}

struct Waiting {
    answer: oneshot::Sender<Result<Frame, CallError>>,
    sent: Option<Instant>,
    bytes: usize,
}

impl State {
    fn take(&mut self, id: u32) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        self.bytes -= waiting.bytes;
        Some(waiting)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic while held")
}

/// A request on its way. Dropping it forgets the request; an answer that still comes is ignored.
pub(super) struct Exchange {
    state: Arc<Mutex<State>>,
    id: u32,
    answer: oneshot::Receiver<Result<Frame, CallError>>,
}

impl Exchange {
    /// The answer. May be dropped and called again.
    pub(super) async fn answer(&mut self) -> Result<Frame, CallError> {
        match (&mut self.answer).await {
            Ok(answer) => answer,
            // The task was ended with its node, or its runtime.
            Err(_) => Err(CallError::Lost("connection task ended".to_owned())),
        }
    }

    /// Gives the request up, and says what that means for it.
    pub(super) fn abandon(mut self, why: &str) -> Result<Frame, CallError> {
        if let Ok(answer) = self.answer.try_recv() {
            return answer;
        }
        match lock(&self.state).take(self.id) {
            Some(Waiting { sent: None, .. }) => Err(CallError::NotSent(why.to_owned())),
            _ => Err(CallError::Lost(why.to_owned())),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        lock(&self.state).take(self.id);
    }
}

impl Live {
    /// Queues a request. Never waits.
    pub(super) fn send(&self, message: Message) -> Result<Exchange, CallError> {
        let bytes = message.bytes();
        let (answer, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        if let Some(why) = &state.dead {
            return Err(CallError::NotSent(why.clone()));
        }
        let full = state.waiting.len() >= self.requests_max
            || (!state.waiting.is_empty() && state.bytes + bytes > self.bytes_max);
        if full {
            return Err(CallError::NotSent(
                "too much is on its way to the peer".to_owned(),
            ));
        }
        let mut id = state.next;
        // After four billion requests an old one may still wait.
        while state.waiting.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        state.next = id.wrapping_add(1);
        state.bytes += bytes;
        state.waiting.insert(
            id,
            Waiting {
                answer,
                sent: None,
                bytes,
            },
        );
        // Under the lock, so that requests are written in the order of their numbers. The task
        // may be gone; then it has marked the state as dead or does so now.
        if self.queue.send((id, message)).is_err() {
            state.take(id);
            return Err(CallError::NotSent("connection closed".to_owned()));
        }
        drop(state);
        Ok(Exchange {
            state: self.state.clone(),
            id,
            answer: receiver,
        })
    }

    pub(super) fn is_dead(&self) -> bool {
        lock(&self.state).dead.is_some()
    }

    /// Ends the connection; whatever is on its way fails.
    pub(super) fn kill(&self, why: &str) {
        lock(&self.state).dead.get_or_insert_with(|| why.to_owned());
        // The task notices when it is woken: number 0 with nobody waiting is skipped.
        let _ = self.queue.send((0, Message::Call(bytes::Bytes::new())));
    }
}

impl Link {
    pub(super) fn new(
        ctx: Arc<Context>,
        kind: ConnKind,
        target: NodeId,
        addr: String,
    ) -> Arc<Self> {
        Arc::new(Link {
            ctx,
            kind,
            target,
            addr,
            slot: Mutex::new(Slot::Idle),
            failures: Throttle::new(FAILURE_LINES_PER_SECOND),
        })
    }

    /// For how long there has been a connection; none when there is none.
    pub(super) fn age(&self) -> Option<std::time::Duration> {
        match &*self.slot.lock().expect("no panic while held") {
            Slot::Live(live) if !live.is_dead() => Some(live.since.elapsed()),
            _ => None,
        }
    }

    /// Where the peer is dialed.
    pub(super) fn addr(&self) -> String {
        let moved = self.ctx.gate.moved_to(self.target);
        moved.unwrap_or_else(|| self.addr.clone())
    }

    /// The connection, made if there is none. Dropping the future does not stop the connecting:
    /// a caller with less patience than connecting takes would never get one.
    pub(super) async fn live(self: &Arc<Self>) -> Result<Arc<Live>, CallError> {
        let receiver = {
            let mut slot = self.slot.lock().expect("no panic while held");
            match &mut *slot {
                Slot::Live(live) if !live.is_dead() => return Ok(live.clone()),
                Slot::Connecting(callers) => {
                    // Callers that gave up need no room.
                    callers.retain(|caller| !caller.is_closed());
                    let (caller, receiver) = oneshot::channel();
                    callers.push(caller);
                    receiver
                }
                _ => {
                    let (caller, receiver) = oneshot::channel();
                    *slot = Slot::Connecting(vec![caller]);
                    let _io = self.ctx.io.enter();
                    doors::spawn(self.clone().connect());
                    receiver
                }
            }
        };
        receiver
            .await
            .unwrap_or_else(|_| Err(CallError::NotSent("connecting was ended".to_owned())))
    }

    /// Sends one request and waits for its answer, without a deadline of its own.
    pub(super) async fn exchange(self: &Arc<Self>, message: Message) -> Result<Frame, CallError> {
        self.live().await?.send(message)?.answer().await
    }

    async fn connect(self: Arc<Self>) {
        let connected = self.establish().await;
        let (outcome, run) = match connected {
            Ok(conn) => {
                let (queue, requests) = mpsc::unbounded_channel();
                let state = Arc::new(Mutex::new(State {
                    dead: None,
                    next: 1,
                    waiting: BTreeMap::new(),
                    bytes: 0,
                    used: Instant::now(),
                    due_since: None,
                }));
                let limits = &self.ctx.limits;
                let live = Arc::new(Live {
                    queue,
                    state: state.clone(),
                    requests_max: limits.requests_in_flight_max,
                    bytes_max: limits.request_bytes_in_flight_max,
                    since: Instant::now(),
                });
                (Ok(live), Some((conn, state, requests)))
            }
            Err(error) => {
                if let Some(held_back) = self.failures.pass(error.to_string()) {
                    tracing::warn!(
                        peer = self.addr(),
                        node = format_args!("{:016x}", self.target),
                        kind = ?self.kind,
                        held_back,
                        %error,
                        "peer not connected"
                    );
                }
                (Err(error), None)
            }
        };
        let slot = match &outcome {
            Ok(live) => Slot::Live(live.clone()),
            Err(_) => Slot::Idle,
        };
        let before = std::mem::replace(&mut *self.slot.lock().expect("no panic while held"), slot);
        if let Slot::Connecting(callers) = before {
            for caller in callers {
                let _ = caller.send(outcome.clone());
            }
        }
        drop(outcome);
        if let Some((conn, state, requests)) = run {
            let (ctx, addr, kind) = (self.ctx.clone(), self.addr(), self.kind);
            // From here on the connection lives as long as someone holds the link.
            drop(self);
            let home = home(&ctx, kind).clone();
            let _home = home.enter();
            doors::spawn(async move {
                let error = run_connection(&ctx, conn, &state, requests).await;
                match error {
                    WireError::Closed | WireError::Ended(_) => {
                        tracing::debug!(peer = addr, ?kind, %error, "connection ended");
                    }
                    _ => tracing::warn!(peer = addr, ?kind, %error, "connection lost"),
                }
                bury(&state, &error.to_string());
            });
        }
    }

    async fn establish(&self) -> Result<Conn, CallError> {
        connect(&self.ctx, self.kind, self.target, &self.addr()).await
    }
}

/// The runtime of those who use a connection that this node dialed.
fn home(ctx: &Context, kind: ConnKind) -> &Handle {
    match kind {
        ConnKind::Append | ConnKind::Control => &ctx.raft,
        ConnKind::Request | ConnKind::Snapshot => &ctx.io,
    }
}

/// Connects and shakes hands.
pub(super) async fn connect(
    ctx: &Context,
    kind: ConnKind,
    target: NodeId,
    addr: &str,
) -> Result<Conn, CallError> {
    let mut connecting = ctx.net.connect(addr);
    // A socket wakes the thread of the runtime in which it was made.
    let connecting = poll_fn(|cx| {
        let _home = home(ctx, kind).enter();
        connecting.as_mut().poll(cx)
    });
    let stream = match timeout(ctx.limits.connect, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(CallError::NotSent(format!("connecting: {error}"))),
        Err(_) => return Err(CallError::NotSent("connecting took too long".to_owned())),
    };
    match timeout(ctx.limits.handshake, dial(ctx, stream, kind, target)).await {
        Ok(Ok((conn, _))) => Ok(conn),
        Ok(Err(HandshakeError::Refused(refusal))) => Err(CallError::Refused(refusal)),
        Ok(Err(HandshakeError::Wire(error))) => {
            Err(CallError::NotSent(format!("handshake: {error}")))
        }
        Err(_) => Err(CallError::NotSent("handshake took too long".to_owned())),
    }
}

/// Fails everything that is on its way, and whatever comes later.
fn bury(state: &Mutex<State>, why: &str) {
    let waiting = {
        let mut state = lock(state);
        state.dead.get_or_insert_with(|| why.to_owned());
        state.bytes = 0;
        std::mem::take(&mut state.waiting)
    };
    for (_, waiting) in waiting {
        let error = match waiting.sent {
            Some(_) => CallError::Lost(why.to_owned()),
            None => CallError::NotSent(why.to_owned()),
        };
        let _ = waiting.answer.send(Err(error));
    }
}

async fn run_connection(
    ctx: &Context,
    conn: Conn,
    state: &Mutex<State>,
    mut requests: mpsc::UnboundedReceiver<(u32, Message)>,
) -> WireError {
    let Conn {
        mut reader,
        mut writer,
        hello,
    } = conn;
    let limits = &ctx.limits;
    let frame_max = match hello.kind {
        ConnKind::Control => super::CONTROL_FRAME_BYTES_MAX,
        _ => limits.frame_bytes_max,
    };

    let read = async {
        loop {
            match timeout(limits.silence / 4, reader.next()).await {
                Ok(Ok(frame)) => receive(state, frame)?,
                Ok(Err(error)) => return Err::<(), _>(error),
                Err(_) => check_silence(ctx, state)?,
            }
        }
    };
    let write = async {
        let mut burst = Burst::default();
        loop {
            let Some(first) = requests.recv().await else {
                return Err::<(), _>(WireError::Ended("no longer needed"));
            };
            let mut next = Some(first);
            while let Some((id, message)) = next {
                encode(state, &mut burst, id, &message, hello.group, frame_max)?;
                next = match burst.bytes() < BURST_BYTES {
                    true => requests.try_recv().ok(),
                    false => None,
                };
            }
            if burst.bytes() > 0 {
                burst.write(&mut writer, limits.silence).await?;
            }
        }
    };
    tokio::select! {
        biased;
        Err(error) = read => error,
        Err(error) = write => error,
        else => WireError::Closed,
    }
}

fn encode(
    state: &Mutex<State>,
    burst: &mut Burst,
    id: u32,
    message: &Message,
    group: u32,
    frame_max: usize,
) -> Result<(), WireError> {
    {
        let mut state = lock(state);
        if state.dead.is_some() {
            return Err(WireError::Ended("given up"));
        }
        let now = Instant::now();
        match state.waiting.get_mut(&id) {
            // The caller gave up before anything was written.
            None => return Ok(()),
            Some(waiting) => waiting.sent = Some(now),
        }
        state.used = now;
        state.due_since.get_or_insert(now);
    }
    let fits = burst.frame(message.kind(), 0, group, id, frame_max, |out| {
        message.encode(out)
    });
    if let Err(error) = fits
        && let Some(waiting) = lock(state).take(id)
    {
        let _ = waiting
            .answer
            .send(Err(CallError::NotSent(error.to_string())));
    }
    Ok(())
}

fn receive(state: &Mutex<State>, frame: Frame) -> Result<(), WireError> {
    let mut state = lock(state);
    let now = Instant::now();
    state.used = now;
    let answered = match frame.kind {
        KEEPALIVE => None,
        kind if frame.flags & FLAG_RESPONSE == 0 => return Err(WireError::Unexpected(kind)),
        // There is none when the caller gave up meanwhile.
        _ => state.take(frame.request),
    };
    let owes = state.waiting.values().any(|waiting| waiting.sent.is_some());
    state.due_since = owes.then_some(now);
    drop(state);
    match answered {
        Some(Waiting { sent: None, .. }) => Err(Malformed("answer before its request").into()),
        Some(waiting) => {
            let _ = waiting.answer.send(Ok(frame));
            Ok(())
        }
        None => Ok(()),
    }
}

/// The body of an answer.
///
/// # Errors
///
/// The peer says that it could not; the text says why.
pub(super) fn body_of(frame: Frame) -> Result<bytes::Bytes, String> {
    if frame.flags & FLAG_FAILED == 0 {
        return Ok(frame.body);
    }
    Err(read_failure(frame.body).unwrap_or_else(|malformed| malformed.to_string()))
}

/// Encodes a failure that is not the peer's fault.
pub(super) fn put_failure(out: &mut Vec<u8>, text: &str) {
    crate::raft::codec::put_text(out, &text[..text.floor_char_boundary(512)]);
}

pub(super) fn read_failure(body: bytes::Bytes) -> Result<String, Malformed> {
    let mut r = Reader::new(body);
    let text = r.text("failure")?;
    r.finish("failure")?;
    Ok(text)
}

fn check_silence(ctx: &Context, state: &Mutex<State>) -> Result<(), WireError> {
    let mut state = lock(state);
    let now = Instant::now();
    if let Some(since) = state.due_since {
        let silence = ctx.limits.silence;
        return match now.duration_since(since) >= silence {
            true => Err(WireError::Silent(silence)),
            false => Ok(()),
        };
    }
    if state.waiting.is_empty() && now.duration_since(state.used) >= ctx.limits.idle {
        // Under the lock, so that no request slips in and is lost.
        state.dead = Some("closed as idle".to_owned());
        return Err(WireError::Ended("idle"));
    }
    Ok(())
}
