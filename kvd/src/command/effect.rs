//! What commands about the connection, the node or the cluster ask for, as data.

use std::time::Duration;

use bytes::Bytes;

use crate::resp::Reply;

/// What the connection or the node shall do, and answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Nothing is to be done: this is the answer.
    Reply(Reply),
    /// Answer OK, then close.
    Quit,
    /// Answer what the server is, after switching protocol, name and user as asked.
    Hello(Hello),
    /// Forget the connection's state, and answer `+RESET`.
    Reset,
    /// Check a password.
    Auth(Credentials),
    /// Send these replies from now on.
    ReplyMode(ReplyMode),
    /// About this connection, or all of them.
    Client(Client),
    /// About settings.
    Config(Config),
    /// The text of INFO.
    Info {
        /// The sections asked for, in lower case; none means the default ones.
        sections: Vec<String>,
    },
    /// The wall clock: seconds and microseconds as an array of two strings.
    Time,
    /// What part this node plays.
    Role,
    /// The wall clock in seconds: all that was acknowledged is on disk.
    LastSave,
    /// About slow commands.
    SlowLog(SlowLog),
    /// About how long commands take.
    Latency(Latency),
    /// Show from now on what every connection is told to do.
    Monitor,
    /// Hand leadership over.
    TransferLeader(Successor),
    /// Take another node in under a name of its own, by its address alone.
    AddNode {
        /// `host:port` of its Raft port.
        addr: String,
    },
    /// Remove the member with this id.
    RemoveNode(u64),
    /// End the process.
    Shutdown(Shutdown),
    /// Do nothing on this connection for a while, then answer OK.
    Sleep(Duration),
    /// Take another node into the cluster.
    Join {
        /// The member's name from then on.
        name: String,
        /// `host:port` of its Raft port.
        addr: String,
        /// Whether it shall vote.
        voter: bool,
    },
    /// Compare the contents of all members.
    Compare,
    /// About a copy of all data, taken while the node serves.
    Backup(Backup),
    /// Remove a member.
    Leave {
        /// The member's name.
        name: String,
    },
    /// About the cluster.
    Cluster(Cluster),
    /// From now on this connection reads what this node has applied.
    ReadOnly,
    /// From now on this connection's reads are as strong as the server's default.
    ReadWrite,
    /// The next command may meet a slot that is on its way here.
    Asking,
    /// Start queueing.
    Multi,
    /// Run what was queued.
    Exec,
    /// Forget what was queued.
    Discard,
    /// Make the next EXEC depend on these keys.
    Watch {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Forget the watched keys.
    Unwatch,
    /// Answer how many other members hold this connection's last write.
    Wait {
        /// Answer as soon as this many do.
        replicas: u64,
        /// Answer after this time at the latest; none means without end.
        timeout: Option<Duration>,
    },
}

/// HELLO.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// 2 or 3; none keeps what is.
    pub protocol: Option<u8>,
    /// Checked before anything else is done.
    pub auth: Option<Credentials>,
    /// The connection's new name; empty takes it away.
    pub name: Option<Bytes>,
}

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// None means the default user.
    pub username: Option<Bytes>,
    /// As the client sent it.
    pub password: Bytes,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// CLIENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// The connection's number.
    Id,
    /// The line of this connection.
    Info,
    /// The lines of all connections that match.
    List {
        /// Only these numbers; none means all.
        ids: Option<Vec<u64>>,
        /// Only connections of this type.
        kind: Option<ClientKind>,
    },
    /// Sets the connection's name; empty takes it away.
    SetName(Bytes),
    /// The connection's name.
    GetName,
    /// What the client's library says of itself.
    SetInfo(LibraryInfo, Bytes),
    /// Closes the one connection from this address.
    KillAddr(String),
    /// Closes all connections that match.
    Kill(KillFilter),
    /// The client follows redirections of the whole connection.
    Redirectable,
    /// Holds commands for a time.
    Pause {
        /// How long.
        time: Duration,
        /// Also those that only read.
        all: bool,
    },
    /// Lets held commands go on.
    Unpause,
}

/// SLOWLOG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowLog {
    /// The latest entries; none means all.
    Get(Option<usize>),
    /// How many there are.
    Len,
    /// Forget them.
    Reset,
}

/// LATENCY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Latency {
    /// The latest and the longest spike of each event.
    Latest,
    /// All spikes of an event.
    History(String),
    /// Forget the spikes of these events, or of all.
    Reset(Vec<String>),
    /// The distributions of these commands, or of all.
    Histogram(Vec<String>),
}

/// BACKUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backup {
    /// Take one for this connection, and answer its index and its length.
    Open,
    /// Some of its bytes, from this offset on.
    Read(u64),
    /// Drop it.
    Close,
}

/// Who shall lead next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Successor {
    /// The member that is best placed.
    Any,
    /// The node that is asked.
    This,
    /// A member by its name, or by its id in hex digits.
    Named(String),
}

/// Which connections CLIENT KILL closes: those that meet all that is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillFilter {
    /// The number.
    pub id: Option<u64>,
    /// The client's address.
    pub addr: Option<String>,
    /// The address it connected to.
    pub local_addr: Option<String>,
    /// The type.
    pub kind: Option<ClientKind>,
    /// The asking connection is spared.
    pub skip_me: bool,
}

/// Which replies a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMode {
    /// All.
    On,
    /// None.
    Off,
    /// Not the next one.
    Skip,
}

/// The types of connections that CLIENT LIST tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// Any ordinary client.
    Normal,
    /// A primary of this replica; kvd has none.
    Master,
    /// A replica of this primary; kvd has none.
    Replica,
    /// A subscriber.
    PubSub,
}

/// Which of the library's properties CLIENT SETINFO sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibraryInfo {
    /// `lib-name`
    Name,
    /// `lib-ver`
    Version,
}

/// CONFIG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// All settings whose names match one of these patterns.
    Get(Vec<Bytes>),
    /// Sets all of these, or none: names in lower case, with values.
    Set(Vec<(String, Bytes)>),
    /// Sets INFO's counters to zero.
    ResetStat,
    /// Writes the settings into the file that they came from.
    Rewrite,
}

/// CLUSTER, as far as it is about this cluster rather than about keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// Who serves which slots.
    Slots,
    /// The same, in the newer form.
    Shards,
    /// The same, as text.
    Nodes,
    /// The state of the cluster, as text.
    Info,
    /// This node's identity.
    MyId,
    /// This node's connections to the other members.
    Links,
    /// The lines of the members that follow the one of this identity.
    Replicas(String),
}

/// SHUTDOWN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// Do not wait for what is in flight.
    pub now: bool,
    /// Go even if something speaks against it.
    pub force: bool,
    /// Call off a shutdown that is under way.
    pub abort: bool,
}
