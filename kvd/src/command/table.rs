//! The table: one row for each command.

use crate::command::spec::{Flags, Group, Spec};
use crate::command::{introspect, key, lcs, object, once, server, session, string};

const FAST: Flags = Flags::FAST;
const GROWS: Flags = Flags::DENYOOM;
const COSTLY: Flags = Flags::COSTLY;
/// What is answered whatever the state of the node: commands about the connection.
const ALWAYS: Flags = Flags::LOADING.with(Flags::STALE);
const NOSCRIPT: Flags = Flags::NOSCRIPT;
/// What a client may send before it has said who it is.
const HANDSHAKE: Flags = ALWAYS
    .with(NOSCRIPT)
    .with(FAST)
    .with(Flags::NO_AUTH)
    .with(Flags::ALLOW_BUSY);
const TRANSACTION: Flags = ALWAYS.with(NOSCRIPT).with(Flags::ALLOW_BUSY);
const ADMIN: Flags = ALWAYS.with(NOSCRIPT).with(Flags::ADMIN);
/// What has no meaning here: shown as Redis shows it, and refused.
const REFUSED: Flags = Flags::ADMIN
    .with(NOSCRIPT)
    .with(Flags::STALE)
    .with(Flags::NO_ASYNC_LOADING);
/// What reads this node's own state, for administrators.
const DEBUG_READ: Flags = ADMIN.with(Flags::LOCAL).with(COSTLY).with(Flags::DEBUG);

