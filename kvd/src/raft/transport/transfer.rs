//! Snapshots on the wire: one connection for each, from file to file.
//!
//! ```text
//! BEGIN vote bytes meta -> CHUNK .. CHUNK -> END sha256 ->
//!                                                       <- END vote     (or a failure)
//! ```
//!
//! The meta is the file's own; it may be newer than what Raft knew when it decided to send.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::type_config::alias::SnapshotOf;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::frame::{Burst, FLAG_FAILED, FLAG_RESPONSE, FrameReader, WireError};
use super::handshake::Conn;
use super::link::{CallError, body_of, connect, put_failure};
use super::message::{
    KEEPALIVE, SNAPSHOT_BEGIN, SNAPSHOT_CHUNK, SNAPSHOT_END, put_snapshot_begin,
    read_snapshot_begin,
};
use super::server::RaftPort;
use super::{ConnKind, Context, Limits, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_FRAME_BYTES_MAX};
use crate::doors;
use crate::raft::codec::{Malformed, Reader, put_vote, read_vote};
use crate::raft::log::Hold;
use crate::raft::spool::{SnapshotData, SnapshotMeta, SnapshotSink, Spool};
use crate::raft::{NodeId, TypeConfig, Vote};

type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// Sends a snapshot and waits until it is installed. Returns the peer's vote.
pub(super) async fn send(
    ctx: &Context,
    target: NodeId,
    addr: &str,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<Vote, CallError> {
    let (meta, spool, hold) = match snapshot.snapshot {
        SnapshotData::Spool(spool) => (snapshot.meta, spool, Hold::nothing()),
        SnapshotData::Live(source) => {
            // Raft goes on from what it knows, which may be older than the file.
            let from = snapshot.meta.last_log_id.map_or(0, |id| id.index);
            let hold = source.hold_log(target, from);
            // A file for a peer that is away would be written in vain, again and again.
            drop(connect(ctx, ConnKind::Snapshot, target, addr).await?);
            let (meta, spool) = source
                .spool()
                .await
                .map_err(|error| CallError::NotSent(format!("writing the snapshot: {error}")))?;
            (meta, spool, hold)
        }
    };
    crash_point!("send_before");
    let conn = connect(ctx, ConnKind::Snapshot, target, addr).await?;
    let vote = send_spool(ctx, conn, vote, &meta, &spool)
        .await
        .map_err(|error| CallError::Lost(format!("snapshot: {error}")))?;
    hold.arrived();
    Ok(vote)
}

async fn send_spool(
    ctx: &Context,
    conn: Conn,
    vote: Vote,
    meta: &SnapshotMeta,
    spool: &Spool,
) -> Result<Vote, WireError> {
    let Conn {
        mut reader,
        mut writer,
        hello,
    } = conn;
    let limits = &ctx.limits;
    let write = async {
        let mut file = File::open(&spool.path)?;
        let mut burst = Burst::default();
        let frame = |burst: &mut Burst, kind, fill: &mut dyn FnMut(&mut Burst)| {
            burst.frame(kind, 0, hello.group, 0, SNAPSHOT_FRAME_BYTES_MAX, fill)
        };
        frame(&mut burst, SNAPSHOT_BEGIN, &mut |out| {
            put_snapshot_begin(out.own(), &vote, meta, spool.bytes);
        })?;
        let (mut left, mut digest) = (spool.bytes, Sha256::new());
        let started = Instant::now();
        while left > 0 {
            let len = left.min(SNAPSHOT_CHUNK_BYTES as u64) as usize;
            let mut chunk = vec![0; len];
            file.read_exact(&mut chunk)?;
            left -= len as u64;
            digest.update(&chunk);
            let chunk = Bytes::from(chunk);
            frame(&mut burst, SNAPSHOT_CHUNK, &mut |out| out.put(&chunk))?;
            burst.write(&mut writer, limits.silence).await?;
            crash_point!("send_chunk");
            rest(limits, started, spool.bytes - left).await;
        }
        let digest = digest.finalize();
        frame(&mut burst, SNAPSHOT_END, &mut |out| {
            out.own().extend_from_slice(&digest)
        })?;
        burst.write(&mut writer, limits.silence).await
    };
    let read = async {
        loop {
            // The peer says at all times that it is there, also while it installs.
            let frame = match timeout(limits.silence, reader.next()).await {
                Ok(frame) => frame?,
                Err(_) => return Err(WireError::Silent(limits.silence)),
            };
            match frame.kind {
                KEEPALIVE => {}
                SNAPSHOT_END => {
                    crash_point!("send_after");
                    return Ok(frame);
                }
                kind => return Err(WireError::Unexpected(kind)),
            }
        }
    };
    // An answer may come before all is sent: the peer refuses early then.
    let (mut write, mut read) = (pin!(write), pin!(read));
    let mut written = false;
    let frame = loop {
        tokio::select! {
            biased;
            frame = &mut read => break frame?,
            done = &mut write, if !written => match done {
                Ok(()) => written = true,
                // The peer's own words tell more than a broken pipe.
                Err(error) => match timeout(limits.silence, &mut read).await {
                    Ok(Ok(frame)) => break frame,
                    _ => return Err(error),
                },
            },
        }
    };
    let body = body_of(frame).map_err(|text| io::Error::other(format!("peer: {text}")))?;
    let mut r = Reader::new(body);
    let vote = read_vote(&mut r)?;
    r.finish("snapshot response")?;
    Ok(vote)
}

/// Waits until `sent` bytes are not too many for the time since `started`.
async fn rest(limits: &Limits, started: Instant, sent: u64) {
    if limits.snapshot_bytes_per_second > 0 {
        let due = sent as f64 / limits.snapshot_bytes_per_second as f64;
        sleep_until(started + Duration::from_secs_f64(due)).await;
    }
}

/// What ends the receiving of a snapshot.
enum Failure {
    /// The connection, or what came over it.
    Wire(WireError),
    /// This node: the peer is told.
    Own(String),
}

impl<E: Into<WireError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Wire(error.into())
    }
}

