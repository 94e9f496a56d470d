//! The first frames of a connection: who is there, for what, and may it.
//!
//! ```text
//! dialer                                     acceptor
//!   HELLO     magic version kind cluster
//!             group sender target ...  ->
//!                                      <-  CHALLENGE  magic version nonce proof   (or REFUSED)
//!   PROOF     proof                    ->
//!                                      <-  WELCOME    cluster node ...            (or REFUSED)
//! ```
//!
//! `nonce` and `proof` are blobs of the [`Auth`] and empty without one.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::{ReadHalf, WriteHalf, split};

use super::frame::{Burst, FrameReader, WireError};
use super::{ConnKind, Context, HANDSHAKE_FRAME_BYTES_MAX, Limits, PROTOCOL_VERSION};
use crate::doors::{Random, Stream};
use crate::incarnation::Incarnations;
use crate::raft::NodeId;
use crate::raft::codec::{Malformed, Reader, put_blob, put_text};

/// The first bytes of the first frame of each side.
const MAGIC: &[u8; 8] = b"KVDRAFT\0";

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const WELCOME: u8 = 4;
const REFUSED: u8 = 5;

/// Longest name or address in a handshake, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// Longest nonce or proof, in bytes.
const BLOB_BYTES_MAX: usize = 256;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster; 0 while it belongs to none.
    pub cluster: u128,
    /// The node's id.
    pub node: NodeId,
    /// Its last starts.
    pub incarnations: Incarnations,
    /// Its name.
    pub name: String,
    /// `host:port` where peers reach it.
    pub addr: String,
    /// The highest feature level that it supports.
    pub feature_level: u32,
}

/// What the dialing side says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub kind: ConnKind,
    /// The group; 0, as long as there is only one.
    pub group: u32,
    /// Who dials.
    pub sender: Identity,
    /// Whom it means; 0 when it does not know, on first contact.
    pub target: NodeId,
    /// The nonce of the sender's [`Auth`].
    pub nonce: Bytes,
}

/// What the accepting side says of itself when it lets a connection in.
pub type Welcome = Identity;

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusalCode {
    /// Not the protocol of kvd.
    Magic = 1,
    /// Another version of the protocol.
    Version = 2,
    /// Another cluster.
    Cluster = 3,
    /// Meant for another node.
    Target = 4,
    /// It does not know of a start of its own that was seen: a restored or doubled data directory.
    Incarnation = 5,
    /// The sender was taken out of the cluster.
    Removed = 6,
    /// The secret was not proven.
    Auth = 7,
    /// Not now: the node starts, stops or changes.
    NotReady = 8,
    /// Too many connections of this kind.
    Busy = 9,
    /// Anything else; the text says what.
    Other = 10,
}

impl RefusalCode {
    fn from_number(number: u16) -> Self {
        use RefusalCode::*;
        [
            Magic,
            Version,
            Cluster,
            Target,
            Incarnation,
            Removed,
            Auth,
            NotReady,
            Busy,
        ]
        .into_iter()
        .find(|code| *code as u16 == number)
        .unwrap_or(Other)
    }
}

/// A connection was refused, by this node or by the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {text}")]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// Why, for people.
    pub text: String,
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(code: RefusalCode, text: impl fmt::Display) -> Self {
        Refusal {
            code,
            text: text.to_string(),
        }
    }
}

/// A node's own part of a handshake: who it is, and whom it lets in. Never blocks for long.
pub trait Gate: Send + Sync {
    /// Who this node is at this moment.
    fn identity(&self) -> Identity;

    /// Decides about a peer that dialed.
    ///
    /// # Errors
    ///
    /// The peer is not let in; it is told why.
    fn admit(&self, hello: &Hello) -> Result<Welcome, Refusal> {
        let own = self.identity();
        if hello.target != 0 && hello.target != own.node {
            let text = format!(
                "meant for node {:016x}, this is {:016x}",
                hello.target, own.node
            );
            return Err(Refusal::new(RefusalCode::Target, text));
        }
        if hello.group != 0 {
            return Err(Refusal::new(RefusalCode::Other, "there is one group only"));
        }
        same_cluster(own.cluster, hello.sender.cluster)?;
        Ok(own)
    }

    /// Decides about a peer that was dialed, by what it says of itself.
    ///
    /// # Errors
    ///
    /// The connection is dropped.
    fn confirm(&self, hello: &Hello, welcome: &Welcome) -> Result<(), Refusal> {
        if hello.target != 0 && hello.target != welcome.node {
            let text = format!(
                "dialed node {:016x}, met {:016x}",
                hello.target, welcome.node
            );
            return Err(Refusal::new(RefusalCode::Target, text));
        }
        same_cluster(hello.sender.cluster, welcome.cluster)
    }

