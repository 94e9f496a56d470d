//! Two endpoints in one process, over loopback TCP and over a network in memory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use openraft::base::BoxStream;
use openraft::errors::{ClientWriteError, RPCError, RaftError};
use openraft::network::RPCOption;
use openraft::raft::*;
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, RaftNetworkFactory as _, RaftNetworkV2 as _};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::frame::{Burst, FrameReader, HEAD_BYTES, parse};
use super::*;
use crate::doors::{self, BoxFuture, Listener, Random, Stream};
use crate::incarnation::Incarnations;
use crate::net::Tcp;
use crate::raft::log::Hold;
use crate::raft::spool::{
    SnapshotData, SnapshotMeta, SnapshotSink, SnapshotSource, Spool, SpoolWriter,
};
use crate::raft::{Entry, Member, NodeId, Proposal, Standing, TypeConfig, Vote, log_id};

const CLIENT: NodeId = 7;
const SERVER: NodeId = 9;
const PATIENCE: Duration = Duration::from_secs(20);

/// Connections within the process, with the same faults as a socket: an end that goes is seen.
#[derive(Default)]
struct MemoryNet {
    listeners: Mutex<HashMap<String, mpsc::UnboundedSender<Stream>>>,
    next: AtomicUsize,
}

struct MemoryListener(String, mpsc::UnboundedReceiver<Stream>);

impl Listener for MemoryListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async {
            let stream = self.1.recv().await.ok_or(io::ErrorKind::BrokenPipe)?;
            Ok((stream, "memory".to_owned()))
        })
    }

    fn local_addr(&self) -> String {
        self.0.clone()
    }
}

impl Net for MemoryNet {
    fn bind<'a>(&'a self, _addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let addr = format!("memory:{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap().insert(addr.clone(), sender);
        let listener: Box<dyn Listener> = Box::new(MemoryListener(addr, receiver));
        Box::pin(async { Ok(listener) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let listeners = self.listeners.lock().unwrap();
        let sent = listeners
            .get(addr)
            .is_some_and(|to| to.send(Box::new(theirs)).is_ok());
        Box::pin(async move {
            match sent {
                true => Ok(Box::new(ours) as Stream),
                false => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

struct TestGate(Identity);

impl Gate for TestGate {
    fn identity(&self) -> Identity {
        self.0.clone()
    }
}

fn identity(node: NodeId, cluster: u128) -> Identity {
    let name = format!("node{node}");
    Identity {
        cluster,
        node,
        incarnations: Incarnations::default(),
        name,
        addr: "here:1".to_owned(),
        feature_level: 1,
    }
}

fn limits() -> Limits {
    Limits {
        frame_bytes_max: 8 * 1024 * 1024,
        keepalive: Duration::from_millis(50),
        silence: Duration::from_millis(400),
        ..Limits::default()
    }
}

fn context(net: &Arc<dyn Net>, who: Identity) -> Context {
    Context {
        net: net.clone(),
        gate: Arc::new(TestGate(who)),
        auth: Arc::new(NoAuth),
        limits: limits(),
        io: Handle::current(),
        raft: Handle::current(),
        workers: Arc::new(doors::Threads),
    }
}

/// A Raft that says yes, and remembers.
#[derive(Default)]
struct FakeRaft {
    appended: Mutex<Vec<u64>>,
    /// What each append says is committed.
    committed: Mutex<Vec<Option<u64>>>,
    /// Appends of entries from this index on conflict; 0: none does.
    conflict_from: AtomicUsize,
    /// Appends are not answered.
    mute: AtomicBool,
    installed: Mutex<Vec<(SnapshotMeta, Vec<u8>)>>,
}

#[derive(Clone, Default)]
struct FakePort(Arc<FakeRaft>);

impl RaftPort for FakePort {
    fn stream_append(
        &self,
        requests: BoxStream<'static, AppendEntriesRequest<TypeConfig>>,
    ) -> BoxStream<'static, Result<StreamAppendResult<TypeConfig>, PortError>> {
        let fake = self.0.clone();
        requests
            .then(move |request| {
                let fake = fake.clone();
                async move {
                    if fake.mute.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                    let conflict_from = fake.conflict_from.load(Ordering::Relaxed) as u64;
                    let prev = request.prev_log_id;
                    if conflict_from > 0
                        && let Some(prev) = prev
                        && prev.index >= conflict_from
                    {
                        return Ok(Err(StreamAppendError::Conflict(prev)));
                    }
                    let committed = request.leader_commit.map(|id| id.index);
                    fake.committed.lock().unwrap().push(committed);
                    let mut appended = fake.appended.lock().unwrap();
                    appended.extend(request.entries.iter().map(|entry| entry.log_id.index));
                    Ok(Ok(request
                        .entries
                        .last()
                        .map(|entry| entry.log_id)
                        .or(prev)))
                }
            })
            .boxed()
    }

    fn append(
        &self,
        _request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, PortError>> {
        if self.0.mute.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(AppendEntriesResponse::Success) })
    }

    fn vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>> {
        Box::pin(async move { Ok(VoteResponse::new(request.vote, Some(log_id(1, 5)), true)) })
    }

    fn pre_vote(
        &self,
        request: VoteRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<VoteResponse<TypeConfig>, PortError>> {
        Box::pin(async move { Ok(VoteResponse::new(request.vote, None, false)) })
    }

    fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'static, Result<TransferLeaderResponse<TypeConfig>, PortError>> {
        let (expected, actual) = (request.last_log_id().copied(), None);
        Box::pin(async move { Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual })) })
    }

    fn install(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
    ) -> BoxFuture<'static, Result<Vote, PortError>> {
        let SnapshotData::Spool(spool) = snapshot.snapshot else {
            panic!("received as a file")
        };
        let bytes = std::fs::read(&spool.path).unwrap();
        self.0
            .installed
            .lock()
            .unwrap()
            .push((snapshot.meta, bytes));
        Box::pin(async move { Ok(vote) })
    }
}

/// Echoes; `hang` is not answered before it is told to.
#[derive(Default)]
struct Echo {
    calls: AtomicUsize,
    asked: Notify,
    release: Notify,
}

struct EchoHandler(Arc<Echo>);

impl RequestHandler for EchoHandler {
    fn handle(&self, from: PeerIdentity, request: Bytes) -> BoxFuture<'static, Bytes> {
        assert_eq!(from.node, CLIENT);
        let echo = self.0.clone();
        echo.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if &request[..] == b"hang" {
                echo.asked.notify_one();
                echo.release.notified().await;
            }
            request
        })
    }
}

