//! Exactly once, for those who ask: a client that does not know whether its command was carried
//! out sends it again, with the same token and sequence number, and gets the reply of the first
//! time.
//!
//! Tokens and replies are part of the replicated state, beside the keys:
//!
//! ```text
//! once:t:TOKEN           seconds it lives after its last use u64 | last used ms u64 | highest u64
//! once:e:MS:TOKEN        when to look whether it has expired; one for each token
//! once:r:TOKEN:SEQUENCE  the reply, in RESP3
//! ```
//!
//! Numbers in names are 16 hex digits, so names sort by them. Time is replicated time.

use crate::command::args::{error, integer, is_word};
use crate::command::{self, Call, Failure, Kind, Spec};
use crate::keyspace::{Txn, View};
use crate::resp::{self, OutputBuffer, Protocol, Reply, ReplyDecoder};

type Answer = Result<Reply, Failure>;

/// What all names begin with.
const PREFIX: &str = "once:";

/// How many sequence numbers below the highest are remembered: as many commands as a connection
/// takes on at once.
const WINDOW: u64 = 1024;

/// Longest reply that is kept, in bytes.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// How long a token lives after its last use, in seconds: unless told, and at most.
const LIFE_S: u64 = 3600;
const LIFE_S_MAX: u64 = 30 * 24 * 3600;

/// Tokens at one time.
const TOKENS_MAX: usize = 10_000;

/// Tokens whose end is looked at when a new one is asked for: more than come, so none pile up.
const EXPIRED_AT_ONCE: usize = 2;

/// Not known whether it was carried out; it is not now.
fn forgotten(why: &str) -> Failure {
    Failure::Answer(Reply::error(format!(
        "UNKNOWN {why}: whether the command was carried out before cannot be told, and it was not \
         now"
    )))
}

struct Token {
    life_s: u64,
    used_ms: u64,
    highest: u64,
}