/// Every command, by family.
pub static TABLE: &[Spec] = &[
    // Strings.
    Spec::read("get", 2, string::get)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(Group::String, "1.0.0", "key", "Answers the value of a key"),
    Spec::write("set", -3, string::set)
        .keys(1, 1, 1)
        .flags(GROWS)
        .check(string::check_set)
        .docs(
            Group::String,
            "1.0.0",
            "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | \
             PXAT unix-time-milliseconds | KEEPTTL]",
            "Sets the value of a key, whatever it held, under conditions and with an expiry if asked",
        ),
    Spec::write("setnx", 3, string::setnx)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .docs(
            Group::String,
            "1.0.0",
            "key value",
            "Sets the value of a key that does not exist",
        ),
    Spec::write("setex", 4, string::setex)
        .keys(1, 1, 1)
        .flags(GROWS)
        .check(string::check_setex)
        .docs(
            Group::String,
            "2.0.0",
            "key seconds value",
            "Sets the value of a key and lets it expire after some seconds",
        ),
    Spec::write("psetex", 4, string::psetex)
        .keys(1, 1, 1)
        .flags(GROWS)
        .check(string::check_psetex)
        .docs(
            Group::String,
            "2.6.0",
            "key milliseconds value",
            "Sets the value of a key and lets it expire after some milliseconds",
        ),
    Spec::write("getset", 3, string::getset)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .docs(
            Group::String,
            "1.0.0",
            "key value",
            "Sets the value of a key and answers the one before",
        ),
    Spec::write("getex", -2, string::getex)
        .keys(1, 1, 1)
        .flags(FAST)
        .check(string::check_getex)
        .docs(
            Group::String,
            "6.2.0",
            "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | \
             PXAT unix-time-milliseconds | PERSIST]",
            "Answers the value of a key and changes its expiry",
        ),
    Spec::write("getdel", 2, string::getdel)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::String,
            "6.2.0",
            "key",
            "Answers the value of a key and deletes it",
        ),
    Spec::read("mget", -2, string::mget)
        .keys(1, -1, 1)
        .flags(FAST)
        .complexity("O(N) with N keys")
        .docs(
            Group::String,
            "1.0.0",
            "key [key ...]",
            "Answers the values of several keys",
        ),
    Spec::write("mset", -3, string::mset)
        .keys(1, -1, 2)
        .flags(GROWS)
        .check(string::check_mset)
        .complexity("O(N) with N keys")
        .docs(
            Group::String,
            "1.0.1",
            "key value [key value ...]",
            "Sets the values of several keys at once",
        ),
    Spec::write("msetnx", -3, string::msetnx)
        .keys(1, -1, 2)
        .flags(GROWS)
        .check(string::check_msetnx)
        .complexity("O(N) with N keys")
        .docs(
            Group::String,
            "1.0.1",
            "key value [key value ...]",
            "Sets the values of several keys at once if none of them exists",
        ),
    Spec::write("append", 3, string::append)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .complexity("O(N) with N bytes of the new value")
        .docs(
            Group::String,
            "2.0.0",
            "key value",
            "Adds to the end of a key's value",
        ),
    Spec::read("strlen", 2, string::strlen)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::String,
            "2.2.0",
            "key",
            "Answers the length of a key's value in bytes",
        ),
    Spec::read("getrange", 4, string::getrange)
        .keys(1, 1, 1)
        .check(string::check_getrange)
        .complexity("O(N) with N bytes of the answer")
        .docs(
            Group::String,
            "2.4.0",
            "key start end",
            "Answers a part of a key's value",
        ),
    Spec::read("substr", 4, string::getrange)
        .keys(1, 1, 1)
        .check(string::check_getrange)
        .complexity("O(N) with N bytes of the answer")
        .docs(
            Group::String,
            "1.0.0",
            "key start end",
            "Answers a part of a key's value, as GETRANGE does",
        ),
    Spec::read("lcs", -3, lcs::lcs)
        .keys(1, 2, 1)
        .flags(COSTLY)
        .check(lcs::check)
        .complexity("O(N*M) with strings of N and M bytes")
        .docs(
            Group::String,
            "7.0.0",
            "key1 key2 [LEN] [IDX] [MINMATCHLEN min-match-len] [WITHMATCHLEN]",
            "Answers the longest common subsequence of two strings",
        ),
    Spec::write("setrange", 4, string::setrange)
        .keys(1, 1, 1)
        .flags(GROWS)
        .check(string::check_setrange)
        .complexity("O(N) with N bytes of the new value")
        .docs(
            Group::String,
            "2.2.0",
            "key offset value",
            "Overwrites a part of a key's value, after zeros if it is too short",
        ),
    Spec::write("incr", 2, string::incr)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .docs(Group::String, "1.0.0", "key", "Adds one to an integer"),
    Spec::write("decr", 2, string::decr)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .docs(
            Group::String,
            "1.0.0",
            "key",
            "Takes one away from an integer",
        ),
    Spec::write("incrby", 3, string::incrby)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .check(string::check_incrby)
        .docs(
            Group::String,
            "1.0.0",
            "key increment",
            "Adds a number to an integer",
        ),
    Spec::write("decrby", 3, string::decrby)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .check(string::check_decrby)
        .docs(
            Group::String,
            "1.0.0",
            "key decrement",
            "Takes a number away from an integer",
        ),
    Spec::write("incrbyfloat", 3, string::incrbyfloat)
        .keys(1, 1, 1)
        .flags(GROWS.with(FAST))
        .docs(
            Group::String,
            "2.6.0",
            "key increment",
            "Adds a number, which may have a fraction, to one",
        ),
    // Keys.
    Spec::write("del", -2, key::del)
        .keys(1, -1, 1)
        .complexity("O(N) with N keys")
        .docs(
            Group::Generic,
            "1.0.0",
            "key [key ...]",
            "Deletes keys and answers how many there were",
        ),
    Spec::write("unlink", -2, key::del)
        .keys(1, -1, 1)
        .flags(FAST)
        .complexity("O(N) with N keys")
        .docs(
            Group::Generic,
            "4.0.0",
            "key [key ...]",
            "Deletes keys and answers how many there were, as DEL does",
        ),
    Spec::read("exists", -2, key::exists)
        .keys(1, -1, 1)
        .flags(FAST)
        .complexity("O(N) with N keys")
        .docs(
            Group::Generic,
            "1.0.0",
            "key [key ...]",
            "Answers how many of these keys exist",
        ),
    Spec::read("touch", -2, key::exists)
        .keys(1, -1, 1)
        .flags(FAST)
        .complexity("O(N) with N keys")
        .docs(
            Group::Generic,
            "3.2.1",
            "key [key ...]",
            "Answers how many of these keys exist",
        ),
    Spec::read("type", 2, key::type_of)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "1.0.0",
            "key",
            "Answers what type of value a key holds",
        ),
    Spec::read("keys", 2, key::keys)
        .flags(COSTLY.with(Flags::DANGEROUS))
        .complexity("O(N) with N keys in the store")
        .docs(
            Group::Generic,
            "1.0.0",
            "pattern",
            "Answers all keys that match a pattern",
        ),
    Spec::read("scan", -2, key::scan)
        .flags(COSTLY)
        .check(key::check_scan)
        .complexity("O(N) with a count of N")
        .docs(
            Group::Generic,
            "2.8.0",
            "cursor [MATCH pattern] [COUNT count] [TYPE type]",
            "Answers some keys, and a cursor to go on from",
        ),
    Spec::read("randomkey", 1, key::randomkey).docs(
        Group::Generic,
        "1.0.0",
        "",
        "Answers some key",
    ),
    Spec::session("object", -2, session::container)
        .docs(
            Group::Generic,
            "2.2.3",
            "",
            "Commands about how values are held",
        )
        .complexity("That of the subcommand")
        .subcommands(OBJECT),
    Spec::write("copy", -3, key::copy)
        .keys(1, 2, 1)
        .flags(GROWS)
        .check(key::check_copy)
        .complexity("O(N) with N bytes of value")
        .docs(
            Group::Generic,
            "6.2.0",
            "source destination [DB destination-db] [REPLACE]",
            "Gives another key the value and the expiry of a key",
        ),
    Spec::write("rename", 3, key::rename)
        .keys(1, 2, 1)
        .docs(
            Group::Generic,
            "1.0.0",
            "key newkey",
            "Gives a key another name, over whatever has that name",
        ),
    Spec::write("renamenx", 3, key::renamenx)
        .keys(1, 2, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "1.0.0",
            "key newkey",
            "Gives a key another name if nothing has that name",
        ),
    Spec::write("expire", -3, key::expire)
        .keys(1, 1, 1)
        .flags(FAST)
        .check(key::check_expire)
        .docs(
            Group::Generic,
            "1.0.0",
            "key seconds [NX | XX | GT | LT]",
            "Lets a key expire after some seconds",
        ),
    Spec::write("pexpire", -3, key::pexpire)
        .keys(1, 1, 1)
        .flags(FAST)
        .check(key::check_pexpire)
        .docs(
            Group::Generic,
            "2.6.0",
            "key milliseconds [NX | XX | GT | LT]",
            "Lets a key expire after some milliseconds",
        ),
    Spec::write("expireat", -3, key::expireat)
        .keys(1, 1, 1)
        .flags(FAST)
        .check(key::check_expireat)
        .docs(
            Group::Generic,
            "1.2.0",
            "key unix-time-seconds [NX | XX | GT | LT]",
            "Lets a key expire at a time, in seconds",
        ),
    Spec::write("pexpireat", -3, key::pexpireat)
        .keys(1, 1, 1)
        .flags(FAST)
        .check(key::check_pexpireat)
        .docs(
            Group::Generic,
            "2.6.0",
            "key unix-time-milliseconds [NX | XX | GT | LT]",
            "Lets a key expire at a time, in milliseconds",
        ),
    Spec::read("ttl", 2, key::ttl)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "1.0.0",
            "key",
            "Answers in how many seconds a key expires: -1 never, -2 there is no such key",
        ),
    Spec::read("pttl", 2, key::pttl)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "2.6.0",
            "key",
            "Answers in how many milliseconds a key expires: -1 never, -2 there is no such key",
        ),
    Spec::read("expiretime", 2, key::expiretime)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "7.0.0",
            "key",
            "Answers at what time a key expires, in seconds",
        ),
    Spec::read("pexpiretime", 2, key::pexpiretime)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "7.0.0",
            "key",
            "Answers at what time a key expires, in milliseconds",
        ),
    Spec::write("persist", 2, key::persist)
        .keys(1, 1, 1)
        .flags(FAST)
        .docs(
            Group::Generic,
            "2.2.0",
            "key",
            "Takes away a key's expiry",
        ),
    Spec::write("flushdb", -1, key::flush)
        .flags(Flags::DANGEROUS)
        .check(key::check_flush)
        .docs(
            Group::Generic,
            "1.0.0",
            "[ASYNC | SYNC]",
            "Deletes all keys, at once whatever their number",
        ),
    Spec::write("flushall", -1, key::flush)
        .flags(Flags::DANGEROUS)
        .check(key::check_flush)
        .docs(
            Group::Generic,
            "1.0.0",
            "[ASYNC | SYNC]",
            "Deletes all keys, at once whatever their number",
        ),
    Spec::read("dbsize", 1, key::dbsize).flags(FAST).docs(
        Group::Generic,
        "1.0.0",
        "",
        "Answers the number of keys",
    ),
    // Transactions.
    Spec::write("once.token", -1, once::token)
        .check(once::check_token)
        .complexity("O(N) with N tokens")
        .docs(
            Group::Transactions,
            "kvd 0.1.0",
            "[seconds]",
            "Issues a token for ONCE, which lives so long after its last use; an hour unless told",
        ),
    Spec::write("once", -4, once::once)
        .flags(GROWS)
        .check(once::check)
        .complexity("That of the command")
        .docs(
            Group::Transactions,
            "kvd 0.1.0",
            "token sequence command [arg ...]",
            "Carries a command out once, however often it is sent, and answers the same each time",
        ),
    Spec::session("multi", 1, session::multi)
        .flags(TRANSACTION.with(FAST))
        .docs(
            Group::Transactions,
            "1.2.0",
            "",
            "Begins a transaction: commands are queued from here on",
        ),
    Spec::session("exec", 1, session::exec)
        .flags(ALWAYS.with(NOSCRIPT).with(Flags::SKIP_SLOWLOG))
        .complexity("That of the queued commands")
        .docs(
            Group::Transactions,
            "1.2.0",
            "",
            "Runs the queued commands as one",
        ),
    Spec::session("discard", 1, session::discard)
        .flags(TRANSACTION.with(FAST))
        .docs(
            Group::Transactions,
            "2.0.0",
            "",
            "Forgets the queued commands",
        ),
    Spec::session("watch", -2, session::watch)
        .keys(1, -1, 1)
        .flags(TRANSACTION.with(FAST))
        .complexity("O(N) with N keys")
        .docs(
            Group::Transactions,
            "2.2.0",
            "key [key ...]",
            "Lets the next EXEC do nothing if one of these keys has changed by then",
        ),
    Spec::session("unwatch", 1, session::unwatch)
        .flags(TRANSACTION.with(FAST))
        .docs(
            Group::Transactions,
            "2.2.0",
            "",
            "Forgets the watched keys",
        ),
    // The connection.
    Spec::session("ping", -1, session::ping).flags(FAST).docs(
        Group::Connection,
        "1.0.0",
        "[message]",
        "Answers PONG, or the message",
    ),
    Spec::session("echo", 2, session::echo)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Connection,
            "1.0.0",
            "message",
            "Answers the message",
        ),
    Spec::session("hello", -1, session::hello)
        .flags(HANDSHAKE)
        .docs(
            Group::Connection,
            "6.0.0",
            "[protover [AUTH username password] [SETNAME clientname]]",
            "Begins a connection: protocol, user and name",
        ),
    Spec::session("auth", -2, session::auth)
        .flags(HANDSHAKE)
        .docs(
            Group::Connection,
            "1.0.0",
            "[username] password",
            "Says who the client is",
        ),
    Spec::session("quit", -1, session::quit)
        .flags(HANDSHAKE)
        .docs(Group::Connection, "1.0.0", "", "Closes the connection"),
    Spec::session("reset", 1, session::reset)
        .flags(HANDSHAKE)
        .docs(
            Group::Connection,
            "6.2.0",
            "",
            "Makes the connection as it was when it was new",
        ),
    Spec::session("select", 2, session::select)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Connection,
            "1.0.0",
            "index",
            "Selects a database; there is only 0",
        ),
    Spec::session("client", -2, session::container)
        .docs(
            Group::Connection,
            "2.4.0",
            "",
            "Commands about this connection and the others",
        )
        .complexity("That of the subcommand")
        .subcommands(CLIENT),
    Spec::session("command", -1, introspect::command)
        .flags(ALWAYS)
        .complexity("O(N) with N commands")
        .docs(
            Group::Connection,
            "2.8.13",
            "",
            "Answers what commands there are",
        )
        .subcommands(COMMAND),
    Spec::session("wait", 3, session::wait)
        .flags(NOSCRIPT)
        .docs(
            Group::Connection,
            "3.0.0",
            "numreplicas timeout",
            "Waits until other members hold the last write, and answers how many do",
        ),
    // The server.
    Spec::session("info", -1, session::info)
        .flags(ALWAYS.with(Flags::DANGEROUS))
        .docs(
            Group::Server,
            "1.0.0",
            "[section [section ...]]",
            "Answers the state of the server as text",
        ),
    Spec::session("config", -2, session::container)
        .docs(Group::Server, "2.0.0", "", "Commands about settings")
        .complexity("That of the subcommand")
        .subcommands(CONFIG),
    Spec::session("time", 1, session::time)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Server,
            "2.6.0",
            "",
            "Answers the time in seconds and microseconds",
        ),
    Spec::session("lastsave", 1, session::lastsave)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Answers the time at which everything acknowledged was on disk: now",
        ),
    Spec::session("lolwut", -1, session::lolwut)
        .flags(FAST)
        .docs(
            Group::Server,
            "5.0.0",
            "[VERSION version]",
            "Draws a little picture, and tells the version",
        ),
    Spec::session("memory", -2, session::container)
        .subcommands(MEMORY)
        .complexity("That of the subcommand")
        .docs(Group::Server, "4.0.0", "", "About memory"),
    Spec::session("slowlog", -2, session::container)
        .flags(ADMIN)
        .subcommands(SLOWLOG)
        .complexity("That of the subcommand")
        .docs(Group::Server, "2.2.12", "", "About slow commands"),
    Spec::session("latency", -2, session::container)
        .flags(ADMIN)
        .subcommands(LATENCY)
        .complexity("That of the subcommand")
        .docs(Group::Server, "2.8.13", "", "About how long commands take"),
    Spec::session("monitor", 1, session::monitor)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Shows every command that this node is sent, from then on",
        ),
    Spec::session("role", 1, session::role)
        .flags(ALWAYS.with(NOSCRIPT).with(FAST).with(Flags::DANGEROUS))
        .docs(
            Group::Server,
            "2.8.12",
            "",
            "Answers what part this node plays",
        ),
    Spec::session("shutdown", -1, session::shutdown)
        .flags(ADMIN.with(Flags::NO_MULTI).with(Flags::ALLOW_BUSY))
        .docs(
            Group::Server,
            "1.0.0",
            "[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]",
            "Ends this node's process",
        ),
    Spec::session("debug", -2, session::container)
        .flags(ADMIN.with(Flags::DEBUG))
        .docs(Group::Server, "1.0.0", "", "Commands for tests")
        .complexity("That of the subcommand")
        .subcommands(DEBUG),
    Spec::session("replicaof", 3, session::refuse_replicaof)
        .flags(REFUSED)
        .docs(
            Group::Server,
            "5.0.0",
            "host port",
            "Refused: JOIN takes a node in",
        ),
    Spec::session("slaveof", 3, session::refuse_replicaof)
        .flags(REFUSED)
        .docs(
            Group::Server,
            "1.0.0",
            "host port",
            "Refused: JOIN takes a node in",
        ),
    Spec::session("failover", -1, session::refuse_failover)
        .flags(Flags::ADMIN.with(NOSCRIPT).with(Flags::STALE))
        .docs(
            Group::Server,
            "6.2.0",
            "[TO host port [FORCE]] [ABORT] [TIMEOUT milliseconds]",
            "Refused: Raft elects the leader",
        ),
    Spec::session("psync", -3, session::refuse_replication)
        .flags(
            Flags::ADMIN
                .with(NOSCRIPT)
                .with(Flags::NO_ASYNC_LOADING)
                .with(Flags::NO_MULTI),
        )
        .docs(
            Group::Server,
            "2.8.0",
            "replicationid offset",
            "Refused: nodes replicate by Raft",
        ),
    Spec::session("sync", 1, session::refuse_replication)
        .flags(
            Flags::ADMIN
                .with(NOSCRIPT)
                .with(Flags::NO_ASYNC_LOADING)
                .with(Flags::NO_MULTI),
        )
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Refused: nodes replicate by Raft",
        ),
    Spec::session("replconf", -1, session::refuse_replication)
        .flags(ADMIN.with(Flags::ALLOW_BUSY))
        .docs(
            Group::Server,
            "3.0.0",
            "",
            "Refused: nodes replicate by Raft",
        ),
    Spec::session("save", 1, session::refuse_save)
        .flags(
            Flags::ADMIN
                .with(NOSCRIPT)
                .with(Flags::NO_ASYNC_LOADING)
                .with(Flags::NO_MULTI),
        )
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Refused: every write is durable before its reply",
        ),
    Spec::session("bgsave", -1, session::refuse_save)
        .flags(
            Flags::ADMIN
                .with(NOSCRIPT)
                .with(Flags::NO_ASYNC_LOADING),
        )
        .docs(
            Group::Server,
            "1.0.0",
            "[SCHEDULE]",
            "Refused: every write is durable before its reply",
        ),
    Spec::session("bgrewriteaof", 1, session::refuse_save)
        .flags(
            Flags::ADMIN
                .with(NOSCRIPT)
                .with(Flags::NO_ASYNC_LOADING),
        )
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Refused: every write is durable before its reply",
        ),
    Spec::session("migrate", -6, session::refuse_migrate)
        .flags(Flags::DANGEROUS)
        .docs(
            Group::Generic,
            "2.6.0",
            "host port key destination-db timeout",
            "Refused: all members hold all keys",
        ),
    // The cluster.
    Spec::session("join", -3, session::join)
        .flags(Flags::ADMIN.with(NOSCRIPT).with(Flags::NO_MULTI))
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "name host:port [NONVOTER]",
            "Takes another node into the cluster, by its Raft address; without a vote it only holds \
             the data and serves reads",
        ),
    Spec::session("backup", -2, session::container)
        .flags(ADMIN.with(Flags::NO_MULTI))
        .subcommands(BACKUP)
        .complexity("That of the subcommand")
        .docs(
            Group::Server,
            "kvd 0.1.0",
            "",
            "About copies of all data, as `kvd snapshot save` fetches them",
        ),
    Spec::session("leave", 2, session::leave)
        .flags(Flags::ADMIN.with(NOSCRIPT).with(Flags::NO_MULTI))
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "name",
            "Removes a member from the cluster",
        ),
    Spec::session("raft.cluster", -2, session::raft_cluster)
        .flags(ADMIN)
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "INIT | JOIN host:port [host:port ...]",
            "RedisRaft's way to make and enter a cluster: says what to do here instead",
        ),
    Spec::session("raft.node", -2, session::raft_node)
        .flags(ADMIN)
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "ADD id host:port | REMOVE id",
            "RedisRaft's way to change members: JOIN and LEAVE by a member's id",
        ),
    Spec::session("raft.compare", 1, session::raft_compare)
        .flags(Flags::ADMIN.with(NOSCRIPT).with(Flags::NO_MULTI))
        .complexity("O(N) with N keys, on each member, beside its work")
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "",
            "Answers an index of the log, whether all members' contents behind it are equal, and the \
             digest of each",
        ),
    Spec::session("raft.transfer_leader", -1, session::raft_transfer_leader)
        .flags(ADMIN)
        .docs(
            Group::Cluster,
            "kvd 0.1.0",
            "[name]",
            "Hands leadership to a member, by its name or id, or to the one that is best placed",
        ),
    Spec::session("cluster", -2, session::container)
        .docs(Group::Cluster, "3.0.0", "", "Commands about the cluster")
        .complexity("That of the subcommand")
        .subcommands(CLUSTER),
    Spec::session("readonly", 1, session::readonly)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Connection,
            "3.0.0",
            "",
            "Lets this connection read what this node has applied, at once",
        ),
    Spec::session("readwrite", 1, session::readwrite)
        .flags(ALWAYS.with(FAST))
        .docs(
            Group::Connection,
            "3.0.0",
            "",
            "Takes READONLY back",
        ),
    Spec::session("asking", 1, session::asking)
        .flags(FAST)
        .docs(
            Group::Connection,
            "3.0.0",
            "",
            "Says that the client was sent here for the next command",
        ),
];

