//! The dialing side: openraft's network, and requests between nodes.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::link::{CallError, Exchange, Link, Live, body_of};
use super::message::{
    self, Message, entry_bytes, read_appended, read_transferred, read_vote_response,
};
use super::{ConnKind, Context, transfer};
use crate::doors;
use crate::raft::codec::Malformed;
use crate::raft::spool::SnapshotData;
use crate::raft::{LogId, Member, NodeId, Standing, TypeConfig, Vote};

/// Links that are kept without a user before unused ones are dropped: more than a cluster has
/// members.
const SPARE_LINKS_MAX: usize = 64;

/// How long the news that entries are committed waits for the next entries, with which it goes out
/// for nothing. By itself it costs each member as much as an entry does.
const NEWS_HELD: Duration = Duration::from_millis(2);

/// Links that several users share, by peer, address and purpose.
#[derive(Clone)]
struct Links {
    ctx: Arc<Context>,
    shared: Arc<Mutex<BTreeMap<(NodeId, String, ConnKind), Arc<Link>>>>,
}

impl Links {
    fn new(ctx: Arc<Context>) -> Self {
        Links {
            ctx,
            shared: Arc::new(Mutex::new(BTreeMap::new())),
        }
    }

    fn get(&self, kind: ConnKind, target: NodeId, addr: &str) -> Arc<Link> {
        let mut shared = self.shared.lock().expect("no panic while held");
        if shared.len() > SPARE_LINKS_MAX {
            shared.retain(|_, link| Arc::strong_count(link) > 1);
        }
        let key = (target, addr.to_owned(), kind);
        shared
            .entry(key)
            .or_insert_with(|| Link::new(self.ctx.clone(), kind, target, addr.to_owned()))
            .clone()
    }

    fn clear(&self) {
        self.shared.lock().expect("no panic while held").clear();
    }
}

/// Makes openraft's connections to the other members.
#[derive(Clone)]
pub struct Peers {
    links: Links,
    standing: Arc<Standing>,
}

impl Peers {
    /// Connections are made with what `ctx` says, and served on its runtime. What peers are told
    /// to be committed is noted in `standing` before.
    pub fn new(ctx: Arc<Context>, standing: Arc<Standing>) -> Self {
        Peers {
            links: Links::new(ctx),
            standing,
        }
    }

