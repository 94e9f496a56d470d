//! The types with which kvd uses openraft.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use openraft::impls::{InlineBatch, TokioRuntime};
use openraft::raft::responder::Responder;
use openraft::type_config::alias::LogIdOf;
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};
use tokio::time::Instant;

use crate::resp::Reply;

/// A node's identity: random, made with its data directory, never used again.
pub type NodeId = u64;

/// A log id: the leader's term and the index.
pub type LogId = LogIdOf<TypeConfig>;

/// One entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;

/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;

/// A membership with the log id of its entry.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// Makes a log id.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(
        openraft::vote::leader_id_std::CommittedLeaderId::new(term),
        index,
    )
}

/// What the membership says of a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// The name that people use.
    pub name: String,
    /// `host:port` where peers reach it.
    pub raft_addr: String,
    /// `host:port` where clients reach it.
    pub client_addr: String,
}

/// What a leader asks to replicate: an encoded list of groups, in the format of `raft::entry`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The encoded list.
    pub bytes: Bytes,
    /// When it was given to Raft, on the node that did so.
    pub since: Option<Instant>,
}

impl Proposal {
    /// One that comes from elsewhere.
    pub fn new(bytes: Bytes) -> Self {
        Proposal { bytes, since: None }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying one entry gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    /// One list of replies for each group of the entry, in order.
    pub groups: Vec<Vec<Reply>>,
}

/// kvd's choice of openraft's types.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Applied;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, NodeId, Member>;
    type Entry = openraft::type_config::alias::DefaultEntryOf<Self>;
    type Responder<T>
        = ReplySlot<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type AsyncRuntime = NodeRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// Where the outcome of a proposal goes: a function, called once, from whichever thread knows it.
///
/// Dropping it uncalled means that the outcome is unknown; the function is then dropped uncalled.
pub struct ReplySlot<T> {
    reply: Box<dyn FnOnce(T) + Send>,
    until_committed: Option<Box<dyn Send>>,
}

impl<T> ReplySlot<T> {
    /// A slot that calls `f`, and lets go of `held` once the proposal is committed, or came to
    /// nothing.
    pub fn new(held: impl Send + 'static, f: impl FnOnce(T) + Send + 'static) -> Self {
        ReplySlot {
            reply: Box::new(f),
            until_committed: Some(Box::new(held)),
        }
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for ReplySlot<T> {
    fn on_commit(&mut self, _: LogId) {
        self.until_committed = None;
    }

    fn on_complete(self, result: T) {
        drop(self.until_committed);
        (self.reply)(result);
    }
}

/// Tokio, with tasks and randomness that belong to a node.
#[derive(Debug)]
pub struct NodeRuntime(TokioRuntime);

impl AsyncRuntime for NodeRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = rand::rngs::StdRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        crate::doors::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        crate::doors::scoped_rng()
    }

    fn new(threads: usize) -> Self {
        NodeRuntime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