const OBJECT: &[Spec] = &[
    Spec::read("object|encoding", 3, object::encoding)
        .keys(2, 2, 1)
        .docs(
            Group::Generic,
            "2.2.3",
            "key",
            "Answers how Redis would hold the value of a key",
        ),
    Spec::read("object|freq", 3, object::freq)
        .keys(2, 2, 1)
        .docs(
            Group::Generic,
            "4.0.0",
            "key",
            "Refused: accesses are not counted",
        ),
    Spec::read("object|idletime", 3, object::idletime)
        .keys(2, 2, 1)
        .docs(
            Group::Generic,
            "2.2.3",
            "key",
            "Answers 0: accesses are not noted",
        ),
    Spec::read("object|refcount", 3, object::refcount)
        .keys(2, 2, 1)
        .docs(
            Group::Generic,
            "2.2.3",
            "key",
            "Answers 1: values are not shared",
        ),
    help("object|help", Group::Generic, "6.2.0"),
];

const CLIENT: &[Spec] = &[
    Spec::session("client|id", 2, session::client_id)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "5.0.0",
            "",
            "Answers the number of this connection",
        ),
    Spec::session("client|info", 2, session::client_info)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "6.2.0",
            "",
            "Answers a line about this connection",
        ),
    Spec::session("client|list", -2, session::client_list)
        .flags(ADMIN)
        .complexity("O(N) with N connections")
        .docs(
            Group::Connection,
            "2.4.0",
            "[TYPE type | ID client-id [client-id ...]]",
            "Answers a line about each connection",
        ),
    Spec::session("client|setname", 3, session::client_setname)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "2.6.9",
            "connection-name",
            "Names this connection",
        ),
    Spec::session("client|getname", 2, session::client_getname)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "2.6.9",
            "",
            "Answers this connection's name",
        ),
    Spec::session("client|setinfo", 4, session::client_setinfo)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "7.2.0",
            "LIB-NAME libname | LIB-VER libver",
            "Says which library the client uses",
        ),
    Spec::session("client|kill", -3, session::client_kill)
        .flags(ADMIN)
        .complexity("O(N) with N connections")
        .docs(
            Group::Connection,
            "2.4.0",
            "ip:port | [ID client-id] [TYPE type] [USER username] [ADDR ip:port] [LADDR ip:port] \
             [SKIPME yesno]",
            "Closes connections",
        ),
    Spec::session("client|reply", 3, session::client_reply)
        .flags(ALWAYS.with(NOSCRIPT).with(Flags::NO_MULTI))
        .docs(
            Group::Connection,
            "3.2.0",
            "ON | OFF | SKIP",
            "Says which replies this connection wants",
        ),
    Spec::session("client|no-evict", 3, session::client_no)
        .flags(ADMIN)
        .docs(
            Group::Connection,
            "7.0.0",
            "ON | OFF",
            "Changes nothing: clients are not evicted",
        ),
    Spec::session("client|no-touch", 3, session::client_no)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "7.2.0",
            "ON | OFF",
            "Changes nothing: accesses are not noted",
        ),
    Spec::session("client|tracking", -3, session::client_tracking)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "6.0.0",
            "ON | OFF",
            "ON is refused: there is no client-side caching",
        ),
    Spec::session("client|caching", 3, session::client_caching)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "6.0.0",
            "YES | NO",
            "Refused: kvd does not track what clients cache",
        ),
    Spec::session("client|getredir", 2, session::client_getredir)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "6.0.0",
            "",
            "Answers -1: no invalidations are redirected",
        ),
    Spec::session("client|trackinginfo", 2, session::client_trackinginfo)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "6.2.0",
            "",
            "Answers that tracking is off",
        ),
    Spec::session("client|capa", -3, session::client_capa)
        .flags(ALWAYS.with(NOSCRIPT))
        .docs(
            Group::Connection,
            "8.0.0",
            "capability [capability ...]",
            "Tells what the client can do: with redirect, it follows -REDIRECT to the leader",
        ),
    Spec::session("client|pause", -3, session::client_pause)
        .flags(ADMIN)
        .docs(
            Group::Connection,
            "3.0.0",
            "timeout [WRITE | ALL]",
            "Holds the commands of all clients of this node, or only those that write, for a time",
        ),
    Spec::session("client|unpause", 2, session::client_unpause)
        .flags(ADMIN)
        .complexity("O(N) with N held clients")
        .docs(Group::Connection, "6.2.0", "", "Lets held commands go on"),
    help("client|help", Group::Connection, "5.0.0"),
];

