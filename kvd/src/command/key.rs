//! Keys, whatever they hold.

use crate::command::args::{self, error, integer, invalid_expire, is_word, syntax_error};
use crate::command::gather::Gather;
use crate::command::{Call, Failure};
use crate::keyspace::{Txn, View};
use crate::resp::{Reply, glob};

type Answer = Result<Reply, Failure>;

/// DEL and UNLINK: deleting is cheap for any size here, so they are one.
pub(super) fn del(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let mut deleted = 0;
    for key in &call.args[1..] {
        deleted += i64::from(txn.delete(key)?);
    }
    Ok(Reply::Int(deleted))
}

/// EXISTS and TOUCH: a key that is named twice counts twice.
pub(super) fn exists(call: &Call<'_>, view: &View<'_>) -> Answer {
    let mut found = 0;
    for key in &call.args[1..] {
        found += i64::from(view.exists(key)?);
    }
    Ok(Reply::Int(found))
}

pub(super) fn type_of(call: &Call<'_>, view: &View<'_>) -> Answer {
    let name = view.kind(call.args[1])?.map_or("none", |kind| kind.name());
    Ok(Reply::simple(name))
}

/// How many keys KEYS asks the view for at a time.
const KEYS_STEP: usize = 1024;

pub(super) fn keys(call: &Call<'_>, view: &View<'_>) -> Answer {
    let pattern = call.args[1];
    let mut found = Gather::new(call);
    let (mut cursor, mut room) = (0, true);
    loop {
        cursor = view.scan(cursor, KEYS_STEP, |key, _| {
            if glob::matches(pattern, key, false) {
                room = found.push(Reply::bulk_from(key));
            }
        })?;
        if cursor == 0 || !room {
            return found.finish();
        }
    }
}

/// What SCAN was asked.
#[derive(Debug)]
struct Scan<'a> {
    cursor: u64,
    count: usize,
    pattern: Option<&'a [u8]>,
    kind: Option<&'a [u8]>,
}

/// One SCAN looks at no more keys than this, however many it asks for; a client that wants more
/// goes on with the cursor.
const SCAN_COUNT_MAX: usize = 100_000;