    /// Where a peer said that it is now, if that is not where the membership says.
    fn moved_to(&self, _peer: NodeId) -> Option<String> {
        None
    }

    /// Whether there is room for `bytes` of entries more. Where there is none, the connection that
    /// brings them is closed, and its peer tries again later.
    fn has_room(&self, _bytes: usize) -> bool {
        true
    }

    /// A peer that knows the secret, where there is one, has not let this node in.
    fn refused(&self, _refusal: &Refusal) {}
}

fn same_cluster(own: u128, other: u128) -> Result<(), Refusal> {
    if own != 0 && other != 0 && own != other {
        let text = format!("cluster {other:032x}, this is {own:032x}");
        return Err(Refusal::new(RefusalCode::Cluster, text));
    }
    Ok(())
}

/// Proves that a node knows the cluster's secret, without telling it.
pub trait Auth: Send + Sync {
    /// A value that was never used before.
    fn nonce(&self) -> Vec<u8>;

    /// The proof over what was said so far.
    fn prove(&self, said: &[u8]) -> Vec<u8>;

    /// Whether a peer's proof over the same is right.
    fn verify(&self, said: &[u8], proof: &[u8]) -> bool;
}

/// No secret: everyone who speaks the protocol is let through to the gate.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAuth;

impl Auth for NoAuth {
    fn nonce(&self) -> Vec<u8> {
        Vec::new()
    }

    fn prove(&self, _said: &[u8]) -> Vec<u8> {
        Vec::new()
    }

    fn verify(&self, _said: &[u8], proof: &[u8]) -> bool {
        // A peer with a secret would believe that it was checked.
        proof.is_empty()
    }
}

/// HMAC-SHA-256 with a shared secret.
pub struct Secret {
    key: [u8; 64],
    random: Random,
}

impl Secret {
    /// Uses `secret`, of any length; nonces come from `random`.
    pub fn new(secret: &[u8], random: Random) -> Self {
        let mut key = [0; 64];
        if secret.len() > key.len() {
            key[..32].copy_from_slice(&Sha256::digest(secret));
        } else {
            key[..secret.len()].copy_from_slice(secret);
        }
        Secret { key, random }
    }
}

impl Auth for Secret {
    fn nonce(&self) -> Vec<u8> {
        (0..4)
            .flat_map(|_| self.random.next().to_le_bytes())
            .collect()
    }

    fn prove(&self, said: &[u8]) -> Vec<u8> {
        let inner = Sha256::new()
            .chain_update(self.key.map(|b| b ^ 0x36))
            .chain_update(said);
        let outer = Sha256::new().chain_update(self.key.map(|b| b ^ 0x5c));
        outer.chain_update(inner.finalize()).finalize().to_vec()
    }

    fn verify(&self, said: &[u8], proof: &[u8]) -> bool {
        let right = self.prove(said);
        // The time it takes must not tell how much of a guess was right.
        right.len() == proof.len()
            && right
                .iter()
                .zip(proof)
                .fold(0, |differ, (a, b)| differ | (a ^ b))
                == 0
    }
}