const COMMAND: &[Spec] = &[
    Spec::session("command|count", 2, introspect::count)
        .flags(ALWAYS)
        .docs(
            Group::Connection,
            "2.8.13",
            "",
            "Answers how many commands there are",
        ),
    Spec::session("command|info", -2, introspect::info)
        .flags(ALWAYS)
        .complexity("O(N) with N commands")
        .docs(
            Group::Connection,
            "2.8.13",
            "[command-name [command-name ...]]",
            "Answers arity, flags and keys of commands",
        ),
    Spec::session("command|docs", -2, introspect::docs)
        .flags(ALWAYS)
        .complexity("O(N) with N commands")
        .docs(
            Group::Connection,
            "7.0.0",
            "[command-name [command-name ...]]",
            "Answers what commands do",
        ),
    Spec::session("command|list", -2, introspect::list)
        .flags(ALWAYS)
        .complexity("O(N) with N commands")
        .docs(
            Group::Connection,
            "7.0.0",
            "[FILTERBY MODULE module | ACLCAT category | PATTERN pattern]",
            "Answers the names of commands",
        ),
    Spec::session("command|getkeys", -4, introspect::getkeys)
        .flags(ALWAYS)
        .complexity("O(N) with N arguments")
        .docs(
            Group::Connection,
            "2.8.13",
            "command arg [arg ...]",
            "Answers which arguments of a command are keys",
        ),
    Spec::session("command|getkeysandflags", -4, introspect::getkeysandflags)
        .flags(ALWAYS)
        .complexity("O(N) with N arguments")
        .docs(
            Group::Connection,
            "7.0.0",
            "command [arg [arg ...]]",
            "Answers which arguments of a request are keys, and what is done with them",
        ),
    help("command|help", Group::Connection, "5.0.0"),
];