impl Token {
    fn read(view: &View<'_>, name: &str) -> Result<Option<Token>, Failure> {
        let Some(bytes) = view.system(&token_key(name))? else {
            return Ok(None);
        };
        let number = |at: usize| {
            let bytes = bytes
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        Ok(Some(Token {
            life_s: number(0),
            used_ms: number(8),
            highest: number(16),
        }))
    }

    fn write(&self, txn: &mut Txn<'_>, name: &str) {
        let mut bytes = Vec::with_capacity(24);
        for number in [self.life_s, self.used_ms, self.highest] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        txn.set_system(&token_key(name), Some(&bytes));
    }

    fn ends_ms(&self) -> u64 {
        self.used_ms.saturating_add(self.life_s * 1000)
    }

    /// Removes what is kept of the sequence numbers that fall out of the window when `highest`
    /// becomes the highest; of all of them when there is none.
    fn forget(&self, txn: &mut Txn<'_>, name: &str, highest: Option<u64>) {
        let kept_from = self.highest.saturating_sub(WINDOW - 1);
        let end = match highest {
            Some(highest) => (self.highest + 1).min(highest.saturating_sub(WINDOW - 1)),
            None => self.highest + 1,
        };
        for sequence in kept_from..end {
            txn.set_system(&reply_key(name, sequence), None);
        }
    }
}

fn token_key(name: &str) -> String {
    format!("{PREFIX}t:{name}")
}

fn end_key(ms: u64, name: &str) -> String {
    format!("{PREFIX}e:{ms:016x}:{name}")
}

fn reply_key(name: &str, sequence: u64) -> String {
    format!("{PREFIX}r:{name}:{sequence:016x}")
}

fn life(args: &[&[u8]]) -> Result<u64, Reply> {
    let Some(seconds) = args.get(1) else {
        return Ok(LIFE_S);
    };
    match u64::try_from(integer(seconds)?) {
        Ok(seconds @ 1..=LIFE_S_MAX) => Ok(seconds),
        _ => error(format!("ERR a token lives 1 to {LIFE_S_MAX} seconds")),
    }
}

pub(super) fn check_token(args: &[&[u8]]) -> Result<(), Reply> {
    life(args).map(|_| ())
}

/// Issues a token.
pub(super) fn token(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let life_s = life(call.args)?;
    remove_expired(txn)?;
    let index = txn.index();
    let (mut nth, mut name) = (0_u64, String::new());
    while nth == 0 || Token::read(&txn.view(), &name)?.is_some() {
        name = format!("{index:016x}{:016x}", call.seed.wrapping_add(nth));
        nth += 1;
    }
    if txn
        .view()
        .systems_at_most(&format!("{PREFIX}t:"), TOKENS_MAX)?
        .len()
        == TOKENS_MAX
    {
        return Err(Reply::error(format!("ERR there are {TOKENS_MAX} tokens already")).into());
    }
    let token = Token {
        life_s,
        used_ms: txn.replicated_ms(),
        highest: 0,
    };
    token.write(txn, &name);
    txn.set_system(&end_key(token.ends_ms(), &name), Some(b""));
    Ok(Reply::bulk(name))
}

/// Looks at the tokens that would have expired first, had they not been used since.
fn remove_expired(txn: &mut Txn<'_>) -> Result<(), Failure> {
    let prefix = format!("{PREFIX}e:");
    let first = txn.view().systems_at_most(&prefix, EXPIRED_AT_ONCE)?;
    for (key, _) in first {
        let Some((ms, name)) = key[prefix.len()..].split_once(':') else {
            continue;
        };
        if u64::from_str_radix(ms, 16).is_ok_and(|ms| ms > txn.replicated_ms()) {
            break;
        }
        txn.set_system(&key, None);
        let Some(token) = Token::read(&txn.view(), name)? else {
            continue;
        };
        if token.ends_ms() > txn.replicated_ms() {
            txn.set_system(&end_key(token.ends_ms(), name), Some(b""));
        } else {
            token.forget(txn, name, None);
            txn.set_system(&token_key(name), None);
        }
    }
    Ok(())
}

/// The token, the sequence number and the row of the command.
fn parts<'a>(args: &'a [&'a [u8]]) -> Result<(&'a str, u64, &'static Spec), Reply> {
    let name = std::str::from_utf8(args[1])
        .ok()
        .filter(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(name) = name else {
        return error("ERR that is no token; ONCE.TOKEN issues one");
    };
    let sequence = match integer(args[2])? {
        number @ 1.. => number as u64,
        _ => return error("ERR sequence numbers begin with 1"),
    };
    let inner = &args[3..];
    let spec = command::lookup(inner)?;
    if !matches!(spec.kind, Kind::Write(_)) || is_word(inner[0], "ONCE") {
        return error("ERR ONCE is for commands that write keys");
    }
    if !spec.accepts(inner.len()) {
        return Err(super::args::wrong_arity(spec));
    }
    if let Some(check) = spec.check {
        check(inner)?;
    }
    Ok((name, sequence, spec))
}

pub(super) fn check(args: &[&[u8]]) -> Result<(), Reply> {
    parts(args).map(|_| ())
}

/// Carries a command out, unless that was done before.
pub(super) fn once(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (name, sequence, spec) = parts(call.args)?;
    let now_ms = txn.replicated_ms();
    let mut token = match Token::read(&txn.view(), name)? {
        Some(token) if token.ends_ms() > now_ms => token,
        _ => return Err(forgotten("the token is not known or has expired")),
    };
    if sequence.saturating_add(WINDOW) <= token.highest {
        return Err(forgotten("the sequence number is below the window"));
    }
    token.used_ms = now_ms;
    let key = reply_key(name, sequence);
    if let Some(kept) = txn.view().system(&key)? {
        token.write(txn, name);
        return decode(&kept).ok_or_else(|| Reply::error("ERR internal error").into());
    }
    let inner = Call {
        args: &call.args[3..],
        ..*call
    };
    let reply = command::run_write(spec, &inner, txn).map_err(Failure::Engine)?;
    if reply.bytes() > REPLY_BYTES_MAX {
        return Err(Reply::error(format!(
            "ERR a reply of more than {REPLY_BYTES_MAX} bytes cannot be kept"
        ))
        .into());
    }
    txn.set_system(&key, Some(&encode(&reply)));
    if sequence > token.highest {
        token.forget(txn, name, Some(sequence));
        token.highest = sequence;
    }
    token.write(txn, name);
    Ok(reply)
}

fn encode(reply: &Reply) -> Vec<u8> {
    let mut out = OutputBuffer::new();
    resp::write(reply, Protocol::Resp3, &mut out);
    out.chunks().flatten().copied().collect()
}

fn decode(bytes: &[u8]) -> Option<Reply> {
    let mut decoder = ReplyDecoder::new();
    decoder.feed(bytes);
    decoder.next().ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::Limits;
    use crate::storage::{Mark, MemoryEngine, Store};
    use std::sync::Arc;

    struct World {
        store: Store,
        index: u64,
        now_ms: u64,
    }

    impl World {
        fn new() -> Self {
            World {
                store: Store::new(Arc::new(MemoryEngine::new())),
                index: 0,
                now_ms: 1_000_000,
            }
        }

        fn call(&mut self, request: &str) -> Reply {
            let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            self.index += 1;
            let base = self.store.read().unwrap();
            let mut txn = Txn::new(&base, self.index, self.now_ms, 7, Limits::default()).unwrap();
            let spec = command::lookup(&args).unwrap();
            if let Err(reply) = command::validate(spec, &args, &Limits::default()) {
                return reply;
            }
            let reply = command::run_write(spec, &Call::new(&args, 7), &mut txn).unwrap();
            let changes = txn.finish();
            drop(base);
            let mark = Mark {
                index: self.index,
                ..Mark::default()
            };
            self.store.write(&changes.ops(), &mark).unwrap();
            reply
        }

        fn token(&mut self) -> String {
            match self.call("ONCE.TOKEN 10") {
                Reply::Bulk(name) => String::from_utf8(name.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            }
        }

        fn names(&self) -> usize {
            let base = self.store.read().unwrap();
            let view = View::new(&base, self.now_ms, self.now_ms).unwrap();
            view.systems(PREFIX).unwrap().len()
        }
    }

    #[test]
    fn a_command_that_is_sent_again_is_not_carried_out_again() {
        let mut world = World::new();
        let token = world.token();
        for _ in 0..3 {
            let reply = world.call(&format!("ONCE {token} 1 INCR a"));
            assert_eq!(reply, Reply::Int(1));
        }
        // Errors are kept too: the second time the reason is gone.
        world.call("SET text x");
        let refused = world.call(&format!("ONCE {token} 2 INCR text"));
        assert!(refused.is_error());
        world.call("SET text 5");
        assert_eq!(world.call(&format!("ONCE {token} 2 INCR text")), refused);
        assert_eq!(
            world.call(&format!("ONCE {token} 3 INCR text")),
            Reply::Int(6)
        );
        // Two clients have two tokens, and FLUSHALL is no reason to do it again.
        let other = world.token();
        assert_ne!(token, other);
        assert_eq!(world.call(&format!("ONCE {other} 1 INCR a")), Reply::Int(2));
        world.call("FLUSHALL");
        assert_eq!(world.call(&format!("ONCE {token} 1 INCR a")), Reply::Int(1));
        assert_eq!(world.call("STRLEN a"), Reply::Int(0));
    }

    #[test]
    fn what_is_not_remembered_is_refused_and_never_carried_out() {
        let mut world = World::new();
        let token = world.token();
        let refused = |reply: Reply, why: &str| {
            assert_eq!(reply.error_prefix(), Some("UNKNOWN"), "{reply:?}");
            assert!(format!("{reply:?}").contains(why), "{reply:?}");
        };
        for sequence in [1, 2, 1025] {
            let reply = world.call(&format!("ONCE {token} {sequence} INCR a"));
            assert!(!reply.is_error(), "{reply:?}");
        }
        refused(
            world.call(&format!("ONCE {token} 1 INCR a")),
            "below the window",
        );
        // In the window, and never seen: commands of a pipeline may come in any order.
        assert_eq!(world.call(&format!("ONCE {token} 3 INCR a")), Reply::Int(4));
        assert_eq!(world.call(&format!("ONCE {token} 2 INCR a")), Reply::Int(2));
        refused(
            world.call(&format!("ONCE {:032x} 1 INCR a", 5)),
            "not known",
        );
        world.now_ms += 9_999;
        assert_eq!(world.call(&format!("ONCE {token} 3 INCR a")), Reply::Int(4));
        world.now_ms += 10_000;
        refused(world.call(&format!("ONCE {token} 3 INCR a")), "expired");
        assert_eq!(world.call("STRLEN a"), Reply::Int(1));
    }

    #[test]
    fn expired_tokens_leave_nothing_behind() {
        let mut world = World::new();
        for _ in 0..20 {
            let token = world.token();
            for sequence in [1, 2, 3000, 2000, 5000] {
                world.call(&format!("ONCE {token} {sequence} INCR a"));
            }
            world.now_ms += 20_000;
        }
        // The last token, its end, and at most one whose end was looked at too early.
        assert!(world.names() <= 8, "{}", world.names());
        for _ in 0..4 {
            world.now_ms += 20_000;
            world.token();
        }
        assert_eq!(world.names(), 2);
    }
}