struct Sink {
    dir: PathBuf,
    files: AtomicUsize,
    /// How long verifying takes.
    slow: Duration,
}

impl Sink {
    fn new(dir: PathBuf) -> Self {
        Sink {
            dir,
            files: AtomicUsize::new(0),
            slow: Duration::ZERO,
        }
    }
}

struct Writer {
    path: PathBuf,
    bytes: Vec<u8>,
    slow: Duration,
}

impl SnapshotSink for Sink {
    fn begin(&self, _meta: &SnapshotMeta) -> io::Result<Box<dyn SpoolWriter>> {
        let name = format!("in-{}", self.files.fetch_add(1, Ordering::Relaxed));
        Ok(Box::new(Writer {
            path: self.dir.join(name),
            bytes: Vec::new(),
            slow: self.slow,
        }))
    }
}

impl SpoolWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<Spool> {
        // Nobody sends: this is the time that a large file takes.
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(self.slow);
        std::fs::write(&self.path, &self.bytes)?;
        Ok(Spool::temporary(self.path, self.bytes.len() as u64))
    }
}

struct World {
    net: Arc<dyn Net>,
    addr: String,
    service: Arc<Service>,
    raft: RaftSlot,
    fake: Arc<FakeRaft>,
    echo: Arc<Echo>,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new(net: Arc<dyn Net>) -> Self {
        Self::with(net, |_| {}).await
    }

    async fn with(net: Arc<dyn Net>, change: impl FnOnce(&mut Context)) -> Self {
        Self::build(net, change, Duration::ZERO).await
    }

    /// One whose snapshots take this long to verify.
    async fn slow(net: Arc<dyn Net>, slow: Duration) -> Self {
        Self::build(net, |_| {}, slow).await
    }

    async fn build(net: Arc<dyn Net>, change: impl FnOnce(&mut Context), slow: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ctx = context(&net, identity(SERVER, 1));
        change(&mut ctx);
        let (port, echo, raft) = (
            FakePort::default(),
            Arc::<Echo>::default(),
            RaftSlot::default(),
        );
        raft.set(Some(Arc::new(port.clone())));
        let service = Service::new(
            Arc::new(ctx),
            raft.clone(),
            Arc::new(EchoHandler(echo.clone())),
            Arc::new(Sink {
                slow,
                ..Sink::new(dir.path().to_owned())
            }),
        );
        let listener = net.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = doors::spawn(serve(service.clone(), listener, stopped.map(|_| ())));
        World {
            net,
            addr,
            service,
            raft,
            fake: port.0,
            echo,
            dir,
            stop: Some(stop),
            served,
        }
    }

    fn client(&self) -> Arc<Context> {
        Arc::new(context(&self.net, identity(CLIENT, 1)))
    }

    fn member(&self) -> Member {
        Member {
            raft_addr: self.addr.clone(),
            ..Member::default()
        }
    }

    async fn peer(&self) -> PeerConn {
        Peers::new(self.client(), Arc::default())
            .new_client(SERVER, &self.member())
            .await
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(PATIENCE, self.served).await.unwrap().unwrap();
    }
}

fn nets() -> [Arc<dyn Net>; 2] {
    [Arc::new(Tcp), Arc::new(MemoryNet::default())]
}

fn option() -> RPCOption {
    RPCOption::new(PATIENCE)
}

fn append(from: u64, count: u64, bytes: usize) -> AppendEntriesRequest<TypeConfig> {
    let entry = |index| Entry {
        log_id: log_id(2, index),
        payload: EntryPayload::Normal(Proposal::new(vec![index as u8; bytes].into())),
    };
    AppendEntriesRequest {
        vote: Vote::new_committed(2, CLIENT),
        prev_log_id: from.checked_sub(1).map(|index| log_id(2, index)),
        entries: (from..from + count).map(entry).collect(),
        leader_commit: None,
    }
}

