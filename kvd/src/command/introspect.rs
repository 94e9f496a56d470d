//! COMMAND and its subcommands, answered from the table.

use crate::command::Effect;
use crate::command::args::{error, is_word, printable, syntax_error};
use crate::command::spec::{Flags, Group, Keys, Spec};
use crate::command::syntax;
use crate::command::table::{TABLE, all, find, find_subcommand};
use crate::resp::{Reply, glob};

type Answer = Result<Effect, Reply>;

fn ok(reply: Reply) -> Answer {
    Ok(Effect::Reply(reply))
}

fn bulk(text: &str) -> Reply {
    Reply::bulk_from(text)
}

pub(super) fn command(_: &[&[u8]]) -> Answer {
    ok(Reply::Array(TABLE.iter().map(info_of).collect()))
}

pub(super) fn count(_: &[&[u8]]) -> Answer {
    ok(Reply::Int(TABLE.len() as i64))
}

/// The row for `get` or `config|get`.
fn by_full_name(name: &[u8]) -> Option<&'static Spec> {
    match memchr::memchr(b'|', name) {
        None => find(name),
        Some(at) => find_subcommand(find(&name[..at])?, &name[at + 1..]),
    }
}

pub(super) fn info(args: &[&[u8]]) -> Answer {
    if args.len() == 2 {
        return command(args);
    }
    ok(Reply::Array(
        args[2..]
            .iter()
            .map(|name| by_full_name(name).map_or(Reply::NullArray, info_of))
            .collect(),
    ))
}

fn info_of(spec: &Spec) -> Reply {
    let flags = Flags::SHOWN
        .iter()
        .filter(|(flag, _)| spec.has(*flag))
        .map(|(_, name)| Reply::simple(*name));
    let (first, last, step) = match spec.keys {
        Keys::None => (0, 0, 0),
        Keys::Range { first, last, step } => (first as i64, i64::from(last), step as i64),
    };
    Reply::Array(vec![
        bulk(spec.name),
        Reply::Int(i64::from(spec.arity)),
        Reply::Set(flags.collect()),
        Reply::Int(first),
        Reply::Int(last),
        Reply::Int(step),
        Reply::Set(categories(spec).into_iter().map(Reply::simple).collect()),
        Reply::Set(Vec::new()),
        key_specs(spec),
        if spec.subcommands.is_empty() {
            Reply::Set(Vec::new())
        } else {
            Reply::Array(spec.subcommands.iter().map(info_of).collect())
        },
    ])
}

/// The ACL categories, from what the row says.
fn categories(spec: &Spec) -> Vec<&'static str> {
    let admin = spec.has(Flags::ADMIN);
    let group = match spec.group {
        Group::Generic => "@keyspace",
        Group::String => "@string",
        Group::Connection => "@connection",
        Group::Transactions => "@transaction",
        Group::Server | Group::Cluster => "",
    };
    let speed = if spec.has(Flags::FAST) {
        "@fast"
    } else {
        "@slow"
    };
    [
        (true, group),
        (spec.has(Flags::READONLY), "@read"),
        (spec.has(Flags::WRITE), "@write"),
        (admin, "@admin"),
        (true, speed),
        (admin || spec.has(Flags::DANGEROUS), "@dangerous"),
    ]
    .into_iter()
    .filter(|(applies, name)| *applies && !name.is_empty())
    .map(|(_, name)| name)
    .collect()
}

/// What a command does with its keys.
fn access(spec: &Spec) -> Reply {
    let flags: &[&str] = if spec.has(Flags::READONLY) {
        &["RO", "access"]
    } else if spec.has(Flags::WRITE) {
        &["RW", "access", "update"]
    } else {
        &["RO"]
    };
    Reply::Set(flags.iter().map(|flag| Reply::simple(*flag)).collect())
}