/// Receives a snapshot, has it installed, and answers.
pub(super) async fn receive(
    ctx: &Context,
    conn: Conn,
    port: Option<Arc<dyn RaftPort>>,
    sink: &dyn SnapshotSink,
    room: &Semaphore,
) -> Result<(), WireError> {
    let Conn {
        mut reader,
        mut writer,
        hello,
    } = conn;
    let limits = &ctx.limits;
    let outcome = {
        let mut work = pin!(take(ctx, &mut reader, hello.sender.node, port, sink, room));
        let mut keepalive = interval(limits.keepalive);
        keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut burst = Burst::default();
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                _ = keepalive.tick() => {
                    burst.frame(KEEPALIVE, 0, hello.group, 0, SNAPSHOT_FRAME_BYTES_MAX, |_| {})?;
                    burst.write(&mut writer, limits.silence).await?;
                }
            }
        }
    };
    let (failed, body) = match outcome {
        Ok(vote) => {
            let mut body = Vec::new();
            put_vote(&mut body, &vote);
            (0, body)
        }
        Err(Failure::Own(text)) => {
            tracing::warn!(
                peer = hello.sender.name,
                error = text,
                "snapshot not received"
            );
            let mut body = Vec::new();
            put_failure(&mut body, &text);
            (FLAG_FAILED, body)
        }
        Err(Failure::Wire(error)) => return Err(error),
    };
    let (mut burst, flags) = (Burst::default(), FLAG_RESPONSE | failed);
    burst.frame(
        SNAPSHOT_END,
        flags,
        hello.group,
        0,
        SNAPSHOT_FRAME_BYTES_MAX,
        |out| {
            out.own().extend_from_slice(&body);
        },
    )?;
    burst.write(&mut writer, limits.silence).await?;
    if failed == 0 {
        return Ok(());
    }
    // What the peer has already sent is taken off the socket: closing it unread would reset the
    // connection, and the peer would not read the answer.
    let drain = async { while reader.next().await.is_ok() {} };
    let _ = timeout(limits.silence, drain).await;
    Ok(())
}

async fn take<R: tokio::io::AsyncRead + Unpin>(
    ctx: &Context,
    reader: &mut FrameReader<R>,
    sender: NodeId,
    port: Option<Arc<dyn RaftPort>>,
    sink: &dyn SnapshotSink,
    room: &Semaphore,
) -> Result<Vote, Failure> {
    let limits = &ctx.limits;
    let mut next = async || match timeout(limits.silence.max(limits.idle), reader.next()).await {
        Ok(frame) => frame,
        Err(_) => Err(WireError::Silent(limits.silence.max(limits.idle))),
    };
    let begin = next().await?;
    if begin.kind != SNAPSHOT_BEGIN {
        return Err(WireError::Unexpected(begin.kind).into());
    }
    let (vote, meta, bytes) = read_snapshot_begin(begin.body, sender)?;
    let Some(port) = port else {
        return Err(Failure::Own("not ready".to_owned()));
    };
    let _room = match room.try_acquire() {
        Ok(permit) => permit,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
            return Err(Failure::Own(
                "enough snapshots are being received".to_owned(),
            ));
        }
    };
    if bytes > limits.snapshot_bytes_max {
        return Err(Failure::Own(format!(
            "snapshot of {bytes} bytes is over the limit"
        )));
    }
    let own = |error: io::Error| Failure::Own(format!("storing the snapshot: {error}"));
    let mut spool = sink.begin(&meta).map_err(own)?;
    crash_point!("receive_begun");
    let (mut left, mut digest) = (bytes, Sha256::new());
    loop {
        let frame = next().await?;
        match frame.kind {
            SNAPSHOT_CHUNK => {
                if frame.body.is_empty() || frame.body.len() as u64 > left {
                    return Err(Malformed("snapshot: length").into());
                }
                left -= frame.body.len() as u64;
                digest.update(&frame.body);
                spool.write(&frame.body).map_err(own)?;
                crash_point!("receive_chunk");
            }
            SNAPSHOT_END => {
                if left > 0 {
                    return Err(Malformed("snapshot: length").into());
                }
                if frame.body[..] != digest.finalize()[..] {
                    return Err(Malformed("snapshot: digest").into());
                }
                break;
            }
            kind => return Err(WireError::Unexpected(kind).into()),
        }
    }
    // Reading and syncing a large file takes longer than the peer waits for a sign of life.
    let spool = doors::blocking(&*ctx.workers, move || spool.finish())
        .await
        .unwrap_or_else(|| Err(io::Error::other("the worker has ended")))
        .map_err(own)?;
    let snapshot = Snapshot {
        meta,
        snapshot: SnapshotData::Spool(spool),
    };
    port.install(vote, snapshot)
        .await
        .map_err(|error| Failure::Own(error.to_string()))
}
