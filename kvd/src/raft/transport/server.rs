//! The accepting side: connections of other nodes, dispatched by what they are for.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use openraft::Raft;
use openraft::base::BoxStream;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use openraft::type_config::alias::SnapshotOf;
use tokio::io::WriteHalf;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::client::AbortOnDrop;
use super::frame::{Burst, FLAG_FAILED, FLAG_RESPONSE, Frame, WireError};
use super::handshake::{Conn, HandshakeError, accept};
use super::link::{BURST_BYTES, put_failure};
use super::message::{
    APPEND, CALL, KEEPALIVE, PRE_VOTE, TRANSFER, VOTE, put_appended, put_transferred,
    put_vote_response, read_append, read_transfer, read_vote_request,
};
use super::{ConnKind, Context, Throttle, transfer};
use crate::doors::{self, BoxFuture, Listener, Stream};
use crate::raft::codec::Malformed;
use crate::raft::spool::{SnapshotData, SnapshotSink};
use crate::raft::{NodeId, TypeConfig, Vote};

/// Lines about connections that were refused or broke the protocol, in a second.
const COMPLAINTS_PER_SECOND: u32 = 10;

/// Raft cannot take a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PortError(pub String);

impl PortError {
    fn new(error: impl std::fmt::Display) -> Self {
        PortError(error.to_string())
    }
}

/// What the transport asks of this node's Raft.
pub trait RaftPort: Send + Sync {
    /// Takes appends one after another and answers each, in order, when it is durable; the answers
    /// end after the first that is not a success.
    fn stream_append(
        &self,
        requests: BoxStream<'static, AppendEntriesRequest<TypeConfig>>,
    ) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, PortError>>;

    /// Takes a single append: a heartbeat.
    fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, PortError>>;

    /// Votes.
    fn vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>>;

    /// Says whether it would vote, and changes nothing.
    fn pre_vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>>;

    /// Leadership is handed over, to this node or another.
    fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, PortError>>;

    /// Installs a snapshot that has come in whole; returns this node's vote.
    fn install(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
    ) -> BoxFuture<'static, Result<Vote, PortError>>;
}

impl<SM> RaftPort for Raft<TypeConfig, SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    fn stream_append(
        &self,
        requests: BoxStream<'static, AppendEntriesRequest<TypeConfig>>,
    ) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, PortError>> {
        Raft::stream_append(self, requests)
            .map(|answer| answer.map_err(PortError::new))
            .boxed()
    }

    fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, PortError>> {
        let raft = self.clone();
        Box::pin(async move { raft.append_entries(request).await.map_err(PortError::new) })
    }

    fn vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>> {
        let raft = self.clone();
        Box::pin(async move { raft.vote(request).await.map_err(PortError::new) })
    }

    fn pre_vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>> {
        let raft = self.clone();
        Box::pin(async move { raft.pre_vote(request).await.map_err(PortError::new) })
    }

    fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, PortError>> {
        let raft = self.clone();
        Box::pin(async move {
            raft.handle_transfer_leader(request)
                .await
                .map_err(PortError::new)
        })
    }

    fn install(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
    ) -> BoxFuture<'static, Result<Vote, PortError>> {
        let raft = self.clone();
        Box::pin(async move {
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            installed
                .map(|response| response.vote)
                .map_err(PortError::new)
        })
    }
}

/// Where the transport finds this node's Raft, which may be absent or replaced while it runs.
#[derive(Clone, Default)]
pub struct RaftSlot(Arc<RwLock<Option<Arc<dyn RaftPort>>>>);

impl RaftSlot {
    /// Uses this Raft from now on; with `None` peers are told that the node is not ready.
    /// Connections that were made before should be dropped with [`Service::disconnect`].
    pub fn set(&self, port: Option<Arc<dyn RaftPort>>) {
        *self.0.write().expect("no panic while held") = port;
    }

    fn get(&self) -> Option<Arc<dyn RaftPort>> {
        self.0.read().expect("no panic while held").clone()
    }
}

