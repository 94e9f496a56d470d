//! What a client can ask: one table of rows, and one pure function for each command.
//!
//! A request is served in three steps, and each of them is a function here. [`lookup`] finds the
//! row, or says in Redis's words that there is none. [`validate`] checks all that can be checked
//! without state, so that what must fail never enters the log. Then the row's [`Kind`] says who
//! carries it out: [`run_read`] on a view, [`run_write`] on a transaction, or, for what is about
//! the connection or the cluster, [`session()`], whose [`Effect`] the connection or the node performs.
//!
//! Functions see arguments, a view or a transaction (which carries the time) and a seed, and
//! nothing else; so the same entry gives the same changes and replies on every node.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

use crate::keyspace::{self, Limits, Txn, View, What};
use crate::resp::Reply;
use crate::storage;

mod args;
pub mod effect;
mod gather;
mod introspect;
mod key;
mod lcs;
mod long_double;
mod object;
mod once;
mod reference;
#[doc(hidden)]
pub mod script;
mod server;
mod session;
pub mod spec;
mod string;
mod syntax;
mod table;

pub use effect::Effect;
pub use gather::too_long;
pub use reference::reference;
pub use spec::{Call, Flags, Group, Keys, Kind, REPLY_BYTES_MAX, Spec};
pub use table::{TABLE, all, find};

/// Why a command gave no ordinary reply.
#[derive(Debug)]
pub enum Failure {
    /// An error that is the answer: the same on every node. The command changes nothing.
    Answer(Reply),
    /// The engine failed: this node's trouble, never an answer.
    Engine(storage::Error),
}

impl From<Reply> for Failure {
    fn from(reply: Reply) -> Self {
        Failure::Answer(reply)
    }
}

impl From<keyspace::Failure> for Failure {
    fn from(failure: keyspace::Failure) -> Self {
        Failure::Answer(match failure {
            keyspace::Failure::Engine(error) => return Failure::Engine(error),
            keyspace::Failure::WrongType => {
                Reply::error("WRONGTYPE Operation against a key holding the wrong kind of value")
            }
            keyspace::Failure::TooLarge { what, limit } => too_large(what, limit),
        })
    }
}

fn too_large(what: What, limit: u64) -> Reply {
    match what {
        What::Key => Reply::error(format!("ERR key is longer than {limit} bytes")),
        What::Value => Reply::error(format!("ERR value is longer than {limit} bytes")),
    }
}

/// Finds the row for a request, the one of the subcommand if there is one; the error is Redis's
/// text. `args` holds at least the name.
pub fn lookup(args: &[&[u8]]) -> Result<&'static Spec, Reply> {
    let Some(spec) = find(args[0]) else {
        return Err(args::unknown_command(args));
    };
    if spec.subcommands.is_empty() || args.len() == 1 {
        return Ok(spec);
    }
    table::find_subcommand(spec, args[1]).ok_or_else(|| args::unknown_subcommand(spec, args[1]))
}

/// Checks all of a request that needs no state: the number of arguments, their types where Redis
/// looks at them before it looks at keys, and, for writes, the sizes of keys and values. A request
/// that fails here did not happen.
pub fn validate(spec: &Spec, args: &[&[u8]], limits: &Limits) -> Result<(), Reply> {
    validate_queued(spec, args, limits)?;
    match spec.check {
        Some(check) => check(args),
        None => Ok(()),
    }
}

/// As [`validate`], for a request that is queued: what its arguments are is looked at when it is
/// carried out, and then is an error among the replies of the others.
pub fn validate_queued(spec: &Spec, args: &[&[u8]], limits: &Limits) -> Result<(), Reply> {
    if !spec.accepts(args.len()) {
        return Err(args::wrong_arity(spec));
    }
    if spec.is_write() {
        check_sizes(spec, args, limits)?;
    }
    Ok(())
}