/// A connection whose handshake is over.
pub(super) struct Conn {
    pub(super) hello: Hello,
    pub(super) reader: FrameReader<ReadHalf<Stream>>,
    pub(super) writer: WriteHalf<Stream>,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<Malformed> for HandshakeError {
    fn from(malformed: Malformed) -> Self {
        HandshakeError::Wire(malformed.into())
    }
}

type Result<T, E = HandshakeError> = std::result::Result<T, E>;

/// The dialing side. The caller bounds the time.
pub(super) async fn dial(
    ctx: &Context,
    stream: Stream,
    kind: ConnKind,
    target: NodeId,
) -> Result<(Conn, Welcome)> {
    let (read, mut writer) = split(stream);
    let mut reader = FrameReader::new(read, HANDSHAKE_FRAME_BYTES_MAX);
    let sender = ctx.gate.identity();
    let hello = Hello {
        kind,
        group: 0,
        sender,
        target,
        nonce: ctx.auth.nonce().into(),
    };
    let said_hello = encode_hello(&hello);
    send(&mut writer, &ctx.limits, HELLO, &said_hello).await?;

    let challenge = receive(&mut reader, CHALLENGE).await?;
    let mut r = Reader::new(challenge.clone());
    read_magic(&mut r)?;
    let _nonce = blob(&mut r)?;
    let proof = blob(&mut r)?;
    r.finish("challenge")?;
    // The acceptor's proof is over its challenge without that proof itself.
    let unproven = &challenge[..challenge.len() - proof.len() - 4];
    if !ctx
        .auth
        .verify(&transcript(b"acceptor", &said_hello, unproven), &proof)
    {
        return Err(Refusal::new(RefusalCode::Auth, "peer did not prove the secret").into());
    }

    let mut said = Vec::new();
    put_blob(
        &mut said,
        &ctx.auth
            .prove(&transcript(b"dialer", &said_hello, &challenge)),
    );
    send(&mut writer, &ctx.limits, PROOF, &said).await?;

    let welcome = receive(&mut reader, WELCOME).await;
    if let Err(HandshakeError::Refused(refusal)) = &welcome {
        ctx.gate.refused(refusal);
    }
    let mut r = Reader::new(welcome?);
    let welcome = read_identity(&mut r)?;
    // A later version may say more; what this one does not know it leaves unread.
    ctx.gate.confirm(&hello, &welcome)?;
    reader.set_limit(frame_limit(&ctx.limits, kind));
    Ok((
        Conn {
            hello,
            reader,
            writer,
        },
        welcome,
    ))
}

/// The accepting side. The caller bounds the time.
pub(super) async fn accept(ctx: &Context, stream: Stream) -> Result<Conn> {
    let (read, mut writer) = split(stream);
    let mut reader = FrameReader::new(read, HANDSHAKE_FRAME_BYTES_MAX);
    match greet(ctx, &mut reader, &mut writer).await {
        Ok(hello) => {
            reader.set_limit(frame_limit(&ctx.limits, hello.kind));
            Ok(Conn {
                hello,
                reader,
                writer,
            })
        }
        Err(HandshakeError::Refused(refusal)) => {
            refuse(&mut writer, &ctx.limits, &refusal).await?;
            Err(refusal.into())
        }
        Err(error) => Err(error),
    }
}

async fn greet(
    ctx: &Context,
    reader: &mut FrameReader<ReadHalf<Stream>>,
    writer: &mut WriteHalf<Stream>,
) -> Result<Hello> {
    let said_hello = receive(reader, HELLO).await?;
    let hello = decode_hello(said_hello.clone())?;

    let mut challenge = Vec::new();
    challenge.extend_from_slice(MAGIC);
    challenge.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    put_blob(&mut challenge, &ctx.auth.nonce());
    let proof = ctx
        .auth
        .prove(&transcript(b"acceptor", &said_hello, &challenge));
    put_blob(&mut challenge, &proof);
    send(writer, &ctx.limits, CHALLENGE, &challenge).await?;

    let mut r = Reader::new(receive(reader, PROOF).await?);
    let proof = blob(&mut r)?;
    r.finish("proof")?;
    if !ctx
        .auth
        .verify(&transcript(b"dialer", &said_hello, &challenge), &proof)
    {
        return Err(Refusal::new(RefusalCode::Auth, "the secret was not proven").into());
    }

    let welcome = ctx.gate.admit(&hello)?;
    let mut said = Vec::new();
    put_identity(&mut said, &welcome);
    send(writer, &ctx.limits, WELCOME, &said).await?;
    Ok(hello)
}

/// Sends a refusal; the connection ends then.
pub(super) async fn refuse(
    writer: &mut WriteHalf<Stream>,
    limits: &Limits,
    refusal: &Refusal,
) -> Result<(), WireError> {
    let mut said = Vec::new();
    said.extend_from_slice(&(refusal.code as u16).to_le_bytes());
    put_text(&mut said, cut(&refusal.text));
    send(writer, limits, REFUSED, &said).await?;
    use tokio::io::AsyncWriteExt as _;
    Ok(writer.shutdown().await?)
}

async fn send(
    writer: &mut WriteHalf<Stream>,
    limits: &Limits,
    kind: u8,
    body: &[u8],
) -> Result<(), WireError> {
    let mut burst = Burst::default();
    burst.frame(kind, 0, 0, 0, HANDSHAKE_FRAME_BYTES_MAX, |out| {
        out.own().extend_from_slice(body);
    })?;
    burst.write(writer, limits.handshake).await
}

async fn receive(reader: &mut FrameReader<ReadHalf<Stream>>, kind: u8) -> Result<Bytes> {
    let frame = reader.next().await?;
    if frame.kind == REFUSED {
        let mut r = Reader::new(frame.body);
        let code = RefusalCode::from_number(r.u16("refusal")?);
        return Err(Refusal {
            code,
            text: r.text("refusal")?,
        }
        .into());
    }
    if frame.kind != kind {
        return Err(WireError::Unexpected(frame.kind).into());
    }
    Ok(frame.body)
}

fn frame_limit(limits: &Limits, kind: ConnKind) -> usize {
    match kind {
        ConnKind::Append | ConnKind::Request => limits.frame_bytes_max,
        ConnKind::Control => super::CONTROL_FRAME_BYTES_MAX,
        ConnKind::Snapshot => super::SNAPSHOT_FRAME_BYTES_MAX,
    }
}

/// What a proof is over: the role, so that no side's proof serves the other, and what was said.
fn transcript(role: &[u8], said_hello: &[u8], challenge: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_blob(&mut out, role);
    put_blob(&mut out, said_hello);
    put_blob(&mut out, challenge);
    out
}

fn encode_hello(hello: &Hello) -> Bytes {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    out.push(hello.kind as u8);
    out.extend_from_slice(&hello.group.to_le_bytes());
    out.extend_from_slice(&hello.target.to_le_bytes());
    put_identity(&mut out, &hello.sender);
    put_blob(&mut out, &hello.nonce);
    out.into()
}

pub(super) fn decode_hello(body: Bytes) -> Result<Hello> {
    let mut r = Reader::new(body);
    read_magic(&mut r)?;
    let kind = r.u8("connection kind")?;
    let kind = ConnKind::from_byte(kind).ok_or(Malformed("connection kind"))?;
    let (group, target) = (r.u32("group")?, r.u64("target")?);
    let sender = read_identity(&mut r)?;
    // What a later version says behind the nonce is left unread, but it is proven with the rest.
    Ok(Hello {
        kind,
        group,
        sender,
        target,
        nonce: blob(&mut r)?,
    })
}

fn read_magic(r: &mut Reader) -> Result<()> {
    if r.take(MAGIC.len(), "magic")?[..] != MAGIC[..] {
        return Err(Refusal::new(RefusalCode::Magic, "not a kvd node").into());
    }
    let version = r.u16("version")?;
    if version != PROTOCOL_VERSION {
        let text = format!("protocol version {version}, this is {PROTOCOL_VERSION}");
        return Err(Refusal::new(RefusalCode::Version, text).into());
    }
    Ok(())
}

fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.extend_from_slice(&identity.cluster.to_le_bytes());
    out.extend_from_slice(&identity.node.to_le_bytes());
    identity.incarnations.put(out);
    out.extend_from_slice(&identity.feature_level.to_le_bytes());
    put_text(out, cut(&identity.name));
    put_text(out, cut(&identity.addr));
}