const CONFIG: &[Spec] = &[
    Spec::session("config|get", -3, session::config_get)
        .flags(ADMIN)
        .complexity("O(N) with N settings")
        .docs(
            Group::Server,
            "2.0.0",
            "pattern [pattern ...]",
            "Answers the settings whose names match",
        ),
    Spec::session("config|set", -4, session::config_set)
        .flags(ADMIN)
        .complexity("O(N) with N settings")
        .docs(
            Group::Server,
            "2.0.0",
            "setting value [setting value ...]",
            "Changes settings of this node, all or none",
        ),
    Spec::session("config|resetstat", 2, session::config_resetstat)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.0.0",
            "",
            "Sets the counters of INFO to zero",
        ),
    Spec::session("config|rewrite", 2, session::config_rewrite)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.8.0",
            "",
            "Writes the settings into their file",
        ),
    help("config|help", Group::Server, "5.0.0"),
];

const DEBUG: &[Spec] = &[
    Spec::read("debug|digest", 2, server::debug_digest)
        .flags(DEBUG_READ)
        .complexity("O(N) with N bytes in the store")
        .docs(
            Group::Server,
            "1.0.0",
            "",
            "Answers a digest of what this node has applied, the same with every engine",
        ),
    Spec::session("debug|sleep", 3, session::debug_sleep)
        .flags(ADMIN.with(Flags::DEBUG))
        .docs(
            Group::Server,
            "1.0.0",
            "seconds",
            "Holds this connection for a while",
        ),
    help("debug|help", Group::Server, "1.0.0"),
];