    fn conn(&self, purpose: Purpose, target: NodeId, member: &Member) -> PeerConn {
        let ctx = self.links.ctx.clone();
        let addr = &member.raft_addr;
        PeerConn {
            own: ctx.gate.identity().node,
            target,
            purpose,
            control: self.links.get(ConnKind::Control, target, addr),
            append: Link::new(ctx.clone(), ConnKind::Append, target, addr.clone()),
            standing: self.standing.clone(),
            ctx,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = PeerConn;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> PeerConn {
        self.conn(Purpose::Replication, target, node)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> PeerConn {
        self.conn(Purpose::Heartbeat, target, node)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> PeerConn {
        self.conn(Purpose::Snapshot, target, node)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Replication,
    Heartbeat,
    Snapshot,
}

/// openraft's way to one other member.
///
/// Control messages share one connection of the node to that member; appends have one for each
/// value of this type, made when first needed.
pub struct PeerConn {
    ctx: Arc<Context>,
    own: NodeId,
    target: NodeId,
    purpose: Purpose,
    control: Arc<Link>,
    append: Arc<Link>,
    standing: Arc<Standing>,
}

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error {
        // openraft waits before it tries these again.
        CallError::NotSent(_) | CallError::Refused(_) => Unreachable::from_string(error).into(),
        CallError::Lost(_) => NetworkError::from_string(error).into(),
    }
}

fn malformed(error: Malformed) -> RPCError<TypeConfig> {
    NetworkError::new(&error).into()
}

/// A peer that answers that it cannot: it starts, stops or has failed.
fn unable(text: String) -> RPCError<TypeConfig> {
    Unreachable::from_string(format!("peer: {text}")).into()
}

impl PeerConn {
    /// One small request and its answer, within the time that openraft allows.
    async fn control(
        &self,
        message: Message,
        action: RPCTypes,
        option: &RPCOption,
    ) -> RpcResult<Bytes> {
        let limit = option.soft_ttl();
        match timeout(limit, self.control.exchange(message)).await {
            Ok(answer) => body_of(answer.map_err(rpc_error)?).map_err(unable),
            Err(_) => {
                let (id, target) = (self.own, self.target);
                Err(Timeout {
                    action,
                    id,
                    target,
                    timeout: limit,
                }
                .into())
            }
        }
    }

    async fn append_once(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        option: &RPCOption,
    ) -> RpcResult<StreamAppendResult<TypeConfig>> {
        let (prev, last) = range_of(&request);
        note_committed(&self.standing, &request);
        let body = self
            .control(Message::Append(request), RPCTypes::AppendEntries, option)
            .await?;
        read_appended(body, prev.as_ref(), last.as_ref()).map_err(malformed)
    }
}

/// Notes what a peer is about to learn to be committed.
fn note_committed(standing: &Standing, request: &AppendEntriesRequest<TypeConfig>) {
    if let Some(id) = request.leader_commit {
        standing.note_committed(id);
    }
}

/// What an append builds on, and the last entry the peer has when it succeeded.
fn range_of(request: &AppendEntriesRequest<TypeConfig>) -> (Option<LogId>, Option<LogId>) {
    let prev = request.prev_log_id;
    (
        prev,
        request.entries.last().map(|entry| entry.log_id).or(prev),
    )
}

impl RaftNetworkV2<TypeConfig> for PeerConn {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        let (_, last) = range_of(&rpc);
        Ok(match self.append_once(rpc, &option).await? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.purpose == Purpose::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        let pipeline = Pipeline {
            link: self.append.clone(),
            wanted: self.standing.news_wanted(),
            standing: self.standing.clone(),
            live: None,
            input: Some(input),
            sent: None,
            held: None,
            in_flight: VecDeque::new(),
            bytes: 0,
            ended: false,
        };
        let (appends_max, bytes_max) = (
            self.ctx.limits.appends_in_flight_max,
            self.ctx.limits.append_bytes_in_flight_max,
        );
        let answers = stream::unfold(pipeline, move |mut pipeline| async move {
            let answer = pipeline.next(appends_max, bytes_max).await?;
            Some((answer, pipeline))
        });
        Box::pin(async move { Ok(Box::pin(answers) as BoxStream<'s, _>) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let body = self
            .control(Message::Vote(rpc), RPCTypes::Vote, &option)
            .await?;
        read_vote_response(body).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let body = self
            .control(Message::PreVote(rpc), RPCTypes::Vote, &option)
            .await?;
        read_vote_response(body).map_err(malformed)
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        let body = self
            .control(Message::Transfer(req), RPCTypes::TransferLeader, &option)
            .await?;
        read_transferred(body).map_err(malformed)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (ctx, target) = (self.ctx.clone(), self.target);
        let addr = self.append.addr();
        // Files are read on the runtime for connections, not on the one that calls.
        let (outcome, answer) = oneshot::channel();
        let task = {
            let _io = self.ctx.io.enter();
            doors::spawn(async move {
                let sent = transfer::send(&ctx, target, &addr, vote, snapshot).await;
                let _ = outcome.send(sent);
            })
        };
        // However this future ends, the transfer does not outlive it.
        let _abort = AbortOnDrop(task.abort_handle());
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            answer = answer => match answer {
                Ok(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
                Ok(Err(error)) => Err(rpc_error(error).into()),
                Err(_) => Err(NetworkError::from_string("snapshot task ended").into()),
            },
        }
    }
}

/// Ends a task with whoever waits for it.
pub(super) struct AbortOnDrop(pub(super) tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Appends on their way to one peer, over one connection, answered in order.
struct Pipeline<S> {
    link: Arc<Link>,
    standing: Arc<Standing>,
    /// Somebody at a peer waits for news.
    wanted: watch::Receiver<()>,
    live: Option<Arc<Live>>,
    input: Option<S>,
    /// The last entry that was sent.
    sent: Option<LogId>,
    /// News of what is committed, and until when it waits. Where more entries come before that, it
    /// is theirs, and so is its answer.
    held: Option<(AppendEntriesRequest<TypeConfig>, Instant)>,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    ended: bool,
}

struct InFlight {
    exchange: Exchange,
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// Sends what comes, within the limits, until the next answer is there.
    async fn next(
        &mut self,
        appends_max: usize,
        bytes_max: usize,
    ) -> Option<RpcResult<StreamAppendResult<TypeConfig>>> {
        while !self.ended {
            let room = self.in_flight.len() < appends_max
                && (self.in_flight.is_empty() || self.bytes < bytes_max);
            let Pipeline {
                input,
                in_flight,
                held,
                wanted,
                ..
            } = &mut *self;
            let until = held.as_ref().map(|(_, until)| *until);
            let event = tokio::select! {
                biased;
                answer = async { in_flight.front_mut().expect("checked").exchange.answer().await },
                    if !in_flight.is_empty() => Event::Answer(answer),
                request = async { input.as_mut().expect("checked").next().await },
                    if room && input.is_some() => Event::Input(request),
                () = async { sleep_until(until.expect("checked")).await },
                    if room && until.is_some() => Event::News,
                Ok(()) = wanted.changed(), if room && until.is_some() => Event::News,
                else => return None,
            };
            let request = match event {
                Event::Input(Some(request)) => {
                    let follows = |last: LogId| request.prev_log_id == Some(last);
                    if request.entries.is_empty() && self.sent.is_some_and(follows) {
                        let until = until.unwrap_or_else(|| Instant::now() + NEWS_HELD);
                        if self.held.is_none() {
                            self.wanted.mark_unchanged();
                        }
                        self.held = Some((request, until));
                        continue;
                    }
                    // It says all that was held.
                    self.held = None;
                    request
                }
                Event::Input(None) => {
                    self.input = None;
                    match self.held.take() {
                        Some((news, _)) => news,
                        None => continue,
                    }
                }
                Event::News => self.held.take().expect("waited for").0,
                Event::Answer(answer) => {
                    let sent = self.in_flight.pop_front().expect("its answer is here");
                    self.bytes -= sent.bytes;
                    let result = answer.map_err(rpc_error).and_then(|frame| {
                        let body = body_of(frame).map_err(unable)?;
                        read_appended(body, sent.prev.as_ref(), sent.last.as_ref())
                            .map_err(malformed)
                    });
                    // After a failure, or entries that were not all taken, openraft begins anew
                    // from where the peer is.
                    self.ended = !matches!(&result, Ok(Ok(matched)) if *matched == sent.last);
                    return Some(result);
                }
            };
            if let Err(error) = self.send(request).await {
                self.ended = true;
                return Some(Err(rpc_error(error)));
            }
        }
        None
    }

    async fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), CallError> {
        let (prev, last) = range_of(&request);
        let bytes = request.entries.iter().map(entry_bytes).sum();
        let live = match &self.live {
            // While something is on its way nothing may overtake it on another connection.
            Some(live) if !self.in_flight.is_empty() || !live.is_dead() => live.clone(),
            _ => self.link.live().await?,
        };
        let entries = !request.entries.is_empty();
        note_committed(&self.standing, &request);
        let exchange = live.send(Message::Append(request))?;
        self.live = Some(live);
        if entries {
            self.sent = last;
        }
        self.bytes += bytes;
        self.in_flight.push_back(InFlight {
            exchange,
            prev,
            last,
            bytes,
        });
        Ok(())
    }
}

enum Event {
    Answer(Result<super::frame::Frame, CallError>),
    Input(Option<AppendEntriesRequest<TypeConfig>>),
    News,
}

impl<S> Drop for Pipeline<S> {
    fn drop(&mut self) {
        // The next pipeline must not meet the rest of this one at the peer.
        if !self.in_flight.is_empty()
            && let Some(live) = &self.live
        {
            live.kill("append stream ended early");
        }
    }
}

/// Sends requests that only nodes understand, and waits for the answers.
#[derive(Clone)]
pub struct RequestClient {
    links: Links,
}

impl RequestClient {
    /// Connections are made with what `ctx` says, and served on its runtime.
    pub fn new(ctx: Arc<Context>) -> Self {
        RequestClient {
            links: Links::new(ctx),
        }
    }

    /// Asks the node `target` (0: whoever is there) at `addr`. Requests to one peer share a
    /// connection and are not kept in order.
    ///
    /// # Errors
    ///
    /// [`CallError::NotSent`]: the peer has not seen the request. [`CallError::Lost`]: it may have
    /// carried it out. [`CallError::Refused`]: it was not sent either.
    pub async fn call(
        &self,
        target: NodeId,
        addr: &str,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let late = tokio::time::Instant::now() + deadline;
        let link = self.links.get(ConnKind::Request, target, addr);
        let live = match tokio::time::timeout_at(late, link.live()).await {
            Ok(live) => live?,
            Err(_) => return Err(CallError::NotSent("no connection in time".to_owned())),
        };
        let mut exchange = live.send(Message::Call(request))?;
        let answer = match tokio::time::timeout_at(late, exchange.answer()).await {
            Ok(answer) => answer,
            Err(_) => exchange.abandon("no answer in time"),
        };
        let frame = answer?;
        if frame.kind != message::CALL {
            return Err(CallError::Lost("answer of another kind".to_owned()));
        }
        body_of(frame).map_err(CallError::Lost)
    }

    /// For how long there has been a connection to `target` at `addr`; none when there is none.
    pub fn connected_for(&self, target: NodeId, addr: &str) -> Option<Duration> {
        let shared = self.links.shared.lock().expect("no panic while held");
        let key = (target, addr.to_owned(), ConnKind::Request);
        shared.get(&key)?.age()
    }

    /// Drops all connections; the next call makes new ones. For a node that changed its identity.
    pub fn disconnect(&self) {
        self.links.clear();
    }
}
