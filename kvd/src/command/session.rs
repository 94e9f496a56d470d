//! Commands about the connection, the server and the cluster: they answer with effects.

use std::time::Duration;

use bytes::Bytes;

use crate::command::args::{error, integer, is_word, printable, syntax_error};
use crate::command::effect::{
    Backup, Client, ClientKind, Cluster, Config, Credentials, Effect, Hello, KillFilter, Latency,
    LibraryInfo, ReplyMode, Shutdown, SlowLog, Successor,
};
use crate::command::table;
use crate::keyspace;
use crate::resp::Reply;

type Answer = Result<Effect, Reply>;

fn owned(arg: &[u8]) -> Bytes {
    Bytes::copy_from_slice(arg)
}

fn ok(reply: Reply) -> Answer {
    Ok(Effect::Reply(reply))
}

pub(super) fn ping(args: &[&[u8]]) -> Answer {
    match args {
        [_] => ok(Reply::pong()),
        [_, message] => ok(Reply::Bulk(owned(message))),
        _ => error("ERR wrong number of arguments for 'ping' command"),
    }
}

pub(super) fn echo(args: &[&[u8]]) -> Answer {
    ok(Reply::Bulk(owned(args[1])))
}

pub(super) fn quit(_: &[&[u8]]) -> Answer {
    Ok(Effect::Quit)
}

pub(super) fn reset(_: &[&[u8]]) -> Answer {
    Ok(Effect::Reset)
}

/// There is one logical database, as in a Redis cluster.
pub(super) fn select(args: &[&[u8]]) -> Answer {
    match i32::try_from(integer(args[1])?) {
        Ok(0) => ok(Reply::Ok),
        Ok(_) => error("ERR SELECT is not allowed in cluster mode"),
        Err(_) => error("ERR value is out of range, value must between -2147483648 and 2147483647"),
    }
}

pub(super) fn auth(args: &[&[u8]]) -> Answer {
    match args {
        [_, password] => Ok(Effect::Auth(Credentials {
            username: None,
            password: owned(password),
        })),
        [_, username, password] => Ok(Effect::Auth(Credentials {
            username: Some(owned(username)),
            password: owned(password),
        })),
        _ => Err(syntax_error()),
    }
}

pub(super) fn hello(args: &[&[u8]]) -> Answer {
    let mut hello = Hello::default();
    let Some(version) = args.get(1) else {
        return Ok(Effect::Hello(hello));
    };
    hello.protocol = match integer(version) {
        Ok(2) => Some(2),
        Ok(3) => Some(3),
        Ok(_) => return error("NOPROTO unsupported protocol version"),
        Err(_) => return error("ERR Protocol version is not an integer or out of range"),
    };
    let mut rest = &args[2..];
    while let [option, values @ ..] = rest {
        match values {
            [username, password, after @ ..] if is_word(option, "AUTH") => {
                hello.auth = Some(Credentials {
                    username: Some(owned(username)),
                    password: owned(password),
                });
                rest = after;
            }
            [name, after @ ..] if is_word(option, "SETNAME") => {
                hello.name = Some(client_name(name)?);
                rest = after;
            }
            _ => {
                return error(format!(
                    "ERR Syntax error in HELLO option '{}'",
                    printable(option)
                ));
            }
        }
    }
    Ok(Effect::Hello(hello))
}

fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn client_name(arg: &[u8]) -> Result<Bytes, Reply> {
    if !is_plain(arg) {
        return error("ERR Client names cannot contain spaces, newlines or special characters.");
    }
    Ok(owned(arg))
}

pub(super) fn client_id(_: &[&[u8]]) -> Answer {
    Ok(Effect::Client(Client::Id))
}

pub(super) fn client_info(_: &[&[u8]]) -> Answer {
    Ok(Effect::Client(Client::Info))
}

pub(super) fn client_getname(_: &[&[u8]]) -> Answer {
    Ok(Effect::Client(Client::GetName))
}

pub(super) fn client_setname(args: &[&[u8]]) -> Answer {
    Ok(Effect::Client(Client::SetName(client_name(args[2])?)))
}