fn check_sizes(spec: &Spec, args: &[&[u8]], limits: &Limits) -> Result<(), Reply> {
    let longer_than = |limit: u64| move |arg: &&[u8]| arg.len() as u64 > limit;
    if spec
        .keys_of(args)
        .any(|key| longer_than(limits.key_bytes_max)(&key))
    {
        return Err(too_large(What::Key, limits.key_bytes_max));
    }
    if args.iter().any(longer_than(limits.value_bytes_max)) {
        return Err(too_large(What::Value, limits.value_bytes_max));
    }
    Ok(())
}

/// Runs a command that only reads. An error reply is an `Ok`; `Err` is this node's engine failing.
///
/// # Panics
///
/// When the row is not a read.
pub fn run_read(spec: &Spec, call: &Call<'_>, view: &View<'_>) -> Result<Reply, storage::Error> {
    let Kind::Read(function) = spec.kind else {
        panic!("{} is not a read", spec.name);
    };
    if !spec.accepts(call.args.len()) {
        return Ok(args::wrong_arity(spec));
    }
    match contained(spec, || function(call, view)) {
        Ok(reply) if reply.bytes() > call.room => Ok(too_long()),
        Ok(reply) | Err(Failure::Answer(reply)) => Ok(reply),
        Err(Failure::Engine(error)) => Err(error),
    }
}

/// Runs GET: hands the value to `out`, and tells whether there is one. The inner error is the
/// command's, as of [`run_read`].
pub fn run_get(
    spec: &Spec,
    key: &[u8],
    view: &View<'_>,
    out: &mut dyn FnMut(&[u8]),
) -> Result<Result<bool, Reply>, storage::Error> {
    match contained(spec, || Ok(view.string(key, out)?)) {
        Ok(found) => Ok(Ok(found)),
        Err(Failure::Answer(reply)) => Ok(Err(reply)),
        Err(Failure::Engine(error)) => Err(error),
    }
}

/// Runs a command inside a transaction: its changes stay exactly if its reply is no error. A read
/// runs against the transaction's view. `Err` is this node's engine failing; nothing that the
/// transaction holds may be kept then.
///
/// # Panics
///
/// When the row is about the connection or the cluster.
pub fn run_write(spec: &Spec, call: &Call<'_>, txn: &mut Txn<'_>) -> Result<Reply, storage::Error> {
    let function = match spec.kind {
        Kind::Write(function) => function,
        Kind::Read(_) => return run_read(spec, call, &txn.view()),
        Kind::Session(_) => panic!("{} has no business in an entry", spec.name),
    };
    if !spec.accepts(call.args.len()) {
        return Ok(args::wrong_arity(spec));
    }
    let savepoint = txn.savepoint();
    match contained(spec, || function(call, txn)) {
        Ok(reply) if reply.bytes() > call.room => {
            txn.rollback(savepoint);
            Ok(too_long())
        }
        Ok(reply) => Ok(reply),
        Err(Failure::Answer(reply)) => {
            txn.rollback(savepoint);
            Ok(reply)
        }
        Err(Failure::Engine(error)) => Err(error),
    }
}

/// What a command about the connection or the cluster asks for; `None` for other rows.
pub fn session(spec: &Spec, args: &[&[u8]]) -> Option<Result<Effect, Reply>> {
    match spec.kind {
        Kind::Session(function) => Some(function(args)),
        Kind::Read(_) | Kind::Write(_) => None,
    }
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is about to be contained, because it comes from a command's
/// function. For the process's panic hook, which ends the process on any other.
pub fn panic_is_contained() -> bool {
    CONTAINED.get()
}

/// Turns a panic of a command's function into an error reply: a bug, but not a cluster's death.
fn contained<T>(spec: &Spec, run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let before = CONTAINED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(run));
    CONTAINED.set(before);
    outcome.unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(
            command = spec.name,
            message,
            "a command's function panicked"
        );
        Err(Failure::Answer(Reply::error("ERR internal error")))
    })
}