/// Who asks, as its handshake said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node.
    pub node: NodeId,
    /// Its cluster; 0 when it belongs to none.
    pub cluster: u128,
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub addr: String,
    /// The highest feature level that it supports.
    pub feature_level: u32,
}

/// Answers what nodes ask each other beyond Raft's messages.
pub trait RequestHandler: Send + Sync {
    /// Answers one request; requests of a connection run at the same time. Dropped unfinished when
    /// the connection ends. Must not block the thread.
    fn handle(&self, from: PeerIdentity, request: Bytes) -> BoxFuture<'static, Bytes>;
}

/// What a node offers to its peers.
pub struct Service {
    ctx: Arc<Context>,
    raft: RaftSlot,
    requests: Arc<dyn RequestHandler>,
    sink: Arc<dyn SnapshotSink>,
    snapshots: Semaphore,
    /// Connections end when it changes.
    generation: watch::Sender<u64>,
    complaints: Throttle,
}

impl Service {
    /// Peers' messages go to `raft`, their requests to `requests`, their snapshots to `sink`.
    pub fn new(
        ctx: Arc<Context>,
        raft: RaftSlot,
        requests: Arc<dyn RequestHandler>,
        sink: Arc<dyn SnapshotSink>,
    ) -> Arc<Self> {
        Arc::new(Service {
            snapshots: Semaphore::new(ctx.limits.snapshots_in_max),
            ctx,
            raft,
            requests,
            sink,
            generation: watch::Sender::new(0),
            complaints: Throttle::new(COMPLAINTS_PER_SECOND),
        })
    }

    /// Ends all connections that peers have made. They may come back and meet the gate anew.
    pub fn disconnect(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// How many connections of peers there are.
    pub fn connections(&self) -> usize {
        self.generation.receiver_count()
    }
}

/// Accepts peers until `stop` is ready, then ends their connections and waits until the last is
/// closed. Connections are served on the runtime of the context.
pub async fn serve(
    service: Arc<Service>,
    mut listener: Box<dyn Listener>,
    stop: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(service.ctx.limits.connections_max));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await.expect("never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = service.clone();
                let generation = service.generation.subscribe();
                let io = service.ctx.io.clone();
                let _entered = io.enter();
                doors::spawn(connection(service, stream, peer, generation, permit));
            }
            Err(error) => {
                // The door has rested already; the next try may succeed.
                if let Some(held_back) = service.complaints.pass(error.to_string()) {
                    tracing::warn!(%error, held_back, "accepting a peer failed");
                }
            }
        }
    }
    drop(listener);
    service.disconnect();
    let all = u32::try_from(service.ctx.limits.connections_max).unwrap_or(u32::MAX);
    let _ = timeout(service.ctx.limits.silence, room.acquire_many(all)).await;
}

async fn connection(
    service: Arc<Service>,
    stream: Stream,
    peer: String,
    mut generation: watch::Receiver<u64>,
    permit: OwnedSemaphorePermit,
) {
    let (peer, permit) = (&*peer, Arc::new(permit));
    let serve = async {
        let limits = &service.ctx.limits;
        let conn = match timeout(limits.handshake, accept(&service.ctx, stream)).await {
            Ok(conn) => conn?,
            Err(_) => return Err(WireError::Silent(limits.handshake).into()),
        };
        match conn.hello.kind {
            ConnKind::Append | ConnKind::Control | ConnKind::Request => {
                let (own, permit) = (service.clone(), permit.clone());
                let served = async move {
                    let _permit = permit;
                    match conn.hello.kind {
                        ConnKind::Append => serve_appends(&own, conn).await,
                        _ => serve_requests(&own, conn).await,
                    }
                };
                on_raft(&service.ctx.raft, served).await?;
            }
            ConnKind::Snapshot => {
                let (raft, sink) = (service.raft.get(), &*service.sink);
                transfer::receive(&service.ctx, conn, raft, sink, &service.snapshots).await?;
            }
        }
        Ok::<(), HandshakeError>(())
    };
    let ended = tokio::select! {
        biased;
        _ = generation.changed() => Ok(()),
        ended = serve => ended,
    };
    let Err(error) = ended else { return };
    match &error {
        HandshakeError::Wire(WireError::Closed) => {
            tracing::debug!(peer, "peer closed its connection");
        }
        HandshakeError::Wire(wire) if !wire.is_violation() => {
            tracing::debug!(peer, %error, "peer's connection ended");
        }
        _ => {
            // Each connection has a port of its own.
            let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
            if let Some(held_back) = service.complaints.pass(format!("{host} {error}")) {
                tracing::warn!(peer, held_back, %error, "peer's connection closed");
            }
        }
    }
}