pub(super) fn client_setinfo(args: &[&[u8]]) -> Answer {
    let (info, name) = if is_word(args[2], "LIB-NAME") {
        (LibraryInfo::Name, "lib-name")
    } else if is_word(args[2], "LIB-VER") {
        (LibraryInfo::Version, "lib-ver")
    } else {
        return error(format!("ERR Unrecognized option '{}'", printable(args[2])));
    };
    if !is_plain(args[3]) {
        return error(format!(
            "ERR {name} cannot contain spaces, newlines or special characters."
        ));
    }
    Ok(Effect::Client(Client::SetInfo(info, owned(args[3]))))
}

pub(super) fn client_list(args: &[&[u8]]) -> Answer {
    let (mut ids, mut kind) = (None, None);
    match &args[2..] {
        [] => {}
        [option, name] if is_word(option, "TYPE") => {
            kind = Some(client_kind(name)?);
        }
        [option, numbers @ ..] if is_word(option, "ID") && !numbers.is_empty() => {
            let numbers = numbers.iter().map(|arg| {
                integer(arg)
                    .ok()
                    .and_then(|id| u64::try_from(id).ok())
                    .filter(|id| *id > 0)
                    .ok_or_else(|| Reply::error("ERR Invalid client ID"))
            });
            ids = Some(numbers.collect::<Result<_, _>>()?);
        }
        _ => return Err(syntax_error()),
    }
    Ok(Effect::Client(Client::List { ids, kind }))
}

pub(super) fn client_kill(args: &[&[u8]]) -> Answer {
    let mut filter = KillFilter {
        id: None,
        addr: None,
        local_addr: None,
        kind: None,
        skip_me: true,
    };
    if let [addr] = args[2..] {
        return Ok(Effect::Client(Client::KillAddr(printable(addr))));
    }
    let pairs = args[2..].chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(syntax_error());
    }
    for pair in pairs {
        let (option, value) = (pair[0], pair[1]);
        if is_word(option, "ID") {
            let id = integer(value).ok().and_then(|id| u64::try_from(id).ok());
            filter.id = Some(
                id.filter(|id| *id > 0)
                    .ok_or_else(|| Reply::error("ERR client-id should be greater than 0"))?,
            );
        } else if is_word(option, "ADDR") {
            filter.addr = Some(printable(value));
        } else if is_word(option, "LADDR") {
            filter.local_addr = Some(printable(value));
        } else if is_word(option, "TYPE") {
            filter.kind = Some(client_kind(value)?);
        } else if is_word(option, "USER") {
            if value != b"default" {
                return error(format!("ERR No such user '{}'", printable(value)));
            }
        } else if is_word(option, "SKIPME") {
            filter.skip_me = yes_or_no(value, "yes", "no")?;
        } else {
            return Err(syntax_error());
        }
    }
    Ok(Effect::Client(Client::Kill(filter)))
}

fn yes_or_no(value: &[u8], yes: &str, no: &str) -> Result<bool, Reply> {
    match value {
        _ if is_word(value, yes) => Ok(true),
        _ if is_word(value, no) => Ok(false),
        _ => Err(syntax_error()),
    }
}

/// Nothing is evicted here, and no access is noted: there is nothing to turn off.
pub(super) fn client_no(args: &[&[u8]]) -> Answer {
    yes_or_no(args[2], "ON", "OFF")?;
    ok(Reply::Ok)
}

pub(super) fn client_reply(args: &[&[u8]]) -> Answer {
    let mode = match args[2] {
        mode if is_word(mode, "ON") => ReplyMode::On,
        mode if is_word(mode, "OFF") => ReplyMode::Off,
        mode if is_word(mode, "SKIP") => ReplyMode::Skip,
        _ => return Err(syntax_error()),
    };
    Ok(Effect::ReplyMode(mode))
}

/// What is never on can be turned off.
pub(super) fn client_tracking(args: &[&[u8]]) -> Answer {
    match yes_or_no(args[2], "ON", "OFF")? {
        true => error("ERR kvd does not support client-side caching"),
        false => ok(Reply::Ok),
    }
}

pub(super) fn client_caching(_: &[&[u8]]) -> Answer {
    error(
        "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or \
         OPTOUT mode enabled",
    )
}

