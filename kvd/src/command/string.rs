//! Strings.

use bytes::Bytes;

use crate::command::args::{self, Deadline, Unit, deadline, error, integer, is_word, syntax_error};
use crate::command::gather::Gather;
use crate::command::long_double::LongDouble;
use crate::command::{Call, Failure};
use crate::keyspace::{Expire, Txn, View};
use crate::resp::Reply;

type Answer = Result<Reply, Failure>;

/// The value of a key as a reply.
fn bulk_of(view: &View<'_>, key: &[u8]) -> Answer {
    Ok(view.get_string(key)?.into())
}

/// What `read` makes of the value of a key, without a copy of it; `None` when there is no key.
fn read_string<T>(
    view: &View<'_>,
    key: &[u8],
    mut read: impl FnMut(&[u8]) -> T,
) -> Result<Option<T>, Failure> {
    let mut out = None;
    view.string(key, |value| out = Some(read(value)))?;
    Ok(out)
}

pub(super) fn get(call: &Call<'_>, view: &View<'_>) -> Answer {
    bulk_of(view, call.args[1])
}

pub(super) fn strlen(call: &Call<'_>, view: &View<'_>) -> Answer {
    let length = read_string(view, call.args[1], <[u8]>::len)?;
    Ok(Reply::Int(length.unwrap_or(0) as i64))
}

/// MGET answers nil for keys of other types, as Redis does.
pub(super) fn mget(call: &Call<'_>, view: &View<'_>) -> Answer {
    let mut values = Gather::new(call);
    for key in &call.args[1..] {
        let room = values.push(match bulk_of(view, key) {
            Err(Failure::Answer(_)) => Reply::Null,
            other => other?,
        });
        if !room {
            break;
        }
    }
    values.finish()
}

/// What the options of SET say.
#[derive(Debug, Default)]
struct SetOptions {
    only_if: Option<Presence>,
    get: bool,
    keep_ttl: bool,
    expire: Option<Deadline>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Absent,
    Present,
}

impl SetOptions {
    fn parse(args: &[&[u8]]) -> Result<SetOptions, Reply> {
        let mut options = SetOptions::default();
        let mut expire: Option<(Unit, &[u8])> = None;
        let mut rest = args[3..].iter();
        while let Some(option) = rest.next() {
            if is_word(option, "NX") && options.only_if != Some(Presence::Present) {
                options.only_if = Some(Presence::Absent);
            } else if is_word(option, "XX") && options.only_if != Some(Presence::Absent) {
                options.only_if = Some(Presence::Present);
            } else if is_word(option, "GET") {
                options.get = true;
            } else if is_word(option, "KEEPTTL") && expire.is_none() {
                options.keep_ttl = true;
            } else {
                expire = Some(expiry_option(option, &mut rest, expire)?);
                if options.keep_ttl {
                    return Err(syntax_error());
                }
            }
        }
        if let Some((unit, value)) = expire {
            options.expire = Some(deadline(value, unit, "set")?);
        }
        Ok(options)
    }
}

/// Reads EX, PX, EXAT or PXAT with its value. Redis lets one repeat itself, but not meet another.
fn expiry_option<'a>(
    option: &[u8],
    rest: &mut std::slice::Iter<'_, &'a [u8]>,
    before: Option<(Unit, &'a [u8])>,
) -> Result<(Unit, &'a [u8]), Reply> {
    let unit = Unit::from_option(option).ok_or_else(syntax_error)?;
    if before.is_some_and(|(other, _)| other != unit) {
        return Err(syntax_error());
    }
    let value = rest.next().ok_or_else(syntax_error)?;
    Ok((unit, value))
}

pub(super) fn check_set(args: &[&[u8]]) -> Result<(), Reply> {
    SetOptions::parse(args).map(|_| ())
}

pub(super) fn set(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let options = SetOptions::parse(call.args)?;
    let (key, value) = (call.args[1], call.args[2]);
    let expire = match options.expire {
        Some(deadline) => Expire::At(deadline.resolve(txn.view().now_ms(), "set")?),
        None if options.keep_ttl => Expire::Keep,
        None => Expire::Clear,
    };
    let old = if options.get {
        Some(bulk_of(&txn.view(), key)?)
    } else {
        None
    };
    if let Some(wanted) = options.only_if
        && txn.view().exists(key)? != (wanted == Presence::Present)
    {
        return Ok(old.unwrap_or(Reply::Null));
    }
    // A time that is over already leaves no key.
    txn.set_string(key, value, expire)?;
    Ok(old.unwrap_or(Reply::Ok))
}

pub(super) fn setnx(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (key, value) = (call.args[1], call.args[2]);
    if txn.view().exists(key)? {
        return Ok(Reply::Int(0));
    }
    txn.set_string(key, value, Expire::Clear)?;
    Ok(Reply::Int(1))
}