/// Serves a connection on Raft's runtime; ends with this future.
async fn on_raft(
    raft: &Handle,
    serve: impl Future<Output = Result<(), WireError>> + Send + 'static,
) -> Result<(), WireError> {
    let (ended, end) = oneshot::channel();
    let task = {
        let _raft = raft.enter();
        // Who waited may have gone.
        doors::spawn(async move { drop(ended.send(serve.await)) })
    };
    let _abort = AbortOnDrop(task.abort_handle());
    end.await
        .unwrap_or(Err(WireError::Ended("its task has ended")))
}

/// Frames going out on an accepted connection.
struct Answers {
    writer: WriteHalf<Stream>,
    burst: Burst,
    group: u32,
    frame_max: usize,
}

impl Answers {
    fn put(
        &mut self,
        kind: u8,
        flags: u8,
        request: u32,
        fill: impl FnOnce(&mut Burst),
    ) -> Result<(), WireError> {
        self.burst.frame(
            kind,
            FLAG_RESPONSE | flags,
            self.group,
            request,
            self.frame_max,
            fill,
        )
    }

    fn fail(&mut self, kind: u8, request: u32, text: &str) -> Result<(), WireError> {
        self.put(kind, FLAG_FAILED, request, |out| {
            put_failure(out.own(), text)
        })
    }

    fn keepalive(&mut self) -> Result<(), WireError> {
        self.burst
            .frame(KEEPALIVE, 0, self.group, 0, self.frame_max, |_| {})
    }
}

/// A connection is about the group that its handshake named.
fn of_group(frame: Frame, group: u32) -> Result<Frame, WireError> {
    if frame.group != group {
        return Err(Malformed("frame: of another group").into());
    }
    Ok(frame)
}

