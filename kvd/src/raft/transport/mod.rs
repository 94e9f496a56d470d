//! How nodes talk: framed TCP of our own, one connection for each purpose between two nodes.
//!
//! ```text
//!                     +-- append    pipelined log entries, answered in order
//! Peers, PeerConn ----+-- control   heartbeats, votes, pre-votes, transfers of leadership
//! RequestClient ------+-- request   what nodes ask each other beyond Raft: opaque bytes
//!                     +-- snapshot  one whole snapshot, then the connection ends
//! ```
//!
//! A connection begins with a handshake (`handshake`): both sides say who they are and prove it,
//! and the [`Gate`] of each decides. Then frames (`frame`) carry messages (`message`). As long as a
//! side owes an answer it sends a frame at least every [`Limits::keepalive`]; who waits for an
//! answer and hears nothing for [`Limits::silence`] drops the connection. So a slow disk of a peer
//! is waited for, and a lost peer is not.
//!
//! The dialing side is [`Peers`], which openraft drives, and [`RequestClient`]; the accepting side
//! is [`serve`]. Connections are made, and snapshots sent and received, on the runtime given as
//! `io`; everything else runs where it is awaited: on Raft's, but for requests of this node.

mod client;
mod frame;
mod handshake;
mod link;
mod message;
mod server;
mod transfer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

pub use client::{PeerConn, Peers, RequestClient};
pub use frame::WireError;
pub use handshake::{Auth, Gate, Hello, Identity, NoAuth, Refusal, RefusalCode, Secret, Welcome};
pub use link::CallError;
pub use server::{PeerIdentity, PortError, RaftPort, RaftSlot, RequestHandler, Service, serve};

use crate::doors::{Net, Workers};

#[doc(hidden)]
pub use handshake::fuzz_handshake;
#[doc(hidden)]
pub use message::fuzz_frames;

/// Version of the protocol. A peer that speaks another is refused.
pub const PROTOCOL_VERSION: u16 = 2;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ConnKind {
    /// Log entries, pipelined.
    Append = 1,
    /// Heartbeats, votes, transfers of leadership: small and urgent.
    Control = 2,
    /// What the node defines.
    Request = 3,
    /// One snapshot.
    Snapshot = 4,
}

impl ConnKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => ConnKind::Append,
            2 => ConnKind::Control,
            3 => ConnKind::Request,
            4 => ConnKind::Snapshot,
            _ => return None,
        })
    }
}

/// The limits of the transport. Every queue, wait and buffer has one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest frame of append and request connections, in bytes: the largest entry and its
    /// neighbours have to fit. Both sides of a cluster need the same.
    pub frame_bytes_max: usize,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long the handshake may take, on either side.
    pub handshake: Duration,
    /// How often a side that owes an answer says that it is still there.
    pub keepalive: Duration,
    /// After this long without a byte from a peer that owes an answer, the connection is dropped;
    /// the same for a peer that takes no bytes. Several times `keepalive`.
    pub silence: Duration,
    /// The dialing side closes a connection that was not used for this long.
    pub idle: Duration,
    /// The accepting side closes a connection that was not used for this long. Longer than `idle`,
    /// so that a connection is not closed just when a request is being sent.
    pub idle_accepted: Duration,
    /// Appends on their way to one peer.
    pub appends_in_flight_max: usize,
    /// Bytes of the appends on their way to one peer; a single larger append is allowed.
    pub append_bytes_in_flight_max: usize,
    /// Requests on their way over one connection; further ones are refused unsent (by the dialing
    /// side) or not read yet (by the accepting side).
    pub requests_in_flight_max: usize,
    /// Bytes of the requests on their way over one connection; a single larger one is allowed.
    pub request_bytes_in_flight_max: usize,
    /// Connections that are accepted at a time; further ones wait in the backlog.
    pub connections_max: usize,
    /// Snapshots that are received at a time; further ones are refused.
    pub snapshots_in_max: usize,
    /// Longest snapshot that is accepted, in bytes.
    pub snapshot_bytes_max: u64,
    /// Bytes of a snapshot sent in a second, to each peer; 0 means no limit.
    pub snapshot_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: 128 * 1024 * 1024,
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(3),
            keepalive: Duration::from_millis(400),
            silence: Duration::from_secs(2),
            idle: Duration::from_secs(30),
            idle_accepted: Duration::from_secs(90),
            appends_in_flight_max: 64,
            append_bytes_in_flight_max: 16 * 1024 * 1024,
            requests_in_flight_max: 1024,
            request_bytes_in_flight_max: 256 * 1024 * 1024,
            connections_max: 512,
            snapshots_in_max: 2,
            snapshot_bytes_max: 1 << 44,
            snapshot_bytes_per_second: 0,
        }
    }
}

/// Longest frame before the handshake is over, in bytes: a stranger gets no more memory than this.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 * 1024;

/// Longest frame of a control connection, in bytes: nothing there is large.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one piece of a snapshot.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;

/// Longest frame of a snapshot connection, in bytes: a piece, or a membership of 65,535 members
/// of moderate names at the beginning.
pub const SNAPSHOT_FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What both sides of the transport are built from.
#[derive(Clone)]
pub struct Context {
    /// Opens connections.
    pub net: Arc<dyn Net>,
    /// Says who this node is, and decides who may talk to it.
    pub gate: Arc<dyn Gate>,
    /// Proves and checks knowledge of the cluster's secret.
    pub auth: Arc<dyn Auth>,
    /// The limits.
    pub limits: Limits,
    /// The runtime on which connections are made, and snapshots sent and received. Never Raft's
    /// own, except in a simulation.
    pub io: Handle,
    /// The runtime of Raft, on which its messages and requests are read and written: each of them
    /// would otherwise wake a thread of the other runtime on its way in, and again on its way out.
    pub raft: Handle,
    /// Where a received snapshot is verified and made durable, which may take long.
    pub workers: Arc<dyn Workers>,
}

/// Lets a line through once a minute, different ones a few times a second, and counts the others.
struct Throttle {
    per_second: u32,
    state: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    since: Option<Instant>,
    count: u32,
    held_back: u64,
    lines: VecDeque<(Instant, String)>,
}

impl Throttle {
    /// A peer dials again and again; its line stands in the log once in this time.
    const REPEAT_AFTER: Duration = Duration::from_secs(60);
    /// Lines that are remembered.
    const LINES_MAX: usize = 64;

    fn new(per_second: u32) -> Self {
        Throttle {
            per_second,
            state: Mutex::default(),
        }
    }

    /// `None`: be quiet. `Some(n)`: speak, and `n` lines were held back since the last one.
    fn pass(&self, line: String) -> Option<u64> {
        let now = Instant::now();
        let said = &mut *self.state.lock().expect("no panic while held");
        said.lines
            .retain(|(at, _)| now.duration_since(*at) < Self::REPEAT_AFTER);
        let repeated = said.lines.iter().any(|(_, known)| *known == line);
        if said
            .since
            .is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1))
        {
            (said.since, said.count) = (Some(now), 0);
        }
        if repeated || said.count >= self.per_second {
            said.held_back += 1;
            return None;
        }
        said.count += 1;
        if said.lines.len() == Self::LINES_MAX {
            said.lines.pop_front();
        }
        said.lines.push_back((now, line));
        Some(std::mem::take(&mut said.held_back))
    }
}