const CLUSTER: &[Spec] = &[
    Spec::session("cluster|slots", 2, session::cluster_slots)
        .flags(Flags::STALE)
        .docs(
            Group::Cluster,
            "3.0.0",
            "",
            "Answers who serves which slots",
        ),
    Spec::session("cluster|shards", 2, session::cluster_shards)
        .flags(Flags::STALE)
        .docs(
            Group::Cluster,
            "7.0.0",
            "",
            "Answers who serves which slots, by shard",
        ),
    Spec::session("cluster|nodes", 2, session::cluster_nodes)
        .flags(Flags::STALE)
        .complexity("O(N) with N members")
        .docs(
            Group::Cluster,
            "3.0.0",
            "",
            "Answers a line about each member",
        ),
    Spec::session("cluster|info", 2, session::cluster_info)
        .flags(Flags::STALE)
        .docs(
            Group::Cluster,
            "3.0.0",
            "",
            "Answers the state of the cluster as text",
        ),
    Spec::session("cluster|myid", 2, session::cluster_myid)
        .flags(Flags::STALE)
        .docs(Group::Cluster, "3.0.0", "", "Answers this node's identity"),
    Spec::session("cluster|keyslot", 3, session::cluster_keyslot)
        .flags(Flags::STALE)
        .complexity("O(N) with N bytes of the key")
        .docs(Group::Cluster, "3.0.0", "key", "Answers the slot of a key"),
    Spec::read(
        "cluster|countkeysinslot",
        3,
        server::cluster_countkeysinslot,
    )
    .flags(Flags::STALE.with(Flags::LOCAL).with(COSTLY))
    .check(server::check_countkeysinslot)
    .complexity("O(N) with N keys in the slot")
    .docs(
        Group::Cluster,
        "3.0.0",
        "slot",
        "Answers how many keys this node holds in a slot",
    ),
    Spec::read("cluster|getkeysinslot", 4, server::cluster_getkeysinslot)
        .flags(Flags::STALE.with(Flags::LOCAL).with(COSTLY))
        .check(server::check_getkeysinslot)
        .complexity("O(N) with a count of N")
        .docs(
            Group::Cluster,
            "3.0.0",
            "slot count",
            "Answers some keys that this node holds in a slot",
        ),
    Spec::session("cluster|links", 2, session::cluster_links)
        .flags(ALWAYS)
        .complexity("O(N) with N members")
        .docs(
            Group::Cluster,
            "7.0.0",
            "",
            "Answers this node's connections to the other members",
        ),
    Spec::session("cluster|replicas", 3, session::cluster_replicas)
        .flags(ADMIN)
        .complexity("O(N) with N members")
        .docs(
            Group::Cluster,
            "5.0.0",
            "node-id",
            "Answers the lines of the members that follow a leader",
        ),
    Spec::session("cluster|slaves", 3, session::cluster_replicas)
        .flags(ADMIN)
        .complexity("O(N) with N members")
        .docs(
            Group::Cluster,
            "3.0.0",
            "node-id",
            "The same under its old name",
        ),
    Spec::session("cluster|failover", -2, session::cluster_failover)
        .flags(ADMIN)
        .docs(
            Group::Cluster,
            "3.0.0",
            "[FORCE | TAKEOVER]",
            "Hands leadership to this node",
        ),
    help("cluster|help", Group::Cluster, "5.0.0"),
];