pub(super) fn client_getredir(_: &[&[u8]]) -> Answer {
    ok(Reply::Int(-1))
}

pub(super) fn client_trackinginfo(_: &[&[u8]]) -> Answer {
    ok(Reply::Map(vec![
        (Reply::bulk("flags"), Reply::Set(vec![Reply::bulk("off")])),
        (Reply::bulk("redirect"), Reply::Int(-1)),
        (Reply::bulk("prefixes"), Reply::Array(Vec::new())),
    ]))
}

/// Capabilities that are not known are ignored, as clients of later versions may have more.
pub(super) fn client_capa(args: &[&[u8]]) -> Answer {
    if args[2..].iter().any(|name| is_word(name, "REDIRECT")) {
        return Ok(Effect::Client(Client::Redirectable));
    }
    ok(Reply::Ok)
}

pub(super) fn client_pause(args: &[&[u8]]) -> Answer {
    let all = match args[3..] {
        [] => true,
        [mode] => !yes_or_no(mode, "WRITE", "ALL")?,
        _ => return Err(syntax_error()),
    };
    let ms = integer(args[2])
        .map_err(|_| Reply::error("ERR timeout is not an integer or out of range"))?;
    let Ok(ms) = u64::try_from(ms) else {
        return error("ERR timeout is negative");
    };
    // Some centuries are as good as for ever, and can be added to a moment.
    let time = Duration::from_millis(ms.min(1 << 43));
    Ok(Effect::Client(Client::Pause { time, all }))
}

pub(super) fn client_unpause(_: &[&[u8]]) -> Answer {
    Ok(Effect::Client(Client::Unpause))
}

fn client_kind(name: &[u8]) -> Result<ClientKind, Reply> {
    [
        ("normal", ClientKind::Normal),
        ("slave", ClientKind::Replica),
        ("replica", ClientKind::Replica),
        ("pubsub", ClientKind::PubSub),
        ("master", ClientKind::Master),
    ]
    .into_iter()
    .find_map(|(word, kind)| is_word(name, word).then_some(kind))
    .ok_or_else(|| Reply::error(format!("ERR Unknown client type '{}'", printable(name))))
}

pub(super) fn config_get(args: &[&[u8]]) -> Answer {
    Ok(Effect::Config(Config::Get(
        args[2..].iter().map(|arg| owned(arg)).collect(),
    )))
}

pub(super) fn config_set(args: &[&[u8]]) -> Answer {
    let pairs = args[2..].chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return error("ERR wrong number of arguments for 'config|set' command");
    }
    Ok(Effect::Config(Config::Set(
        pairs
            .map(|pair| (printable(pair[0]).to_ascii_lowercase(), owned(pair[1])))
            .collect(),
    )))
}

pub(super) fn config_resetstat(_: &[&[u8]]) -> Answer {
    Ok(Effect::Config(Config::ResetStat))
}

pub(super) fn config_rewrite(_: &[&[u8]]) -> Answer {
    Ok(Effect::Config(Config::Rewrite))
}

pub(super) fn info(args: &[&[u8]]) -> Answer {
    Ok(Effect::Info {
        sections: args[1..]
            .iter()
            .map(|arg| printable(arg).to_ascii_lowercase())
            .collect(),
    })
}

pub(super) fn time(_: &[&[u8]]) -> Answer {
    Ok(Effect::Time)
}

pub(super) fn lastsave(_: &[&[u8]]) -> Answer {
    Ok(Effect::LastSave)
}

pub(super) fn lolwut(args: &[&[u8]]) -> Answer {
    match &args[1..] {
        [] => {}
        [option, version] if is_word(option, "VERSION") => {
            integer(version)?;
        }
        _ => return Err(syntax_error()),
    }
    let version = env!("CARGO_PKG_VERSION");
    ok(Reply::text(format!(
        "  [1]--[2]--[3]     one of them leads,\n   |    |    |      two of them agree,\n  \
         ===  ===  ===     three of them remember.\n\nRedis ver. 7.0.15, kvd ver. {version}\n"
    )))
}

pub(super) fn memory_doctor(_: &[&[u8]]) -> Answer {
    ok(Reply::text(
        "INFO memory shows what the process holds, INFO backend what the storage engine says of \
         its caches, and CLIENT LIST what waits for each client (omem).",
    ))
}