pub(super) fn check_setex(args: &[&[u8]]) -> Result<(), Reply> {
    deadline(args[2], Unit::Ex, "setex").map(|_| ())
}

pub(super) fn setex(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    set_for(call, txn, Unit::Ex, "setex")
}

pub(super) fn check_psetex(args: &[&[u8]]) -> Result<(), Reply> {
    deadline(args[2], Unit::Px, "psetex").map(|_| ())
}

pub(super) fn psetex(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    set_for(call, txn, Unit::Px, "psetex")
}

fn set_for(call: &Call<'_>, txn: &mut Txn<'_>, unit: Unit, command: &str) -> Answer {
    let at_ms = deadline(call.args[2], unit, command)?.resolve(txn.view().now_ms(), command)?;
    txn.set_string(call.args[1], call.args[3], Expire::At(at_ms))?;
    Ok(Reply::Ok)
}

pub(super) fn getset(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let old = bulk_of(&txn.view(), call.args[1])?;
    txn.set_string(call.args[1], call.args[2], Expire::Clear)?;
    Ok(old)
}

pub(super) fn getdel(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let old = bulk_of(&txn.view(), call.args[1])?;
    txn.delete(call.args[1])?;
    Ok(old)
}

/// What the options of GETEX say, with the value of an expiry still unread: Redis looks at the key
/// first.
enum GetexOption<'a> {
    None,
    Persist,
    Expire(Unit, &'a [u8]),
}