static MEMORY: &[Spec] = &[
    Spec::read("memory|usage", -3, server::memory_usage)
        .keys(2, 2, 1)
        .check(server::check_memory_usage)
        .docs(
            Group::Server,
            "4.0.0",
            "key [SAMPLES count]",
            "Answers how many bytes a key and its value take in the store",
        ),
    Spec::session("memory|doctor", 2, session::memory_doctor).docs(
        Group::Server,
        "4.0.0",
        "",
        "Says where to look for what this node's memory is used for",
    ),
    Spec::session("memory|purge", 2, session::memory_purge).docs(
        Group::Server,
        "4.0.0",
        "",
        "Does nothing: memory goes back to the system by itself",
    ),
    help("memory|help", Group::Server, "4.0.0"),
];

static BACKUP: &[Spec] = &[
    Spec::session("backup|open", 2, session::backup_open)
        .flags(ADMIN.with(Flags::NO_MULTI))
        .complexity("O(N) with N keys")
        .docs(
            Group::Server,
            "kvd 0.1.0",
            "",
            "Writes a snapshot that holds everything acknowledged, keeps it for this connection, and \
             answers the log's index that it holds and its length in bytes",
        ),
    Spec::session("backup|read", 3, session::backup_read)
        .flags(ADMIN.with(Flags::NO_MULTI))
        .docs(
            Group::Server,
            "kvd 0.1.0",
            "offset",
            "Answers up to 1 MiB of this connection's snapshot",
        ),
    Spec::session("backup|close", 2, session::backup_close)
        .flags(ADMIN.with(Flags::NO_MULTI))
        .docs(
            Group::Server,
            "kvd 0.1.0",
            "",
            "Removes this connection's snapshot, as its end does",
        ),
    help("backup|help", Group::Server, "kvd 0.1.0"),
];

