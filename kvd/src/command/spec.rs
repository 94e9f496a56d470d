//! What one row of the table says.

use crate::command::Failure;
use crate::command::effect::Effect;
use crate::keyspace::{Txn, View};
use crate::resp::Reply;

/// One command, or one subcommand of a container: everything that routing, COMMAND and the
/// reference need to know of it.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The name in lower case; a subcommand's holds its container's, as in `config|get`.
    pub name: &'static str,
    /// The number of arguments with the name itself; negative means "at least".
    pub arity: i32,
    /// Properties.
    pub flags: Flags,
    /// Which arguments are keys.
    pub keys: Keys,
    /// What it does to state, with the function that does it.
    pub kind: Kind,
    /// Checks of the arguments that need no state, beyond the arity; run before an append.
    pub check: Option<CheckFn>,
    /// The family, for the reference.
    pub group: Group,
    /// The Redis version that brought it, or kvd's for its own.
    pub since: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The arguments as people write them.
    pub syntax: &'static str,
    /// The cost in big O.
    pub complexity: &'static str,
    /// The rows below a container; empty for anything else.
    pub subcommands: &'static [Spec],
}

/// What a command does, with its function.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Only reads the keyspace.
    Read(ReadFn),
    /// May change the keyspace: goes through the log.
    Write(WriteFn),
    /// Is about the connection or the cluster: its function returns an effect as data.
    Session(SessionFn),
}

/// A command that only reads.
pub type ReadFn = fn(&Call<'_>, &View<'_>) -> Result<Reply, Failure>;

/// A command that may write.
pub type WriteFn = fn(&Call<'_>, &mut Txn<'_>) -> Result<Reply, Failure>;

/// A command about the connection or the cluster.
pub type SessionFn = fn(&[&[u8]]) -> Result<Effect, Reply>;

/// A check of arguments that needs no state.
pub type CheckFn = fn(&[&[u8]]) -> Result<(), Reply>;

/// What a command is called with; time comes from the view.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The arguments, the name first.
    pub args: &'a [&'a [u8]],
    /// What anything random is drawn from. A write's comes from its entry, so it is the same on
    /// every node.
    pub seed: u64,
    /// How many bytes the reply may take.
    pub room: usize,
}

/// Most bytes that the replies of one transaction, of the commands of one group, or of one command
/// alone may take: what a client may make a node hold for it. Any single value fits. As writes
/// depend on it, it is the same on every node.
pub const REPLY_BYTES_MAX: usize = 513 << 20;

impl<'a> Call<'a> {
    /// A call that may take all the room there is.
    pub fn new(args: &'a [&'a [u8]], seed: u64) -> Self {
        Call {
            args,
            seed,
            room: REPLY_BYTES_MAX,
        }
    }
}

/// Which arguments are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// None.
    None,
    /// From `first` to `last`, every `step`th; a negative `last` counts from the end.
    Range {
        /// Index of the first key among the arguments.
        first: usize,
        /// Index of the last key, or -1 for the last argument.
        last: i32,
        /// Distance between keys.
        step: usize,
    },
}

/// Properties of a command, as a set. The bits are not a format: nothing stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// No property.
    pub const NONE: Flags = Flags(0);
    /// May change the keyspace.
    pub const WRITE: Flags = Flags(1);
    /// Only reads the keyspace.
    pub const READONLY: Flags = Flags(1 << 1);
    /// May make the store grow.
    pub const DENYOOM: Flags = Flags(1 << 2);
    /// Is for administrators.
    pub const ADMIN: Flags = Flags(1 << 3);
    /// Is not for scripts.
    pub const NOSCRIPT: Flags = Flags(1 << 4);
    /// Is answered while state is being loaded.
    pub const LOADING: Flags = Flags(1 << 5);
    /// Is answered by a node that has lost contact with the leader.
    pub const STALE: Flags = Flags(1 << 6);
    /// Takes constant or logarithmic time.
    pub const FAST: Flags = Flags(1 << 7);
    /// Is answered before authentication.
    pub const NO_AUTH: Flags = Flags(1 << 8);
    /// Is not allowed between MULTI and EXEC.
    pub const NO_MULTI: Flags = Flags(1 << 9);
    /// Is not in the slow log.
    pub const SKIP_SLOWLOG: Flags = Flags(1 << 10);
    /// Is not answered while a dataset is replaced in the background.
    pub const NO_ASYNC_LOADING: Flags = Flags(1 << 11);
    /// Is answered while a script is busy.
    pub const ALLOW_BUSY: Flags = Flags(1 << 12);
    /// Its keys cannot be told from positions alone.
    pub const MOVABLE_KEYS: Flags = Flags(1 << 13);

    /// Is dangerous without being for administrators (KEYS, FLUSHALL). Ours, not shown as a flag.
    pub const DANGEROUS: Flags = Flags(1 << 24);
    /// Costs time in proportion to the data: never inside an entry or on a socket's thread. Ours.
    pub const COSTLY: Flags = Flags(1 << 25);
    /// Reads this node's own applied state, without a read barrier. Ours.
    pub const LOCAL: Flags = Flags(1 << 26);
    /// Is for loopback connections unless enabled. Ours.
    pub const DEBUG: Flags = Flags(1 << 27);

    /// The flags that clients see, in Redis's words and order.
    pub const SHOWN: &'static [(Flags, &'static str)] = &[
        (Flags::WRITE, "write"),
        (Flags::READONLY, "readonly"),
        (Flags::DENYOOM, "denyoom"),
        (Flags::ADMIN, "admin"),
        (Flags::NOSCRIPT, "noscript"),
        (Flags::LOADING, "loading"),
        (Flags::STALE, "stale"),
        (Flags::SKIP_SLOWLOG, "skip_slowlog"),
        (Flags::FAST, "fast"),
        (Flags::NO_AUTH, "no_auth"),
        (Flags::NO_ASYNC_LOADING, "no_async_loading"),
        (Flags::NO_MULTI, "no_multi"),
        (Flags::MOVABLE_KEYS, "movablekeys"),
        (Flags::ALLOW_BUSY, "allow_busy"),
    ];

    /// Both sets together.
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether all of `other` are in this set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The family of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Any key, whatever its type.
    Generic,
    /// Strings.
    String,
    /// The connection.
    Connection,
    /// The server.
    Server,
    /// The cluster.
    Cluster,
    /// MULTI and its relatives.
    Transactions,
}