pub(super) fn memory_purge(_: &[&[u8]]) -> Answer {
    ok(Reply::Ok)
}

pub(super) fn raft_compare(_: &[&[u8]]) -> Answer {
    Ok(Effect::Compare)
}

pub(super) fn backup_open(_: &[&[u8]]) -> Answer {
    Ok(Effect::Backup(Backup::Open))
}

pub(super) fn backup_read(args: &[&[u8]]) -> Answer {
    match u64::try_from(integer(args[2])?) {
        Ok(offset) => Ok(Effect::Backup(Backup::Read(offset))),
        Err(_) => error("ERR offset is out of range"),
    }
}

pub(super) fn backup_close(_: &[&[u8]]) -> Answer {
    Ok(Effect::Backup(Backup::Close))
}

pub(super) fn slowlog_get(args: &[&[u8]]) -> Answer {
    const UNLESS_TOLD: usize = 10;
    let count = match args[2..] {
        [] => Some(UNLESS_TOLD),
        [count] => match integer(count)? {
            -1 => None,
            count => match usize::try_from(count) {
                Ok(count) => Some(count),
                Err(_) => {
                    return error("ERR count should be greater than or equal to -1");
                }
            },
        },
        _ => return error("ERR wrong number of arguments for 'slowlog|get' command"),
    };
    Ok(Effect::SlowLog(SlowLog::Get(count)))
}

pub(super) fn slowlog_len(_: &[&[u8]]) -> Answer {
    Ok(Effect::SlowLog(SlowLog::Len))
}

pub(super) fn slowlog_reset(_: &[&[u8]]) -> Answer {
    Ok(Effect::SlowLog(SlowLog::Reset))
}

pub(super) fn monitor(_: &[&[u8]]) -> Answer {
    Ok(Effect::Monitor)
}

fn lower(args: &[&[u8]]) -> Vec<String> {
    args.iter()
        .map(|arg| printable(arg).to_ascii_lowercase())
        .collect()
}

pub(super) fn latency_latest(_: &[&[u8]]) -> Answer {
    Ok(Effect::Latency(Latency::Latest))
}

pub(super) fn latency_history(args: &[&[u8]]) -> Answer {
    Ok(Effect::Latency(Latency::History(printable(args[2]))))
}

pub(super) fn latency_reset(args: &[&[u8]]) -> Answer {
    Ok(Effect::Latency(Latency::Reset(lower(&args[2..]))))
}

pub(super) fn latency_histogram(args: &[&[u8]]) -> Answer {
    Ok(Effect::Latency(Latency::Histogram(lower(&args[2..]))))
}

pub(super) fn latency_doctor(_: &[&[u8]]) -> Answer {
    ok(Reply::text(
        "LATENCY HISTOGRAM shows how long commands take, SLOWLOG GET which took longest. Spikes \
         are noted once CONFIG SET latency-monitor-threshold is above 0. A write waits for two \
         disks: INFO raft shows the members and how far each lags.",
    ))
}

/// A cluster of one is made by starting a node, and this node enters another one by a JOIN there.
pub(super) fn raft_cluster(args: &[&[u8]]) -> Answer {
    match args[1] {
        word if is_word(word, "INIT") => error("ERR Already cluster member"),
        word if is_word(word, "JOIN") => error(
            "ERR Already cluster member; on a member of the other cluster, JOIN name host:port \
             takes this node in if it is empty",
        ),
        _ => error("ERR RAFT.CLUSTER supports INIT / JOIN only"),
    }
}

pub(super) fn raft_node(args: &[&[u8]]) -> Answer {
    match args[1..] {
        // Ids are chosen by the nodes themselves.
        [word, id, addr] if is_word(word, "ADD") => {
            if id != b"0" {
                return error("ERR invalid node id");
            }
            let addr =
                member_address(addr).map_err(|_| Reply::error("ERR invalid node address"))?;
            Ok(Effect::AddNode { addr })
        }
        [word, id] if is_word(word, "REMOVE") => match member_id(id) {
            Some(id) => Ok(Effect::RemoveNode(id)),
            None => error("ERR invalid node id"),
        },
        [word, ..] if is_word(word, "ADD") || is_word(word, "REMOVE") => {
            error("ERR wrong number of arguments for 'raft.node' command")
        }
        _ => error("ERR RAFT.NODE supports ADD / REMOVE only"),
    }
}