fn read_identity(r: &mut Reader) -> Result<Identity> {
    let cluster = r.take(16, "cluster id")?;
    let cluster = u128::from_le_bytes(cluster[..].try_into().expect("16 bytes were taken"));
    let node = r.u64("node id")?;
    let incarnations = Incarnations::read(r)?;
    let feature_level = r.u32("feature level")?;
    let (name, addr) = (r.text("name")?, r.text("address")?);
    if node == 0 || name.len() > TEXT_BYTES_MAX || addr.len() > TEXT_BYTES_MAX {
        return Err(Malformed("identity").into());
    }
    Ok(Identity {
        cluster,
        node,
        incarnations,
        name,
        addr,
        feature_level,
    })
}

fn blob(r: &mut Reader) -> Result<Bytes> {
    let bytes = r.blob("authentication")?;
    if bytes.len() > BLOB_BYTES_MAX {
        return Err(Malformed("authentication").into());
    }
    Ok(bytes)
}

/// The text, or as much of it as a handshake may carry.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// Takes `data` for what a peer says in a handshake, on either side: it ends, and lets nobody in
/// who does not know the secret. For fuzzing.
#[doc(hidden)]
pub fn fuzz_handshake(data: &[u8]) {
    struct Anyone;

    impl Gate for Anyone {
        fn identity(&self) -> Identity {
            Identity {
                cluster: 1,
                node: 1,
                ..Identity::default()
            }
        }
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let context = Context {
            net: Arc::new(crate::net::Tcp),
            gate: Arc::new(Anyone),
            auth: Arc::new(Secret::new(
                b"a secret of the cluster",
                Random::from_seed(1),
            )),
            limits: Limits::default(),
            io: tokio::runtime::Handle::current(),
            raft: tokio::runtime::Handle::current(),
            workers: Arc::new(crate::doors::Threads),
        };
        let peer = || -> Stream {
            let says = std::io::Cursor::new(data.to_vec());
            Box::new(tokio::io::join(says, tokio::io::sink()))
        };
        assert!(accept(&context, peer()).await.is_err());
        assert!(dial(&context, peer(), ConnKind::Request, 2).await.is_err());
    });
}