#[tokio::test]
async fn votes_heartbeats_and_transfers_are_answered() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        let request = VoteRequest::new(Vote::new(3, CLIENT), Some(log_id(1, 4)));
        let vote = peer.vote(request.clone(), option()).await.unwrap();
        assert_eq!(
            vote,
            VoteResponse::new(request.vote, Some(log_id(1, 5)), true)
        );
        let vote = peer.pre_vote(request.clone(), option()).await.unwrap();
        assert!(!vote.vote_granted);
        let transfer =
            TransferLeaderRequest::new(Vote::new_committed(2, CLIENT), SERVER, Some(log_id(2, 8)));
        assert!(matches!(
            peer.transfer_leader(transfer, option()).await.unwrap(),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(id), actual: None })
                if id == log_id(2, 8)
        ));
        let mut heart = Peers::new(world.client(), Arc::default())
            .new_heartbeat_client(SERVER, &world.member())
            .await;
        let beat = stream::iter([append(5, 0, 0)]);
        let answers: Vec<_> = heart
            .stream_append(beat, option())
            .await
            .unwrap()
            .collect()
            .await;
        assert!(
            matches!(&answers[..], [Ok(Ok(Some(id)))] if *id == log_id(2, 4)),
            "{answers:?}"
        );

        world.raft.set(None);
        let error = peer.vote(request, option()).await.unwrap_err();
        assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
        world.stop().await;
    }
}

#[tokio::test]
async fn pipelined_appends_keep_their_order_and_match_their_answers() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        let (count, each) = (500, 3);
        // Small ones, and some that are written from where they are.
        let bytes = |i: u64| if i.is_multiple_of(50) { 300_000 } else { 20 };
        let requests: Vec<_> = (0..count)
            .map(|i| append(i * each, each, bytes(i)))
            .collect();
        let answers = peer
            .stream_append(stream::iter(requests), option())
            .await
            .unwrap();
        let matched: Vec<_> = timeout(PATIENCE, answers.map(|a| a.unwrap().unwrap()).collect())
            .await
            .unwrap();
        let right: Vec<_> = (1..=count).map(|i| Some(log_id(2, i * each - 1))).collect();
        assert_eq!(matched, right);
        assert_eq!(
            *world.fake.appended.lock().unwrap(),
            Vec::from_iter(0..count * each)
        );
        // The connection is still good for another stream.
        let again = stream::iter([append(count * each, 1, 1)]);
        let answers: Vec<_> = peer
            .stream_append(again, option())
            .await
            .unwrap()
            .collect()
            .await;
        assert!(matches!(&answers[..], [Ok(Ok(_))]));
        world.stop().await;
    }
}

/// An append without entries behind the entry `last`: everything up to there is committed.
fn news(last: u64) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        prev_log_id: Some(log_id(2, last)),
        leader_commit: Some(log_id(2, last)),
        ..append(last + 1, 0, 0)
    }
}

#[tokio::test]
async fn news_of_what_is_committed_goes_out_with_the_next_entries() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        let mut second = append(1, 1, 8);
        second.leader_commit = Some(log_id(2, 0));
        let requests = stream::iter([append(0, 1, 8), news(0), second]);
        let answers = peer.stream_append(requests, option()).await.unwrap();
        let answers: Vec<_> = timeout(PATIENCE, answers.collect()).await.unwrap();
        assert!(
            matches!(&answers[..], [Ok(Ok(_)), Ok(Ok(_))]),
            "{answers:?}"
        );
        assert_eq!(*world.fake.appended.lock().unwrap(), [0, 1]);
        assert_eq!(world.fake.committed.lock().unwrap()[1..], [Some(0)]);
        world.stop().await;
    }
}

#[tokio::test]
async fn news_of_what_is_committed_goes_out_by_itself_where_no_entries_come() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        let requests = stream::iter([append(0, 1, 8), news(0)]).chain(stream::pending());
        let answers = peer.stream_append(requests, option()).await.unwrap();
        let answers: Vec<_> = timeout(PATIENCE, answers.take(2).collect()).await.unwrap();
        assert!(
            matches!(&answers[..], [Ok(Ok(_)), Ok(Ok(_))]),
            "{answers:?}"
        );
        assert_eq!(world.fake.committed.lock().unwrap()[1..], [Some(0)]);
        // At the end of a stream nothing is kept back.
        let requests = stream::iter([append(1, 1, 8), news(1)]);
        let answers = peer.stream_append(requests, option()).await.unwrap();
        let answers: Vec<_> = timeout(PATIENCE, answers.collect()).await.unwrap();
        assert!(
            matches!(&answers[..], [Ok(Ok(_)), Ok(Ok(_))]),
            "{answers:?}"
        );
        assert_eq!(world.fake.committed.lock().unwrap()[3..], [Some(1)]);
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn news_of_what_is_committed_goes_out_at_once_where_a_reader_waits_for_it() {
    let world = World::new(Arc::new(MemoryNet::default())).await;
    let standing = Arc::new(Standing::default());
    let mut peer = Peers::new(world.client(), standing.clone())
        .new_client(SERVER, &world.member())
        .await;
    let requests = stream::iter([append(0, 1, 8), news(0)]).chain(stream::pending());
    let mut answers = peer.stream_append(requests, option()).await.unwrap();
    answers.next().await.unwrap().unwrap().unwrap();
    let began = Instant::now();
    {
        let mut news = std::pin::pin!(answers.next());
        assert!(news.as_mut().now_or_never().is_none(), "it is held");
        assert!(standing.committed_in(2).is_none());
        standing.want_news();
        news.await.unwrap().unwrap().unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Whoever is asked for a reader's sake knew it before the peer.
    assert_eq!(standing.committed_in(2), Some(log_id(2, 0)));
    drop(answers);
    world.stop().await;
}

#[tokio::test]
async fn conflict_ends_the_stream_and_the_next_one_works() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        world.fake.conflict_from.store(5, Ordering::Relaxed);
        let requests = stream::iter((0..40).map(|i| append(i, 1, 8)));
        let answers: Vec<_> = peer
            .stream_append(requests, option())
            .await
            .unwrap()
            .collect()
            .await;
        assert_eq!(answers.len(), 7, "{answers:?}");
        assert!(matches!(
            answers.last(),
            Some(Ok(Err(StreamAppendError::Conflict(id)))) if *id == log_id(2, 5)
        ));
        world.fake.conflict_from.store(0, Ordering::Relaxed);
        let again = stream::iter((6..10).map(|i| append(i, 1, 8)));
        let answers: Vec<_> = peer
            .stream_append(again, option())
            .await
            .unwrap()
            .collect()
            .await;
        assert!(answers.len() == 4 && answers.iter().all(|a| matches!(a, Ok(Ok(_)))));
        world.stop().await;
    }
}