/// An id as INFO shows it.
fn member_id(arg: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(arg).ok()?;
    (text.len() == 16)
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

pub(super) fn raft_transfer_leader(args: &[&[u8]]) -> Answer {
    let successor = match args[1..] {
        [] => Successor::Any,
        [name] => Successor::Named(member_name(name)?),
        _ => {
            return error("ERR wrong number of arguments for 'raft.transfer_leader' command");
        }
    };
    Ok(Effect::TransferLeader(successor))
}

pub(super) fn role(_: &[&[u8]]) -> Answer {
    Ok(Effect::Role)
}

pub(super) fn shutdown(args: &[&[u8]]) -> Answer {
    let mut shutdown = Shutdown::default();
    let (mut save, mut nosave) = (false, false);
    for option in &args[1..] {
        if is_word(option, "NOSAVE") {
            nosave = true;
        } else if is_word(option, "SAVE") {
            save = true;
        } else if is_word(option, "NOW") {
            shutdown.now = true;
        } else if is_word(option, "FORCE") {
            shutdown.force = true;
        } else if is_word(option, "ABORT") {
            shutdown.abort = true;
        } else {
            return Err(syntax_error());
        }
    }
    if (shutdown.abort && args.len() > 2) || (save && nosave) {
        return Err(syntax_error());
    }
    Ok(Effect::Shutdown(shutdown))
}

/// The longest DEBUG SLEEP.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

pub(super) fn debug_sleep(args: &[&[u8]]) -> Answer {
    let seconds: Option<f64> = std::str::from_utf8(args[2])
        .ok()
        .and_then(|text| text.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| *duration <= SLEEP_MAX)
        .map(Effect::Sleep)
        .ok_or_else(|| Reply::error("ERR value is not a valid float"))
}

/// The longest name of a member, in bytes.
const MEMBER_NAME_BYTES_MAX: usize = 255;

fn member_name(arg: &[u8]) -> Result<String, Reply> {
    match std::str::from_utf8(arg) {
        Ok(name)
            if !name.is_empty()
                && name.len() <= MEMBER_NAME_BYTES_MAX
                && !name.chars().any(|c| c.is_control() || c.is_whitespace()) =>
        {
            Ok(name.to_owned())
        }
        _ => error("ERR invalid node name"),
    }
}

/// The longest `host:port`: a DNS name has 253 bytes at most.
const ADDRESS_BYTES_MAX: usize = 253 + 1 + 5;

fn member_address(arg: &[u8]) -> Result<String, Reply> {
    std::str::from_utf8(arg)
        .ok()
        .filter(|text| text.len() <= ADDRESS_BYTES_MAX)
        .filter(|text| {
            text.rsplit_once(':').is_some_and(|(host, port)| {
                is_plain(host.as_bytes())
                    && !host.is_empty()
                    && port.parse::<u16>().is_ok_and(|port| port != 0)
            })
        })
        .map(str::to_owned)
        .ok_or_else(|| Reply::error("ERR invalid node address, expected host:port"))
}

pub(super) fn join(args: &[&[u8]]) -> Answer {
    let voter = match args[3..] {
        [] => true,
        [word] if is_word(word, "NONVOTER") => false,
        _ => return Err(syntax_error()),
    };
    Ok(Effect::Join {
        name: member_name(args[1])?,
        addr: member_address(args[2])?,
        voter,
    })
}

pub(super) fn leave(args: &[&[u8]]) -> Answer {
    Ok(Effect::Leave {
        name: member_name(args[1])?,
    })
}

pub(super) fn cluster_slots(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Slots))
}

pub(super) fn cluster_shards(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Shards))
}

pub(super) fn cluster_nodes(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Nodes))
}

pub(super) fn cluster_info(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Info))
}

pub(super) fn cluster_myid(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::MyId))
}

pub(super) fn cluster_links(_: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Links))
}