async fn serve_appends(service: &Service, conn: Conn) -> Result<(), WireError> {
    let limits = &service.ctx.limits;
    let Conn {
        hello,
        mut reader,
        writer,
    } = conn;
    let group = hello.group;
    let mut out = Answers {
        writer,
        burst: Burst::default(),
        group: hello.group,
        frame_max: limits.frame_bytes_max,
    };
    // One stream of Raft's at a time; after an answer that is no success it is over, and the
    // peer begins another one.
    let mut stream: Option<AppendStream> = None;
    // Requests that are owed an answer, and how many bytes each came with.
    let mut owed: VecDeque<(u32, usize)> = VecDeque::new();
    let mut owed_bytes = 0;
    let mut keepalive = interval(limits.keepalive);
    keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Instant::now();
    loop {
        let room = owed.len() < limits.appends_in_flight_max
            && (owed.is_empty() || owed_bytes < limits.append_bytes_in_flight_max);
        tokio::select! {
            biased;
            answer = async { stream.as_mut().expect("checked").answers.next().await },
                if stream.is_some() && !owed.is_empty() =>
            {
                let mut answer = answer;
                // All answers that are ready go out with one write.
                while let Some((id, bytes)) = owed.pop_front() {
                    owed_bytes -= bytes;
                    let goes_on = match &answer {
                        Some(Ok(appended)) => {
                            out.put(APPEND, 0, id, |out| put_appended(out.own(), appended))?;
                            appended.is_ok()
                        }
                        Some(Err(error)) => {
                            out.fail(APPEND, id, &error.0)?;
                            false
                        }
                        None => {
                            out.fail(APPEND, id, "raft stopped")?;
                            false
                        }
                    };
                    if !goes_on {
                        // What came behind it was sent in vain: the peer has given it up or will.
                        stream = None;
                        let failed = std::mem::take(&mut owed);
                        owed_bytes = 0;
                        for (id, _) in failed {
                            out.fail(APPEND, id, "an append before it failed")?;
                        }
                        break;
                    }
                    let next = stream.as_mut().expect("it goes on").answers.next();
                    match (owed.is_empty() || out.burst.bytes() >= BURST_BYTES, next.now_or_never())
                    {
                        (false, Some(ready)) => answer = ready,
                        _ => break,
                    }
                }
                out.burst.write(&mut out.writer, limits.silence).await?;
            }
            frame = reader.next(), if room => {
                let frame = of_group(frame?, group)?;
                used = Instant::now();
                if frame.kind == KEEPALIVE {
                    continue;
                }
                if frame.kind != APPEND || frame.flags != 0 {
                    return Err(WireError::Unexpected(frame.kind));
                }
                let bytes = frame.body.len();
                let request = read_append(frame.body, hello.sender.node)?;
                if stream.is_none() {
                    stream = service.raft.get().map(|port| AppendStream::new(&*port, limits.appends_in_flight_max));
                }
                match &stream {
                    Some(stream) => {
                        if !request.entries.is_empty() && !service.ctx.gate.has_room(bytes) {
                            return Err(WireError::Ended("the disk is full"));
                        }
                        owed.push_back((frame.request, bytes));
                        owed_bytes += bytes;
                        // There is room for as many as may be owed. A stream that ended says so
                        // with its next answer.
                        let _ = stream.requests.try_send(request);
                    }
                    None => {
                        out.fail(APPEND, frame.request, "not ready")?;
                        out.burst.write(&mut out.writer, limits.silence).await?;
                    }
                }
            }
            _ = keepalive.tick() => {
                if !owed.is_empty() {
                    out.keepalive()?;
                    out.burst.write(&mut out.writer, limits.silence).await?;
                } else if used.elapsed() >= limits.idle_accepted {
                    return Err(WireError::Ended("idle"));
                }
            }
        }
    }
}

struct AppendStream {
    requests: mpsc::Sender<AppendEntriesRequest<TypeConfig>>,
    answers: BoxStream<'static, Result<StreamAppendResult<TypeConfig>, PortError>>,
}

impl AppendStream {
    fn new(port: &dyn RaftPort, room: usize) -> Self {
        let (requests, receiver) = mpsc::channel(room);
        let requests_stream = stream::unfold(receiver, async |mut receiver| {
            let request = receiver.recv().await?;
            Some((request, receiver))
        });
        AppendStream {
            requests,
            answers: port.stream_append(Box::pin(requests_stream)),
        }
    }
}

/// What became of a request of a control or request connection.
enum Answer {
    Body(Vec<u8>),
    Bytes(Bytes),
    Failed(String),
}

async fn serve_requests(service: &Service, conn: Conn) -> Result<(), WireError> {
    let limits = &service.ctx.limits;
    let Conn {
        hello,
        mut reader,
        writer,
    } = conn;
    let group = hello.group;
    let control = hello.kind == ConnKind::Control;
    let mut out = Answers {
        writer,
        burst: Burst::default(),
        group: hello.group,
        frame_max: match control {
            true => super::CONTROL_FRAME_BYTES_MAX,
            false => limits.frame_bytes_max,
        },
    };
    let sender = hello.sender;
    let from = PeerIdentity {
        node: sender.node,
        cluster: sender.cluster,
        name: sender.name,
        addr: sender.addr,
        feature_level: sender.feature_level,
    };
    let mut working = FuturesUnordered::new();
    let mut working_bytes = 0;
    let mut keepalive = interval(limits.keepalive);
    keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Instant::now();
    loop {
        let room = working.len() < limits.requests_in_flight_max
            && (working.is_empty() || working_bytes < limits.request_bytes_in_flight_max);
        tokio::select! {
            biased;
            Some(done) = working.next(), if !working.is_empty() => {
                let mut next = Some(done);
                while let Some((kind, id, bytes, answer)) = next {
                    working_bytes -= bytes;
                    put_answer(&mut out, kind, id, answer)?;
                    next = match out.burst.bytes() < BURST_BYTES {
                        true => working.next().now_or_never().flatten(),
                        false => None,
                    };
                }
                out.burst.write(&mut out.writer, limits.silence).await?;
            }
            frame = reader.next(), if room => {
                let frame = of_group(frame?, group)?;
                used = Instant::now();
                if frame.kind == KEEPALIVE {
                    continue;
                }
                let (kind, id, bytes) = (frame.kind, frame.request, frame.body.len());
                let answer = match control {
                    true => control_answer(service, frame, from.node)?,
                    false if kind == CALL && frame.flags == 0 => {
                        let answer = service.requests.handle(from.clone(), frame.body);
                        answer.map(Answer::Bytes).boxed()
                    }
                    false => return Err(WireError::Unexpected(kind)),
                };
                working_bytes += bytes;
                working.push(answer.map(move |answer| (kind, id, bytes, answer)));
            }
            _ = keepalive.tick() => {
                if !working.is_empty() {
                    out.keepalive()?;
                    out.burst.write(&mut out.writer, limits.silence).await?;
                } else if used.elapsed() >= limits.idle_accepted {
                    return Err(WireError::Ended("idle"));
                }
            }
        }
    }
}