#[tokio::test]
async fn connection_lost_in_mid_pipeline_ends_the_stream_with_an_error() {
    for net in nets() {
        let world = World::new(net).await;
        let mut peer = world.peer().await;
        world.fake.mute.store(true, Ordering::Relaxed);
        let requests = stream::iter((0..10).map(|i| append(i, 1, 8))).chain(stream::pending());
        let mut answers = peer.stream_append(requests, option()).await.unwrap();
        // A mute Raft is waited for, longer than a silent peer would be.
        assert!(timeout(limits().silence * 2, answers.next()).await.is_err());
        world.service.disconnect();
        let answer = timeout(PATIENCE, answers.next()).await.unwrap();
        assert!(
            matches!(answer, Some(Err(RPCError::Network(_)))),
            "{answer:?}"
        );
        assert!(answers.next().await.is_none());
        drop(answers);
        world.stop().await;
    }
}

#[tokio::test]
async fn appends_meet_the_raft_that_is_there_and_wait_while_there_is_none() {
    let world = World::new(Arc::new(MemoryNet::default())).await;
    let mut peer = world.peer().await;
    let mut ask = async |from| {
        let requests = stream::iter([append(from, 1, 8)]);
        let mut answers = peer.stream_append(requests, option()).await.unwrap();
        answers.next().await.unwrap()
    };
    assert!(ask(0).await.unwrap().is_ok());
    world.raft.set(None);
    world.service.disconnect();
    // The first may still meet the connection that is being closed.
    while !matches!(ask(1).await, Err(RPCError::Unreachable(_))) {}
    let other = FakePort::default();
    world.raft.set(Some(Arc::new(other.clone())));
    assert!(ask(1).await.unwrap().is_ok());
    assert_eq!(*other.0.appended.lock().unwrap(), [1]);
    assert_eq!(*world.fake.appended.lock().unwrap(), [0]);
    world.stop().await;
}