pub(super) fn cluster_replicas(args: &[&[u8]]) -> Answer {
    Ok(Effect::Cluster(Cluster::Replicas(printable(args[2]))))
}

/// An election without the leader's consent is Raft's own business: FORCE and TAKEOVER ask for no
/// more than the plain form.
pub(super) fn cluster_failover(args: &[&[u8]]) -> Answer {
    match args[2..] {
        [] => {}
        [word] if is_word(word, "FORCE") || is_word(word, "TAKEOVER") => {}
        _ => return Err(syntax_error()),
    }
    Ok(Effect::TransferLeader(Successor::This))
}

pub(super) fn cluster_keyslot(args: &[&[u8]]) -> Answer {
    ok(Reply::Int(i64::from(keyspace::slot(args[2]))))
}

pub(super) fn readonly(_: &[&[u8]]) -> Answer {
    Ok(Effect::ReadOnly)
}

pub(super) fn readwrite(_: &[&[u8]]) -> Answer {
    Ok(Effect::ReadWrite)
}

pub(super) fn asking(_: &[&[u8]]) -> Answer {
    Ok(Effect::Asking)
}

pub(super) fn multi(_: &[&[u8]]) -> Answer {
    Ok(Effect::Multi)
}

pub(super) fn exec(_: &[&[u8]]) -> Answer {
    Ok(Effect::Exec)
}

pub(super) fn discard(_: &[&[u8]]) -> Answer {
    Ok(Effect::Discard)
}

pub(super) fn watch(args: &[&[u8]]) -> Answer {
    Ok(Effect::Watch {
        keys: args[1..].iter().map(|key| owned(key)).collect(),
    })
}

pub(super) fn unwatch(_: &[&[u8]]) -> Answer {
    Ok(Effect::Unwatch)
}

pub(super) fn wait(args: &[&[u8]]) -> Answer {
    let replicas = integer(args[1])?;
    let timeout_ms = integer(args[2])
        .map_err(|_| Reply::error("ERR timeout is not an integer or out of range"))?;
    let Ok(timeout_ms) = u64::try_from(timeout_ms) else {
        return error("ERR timeout is negative");
    };
    Ok(Effect::Wait {
        replicas: u64::try_from(replicas).unwrap_or(0),
        timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
    })
}

/// Redis's own text in a cluster.
pub(super) fn refuse_replicaof(_: &[&[u8]]) -> Answer {
    error("ERR REPLICAOF not allowed in cluster mode.")
}

pub(super) fn refuse_failover(_: &[&[u8]]) -> Answer {
    error("ERR FAILOVER not allowed in cluster mode.")
}

pub(super) fn refuse_replication(args: &[&[u8]]) -> Answer {
    error(format!(
        "ERR {} is not supported: nodes replicate by Raft, take one in with JOIN",
        printable(args[0]).to_ascii_uppercase()
    ))
}

pub(super) fn refuse_save(args: &[&[u8]]) -> Answer {
    error(format!(
        "ERR {} is not supported: every write is on disk on a majority before its reply",
        printable(args[0]).to_ascii_uppercase()
    ))
}

pub(super) fn refuse_migrate(_: &[&[u8]]) -> Answer {
    error("ERR MIGRATE is not supported: all members of the cluster hold all keys")
}

/// What a container answers when only a subcommand makes sense; its arity keeps it from being run.
pub(super) fn container(args: &[&[u8]]) -> Answer {
    error(format!(
        "ERR wrong number of arguments for '{}' command",
        printable(args[0]).to_ascii_lowercase()
    ))
}

/// The HELP of a container, from its rows.
pub(super) fn help(args: &[&[u8]]) -> Answer {
    let Some(spec) = table::find(args[0]) else {
        return Err(syntax_error());
    };
    let mut lines = vec![format!(
        "{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        spec.name.to_ascii_uppercase()
    )];
    for row in spec.subcommands {
        let name = row.short_name().to_ascii_uppercase();
        lines.push(format!("{name} {}", row.syntax).trim_end().to_owned());
        lines.push(format!("    {}.", row.summary));
    }
    ok(Reply::Array(lines.into_iter().map(Reply::simple).collect()))
}