impl<'a> Scan<'a> {
    fn parse(args: &[&'a [u8]]) -> Result<Scan<'a>, Reply> {
        let mut scan = Scan {
            cursor: cursor(args[1])?,
            count: 10,
            pattern: None,
            kind: None,
        };
        for option in args[2..].chunks(2) {
            let &[name, value] = option else {
                return Err(syntax_error());
            };
            if is_word(name, "COUNT") {
                let count = integer(value)?;
                if count < 1 {
                    return Err(syntax_error());
                }
                scan.count = usize::try_from(count)
                    .map_or(SCAN_COUNT_MAX, |count| count.min(SCAN_COUNT_MAX));
            } else if is_word(name, "MATCH") {
                scan.pattern = Some(value);
            } else if is_word(name, "TYPE") {
                scan.kind = Some(value);
            } else {
                return Err(syntax_error());
            }
        }
        Ok(scan)
    }
}

/// A cursor is an unsigned number; Redis takes leading zeros and a plus sign too.
fn cursor(arg: &[u8]) -> Result<u64, Reply> {
    std::str::from_utf8(arg)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Reply::error("ERR invalid cursor"))
}

pub(super) fn check_scan(args: &[&[u8]]) -> Result<(), Reply> {
    Scan::parse(args).map(|_| ())
}

pub(super) fn scan(call: &Call<'_>, view: &View<'_>) -> Answer {
    let scan = Scan::parse(call.args)?;
    let mut found = Gather::new(call);
    let cursor = view.scan(scan.cursor, scan.count, |key, meta| {
        let wanted = scan.kind.is_none_or(|name| is_word(name, meta.kind.name()))
            && scan
                .pattern
                .is_none_or(|pattern| glob::matches(pattern, key, false));
        if wanted {
            found.push(Reply::bulk_from(key));
        }
    })?;
    let mut buffer = itoa::Buffer::new();
    Ok(Reply::Array(vec![
        Reply::bulk_from(buffer.format(cursor)),
        found.finish()?,
    ]))
}

pub(super) fn randomkey(call: &Call<'_>, view: &View<'_>) -> Answer {
    Ok(view.random_key(call.seed)?.map_or(Reply::Null, Reply::Bulk))
}

fn no_such_key() -> Reply {
    Reply::error("ERR no such key")
}

pub(super) fn rename(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (from, to) = (call.args[1], call.args[2]);
    if !txn.view().exists(from)? {
        return Err(no_such_key().into());
    }
    if from != to {
        txn.rename(from, to)?;
    }
    Ok(Reply::Ok)
}

/// Whether COPY was asked to replace.
fn copy_replaces(args: &[&[u8]]) -> Result<bool, Reply> {
    let (mut replace, mut rest) = (false, &args[3..]);
    loop {
        rest = match rest {
            [] => break,
            [option, rest @ ..] if is_word(option, "REPLACE") => {
                replace = true;
                rest
            }
            [option, index, rest @ ..] if is_word(option, "DB") => match integer(index)? {
                0 => rest,
                _ => return error("ERR DB index is out of range"),
            },
            _ => return Err(syntax_error()),
        };
    }
    if args[1] == args[2] {
        return error("ERR source and destination objects are the same");
    }
    Ok(replace)
}

pub(super) fn check_copy(args: &[&[u8]]) -> Result<(), Reply> {
    copy_replaces(args).map(|_| ())
}

pub(super) fn copy(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let replace = copy_replaces(call.args)?;
    let (from, to) = (call.args[1], call.args[2]);
    if !txn.view().exists(from)? || (!replace && txn.view().exists(to)?) {
        return Ok(Reply::Int(0));
    }
    txn.copy(from, to)?;
    Ok(Reply::Int(1))
}

pub(super) fn renamenx(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (from, to) = (call.args[1], call.args[2]);
    if !txn.view().exists(from)? {
        return Err(no_such_key().into());
    }
    if txn.view().exists(to)? {
        return Ok(Reply::Int(0));
    }
    txn.rename(from, to)?;
    Ok(Reply::Int(1))
}

/// What an EXPIRE was asked.
#[derive(Debug)]
struct ExpireRequest {
    /// As given, in milliseconds.
    ms: i64,
    absent: bool,
    present: bool,
    later: bool,
    earlier: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpireForm {
    command: &'static str,
    seconds: bool,
    relative: bool,
}

const EXPIRE: ExpireForm = ExpireForm {
    command: "expire",
    seconds: true,
    relative: true,
};
const PEXPIRE: ExpireForm = ExpireForm {
    command: "pexpire",
    seconds: false,
    relative: true,
};
const EXPIREAT: ExpireForm = ExpireForm {
    command: "expireat",
    seconds: true,
    relative: false,
};
const PEXPIREAT: ExpireForm = ExpireForm {
    command: "pexpireat",
    seconds: false,
    relative: false,
};

impl ExpireForm {
    fn parse(self, args: &[&[u8]]) -> Result<ExpireRequest, Reply> {
        let mut request = ExpireRequest {
            ms: 0,
            absent: false,
            present: false,
            later: false,
            earlier: false,
        };
        for option in &args[3..] {
            if is_word(option, "NX") {
                request.absent = true;
            } else if is_word(option, "XX") {
                request.present = true;
            } else if is_word(option, "GT") {
                request.later = true;
            } else if is_word(option, "LT") {
                request.earlier = true;
            } else {
                return error(format!(
                    "ERR Unsupported option {}",
                    args::printable_at_end(option)
                ));
            }
        }
        if request.absent && (request.present || request.later || request.earlier) {
            return error("ERR NX and XX, GT or LT options at the same time are not compatible");
        }
        if request.later && request.earlier {
            return error("ERR GT and LT options at the same time are not compatible");
        }
        let value = integer(args[2])?;
        request.ms = if self.seconds {
            value
                .checked_mul(1000)
                .ok_or_else(|| invalid_expire(self.command))?
        } else {
            value
        };
        Ok(request)
    }

    fn check(self, args: &[&[u8]]) -> Result<(), Reply> {
        self.parse(args).map(|_| ())
    }