impl<'a> GetexOption<'a> {
    fn parse(args: &[&'a [u8]]) -> Result<GetexOption<'a>, Reply> {
        let mut expire = None;
        let mut persist = false;
        let mut rest = args[2..].iter();
        while let Some(option) = rest.next() {
            if is_word(option, "PERSIST") && expire.is_none() {
                persist = true;
            } else {
                expire = Some(expiry_option(option, &mut rest, expire)?);
                if persist {
                    return Err(syntax_error());
                }
            }
        }
        Ok(match expire {
            Some((unit, value)) => GetexOption::Expire(unit, value),
            None if persist => GetexOption::Persist,
            None => GetexOption::None,
        })
    }
}

pub(super) fn check_getex(args: &[&[u8]]) -> Result<(), Reply> {
    GetexOption::parse(args).map(|_| ())
}

pub(super) fn getex(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let option = GetexOption::parse(call.args)?;
    let key = call.args[1];
    let value = bulk_of(&txn.view(), key)?;
    if value == Reply::Null {
        return Ok(value);
    }
    match option {
        GetexOption::None => {}
        GetexOption::Persist => {
            txn.set_expiry(key, None)?;
        }
        GetexOption::Expire(unit, arg) => {
            let at_ms = deadline(arg, unit, "getex")?.resolve(txn.view().now_ms(), "getex")?;
            // A time that is over already deletes the key.
            txn.set_expiry(key, Some(at_ms))?;
        }
    }
    Ok(value)
}

pub(super) fn check_mset(args: &[&[u8]]) -> Result<(), Reply> {
    check_pairs(args, "mset")
}

pub(super) fn check_msetnx(args: &[&[u8]]) -> Result<(), Reply> {
    check_pairs(args, "msetnx")
}

fn check_pairs(args: &[&[u8]], command: &str) -> Result<(), Reply> {
    if args.len().is_multiple_of(2) {
        return error(format!(
            "ERR wrong number of arguments for '{command}' command"
        ));
    }
    Ok(())
}

pub(super) fn mset(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    check_mset(call.args)?;
    set_pairs(call, txn)?;
    Ok(Reply::Ok)
}

pub(super) fn msetnx(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    check_msetnx(call.args)?;
    for pair in call.args[1..].chunks_exact(2) {
        if txn.view().exists(pair[0])? {
            return Ok(Reply::Int(0));
        }
    }
    set_pairs(call, txn)?;
    Ok(Reply::Int(1))
}

fn set_pairs(call: &Call<'_>, txn: &mut Txn<'_>) -> Result<(), Failure> {
    for pair in call.args[1..].chunks_exact(2) {
        txn.set_string(pair[0], pair[1], Expire::Clear)?;
    }
    Ok(())
}

fn check_length(txn: &Txn<'_>, length: u64) -> Result<(), Reply> {
    if length > args::STRING_BYTES_MAX.min(txn.limits().value_bytes_max) {
        return error("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    }
    Ok(())
}

pub(super) fn append(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (key, tail) = (call.args[1], call.args[2]);
    let joined = read_string(&txn.view(), key, |old| {
        let mut joined = Vec::with_capacity(old.len() + tail.len());
        joined.extend_from_slice(old);
        joined.extend_from_slice(tail);
        joined
    })?;
    let value = joined.as_deref().unwrap_or(tail);
    check_length(txn, value.len() as u64)?;
    txn.set_string(key, value, Expire::Keep)?;
    Ok(Reply::Int(value.len() as i64))
}

pub(super) fn check_getrange(args: &[&[u8]]) -> Result<(), Reply> {
    integer(args[2])?;
    integer(args[3])?;
    Ok(())
}

pub(super) fn getrange(call: &Call<'_>, view: &View<'_>) -> Answer {
    let (start, end) = (integer(call.args[2])?, integer(call.args[3])?);
    let part = read_string(view, call.args[1], |value| {
        Bytes::copy_from_slice(range(value, start, end))
    })?;
    Ok(Reply::Bulk(part.unwrap_or_default()))
}

/// The bytes from `start` to `end`, both included; negative positions count from the end.
fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let length = value.len() as i64;
    let position = |at: i64| if at < 0 { (length + at).max(0) } else { at };
    let start = position(start);
    let end = position(end).min(length - 1);
    if start > end {
        return &[];
    }
    &value[start as usize..=end as usize]
}

fn offset(arg: &[u8]) -> Result<u64, Reply> {
    u64::try_from(integer(arg)?).or_else(|_| error("ERR offset is out of range"))
}

pub(super) fn check_setrange(args: &[&[u8]]) -> Result<(), Reply> {
    offset(args[2]).map(|_| ())
}

pub(super) fn setrange(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let (key, at, patch) = (call.args[1], offset(call.args[2])?, call.args[3]);
    if patch.is_empty() {
        let length = read_string(&txn.view(), key, <[u8]>::len)?;
        return Ok(Reply::Int(length.unwrap_or(0) as i64));
    }
    // The key's type is looked at before the length, and nothing is made large before both.
    let length = read_string(&txn.view(), key, <[u8]>::len)?.unwrap_or(0);
    let end = at.saturating_add(patch.len() as u64);
    check_length(txn, end)?;
    let (at, end) = (at as usize, end as usize);
    let mut value = Vec::with_capacity(length.max(end));
    txn.view().string(key, |old| value.extend_from_slice(old))?;
    value.resize(length.max(end), 0);
    value[at..end].copy_from_slice(patch);
    txn.set_string(key, &value, Expire::Keep)?;
    Ok(Reply::Int(value.len() as i64))
}

pub(super) fn incr(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    add(txn, call.args[1], 1)
}

pub(super) fn decr(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    add(txn, call.args[1], -1)
}

pub(super) fn check_incrby(args: &[&[u8]]) -> Result<(), Reply> {
    integer(args[2]).map(|_| ())
}

pub(super) fn incrby(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    add(txn, call.args[1], integer(call.args[2])?)
}

fn decrement(arg: &[u8]) -> Result<i64, Reply> {
    integer(arg)?
        .checked_neg()
        .ok_or_else(|| Reply::error("ERR decrement would overflow"))
}

pub(super) fn check_decrby(args: &[&[u8]]) -> Result<(), Reply> {
    decrement(args[2]).map(|_| ())
}

pub(super) fn decrby(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    add(txn, call.args[1], decrement(call.args[2])?)
}

fn add(txn: &mut Txn<'_>, key: &[u8], delta: i64) -> Answer {
    let old = match read_string(&txn.view(), key, integer)? {
        Some(value) => value?,
        None => 0,
    };
    let Some(new) = old.checked_add(delta) else {
        return Ok(error("ERR increment or decrement would overflow")?);
    };
    let mut buffer = itoa::Buffer::new();
    txn.set_string(key, buffer.format(new).as_bytes(), Expire::Keep)?;
    Ok(Reply::Int(new))
}

pub(super) fn incrbyfloat(call: &Call<'_>, txn: &mut Txn<'_>) -> Answer {
    let key = call.args[1];
    let float = |bytes: &[u8]| {
        LongDouble::parse(bytes).ok_or_else(|| Reply::error("ERR value is not a valid float"))
    };
    let old = match read_string(&txn.view(), key, float)? {
        Some(value) => value?,
        None => LongDouble::ZERO,
    };
    let sum = old.add(float(call.args[2])?);
    let Some(text) = sum.to_text() else {
        return Ok(error("ERR increment would produce NaN or Infinity")?);
    };
    txn.set_string(key, text.as_bytes(), Expire::Keep)?;
    Ok(Reply::Bulk(text.into()))
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn range_takes_negative_positions_from_the_end() {
        let value = b"This is a string";
        assert_eq!(range(value, 0, 3), b"This");
        assert_eq!(range(value, -3, -1), b"ing");
        assert_eq!(range(value, 0, -1), value);
        assert_eq!(range(value, 10, 100), b"string");
        assert_eq!(range(value, -100, 3), b"This");
        assert_eq!(range(value, 3, -100), b"");
        assert_eq!(range(value, -1, -5), b"");
        assert_eq!(range(b"", 0, -1), b"");
        assert_eq!(range(value, i64::MIN, i64::MAX), value);
        assert_eq!(range(value, i64::MIN, i64::MIN), b"T");
    }
}