fn key_specs(spec: &Spec) -> Reply {
    let Keys::Range { first, last, step } = spec.keys else {
        return Reply::Set(Vec::new());
    };
    // The last key is relative to the first here, unless it counts from the end.
    let last = if last < 0 {
        i64::from(last)
    } else {
        i64::from(last) - first as i64
    };
    Reply::Set(vec![Reply::Map(vec![
        (bulk("flags"), access(spec)),
        (
            bulk("begin_search"),
            Reply::Map(vec![
                (bulk("type"), bulk("index")),
                (
                    bulk("spec"),
                    Reply::Map(vec![(bulk("index"), Reply::Int(first as i64))]),
                ),
            ]),
        ),
        (
            bulk("find_keys"),
            Reply::Map(vec![
                (bulk("type"), bulk("range")),
                (
                    bulk("spec"),
                    Reply::Map(vec![
                        (bulk("lastkey"), Reply::Int(last)),
                        (bulk("keystep"), Reply::Int(step as i64)),
                        (bulk("limit"), Reply::Int(0)),
                    ]),
                ),
            ]),
        ),
    ])])
}

pub(super) fn docs(args: &[&[u8]]) -> Answer {
    let specs: Vec<&Spec> = if args.len() == 2 {
        TABLE.iter().collect()
    } else {
        args[2..]
            .iter()
            .filter_map(|name| by_full_name(name))
            .collect()
    };
    ok(Reply::Map(specs.into_iter().map(docs_of).collect()))
}

fn docs_of(spec: &Spec) -> (Reply, Reply) {
    let mut fields = vec![
        (bulk("summary"), bulk(spec.summary)),
        (bulk("since"), bulk(spec.since)),
        (bulk("group"), bulk(spec.group.name())),
        (bulk("complexity"), bulk(spec.complexity)),
    ];
    let arguments = syntax::parse(spec.syntax);
    if !arguments.is_empty() {
        fields.push((bulk("arguments"), syntax::reply(&arguments)));
    }
    if !spec.subcommands.is_empty() {
        let subcommands = spec.subcommands.iter().map(docs_of).collect();
        fields.push((bulk("subcommands"), Reply::Map(subcommands)));
    }
    (bulk(spec.name), Reply::Map(fields))
}

pub(super) fn list(args: &[&[u8]]) -> Answer {
    let names = |keep: &dyn Fn(&Spec) -> bool| {
        let names = all().filter(|spec| keep(spec)).map(|spec| bulk(spec.name));
        ok(Reply::Array(names.collect()))
    };
    match &args[2..] {
        [] => names(&|_| true),
        [filter, by, what] if is_word(filter, "FILTERBY") => {
            if is_word(by, "PATTERN") {
                names(&|spec| glob::matches(what, spec.name.as_bytes(), true))
            } else if is_word(by, "ACLCAT") {
                let wanted = format!("@{}", printable(what).to_ascii_lowercase());
                names(&|spec| categories(spec).contains(&wanted.as_str()))
            } else if is_word(by, "MODULE") {
                ok(Reply::Array(Vec::new()))
            } else {
                Err(syntax_error())
            }
        }
        _ => Err(syntax_error()),
    }
}

pub(super) fn getkeys(args: &[&[u8]]) -> Answer {
    let (_, keys) = keys_of(&args[2..])?;
    ok(Reply::Array(
        keys.into_iter().map(Reply::bulk_from).collect(),
    ))
}

pub(super) fn getkeysandflags(args: &[&[u8]]) -> Answer {
    let (spec, keys) = keys_of(&args[2..])?;
    let keys = keys
        .into_iter()
        .map(|key| Reply::Array(vec![Reply::bulk_from(key), access(spec)]));
    ok(Reply::Array(keys.collect()))
}

/// The row of a request, and its keys.
fn keys_of<'a>(request: &'a [&'a [u8]]) -> Result<(&'static Spec, Vec<&'a [u8]>), Reply> {
    let Ok(spec) = super::lookup(request) else {
        return error("ERR Invalid command specified");
    };
    if spec.keys == Keys::None {
        return error("ERR The command has no key arguments");
    }
    if !spec.accepts(request.len()) {
        return error("ERR Invalid number of arguments specified for command");
    }
    Ok((spec, spec.keys_of(request).collect()))
}