    fn run(self, call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
        let request = self.parse(call.args)?;
        let key = call.args[1];
        let now_ms = txn.view().now_ms() as i64;
        let at_ms = if self.relative {
            request
                .ms
                .checked_add(now_ms)
                .ok_or_else(|| invalid_expire(self.command))?
        } else {
            request.ms
        };
        let Some(meta) = txn.view().meta(key)? else {
            return Ok(Reply::Int(0));
        };
        let current = meta.expires_at_ms.map(|ms| ms as i64);
        let refused = match current {
            None => request.present || request.later,
            Some(current) => {
                request.absent
                    || (request.later && at_ms <= current)
                    || (request.earlier && at_ms >= current)
            }
        };
        if refused {
            return Ok(Reply::Int(0));
        }
        if at_ms <= now_ms {
            txn.delete(key)?;
        } else {
            txn.set_expiry(key, Some(at_ms as u64))?;
        }
        Ok(Reply::Int(1))
    }
}

pub(super) fn check_expire(args: &[&[u8]]) -> Result<(), Reply> {
    EXPIRE.check(args)
}

pub(super) fn check_pexpire(args: &[&[u8]]) -> Result<(), Reply> {
    PEXPIRE.check(args)
}

pub(super) fn check_expireat(args: &[&[u8]]) -> Result<(), Reply> {
    EXPIREAT.check(args)
}

pub(super) fn check_pexpireat(args: &[&[u8]]) -> Result<(), Reply> {
    PEXPIREAT.check(args)
}

pub(super) fn expire(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    EXPIRE.run(call, txn)
}

pub(super) fn pexpire(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    PEXPIRE.run(call, txn)
}

pub(super) fn expireat(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    EXPIREAT.run(call, txn)
}

pub(super) fn pexpireat(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    PEXPIREAT.run(call, txn)
}

pub(super) fn persist(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let key = call.args[1];
    let has_expiry = txn
        .view()
        .meta(key)?
        .is_some_and(|meta| meta.expires_at_ms.is_some());
    if has_expiry {
        txn.set_expiry(key, None)?;
    }
    Ok(Reply::Int(i64::from(has_expiry)))
}

/// What TTL and its relatives answer for a key that is absent, or stays for ever.
const TTL_ABSENT: i64 = -2;
const TTL_NONE: i64 = -1;

fn with_expiry(call: &Call<'_>, view: &View<'_>, show: impl FnOnce(i64) -> i64) -> Answer {
    Ok(Reply::Int(match view.meta(call.args[1])? {
        None => TTL_ABSENT,
        Some(meta) => meta
            .expires_at_ms
            .map_or(TTL_NONE, |ms| show(i64::try_from(ms).unwrap_or(i64::MAX))),
    }))
}

/// Milliseconds as the nearest whole seconds, as Redis shows them.
fn rounded_seconds(ms: i64) -> i64 {
    ms.saturating_add(500) / 1000
}

fn remaining_ms(at_ms: i64, view: &View<'_>) -> i64 {
    at_ms.saturating_sub(view.now_ms() as i64).max(0)
}

pub(super) fn ttl(call: &Call<'_>, view: &View<'_>) -> Answer {
    with_expiry(call, view, |at_ms| {
        rounded_seconds(remaining_ms(at_ms, view))
    })
}

pub(super) fn pttl(call: &Call<'_>, view: &View<'_>) -> Answer {
    with_expiry(call, view, |at_ms| remaining_ms(at_ms, view))
}

pub(super) fn expiretime(call: &Call<'_>, view: &View<'_>) -> Answer {
    with_expiry(call, view, rounded_seconds)
}

pub(super) fn pexpiretime(call: &Call<'_>, view: &View<'_>) -> Answer {
    with_expiry(call, view, |at_ms| at_ms)
}

pub(super) fn check_flush(args: &[&[u8]]) -> Result<(), Reply> {
    match args {
        [_] => Ok(()),
        [_, mode] if is_word(mode, "ASYNC") || is_word(mode, "SYNC") => Ok(()),
        _ => Err(syntax_error()),
    }
}

/// FLUSHALL and FLUSHDB: there is one database. Both modes take the same time.
pub(super) fn flush(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    check_flush(call.args)?;
    txn.flush_all();
    Ok(Reply::Ok)
}

pub(super) fn dbsize(_: &Call<'_>, view: &View<'_>) -> Answer {
    Ok(Reply::Int(view.len()? as i64))
}