impl Group {
    /// Every family, in the order of the reference.
    pub const ALL: &'static [Group] = &[
        Group::String,
        Group::Generic,
        Group::Transactions,
        Group::Connection,
        Group::Server,
        Group::Cluster,
    ];

    /// The name that COMMAND DOCS shows.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Generic => "generic",
            Group::String => "string",
            Group::Connection => "connection",
            Group::Server => "server",
            Group::Cluster => "cluster",
            Group::Transactions => "transactions",
        }
    }
}

/// More keys than this make a command costly.
const CHEAP_KEYS_MAX: usize = 256;

impl Spec {
    const fn new(name: &'static str, arity: i32, kind: Kind, flags: Flags) -> Spec {
        Spec {
            name,
            arity,
            flags,
            keys: Keys::None,
            kind,
            check: None,
            group: Group::Generic,
            since: "",
            summary: "",
            syntax: "",
            complexity: "O(1)",
            subcommands: &[],
        }
    }

    /// A row that reads.
    pub const fn read(name: &'static str, arity: i32, function: ReadFn) -> Spec {
        Spec::new(name, arity, Kind::Read(function), Flags::READONLY)
    }

    /// A row that may write.
    pub const fn write(name: &'static str, arity: i32, function: WriteFn) -> Spec {
        Spec::new(name, arity, Kind::Write(function), Flags::WRITE)
    }

    /// A row about the connection or the cluster.
    pub const fn session(name: &'static str, arity: i32, function: SessionFn) -> Spec {
        Spec::new(name, arity, Kind::Session(function), Flags::NONE)
    }

    /// The same row with these flags too.
    pub const fn flags(mut self, flags: Flags) -> Spec {
        self.flags = self.flags.with(flags);
        self
    }

    /// The same row with keys from `first` to `last`, every `step`th.
    pub const fn keys(mut self, first: usize, last: i32, step: usize) -> Spec {
        self.keys = Keys::Range { first, last, step };
        self
    }

    /// The same row with a check of its arguments.
    pub const fn check(mut self, check: CheckFn) -> Spec {
        self.check = Some(check);
        self
    }

    /// The same row with what the reference says: family, version, arguments, summary.
    pub const fn docs(
        mut self,
        group: Group,
        since: &'static str,
        syntax: &'static str,
        summary: &'static str,
    ) -> Spec {
        self.group = group;
        self.since = since;
        self.syntax = syntax;
        self.summary = summary;
        self
    }

    /// The same row with its cost.
    pub const fn complexity(mut self, complexity: &'static str) -> Spec {
        self.complexity = complexity;
        self
    }

    /// The same row as a container of `subcommands`.
    pub const fn subcommands(mut self, subcommands: &'static [Spec]) -> Spec {
        self.subcommands = subcommands;
        self
    }

    /// Whether it has all of these properties.
    pub const fn has(&self, flags: Flags) -> bool {
        self.flags.has(flags)
    }

    /// Whether it goes through the log.
    pub const fn is_write(&self) -> bool {
        matches!(self.kind, Kind::Write(_))
    }

    /// Whether it only reads the keyspace.
    pub const fn is_read(&self) -> bool {
        matches!(self.kind, Kind::Read(_))
    }

    /// Whether a call with `arguments` arguments may ride in an entry or run on a socket's thread.
    pub fn is_cheap(&self, arguments: usize) -> bool {
        !self.has(Flags::COSTLY) && arguments <= CHEAP_KEYS_MAX + 1
    }

    /// Whether a call with `arguments` arguments, the name included, fits the arity.
    pub const fn accepts(&self, arguments: usize) -> bool {
        if self.arity < 0 {
            arguments >= self.arity.unsigned_abs() as usize
        } else {
            arguments == self.arity as usize
        }
    }

    /// The positions of the keys among `arguments` arguments.
    pub fn key_positions(&self, arguments: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, end, step) = match self.keys {
            Keys::None => (1, 1, 1),
            Keys::Range { first, last, step } => {
                let end = if last < 0 {
                    (arguments as i64 + i64::from(last) + 1).max(0) as usize
                } else {
                    (last as usize + 1).min(arguments)
                };
                (first, end, step)
            }
        };
        (first..end).step_by(step)
    }

    /// The keys among `args`.
    pub fn keys_of<'a>(&self, args: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.key_positions(args.len())
            .map(|position| args[position])
    }

    /// The name without its container's.
    pub fn short_name(&self) -> &'static str {
        self.name
            .split_once('|')
            .map_or(self.name, |(_, short)| short)
    }
}