fn put_answer(out: &mut Answers, kind: u8, id: u32, answer: Answer) -> Result<(), WireError> {
    let put = match &answer {
        Answer::Body(body) => out.put(kind, 0, id, |out| out.own().extend_from_slice(body)),
        Answer::Bytes(body) => out.put(kind, 0, id, |out| out.put(body)),
        Answer::Failed(text) => return out.fail(kind, id, text),
    };
    match put {
        // The asker must not wait for ever for an answer that is too large to send.
        Err(error @ WireError::TooLong { .. }) => out.fail(kind, id, &error.to_string()),
        put => put,
    }
}

/// Starts what a frame of a control connection asks for.
fn control_answer(
    service: &Service,
    frame: Frame,
    sender: NodeId,
) -> Result<BoxFuture<'static, Answer>, WireError> {
    if frame.flags != 0 {
        return Err(WireError::Unexpected(frame.kind));
    }
    let port = service.raft.get().ok_or("not ready");
    fn answer<T: Send + 'static>(
        port: Result<Arc<dyn RaftPort>, &'static str>,
        ask: impl FnOnce(&dyn RaftPort) -> BoxFuture<'static, Result<T, PortError>>,
        encode: impl FnOnce(&mut Vec<u8>, T) + Send + 'static,
    ) -> BoxFuture<'static, Answer> {
        let asked = port.map(|port| ask(&*port));
        Box::pin(async move {
            let asked = match asked {
                Ok(asked) => asked.await,
                Err(text) => return Answer::Failed(text.to_owned()),
            };
            match asked {
                Ok(answer) => {
                    let mut body = Vec::new();
                    encode(&mut body, answer);
                    Answer::Body(body)
                }
                Err(error) => Answer::Failed(error.0),
            }
        })
    }
    Ok(match frame.kind {
        APPEND => {
            let request = read_append(frame.body, sender)?;
            let prev = request.prev_log_id;
            let last = request.entries.last().map(|entry| entry.log_id).or(prev);
            answer(
                port,
                |port| port.append(request),
                move |out, response| {
                    put_appended(out, &response.into_stream_result(prev, last));
                },
            )
        }
        VOTE => {
            let request = read_vote_request(frame.body, sender)?;
            answer(
                port,
                |port| port.vote(request),
                |out, response| {
                    put_vote_response(out, &response);
                },
            )
        }
        PRE_VOTE => {
            let request = read_vote_request(frame.body, sender)?;
            answer(
                port,
                |port| port.pre_vote(request),
                |out, response| {
                    put_vote_response(out, &response);
                },
            )
        }
        TRANSFER => {
            let request = read_transfer(frame.body, sender)?;
            answer(
                port,
                |port| port.transfer_leader(request),
                |out, response| {
                    put_transferred(out, &response);
                },
            )
        }
        kind => return Err(WireError::Unexpected(kind)),
    })
}