static SLOWLOG: &[Spec] = &[
    Spec::session("slowlog|get", -2, session::slowlog_get)
        .flags(ADMIN)
        .complexity("O(N) with N entries")
        .docs(
            Group::Server,
            "2.2.12",
            "[count]",
            "Answers the latest slow commands, 10 unless told",
        ),
    Spec::session("slowlog|len", 2, session::slowlog_len)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.2.12",
            "",
            "Answers how many slow commands are kept",
        ),
    Spec::session("slowlog|reset", 2, session::slowlog_reset)
        .flags(ADMIN)
        .complexity("O(N) with N entries")
        .docs(Group::Server, "2.2.12", "", "Forgets the slow commands"),
    help("slowlog|help", Group::Server, "6.2.0"),
];

static LATENCY: &[Spec] = &[
    Spec::session("latency|latest", 2, session::latency_latest)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.8.13",
            "",
            "Answers the latest and the longest spike of each event",
        ),
    Spec::session("latency|history", 3, session::latency_history)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.8.13",
            "event",
            "Answers the spikes of an event, each with its time",
        ),
    Spec::session("latency|reset", -2, session::latency_reset)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.8.13",
            "[event [event ...]]",
            "Forgets the spikes of these events, or of all, and answers of how many",
        ),
    Spec::session("latency|histogram", -2, session::latency_histogram)
        .flags(ADMIN)
        .complexity("O(N) with N commands")
        .docs(
            Group::Server,
            "7.0.0",
            "[command [command ...]]",
            "Answers how many calls of each command took at most how long",
        ),
    Spec::session("latency|doctor", 2, session::latency_doctor)
        .flags(ADMIN)
        .docs(
            Group::Server,
            "2.8.13",
            "",
            "Says where to look when commands are slow",
        ),
    help("latency|help", Group::Server, "2.8.13"),
];

const fn help(name: &'static str, group: Group, since: &'static str) -> Spec {
    Spec::session(name, 2, session::help).flags(ALWAYS).docs(
        group,
        since,
        "",
        "Answers what subcommands there are",
    )
}

/// Places in the index: a power of two, a few times the number of rows.
const PLACES: usize = 512;

/// Every row, those of subcommands after their container's.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    TABLE
        .iter()
        .flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
}

/// No row.
const VACANT: u8 = u8::MAX;

/// Where rows are by their names' hashes; collisions go to the next place.
static INDEX: [u8; PLACES] = {
    assert!(TABLE.len() < VACANT as usize && TABLE.len() * 3 < PLACES);
    let mut index = [VACANT; PLACES];
    let mut row = 0;
    while row < TABLE.len() {
        let mut place = hash(TABLE[row].name.as_bytes());
        while index[place] != VACANT {
            place = (place + 1) % PLACES;
        }
        index[place] = row as u8;
        row += 1;
    }
    index
};

/// FNV-1a over the name in lower case.
const fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at].to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 16)) as usize % PLACES
}

/// The longest name in the table is far shorter; nothing longer is hashed.
const NAME_BYTES_MAX: usize = 32;

/// The row of a command by its name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut place = hash(name);
    loop {
        let row = INDEX[place];
        if row == VACANT {
            return None;
        }
        let spec = &TABLE[usize::from(row)];
        if spec.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(spec);
        }
        place = (place + 1) % PLACES;
    }
}

/// The row of a subcommand by its own name, in any case.
pub(super) fn find_subcommand(container: &'static Spec, name: &[u8]) -> Option<&'static Spec> {
    container
        .subcommands
        .iter()
        .find(|spec| spec.short_name().as_bytes().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::spec::{Keys, Kind};

    #[test]
    fn every_row_is_found_by_its_name_in_any_case() {
        for spec in TABLE {
            for name in [spec.name.to_owned(), spec.name.to_ascii_uppercase()] {
                let found = find(name.as_bytes()).map(|spec| spec.name);
                assert_eq!(found, Some(spec.name));
            }
            for row in spec.subcommands {
                let name = row.short_name().to_ascii_uppercase();
                let found = find_subcommand(spec, name.as_bytes()).map(|spec| spec.name);
                assert_eq!(found, Some(row.name));
            }
        }
        assert!(find(b"").is_none());
        assert!(find(b"gets").is_none());
        assert!(find(&[b'a'; 1000]).is_none());
    }

    #[test]
    fn names_are_unique_lower_case_and_short() {
        let mut names: Vec<&str> = all().map(|spec| spec.name).collect();
        for name in &names {
            assert_eq!(*name, name.to_ascii_lowercase());
            assert!(name.len() <= NAME_BYTES_MAX);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn every_row_is_documented() {
        for spec in all() {
            assert!(!spec.summary.is_empty(), "{}", spec.name);
            assert!(!spec.summary.ends_with('.'), "{}", spec.name);
            assert!(!spec.since.is_empty(), "{}", spec.name);
            assert!(!spec.complexity.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn kind_and_flags_agree() {
        for spec in all() {
            let (write, read) = match spec.kind {
                Kind::Write(_) => (true, false),
                Kind::Read(_) => (false, true),
                Kind::Session(_) => (false, false),
            };
            assert_eq!(spec.has(Flags::WRITE), write, "{}", spec.name);
            assert_eq!(spec.has(Flags::READONLY), read, "{}", spec.name);
        }
    }

    #[test]
    fn keys_lie_within_the_arity() {
        for spec in all() {
            let Keys::Range { first, last, step } = spec.keys else {
                continue;
            };
            let least = spec.arity.unsigned_abs() as usize;
            assert!(first >= 1 && step >= 1 && first < least, "{}", spec.name);
            assert!(last < least as i32, "{}", spec.name);
        }
    }
}