#[tokio::test]
async fn unused_connection_is_closed_and_made_again() {
    for net in nets() {
        let world = World::new(net).await;
        let mut ctx = context(&world.net, identity(CLIENT, 1));
        ctx.limits.idle = Duration::from_millis(100);
        let client = RequestClient::new(Arc::new(ctx));
        for _ in 0..3 {
            let call = client.call(SERVER, &world.addr, Bytes::from_static(b"x"), PATIENCE);
            assert_eq!(call.await.unwrap(), "x");
            let closed = async {
                while world.service.connections() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, closed).await.expect("closed as idle");
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn silent_peer_is_given_up_although_each_caller_gives_up_sooner() {
    // A listener that shakes hands and then says nothing, as behind a partition.
    let net: Arc<dyn Net> = Arc::new(MemoryNet::default());
    let mut listener = net.bind("").await.unwrap();
    let addr = listener.local_addr();
    let ctx = context(&net, identity(SERVER, 1));
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let mute = doors::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            kept.push(handshake::accept(&ctx, stream).await.unwrap());
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let ctx = Arc::new(context(&net, identity(CLIENT, 1)));
    let member = Member {
        raft_addr: addr,
        ..Member::default()
    };
    let mut peer = Peers::new(ctx, Arc::default())
        .new_client(SERVER, &member)
        .await;
    let again = async {
        while accepted.load(Ordering::Relaxed) < 2 {
            let option = RPCOption::new(Duration::from_millis(40));
            let request = VoteRequest::new(Vote::new(3, CLIENT), None);
            peer.vote(request, option).await.unwrap_err();
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("the silent connection was replaced");
    mute.abort();
}

#[tokio::test]
async fn requests_share_a_connection_and_do_not_wait_for_each_other() {
    for net in nets() {
        let world = World::new(net).await;
        let client = RequestClient::new(world.client());
        let call = |body: Bytes| client.call(SERVER, &world.addr, body, PATIENCE);
        let hang = call(Bytes::from_static(b"hang"));
        let others = async {
            world.echo.asked.notified().await;
            for len in [0, 1, 5_000, 3_000_000] {
                let body = Bytes::from(vec![7; len]);
                assert_eq!(call(body.clone()).await, Ok(body));
            }
            world.echo.release.notify_one();
        };
        let (hung, ()) = tokio::join!(hang, others);
        assert_eq!(hung.unwrap(), "hang");
        // Too long for a frame: never sent, and the connection goes on.
        let long = call(Bytes::from(vec![0; limits().frame_bytes_max])).await;
        assert!(matches!(long, Err(CallError::NotSent(_))), "{long:?}");
        assert_eq!(call(Bytes::from_static(b"x")).await.unwrap(), "x");
        world.stop().await;
    }
}

#[tokio::test]
async fn call_is_lost_when_its_peer_dies_and_not_sent_without_a_connection() {
    for net in nets() {
        let world = World::new(net).await;
        let client = RequestClient::new(world.client());
        let call = client.call(SERVER, &world.addr, Bytes::from_static(b"hang"), PATIENCE);
        let die = async {
            world.echo.asked.notified().await;
            world.service.disconnect();
        };
        let (lost, ()) = tokio::join!(call, die);
        assert!(matches!(lost, Err(CallError::Lost(_))), "{lost:?}");
        let hang = Bytes::from_static(b"hang");
        let late = client
            .call(SERVER, &world.addr, hang, Duration::from_millis(300))
            .await;
        assert!(matches!(late, Err(CallError::Lost(_))), "{late:?}");
        let addr = world.addr.clone();
        world.stop().await;
        client.disconnect();
        let gone = client.call(SERVER, &addr, Bytes::new(), PATIENCE).await;
        assert!(matches!(gone, Err(CallError::NotSent(_))), "{gone:?}");
    }
}

async fn refusal(world: &World, ctx: Context, target: NodeId) -> RefusalCode {
    let client = RequestClient::new(Arc::new(ctx));
    match client
        .call(target, &world.addr, Bytes::new(), PATIENCE)
        .await
    {
        Err(CallError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn wrong_cluster_target_and_secret_are_refused() {
    for net in nets() {
        let secret = |s: &[u8]| Arc::new(Secret::new(s, Random::from_seed(1))) as Arc<dyn Auth>;
        let world = World::with(net, |ctx| ctx.auth = secret(b"sesame")).await;
        let ctx = |cluster, auth: Arc<dyn Auth>| {
            let mut ctx = context(&world.net, identity(CLIENT, cluster));
            ctx.auth = auth;
            ctx
        };
        assert_eq!(
            refusal(&world, ctx(2, secret(b"sesame")), SERVER).await,
            RefusalCode::Cluster
        );
        assert_eq!(
            refusal(&world, ctx(1, secret(b"sesame")), 55).await,
            RefusalCode::Target
        );
        assert_eq!(
            refusal(&world, ctx(1, secret(b"guess")), SERVER).await,
            RefusalCode::Auth
        );
        assert_eq!(
            refusal(&world, ctx(1, Arc::new(NoAuth)), SERVER).await,
            RefusalCode::Auth
        );
        // First contact: neither the cluster nor the target is known.
        let client = RequestClient::new(Arc::new(ctx(0, secret(b"sesame"))));
        let met = client
            .call(0, &world.addr, Bytes::from_static(b"hello"), PATIENCE)
            .await;
        assert_eq!(met.unwrap(), "hello");
        world.stop().await;
    }
}

/// What the acceptor answers to raw bytes, until it closes.
async fn answer_to(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut stream = world.net.connect(&world.addr).await.unwrap();
    // It may hang up while more is being sent.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("it hangs up");
    answer
}

fn hello_frame(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = b"KVDRAFT\0\x02\0\x03".to_vec();
    body.extend_from_slice(&[0; 12]);
    // Cluster and node; no starts; feature level; no name, address and nonce.
    body.extend_from_slice(&[1; 24]);
    body.extend_from_slice(&[0; 10]);
    body.extend_from_slice(&[1; 4]);
    body.extend_from_slice(&[0; 8]);
    change(&mut body);
    let mut burst = Burst::default();
    burst
        .frame(1, 0, 0, 0, 1 << 20, |out| {
            out.own().extend_from_slice(&body)
        })
        .unwrap();
    burst.to_vec()
}

#[tokio::test]
async fn wrong_magic_and_version_are_told_and_long_frames_are_cut_off() {
    for net in nets() {
        let world = World::new(net).await;
        let code = |answer: &[u8]| answer.get(8).map(|kind| (*kind, answer[HEAD_BYTES]));
        let refused = 5;
        let answer = answer_to(&world, &hello_frame(|body| body[0] = b'k')).await;
        assert_eq!(code(&answer), Some((refused, RefusalCode::Magic as u8)));
        let answer = answer_to(&world, &hello_frame(|body| body[8] = 1)).await;
        assert_eq!(code(&answer), Some((refused, RefusalCode::Version as u8)));
        // A challenge: this one was right.
        let answer = answer_to(&world, &hello_frame(|_| {})).await;
        assert_eq!(answer.get(8), Some(&2));
        let long = hello_frame(|body| body.resize(HANDSHAKE_FRAME_BYTES_MAX, 0));
        assert!(answer_to(&world, &long).await.is_empty());
        assert!(answer_to(&world, b"PING\r\nPING\r\n").await.is_empty());
        world.stop().await;
    }
}

/// What both sides of one connection said: the dialer first.
type Said = (Vec<u8>, Vec<u8>);

/// Passes one connection on to `to`, and notes what is said on it.
async fn overhear(net: Arc<dyn Net>, to: String, said: oneshot::Sender<Said>) -> String {
    let mut listener = net.bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr();
    doors::spawn(async move {
        let (mut dialer, _) = listener.accept().await.unwrap();
        let mut acceptor = net.connect(&to).await.unwrap();
        let mut heard = Said::default();
        let (mut a, mut b) = (vec![0; 4096], vec![0; 4096]);
        loop {
            let done = tokio::select! {
                read = dialer.read(&mut a) => {
                    let count = read.unwrap_or(0);
                    heard.0.extend_from_slice(&a[..count]);
                    count == 0 || acceptor.write_all(&a[..count]).await.is_err()
                }
                read = acceptor.read(&mut b) => {
                    let count = read.unwrap_or(0);
                    heard.1.extend_from_slice(&b[..count]);
                    count == 0 || dialer.write_all(&b[..count]).await.is_err()
                }
            };
            if done {
                break;
            }
        }
        said.send(heard).unwrap();
    });
    addr
}

#[tokio::test]
async fn a_handshake_that_was_overheard_and_is_sent_again_is_refused_on_both_sides() {
    for net in nets() {
        let sesame = || Arc::new(Secret::new(b"sesame", Random::from_os())) as Arc<dyn Auth>;
        let world = World::with(net.clone(), |ctx| ctx.auth = sesame()).await;
        let (said, heard) = oneshot::channel();
        let proxy = overhear(net.clone(), world.addr.clone(), said).await;
        let dialer = || {
            let mut ctx = context(&net, identity(CLIENT, 1));
            ctx.auth = sesame();
            RequestClient::new(Arc::new(ctx))
        };
        let client = dialer();
        let request = Bytes::from_static(b"once");
        let answer = client.call(SERVER, &proxy, request.clone(), PATIENCE).await;
        assert_eq!(answer.unwrap(), "once");
        let calls = world.echo.calls.load(Ordering::SeqCst);
        drop(client);
        let (dialer_said, acceptor_said) = timeout(PATIENCE, heard).await.unwrap().unwrap();

        // The dialer's part, request and all.
        let answer = answer_to(&world, &dialer_said).await;
        let mut frames = bytes::BytesMut::from(&answer[..]);
        let next = |frames: &mut bytes::BytesMut| parse(frames, 1 << 20).unwrap();
        assert_eq!(next(&mut frames).map(|frame| frame.kind), Some(2));
        let refused = next(&mut frames).unwrap();
        assert_eq!(
            (refused.kind, refused.body[0]),
            (5, RefusalCode::Auth as u8)
        );
        assert!(next(&mut frames).is_none());
        assert_eq!(world.echo.calls.load(Ordering::SeqCst), calls);

        // The acceptor's part.
        let mut listener = net.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        let replaying = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&acceptor_said).await.unwrap();
            // Whatever the dialer still says goes nowhere.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let client = dialer();
        let call = client.call(SERVER, &addr, request, PATIENCE);
        let (answer, ()) = tokio::join!(call, replaying);
        match answer {
            Err(CallError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Auth),
            other => panic!("not refused: {other:?}"),
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let world = World::new(Arc::new(MemoryNet::default())).await;
    let mut random = StdRng::seed_from_u64(11);
    let good = hello_frame(|_| {});
    for _ in 0..300 {
        let mut bytes = match random.next_u32() % 2 {
            0 => good.clone(),
            _ => (0..random.next_u32() % 600)
                .map(|_| random.next_u32() as u8)
                .collect(),
        };
        if !bytes.is_empty() {
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] ^= 1 << (random.next_u32() % 8);
        }
        answer_to(&world, &bytes).await;
    }
    let client = RequestClient::new(world.client());
    let alive = client
        .call(SERVER, &world.addr, Bytes::from_static(b"x"), PATIENCE)
        .await;
    assert_eq!(alive.unwrap(), "x");
    world.stop().await;
}

#[test]
fn damaged_messages_are_refused_without_a_panic() {
    let mut burst = Burst::default();
    let request = append(0, 3, 40);
    burst
        .frame(16, 0, 0, 1, 1 << 20, |out| {
            message::put_append(out, &request)
        })
        .unwrap();
    let good = burst.to_vec();
    fuzz_frames(&good);
    let mut random = StdRng::seed_from_u64(12);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.next_u32() % 3 {
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] = random.next_u32() as u8;
        }
        bytes.truncate(random.next_u32() as usize % (bytes.len() + 1));
        fuzz_frames(&bytes);
    }
}

#[test]
fn entries_that_do_not_follow_or_come_from_another_are_refused() {
    let encode = |request: &AppendEntriesRequest<TypeConfig>| {
        let mut burst = Burst::default();
        burst
            .frame(16, 0, 0, 1, 1 << 20, |out| {
                message::put_append(out, request)
            })
            .unwrap();
        Bytes::from(burst.to_vec()).slice(HEAD_BYTES..)
    };
    let request = append(4, 3, 5000);
    let read = message::read_append(encode(&request), CLIENT).unwrap();
    assert_eq!(format!("{read:?}"), format!("{request:?}"));
    assert_eq!(read.entries, request.entries);
    assert!(message::read_append(encode(&request), SERVER).is_err());
    let mut hole = append(4, 3, 5);
    hole.entries.remove(1);
    assert!(message::read_append(encode(&hole), CLIENT).is_err());
    let mut floating = append(4, 3, 5);
    floating.prev_log_id = None;
    assert!(message::read_append(encode(&floating), CLIENT).is_err());
    let mut future = append(4, 3, 5);
    future.vote = Vote::new_committed(1, CLIENT);
    assert!(message::read_append(encode(&future), CLIENT).is_err());
}

#[tokio::test]
async fn frame_limit_holds_before_memory_is_taken() {
    let (mut near, far) = tokio::io::duplex(64);
    let mut reader = FrameReader::new(far, 1000);
    near.write_all(&(997u32).to_le_bytes()).await.unwrap();
    assert!(matches!(
        reader.next().await,
        Err(WireError::TooLong {
            bytes: 1001,
            limit: 1000
        })
    ));
}

struct Live(PathBuf, Vec<u8>);

impl SnapshotSource for Live {
    fn spool(&self) -> BoxFuture<'_, io::Result<(SnapshotMeta, Spool)>> {
        std::fs::write(&self.0, &self.1).unwrap();
        let spool = Spool::temporary(self.0.clone(), self.1.len() as u64);
        Box::pin(async { Ok((meta(9), spool)) })
    }

    fn hold_log(&self, _member: NodeId, _from: u64) -> Hold {
        Hold::nothing()
    }
}

fn meta(index: u64) -> SnapshotMeta {
    let nodes = BTreeMap::from([(CLIENT, Member::default()), (SERVER, Member::default())]);
    let voters = nodes.keys().copied().collect();
    let membership = openraft::Membership::new(vec![voters], nodes).unwrap();
    SnapshotMeta {
        last_log_id: Some(log_id(2, index)),
        last_membership: openraft::StoredMembership::new(Some(log_id(1, 1)), membership),
    }
}

#[tokio::test]
async fn snapshot_of_several_megabytes_arrives_equal_with_the_meta_of_its_file() {
    for net in nets() {
        let world = World::new(net).await;
        let mut random = StdRng::seed_from_u64(5);
        let mut bytes = vec![0; 5 * 1024 * 1024 + 17];
        random.fill_bytes(&mut bytes);
        let out = world.dir.path().join("out");
        let source = SnapshotData::Live(Arc::new(Live(out.clone(), bytes.clone())));
        let snapshot = SnapshotOf::<TypeConfig, _> {
            meta: meta(4),
            snapshot: source,
        };
        let vote = Vote::new_committed(2, CLIENT);
        let mut peer = Peers::new(world.client(), Arc::default())
            .new_snapshot_client(SERVER, &world.member())
            .await;
        let sent = peer
            .full_snapshot(vote, snapshot, std::future::pending(), option())
            .await;
        assert_eq!(sent.unwrap().vote, vote);
        assert!(*world.fake.installed.lock().unwrap() == [(meta(9), bytes)]);
        assert!(!out.exists());
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_that_takes_long_to_verify_arrives() {
    for net in nets() {
        let slow = 3 * limits().silence;
        let world = World::slow(net, slow).await;
        let out = world.dir.path().join("out");
        let source = SnapshotData::Live(Arc::new(Live(out, vec![7; 1000])));
        let snapshot = SnapshotOf::<TypeConfig, _> {
            meta: meta(9),
            snapshot: source,
        };
        let vote = Vote::new_committed(2, CLIENT);
        let mut peer = Peers::new(world.client(), Arc::default())
            .new_snapshot_client(SERVER, &world.member())
            .await;
        let sent = peer
            .full_snapshot(vote, snapshot, std::future::pending(), option())
            .await;
        assert_eq!(sent.unwrap().vote, vote);
        world.stop().await;
    }
}

#[tokio::test]
async fn damaged_piece_of_a_snapshot_is_refused_and_nothing_installed() {
    let world = World::new(Arc::new(Tcp)).await;
    let ctx = world.client();
    let conn = link::connect(&ctx, ConnKind::Snapshot, SERVER, &world.addr)
        .await
        .unwrap();
    let handshake::Conn {
        mut reader,
        mut writer,
        ..
    } = conn;
    let mut burst = Burst::default();
    let vote = Vote::new_committed(2, CLIENT);
    burst
        .frame(message::SNAPSHOT_BEGIN, 0, 0, 0, 1 << 20, |out| {
            message::put_snapshot_begin(out.own(), &vote, &meta(4), 100);
        })
        .unwrap();
    let chunk = Bytes::from(vec![3; 100]);
    burst
        .frame(message::SNAPSHOT_CHUNK, 0, 0, 0, 1 << 20, |out| {
            out.put(&chunk)
        })
        .unwrap();
    // A digest of other bytes: what came is not what the sender read.
    burst
        .frame(message::SNAPSHOT_END, 0, 0, 0, 1 << 20, |out| {
            out.own().extend_from_slice(&[0; 32])
        })
        .unwrap();
    let mut bytes = burst.to_vec();
    writer.write_all(&bytes).await.unwrap();
    let closed = async { while reader.next().await.is_ok_and(|frame| frame.kind == 8) {} };
    timeout(PATIENCE, closed).await.unwrap();

    let conn = link::connect(&ctx, ConnKind::Snapshot, SERVER, &world.addr)
        .await
        .unwrap();
    let handshake::Conn {
        mut reader,
        mut writer,
        ..
    } = conn;
    let last = bytes.len() - 60;
    bytes[last] ^= 1;
    writer.write_all(&bytes).await.unwrap();
    let closed = async { while reader.next().await.is_ok_and(|frame| frame.kind == 8) {} };
    timeout(PATIENCE, closed).await.unwrap();
    assert!(world.fake.installed.lock().unwrap().is_empty());
    world.stop().await;
}

/// A state machine that counts what was applied.
#[derive(Clone, Default)]
struct Counter(
    Arc<
        Mutex<(
            Option<crate::raft::LogId>,
            crate::raft::StoredMembership,
            u64,
        )>,
    >,
);

impl openraft::RaftSnapshotBuilder<TypeConfig> for Counter {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        Err(io::Error::other("nothing is purged here"))
    }
}

impl openraft::storage::RaftStateMachine<TypeConfig> for Counter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<crate::raft::LogId>, crate::raft::StoredMembership)> {
        let state = self.0.lock().unwrap();
        Ok((state.0, state.1.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: futures_util::Stream<Item = io::Result<openraft::storage::EntryResponder<TypeConfig>>>
            + Unpin
            + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            {
                let mut state = self.0.lock().unwrap();
                state.0 = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Membership(membership) => {
                        state.1 =
                            crate::raft::StoredMembership::new(Some(entry.log_id), membership);
                    }
                    EntryPayload::Normal(_) => state.2 += 1,
                    EntryPayload::Blank => {}
                }
            }
            if let Some(responder) = responder {
                responder.send(crate::raft::Applied::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, _: SnapshotData) -> io::Result<()> {
        Err(io::Error::other("nothing is purged here"))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_real_members_elect_a_leader_and_agree_over_tcp() {
    use crate::raft::log::{LogStore, MemoryDisk, MemoryJournal};
    let net: Arc<dyn Net> = Arc::new(Tcp);
    let config = openraft::Config {
        heartbeat_interval: 75,
        election_timeout_min: 250,
        election_timeout_max: 500,
        enable_pre_vote: Some(true),
        ..openraft::Config::default()
    };
    let config = Arc::new(config.validate().unwrap());
    let (mut nodes, mut stops, mut members) = (Vec::new(), Vec::new(), BTreeMap::new());
    for id in 1..=3 {
        let ctx = Arc::new(context(&net, identity(id, 1)));
        let counter = Counter::default();
        let log = LogStore::over(
            Box::new(MemoryJournal::open(MemoryDisk::default())),
            Arc::new(|_: &str| {}),
        );
        let peers = Peers::new(ctx.clone(), Arc::default());
        let raft = openraft::Raft::new(id, config.clone(), peers, log, counter.clone())
            .await
            .unwrap();
        let slot = RaftSlot::default();
        slot.set(Some(Arc::new(raft.clone())));
        let (echo, sink) = (Arc::<Echo>::default(), Sink::new(PathBuf::new()));
        let service = Service::new(ctx, slot, Arc::new(EchoHandler(echo)), Arc::new(sink));
        let listener = net.bind("127.0.0.1:0").await.unwrap();
        members.insert(
            id,
            Member {
                raft_addr: listener.local_addr(),
                ..Member::default()
            },
        );
        let (stop, stopped) = oneshot::channel::<()>();
        doors::spawn(serve(service, listener, stopped.map(|_| ())));
        stops.push(stop);
        nodes.push((raft, counter));
    }
    nodes[0].0.initialize(members).await.unwrap();
    // On a loaded machine a leader may lose its lease between two heartbeats: what it then
    // refuses is proposed again to whoever leads.
    let propose = async || {
        for (raft, _) in nodes.iter().cycle() {
            raft.wait(Some(PATIENCE))
                .metrics(
                    |metrics| metrics.current_leader.is_some(),
                    "a leader is known",
                )
                .await
                .unwrap();
            match raft
                .client_write(Proposal::new(Bytes::from_static(b"x")))
                .await
            {
                Ok(written) => return written.log_id.index,
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {}
                Err(error) => panic!("a write failed: {error}"),
            }
        }
        unreachable!("the members are gone through for ever")
    };
    futures_util::future::join_all((1..1000).map(|_| propose())).await;
    let last = propose().await;
    let mut counts = Vec::new();
    for (raft, counter) in &nodes {
        let wait = raft.wait(Some(PATIENCE));
        wait.applied_index_at_least(Some(last), "caught up")
            .await
            .unwrap();
        counts.push(counter.0.lock().unwrap().2);
    }
    assert!(counts[0] >= 1000 && counts.iter().all(|&count| count == counts[0]));
    for (raft, _) in &nodes {
        raft.shutdown().await.unwrap();
    }
}
