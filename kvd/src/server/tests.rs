//! Connections over streams in memory, on a service that applies groups directly.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;

#[path = "place_tests.rs"]
mod place;

use super::*;
use crate::clock::SystemClock;
use crate::command::{self, Call};
use crate::doors::{BoxFuture, Listener, Net, Random, Stream, Threads};
use crate::keyspace::{Limits, Txn};
use crate::node::Role;
use crate::raft::snapshot::SnapshotDir;
use crate::storage::{Mark, MemoryEngine, Store};

const NOW_MS: u64 = 1_700_000_000_000;

/// A node that is alone, unless a test says otherwise.
#[derive(Clone)]
struct Fake(Arc<Inner>);

struct Inner {
    store: Store,
    snapshots: SnapshotDir,
    folder: tempfile::TempDir,
    state: Mutex<State>,
    /// A leader is known from here on.
    led: Notify,
}

#[derive(Default)]
struct State {
    index: u64,
    groups: Vec<usize>,
    refusal: Option<Reply>,
    elsewhere: Option<Member>,
    leaderless: bool,
    waits: Vec<(u64, u64, Option<Duration>)>,
    stopped: bool,
    raft: Option<tokio::runtime::Handle>,
    /// The runtimes on which groups were proposed.
    proposed_on: Vec<tokio::runtime::Id>,
}

impl Fake {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Fake(Arc::new(Inner {
            store: Store::new(Arc::new(MemoryEngine::new())),
            snapshots: SnapshotDir::open(folder.path()).unwrap(),
            folder,
            state: Mutex::default(),
            led: Notify::new(),
        }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }
}

impl Service for Fake {
    async fn propose(&self, group: Group, _: Option<Early>) -> Result<Written, Reply> {
        let mut state = self.state();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        state.index += 1;
        state.groups.push(group.len());
        let runtime = tokio::runtime::Handle::current().id();
        state.proposed_on.push(runtime);
        let index = state.index;
        let base = self.0.store.read().unwrap();
        let mut txn = Txn::new(&base, index, NOW_MS, 1, Limits::default()).unwrap();
        let mut holds = true;
        group
            .preconditions(|key, at| holds &= txn.view().modified(key).unwrap() == at)
            .unwrap();
        if !holds {
            return Ok(Written {
                replies: vec![Reply::NullArray],
                index,
            });
        }
        let (mut replies, mut args, mut commands) = (Vec::new(), Vec::new(), group.commands());
        while commands.next_into(&mut args).unwrap() {
            let spec = command::lookup(&args).unwrap();
            let call = Call::new(&args, 1);
            replies.push(command::run_write(spec, &call, &mut txn).unwrap());
        }
        let mark = Mark {
            index,
            data: Vec::new(),
        };
        let changes = txn.finish();
        self.0.store.write(&changes.ops(), &mark).unwrap();
        Ok(Written { replies, index })
    }

    async fn read(&self, _: ReadLevel, _: u64) -> Result<Reading, Reply> {
        if let Some(refusal) = &self.state().refusal {
            return Err(refusal.clone());
        }
        Ok(Reading {
            view: self.0.store.read().unwrap(),
            replicated_ms: NOW_MS,
            now_ms: NOW_MS,
            seed: 1,
        })
    }

    async fn tick(&self) -> Result<(), Reply> {
        Ok(())
    }

    fn reads_are_fast(&self) -> bool {
        false
    }

    fn leading_runtime(&self) -> Option<tokio::runtime::Handle> {
        self.state().raft.clone()
    }

    fn status(&self) -> Status {
        Status {
            id: 1,
            cluster: 1,
            member: Member {
                client_addr: "localhost:6379".to_owned(),
                ..Member::default()
            },
            role: Role::Leader,
            leader: (!self.state().leaderless).then_some(1),
            term: 1,
            members: Vec::new(),
            last_log: 0,
            committed: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            loading: false,
        }
    }

    fn redirect(&self) -> Option<Member> {
        self.state().elsewhere.clone()
    }

    async fn replicas(&self, index: u64, wanted: u64, patience: Option<Duration>) -> u64 {
        self.state().waits.push((index, wanted, patience));
        if wanted > 2 {
            match patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        }
        2
    }

    async fn join(&self, request: JoinRequest) -> Reply {
        Reply::bulk(format!("join {} {}", request.name, request.raft_addr))
    }

    async fn leave(&self, name: String) -> Reply {
        Reply::bulk(format!("leave {name}"))
    }

    async fn transfer(&self, _to: Option<NodeId>) -> Reply {
        Reply::Ok
    }

    async fn compare(&self) -> Reply {
        Reply::simple("compared")
    }

    async fn backup(&self) -> Result<(u64, Spool), Reply> {
        let (_, spool) = self
            .0
            .snapshots
            .spool_out(self.0.store.read().unwrap())
            .unwrap();
        Ok((self.state().index, spool))
    }

    async fn leader_known(&self, _: Duration) -> bool {
        if self.state().leaderless {
            self.0.led.notified().await;
        }
        true
    }

    fn set_backend_option(&self, option: &str) -> Result<(), String> {
        match option {
            "size=1" => Ok(()),
            other => Err(format!("option '{other}' is not known here")),
        }
    }

    fn backend_info(&self) -> Vec<(String, String)> {
        vec![("backend_name".to_owned(), "fake".to_owned())]
    }

    fn raft_info(&self) -> Vec<(String, String)> {
        vec![("raft_role".to_owned(), "leader".to_owned())]
    }

    fn shutdown(&self) {
        self.state().stopped = true;
    }

    fn limits(&self) -> ConfigLimits {
        ConfigLimits {
            key_bytes_max: 1 << 16,
            value_bytes_max: 1 << 26,
            group_bytes_max: 1 << 27,
        }
    }
}

struct NoNet;

impl Net for NoNet {
    fn bind<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

/// A server on a fake node.
struct World {
    fake: Fake,
    server: Server<Fake>,
}

impl World {
    fn new() -> Self {
        Self::with(ServerSettings::default())
    }

    fn with(settings: ServerSettings) -> Self {
        let doors = Doors {
            net: Arc::new(NoNet),
            workers: Arc::new(Threads),
            clock: Arc::new(SystemClock),
            random: Random::from_seed(1),
        };
        let fake = Fake::new();
        let server = Server::new(fake.clone(), settings, doors);
        World { fake, server }
    }

    fn client(&self) -> Client {
        self.client_from("127.0.0.1:50000")
    }

    fn client_from(&self, addr: &str) -> Client {
        let (client, stream) = tokio::io::duplex(4096);
        let stream = Box::new(stream);
        listener::begin(&self.server, stream, addr.to_owned(), "127.0.0.1:6379");
        Client(client)
    }
}

struct Client<S = DuplexStream>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, requests: &str) {
        self.0.write_all(requests.as_bytes()).await.unwrap();
    }

    /// Sends requests and checks the answers to the byte.
    async fn says(&mut self, requests: &str, answers: &str) {
        self.send(requests).await;
        self.hears(answers).await;
    }

    async fn hears(&mut self, answers: &str) {
        let mut got = vec![0; answers.len()];
        let read = self.0.read_exact(&mut got);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        let shown = String::from_utf8_lossy(&got).into_owned();
        assert!(read.is_ok(), "the answers end after {shown:?}");
        assert_eq!(shown, answers);
    }

    /// One line without its end.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            let byte = tokio::time::timeout(Duration::from_secs(20), self.0.read_u8()).await;
            line.push(char::from(byte.expect("a line comes").unwrap()));
        }
        line.truncate(line.len() - 2);
        line
    }

    /// One bulk or verbatim string.
    async fn text(&mut self, request: &str) -> String {
        self.send(request).await;
        let mut head = String::new();
        while !head.ends_with("\r\n") {
            head.push(char::from(self.0.read_u8().await.unwrap()));
        }
        let len: usize = head[1..].trim_end().parse().unwrap();
        let mut text = vec![0; len + 2];
        self.0.read_exact(&mut text).await.unwrap();
        text.truncate(len);
        String::from_utf8(text).unwrap()
    }

    /// What comes until the server closes the connection.
    async fn rest(mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).await.unwrap();
        rest
    }
}

/// Sends everything from its own side, ends it, and returns all that was answered.
async fn talk(requests: &[u8]) -> String {
    let Client(stream) = World::new().client();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answers = String::new();
    let (sent, got) = tokio::join!(
        async {
            write.write_all(requests).await?;
            write.shutdown().await
        },
        read.read_to_string(&mut answers)
    );
    sent.unwrap();
    got.unwrap();
    answers
}

#[tokio::test]
async fn a_pipeline_is_answered_in_its_order() {
    let world = World::new();
    let answers = "+PONG\r\n+OK\r\n$1\r\n1\r\n-ERR unknown command 'NOSUCH', with args beginning \
                   with: \r\n:2\r\n$1\r\n2\r\n$-1\r\n";
    let mut client = world.client();
    client
        .says(
            "PING\r\nSET a 1\r\nGET a\r\nNOSUCH\r\nINCR a\r\nGET a\r\nGET b\r\n",
            answers,
        )
        .await;
    // The reads between the writes ride with them.
    assert_eq!(world.fake.state().groups, [5]);
    client
        .says(
            "GET a\r\nPING\r\nGET a\r\n",
            "$1\r\n2\r\n+PONG\r\n$1\r\n2\r\n",
        )
        .await;
    assert_eq!(world.fake.state().groups, [5]);
}

#[tokio::test]
async fn a_hundred_thousand_commands_of_one_pipeline_are_answered() {
    let answers = talk(&b"INCR n\r\n".repeat(100_000)).await;
    assert!(answers.ends_with(":100000\r\n"));
    assert_eq!(answers.lines().count(), 100_000);
}

#[tokio::test]
async fn requests_come_in_any_pieces() {
    let mut client = World::new().client();
    for piece in [
        "*3\r\n$3\r\nSE",
        "T\r\n$1\r\na\r",
        "\n$5\r\nhel",
        "lo\r\n*1\r\n$4",
    ] {
        client.send(piece).await;
        tokio::task::yield_now().await;
    }
    client.says("\r\nPING\r\n", "+OK\r\n+PONG\r\n").await;
}

#[tokio::test]
async fn a_transaction_is_one_group() {
    let world = World::new();
    let mut client = world.client();
    client
        .says(
            "MULTI\r\nSET a 1\r\nPING\r\nINCR a\r\nGET a\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*4\r\n+OK\r\n+PONG\r\n:2\r\n$1\r\n2\r\n",
        )
        .await;
    assert_eq!(world.fake.state().groups, [3]);
    // A command that fails when it runs does not undo the others.
    client
        .says(
            "MULTI\r\nSET b x\r\nINCR b\r\nEXEC\r\nGET b\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-ERR value is not an integer or out of \
             range\r\n$1\r\nx\r\n",
        )
        .await;
    client.says("MULTI\r\nEXEC\r\n", "+OK\r\n*0\r\n").await;
}

#[tokio::test]
async fn a_transaction_may_list_keys_beside_its_writes() {
    let mut client = World::new().client();
    client
        .says(
            "MULTI\r\nSET a 1\r\nKEYS *\r\nSCAN 0\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+OK\r\n*1\r\n$1\r\na\r\n*2\r\n$1\r\n0\r\n\
             *1\r\n$1\r\na\r\n",
        )
        .await;
}

#[tokio::test]
async fn what_is_wrong_while_queueing_ends_the_transaction() {
    let mut client = World::new().client();
    client
        .says(
            "MULTI\r\nSET a\r\nSET a 1\r\nEXEC\r\nGET a\r\n",
            "+OK\r\n-ERR wrong number of arguments for 'set' command\r\n+QUEUED\r\n-EXECABORT \
             Transaction discarded because of previous errors.\r\n$-1\r\n",
        )
        .await;
    client
        .says(
            "EXEC\r\nDISCARD\r\nMULTI\r\nMULTI\r\nWATCH a\r\nSET a 1\r\nDISCARD\r\nGET a\r\n",
            "-ERR EXEC without MULTI\r\n-ERR DISCARD without MULTI\r\n+OK\r\n-ERR MULTI calls can \
             not be nested\r\n-ERR WATCH inside MULTI is not allowed\r\n+QUEUED\r\n+OK\r\n$-1\r\n",
        )
        .await;
}

#[tokio::test]
async fn a_transaction_fails_when_a_watched_key_has_changed() {
    let world = World::new();
    let (mut first, mut second) = (world.client(), world.client());
    first.says("SET a 1\r\nWATCH a\r\n", "+OK\r\n+OK\r\n").await;
    second.says("SET a 5\r\n", "+OK\r\n").await;
    first
        .says("MULTI\r\nINCR a\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n")
        .await;
    // EXEC forgets what was watched, as UNWATCH does.
    first
        .says(
            "MULTI\r\nINCR a\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n*1\r\n:6\r\n",
        )
        .await;
    first.says("WATCH a\r\nUNWATCH\r\n", "+OK\r\n+OK\r\n").await;
    second.says("SET a 7\r\n", "+OK\r\n").await;
    first
        .says(
            "MULTI\r\nGET a\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n*1\r\n$1\r\n7\r\n",
        )
        .await;
    // What came and went in between is a change.
    first.says("WATCH n\r\n", "+OK\r\n").await;
    second.says("SET n 1\r\nDEL n\r\n", "+OK\r\n:1\r\n").await;
    first
        .says("MULTI\r\nSET n 2\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n")
        .await;
    // Reads alone are held to it too.
    first.says("WATCH a\r\n", "+OK\r\n").await;
    second.says("SET a 8\r\n", "+OK\r\n").await;
    first
        .says("MULTI\r\nGET a\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n")
        .await;
}

#[tokio::test]
async fn nothing_is_served_before_the_password() {
    let world = World::with(ServerSettings {
        password: Some("secret".to_owned()),
        ..ServerSettings::default()
    });
    let mut client = world.client();
    client
        .says(
            "GET a\r\nMULTI\r\nAUTH wrong\r\nAUTH secret\r\nGET a\r\n",
            "-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n-WRONGPASS \
             invalid username-password pair or user is disabled.\r\n+OK\r\n$-1\r\n",
        )
        .await;
    client
        .says(
            "RESET\r\nPING\r\nAUTH default secret\r\nPING\r\n",
            "+RESET\r\n-NOAUTH Authentication required.\r\n+OK\r\n+PONG\r\n",
        )
        .await;
    // QUIT is served to anyone.
    assert_eq!(
        {
            let mut client = world.client();
            client.send("QUIT\r\n").await;
            client.rest().await
        },
        "+OK\r\n"
    );
}

#[tokio::test]
async fn only_clients_that_know_of_clusters_are_sent_elsewhere() {
    let world = World::new();
    world.fake.state().elsewhere = Some(Member {
        client_addr: "other:7000".to_owned(),
        ..Member::default()
    });
    let moved = "-MOVED 15495 other:7000\r\n";
    let mut plain = world.client();
    plain
        .says("SET a 1\r\nGET a\r\n", "+OK\r\n$1\r\n1\r\n")
        .await;
    let mut aware = world.client();
    aware
        .says(
            "ASKING\r\nSET a 2\r\nGET a\r\n",
            &format!("+OK\r\n{moved}{moved}"),
        )
        .await;
    aware
        .says(
            "READONLY\r\nGET a\r\nSET a 2\r\nREADWRITE\r\nGET a\r\n",
            &format!("+OK\r\n$1\r\n1\r\n{moved}+OK\r\n{moved}"),
        )
        .await;
    aware
        .says(
            "MULTI\r\nSET a 2\r\nEXEC\r\n",
            &format!("+OK\r\n+QUEUED\r\n{moved}"),
        )
        .await;
    aware
        .says("RESET\r\nGET a\r\n", "+RESET\r\n$1\r\n1\r\n")
        .await;
}

#[tokio::test]
async fn one_refusal_answers_every_command_of_a_group() {
    let world = World::new();
    let mut client = world.client();
    let down = "CLUSTERDOWN The cluster is down";
    world.fake.state().refusal = Some(Reply::error(down));
    client
        .says(
            "SET a 1\r\nPING\r\nINCR a\r\n",
            &format!("-{down}\r\n+PONG\r\n-{down}\r\n"),
        )
        .await;
    client
        .says("GET a\r\nGET b\r\n", &format!("-{down}\r\n-{down}\r\n"))
        .await;
    client
        .says(
            "MULTI\r\nSET a 1\r\nEXEC\r\nMULTI\r\nGET a\r\nEXEC\r\n",
            &format!("+OK\r\n+QUEUED\r\n-{down}\r\n+OK\r\n+QUEUED\r\n-{down}\r\n"),
        )
        .await;
    world.fake.state().refusal = None;
    let stats = client.text("INFO commandstats\r\n").await;
    let incr = stats.lines().find(|line| line.starts_with("cmdstat_incr:"));
    assert!(incr.unwrap().contains("calls=1,"), "{stats}");
    assert!(incr.unwrap().ends_with("failed_calls=1"), "{stats}");
}

#[tokio::test]
async fn quit_answers_what_came_before_and_nothing_after() {
    let mut client = World::new().client();
    client.send("SET a 1\r\nQUIT\r\nSET a 2\r\n").await;
    assert_eq!(client.rest().await, "+OK\r\n+OK\r\n");
}

#[tokio::test]
async fn a_protocol_error_is_answered_after_what_came_before() {
    let mut client = World::new().client();
    client.send("SET a 1\r\n*1\r\n!3\r\nGET\r\nPING\r\n").await;
    assert_eq!(
        client.rest().await,
        "+OK\r\n-ERR Protocol error: expected '$', got '!'\r\n"
    );
}

#[tokio::test]
async fn a_client_that_speaks_http_is_closed_without_an_answer() {
    let mut client = World::new().client();
    client.send("POST / HTTP/1.1\r\n").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn the_lines_of_clients_say_what_they_are() {
    let world = World::new();
    let (mut first, mut second) = (world.client(), world.client());
    first
        .says(
            "CLIENT SETNAME one\r\nCLIENT SETINFO LIB-NAME lib\r\nCLIENT SETINFO LIB-VER 1.2\r\n\
             CLIENT GETNAME\r\nCLIENT ID\r\n",
            "+OK\r\n+OK\r\n+OK\r\n$3\r\none\r\n:1\r\n",
        )
        .await;
    first
        .says("MULTI\r\nPING\r\nPING\r\n", "+OK\r\n+QUEUED\r\n+QUEUED\r\n")
        .await;
    let list = second.text("CLIENT LIST\r\n").await;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    for field in [
        "id=1 ",
        " addr=127.0.0.1:50000 ",
        " laddr=127.0.0.1:6379 ",
        " name=one ",
        " flags=x ",
        " multi=2 ",
        " resp=2 lib-name=lib lib-ver=1.2",
    ] {
        assert!(lines[0].contains(field), "{field} in {list}");
    }
    assert!(lines[1].contains(" multi=-1 ") && lines[1].contains(" cmd=client "));
    assert_eq!(
        second.text("CLIENT LIST ID 1 7\r\n").await.lines().count(),
        1
    );
    assert_eq!(second.text("CLIENT LIST TYPE replica\r\n").await, "");
    first.says("DISCARD\r\n", "+OK\r\n").await;
    assert!(
        second
            .text("CLIENT LIST ID 1\r\n")
            .await
            .contains(" flags=N ")
    );
}

#[tokio::test]
async fn resp3_is_spoken_from_hello_on() {
    let mut client = World::new().client();
    client.send("HELLO 3 SETNAME me\r\n").await;
    client.hears("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n").await;
    client.send("GET a\r\n").await;
    let rest = "$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n\
                $7\r\ncluster\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n_\r\n";
    client.hears(rest).await;
    client
        .says("HELLO 4\r\n", "-NOPROTO unsupported protocol version\r\n")
        .await;
    client.says("CLIENT GETNAME\r\n", "$2\r\nme\r\n").await;
    client.says("RESET\r\nGET a\r\n", "+RESET\r\n$-1\r\n").await;
}

#[tokio::test]
async fn no_more_clients_than_the_limit_are_served() {
    let world = World::with(ServerSettings {
        clients_max: 1,
        ..ServerSettings::default()
    });
    let mut first = world.client();
    let refused = world.client();
    assert_eq!(
        refused.rest().await,
        "-ERR max number of clients reached\r\n"
    );
    first.says("PING\r\n", "+PONG\r\n").await;
    let stats = first.text("INFO stats\r\n").await;
    assert!(stats.contains("rejected_connections:1\r\n"), "{stats}");
    first.send("QUIT\r\n").await;
    first.rest().await;
    while world.server.connected() > 0 {
        tokio::task::yield_now().await;
    }
    world.client().says("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test]
async fn clients_from_elsewhere_need_a_password_or_leave() {
    let world = World::new();
    let answer = world.client_from("192.0.2.7:4000").rest().await;
    assert!(answer.starts_with("-DENIED Redis is running in protected mode"));
    let mut local = world.client_from("[::ffff:127.0.0.1]:4000");
    local
        .says("CONFIG SET protected-mode no\r\n", "+OK\r\n")
        .await;
    let mut remote = world.client_from("192.0.2.7:4000");
    remote.says("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_closed_after_the_timeout() {
    let world = World::new();
    let mut client = world.client();
    client.says("CONFIG SET timeout 5\r\n", "+OK\r\n").await;
    let since = Instant::now();
    assert_eq!(client.rest().await, "");
    assert_eq!(since.elapsed().as_secs(), 5);
}

/// A setting that the engine refuses keeps the others of its command from changing.
#[tokio::test]
async fn an_option_of_the_engine_is_set_where_the_engine_takes_it() {
    let world = World::new();
    let mut client = world.client();
    client
        .says("CONFIG SET timeout 6 backend-opt size=1\r\n", "+OK\r\n")
        .await;
    let refused = "-ERR CONFIG SET failed (possibly related to argument 'backend-opt') - option \
                   'size=2' is not known here\r\n";
    client
        .says("CONFIG SET timeout 5 backend-opt size=2\r\n", refused)
        .await;
    let timeout = "*2\r\n$7\r\ntimeout\r\n$1\r\n6\r\n";
    client.says("CONFIG GET timeout\r\n", timeout).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_closed() {
    let world = World::new();
    let mut client = world.client();
    let value = "x".repeat(100_000);
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000\r\n{value}\r\n");
    client.says(&set, "+OK\r\n").await;
    client.send("GET a\r\nGET a\r\n").await;
    while world.server.connected() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn a_stopping_server_closes_idle_clients() {
    let world = World::new();
    let mut client = world.client();
    client.says("PING\r\n", "+PONG\r\n").await;
    world.server.stop();
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn who_this_node_is_and_how_it_does_is_told_without_a_leader() {
    let world = World::new();
    world.fake.state().leaderless = true;
    let mut client = world.client();
    let info = client.text("CLUSTER INFO\r\n").await;
    assert!(info.contains("cluster_state:fail\r\n"), "{info}");
    assert_eq!(client.text("CLUSTER MYID\r\n").await.len(), 40);
    // Where the slots are is not known before there is a leader.
    client.send("CLUSTER SLOTS\r\n").await;
    tokio::task::yield_now().await;
    world.fake.state().leaderless = false;
    world.fake.0.led.notify_one();
    client.hears("*1\r\n*2\r\n:0\r\n:16383\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn wait_asks_for_the_connections_own_last_write() {
    let world = World::new();
    let mut client = world.client();
    client
        .says("SET a 1\r\nINCR a\r\nWAIT 2 100\r\n", "+OK\r\n:2\r\n:2\r\n")
        .await;
    let since = Instant::now();
    client.says("WAIT 3 100\r\n", ":2\r\n").await;
    assert_eq!(since.elapsed().as_millis(), 100);
    client
        .says(
            "MULTI\r\nWAIT 3 0\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n*1\r\n:2\r\n",
        )
        .await;
    let patience = Duration::from_millis(100);
    assert_eq!(
        world.fake.state().waits,
        [
            (1, 2, Some(patience)),
            (1, 3, Some(patience)),
            (1, 3, Some(Duration::ZERO))
        ]
    );
}

#[tokio::test]
async fn a_client_that_goes_while_it_waits_is_let_go() {
    let world = World::new();
    let mut client = world.client();
    client.send("WAIT 3 0\r\nPING\r\n").await;
    while world.fake.state().waits.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(client);
    while world.server.connected() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn membership_and_shutdown_reach_the_node() {
    let world = World::new();
    let mut client = world.client();
    client
        .says(
            "JOIN node1 localhost:19001\r\nLEAVE node1\r\n",
            "$26\r\njoin node1 localhost:19001\r\n$11\r\nleave node1\r\n",
        )
        .await;
    client.send("SHUTDOWN NOSAVE\r\n").await;
    assert_eq!(client.rest().await, "");
    assert!(world.fake.state().stopped);
}

#[tokio::test]
async fn calls_failures_and_refusals_are_counted_by_command() {
    let mut client = World::new().client();
    client
        .says(
            "SET a x\r\nINCR a\r\nINCR a b\r\nCONFIG GET save\r\n",
            "+OK\r\n-ERR value is not an integer or out of range\r\n-ERR wrong number of arguments \
             for 'incr' command\r\n*2\r\n$4\r\nsave\r\n$0\r\n\r\n",
        )
        .await;
    client
        .says(
            "MULTI\r\nSET b 1\r\nINCR a\r\nEXEC\r\n",
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-ERR value is not an integer or out of \
             range\r\n",
        )
        .await;
    let stats = client.text("INFO commandstats\r\n").await;
    let counts = |name: &str| {
        let start = format!("cmdstat_{name}:");
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap();
        let count = |field: &str| {
            let mut fields = line.split(',').filter_map(|pair| pair.split_once('='));
            fields
                .find(|(name, _)| *name == field)
                .unwrap()
                .1
                .to_owned()
        };
        ["calls", "rejected_calls", "failed_calls"]
            .map(count)
            .join(" ")
    };
    assert_eq!(counts("set"), "2 0 0");
    assert_eq!(counts("incr"), "2 1 2");
    assert_eq!(counts("exec"), "1 0 0");
    assert_eq!(counts("config|get"), "1 0 0");
    client.says("CONFIG RESETSTAT\r\n", "+OK\r\n").await;
    let stats = client.text("INFO commandstats errorstats\r\n").await;
    assert!(
        !stats.contains("cmdstat_set") && !stats.contains("errorstat"),
        "{stats}"
    );
}

#[tokio::test]
async fn clients_are_closed_by_what_they_are() {
    let world = World::new();
    let mut first = world.client_from("127.0.0.1:50001");
    let second = world.client_from("127.0.0.1:50002");
    let third = world.client_from("127.0.0.1:50003");
    first
        .says(
            "CLIENT KILL 127.0.0.1:1\r\nCLIENT KILL 127.0.0.1:50002\r\n",
            "-ERR No such client\r\n+OK\r\n",
        )
        .await;
    assert_eq!(second.rest().await, "");
    first
        .says("CLIENT KILL ID 3 ADDR 127.0.0.1:1\r\n", ":0\r\n")
        .await;
    first.says("CLIENT KILL TYPE normal\r\n", ":1\r\n").await;
    assert_eq!(third.rest().await, "");
    // Itself only when it says so, and with the answer.
    first.says("CLIENT KILL ID 1\r\n", ":0\r\n").await;
    first.send("CLIENT KILL ID 1 SKIPME no\r\nPING\r\n").await;
    assert_eq!(first.rest().await, ":1\r\n");
}

#[tokio::test]
async fn a_client_that_wants_no_replies_gets_none() {
    let mut client = World::new().client();
    client
        .says(
            "CLIENT REPLY SKIP\r\nPING\r\nECHO a\r\nCLIENT REPLY OFF\r\nPING\r\nSET a 1\r\nNOSUCH\r\n\
             CLIENT REPLY SKIP\r\nPING\r\nPING\r\nCLIENT REPLY ON\r\nGET a\r\n",
            "$1\r\na\r\n+OK\r\n$1\r\n1\r\n",
        )
        .await;
    client
        .says("CLIENT REPLY OFF\r\nPING\r\nRESET\r\n", "+RESET\r\n")
        .await;
}

#[tokio::test]
async fn a_monitor_sees_what_others_ask_for_and_no_passwords() {
    let world = World::new();
    let mut monitor = world.client_from("127.0.0.1:50001");
    monitor.says("MONITOR\r\n", "+OK\r\n").await;
    let mut client = world.client();
    client.says("SET a \"x y\"\r\n", "+OK\r\n").await;
    client
        .send("AUTH secret\r\nHELLO 2 AUTH default secret\r\nCONFIG GET save\r\n")
        .await;
    client
        .send("MULTI\r\nGET a\r\nDISCARD\r\nMULTI\r\nGET b\r\nEXEC\r\n")
        .await;
    for request in [
        r#""SET" "a" "x y""#,
        r#""MULTI""#,
        r#""DISCARD""#,
        r#""MULTI""#,
        r#""GET" "b""#,
        r#""EXEC""#,
    ] {
        let line = monitor.line().await;
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with('+') && time.contains('.'), "{line}");
        assert_eq!(rest, format!("[0 127.0.0.1:50000] {request}"));
    }
    // It is still a client: RESET makes it an ordinary one.
    monitor.says("RESET\r\n", "+RESET\r\n").await;
    assert!(!world.server.shared.monitors.any());
    monitor.says("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test]
async fn a_pause_holds_writes_and_lets_reads_and_replies_pass() {
    let world = World::new();
    let (mut operator, mut client) = (world.client(), world.client());
    operator
        .says("CLIENT PAUSE 100000 WRITE\r\n", "+OK\r\n")
        .await;
    client
        .says("GET a\r\nSET a 1\r\nGET a\r\n", "$-1\r\n")
        .await;
    let mut other = world.client();
    other.says("MULTI\r\nGET a\r\n", "+OK\r\n+QUEUED\r\n").await;
    other.says("EXEC\r\n", "*1\r\n$-1\r\n").await;
    operator.says("GET a\r\n", "$-1\r\n").await;
    operator.says("CLIENT UNPAUSE\r\n", "+OK\r\n").await;
    client.hears("+OK\r\n$1\r\n1\r\n").await;
    operator.says("CLIENT PAUSE 100000\r\n", "+OK\r\n").await;
    client.send("GET a\r\n").await;
    operator.says("CLIENT UNPAUSE\r\n", "+OK\r\n").await;
    client.hears("$1\r\n1\r\n").await;
}

#[tokio::test]
async fn slow_commands_and_spikes_are_remembered() {
    let world = World::new();
    let mut client = world.client();
    client
        .says("CLIENT SETNAME me\r\nSLOWLOG LEN\r\n", "+OK\r\n:0\r\n")
        .await;
    client
        .says(
            "CONFIG SET slowlog-log-slower-than 20000 latency-monitor-threshold 20\r\n",
            "+OK\r\n",
        )
        .await;
    client
        .says("GET a\r\nDEBUG SLEEP 0.03\r\n", "$-1\r\n+OK\r\n")
        .await;
    client.says("SLOWLOG LEN\r\n", ":1\r\n").await;
    client.send("SLOWLOG GET\r\n").await;
    assert_eq!(client.line().await, "*1");
    assert_eq!(client.line().await, "*6");
    assert_eq!(client.line().await, ":0");
    let at_s: u64 = client.line().await[1..].parse().unwrap();
    assert!(at_s > 1_700_000_000);
    let took_us: u64 = client.line().await[1..].parse().unwrap();
    assert!((30_000..5_000_000).contains(&took_us), "{took_us}");
    client
        .hears("*3\r\n$5\r\nDEBUG\r\n$5\r\nSLEEP\r\n$4\r\n0.03\r\n$15\r\n127.0.0.1:50000\r\n$2\r\nme\r\n")
        .await;
    client
        .says("SLOWLOG RESET\r\nSLOWLOG LEN\r\n", "+OK\r\n:0\r\n")
        .await;
    client.send("LATENCY LATEST\r\n").await;
    client.hears("*1\r\n*4\r\n$7\r\ncommand\r\n").await;
    for _ in 0..3 {
        client.line().await;
    }
    client
        .says("LATENCY RESET\r\nLATENCY LATEST\r\n", ":1\r\n*0\r\n")
        .await;
    client.send("LATENCY HISTOGRAM get\r\n").await;
    client
        .hears("*2\r\n$3\r\nget\r\n*4\r\n$5\r\ncalls\r\n:1\r\n$14\r\nhistogram_usec\r\n*2\r\n")
        .await;
    client.line().await;
    client.hears(":1\r\n").await;
    client
        .says("CONFIG SET slowlog-log-slower-than -1\r\n", "+OK\r\n")
        .await;
    client
        .says("DEBUG SLEEP 0.03\r\nSLOWLOG LEN\r\n", "+OK\r\n:0\r\n")
        .await;
}

#[tokio::test]
async fn a_client_that_can_be_redirected_is_sent_to_the_leader_as_a_whole() {
    let world = World::new();
    world.fake.state().elsewhere = Some(Member {
        client_addr: "leader:6379".to_owned(),
        ..Member::default()
    });
    let mut client = world.client();
    client.says("SET a 1\r\n", "+OK\r\n").await;
    client.says("CLIENT CAPA redirect\r\n", "+OK\r\n").await;
    client
        .says(
            "SET a 2\r\nGET a\r\nPING\r\n",
            "-REDIRECT leader:6379\r\n-REDIRECT leader:6379\r\n+PONG\r\n",
        )
        .await;
    client.says("READONLY\r\n", "+OK\r\n").await;
    // Who speaks of slots is told of slots.
    client
        .says(
            "GET a\r\nSET a 2\r\n",
            "$1\r\n1\r\n-MOVED 15495 leader:6379\r\n",
        )
        .await;
    client
        .says("RESET\r\nSET a 3\r\n", "+RESET\r\n+OK\r\n")
        .await;
}

#[tokio::test]
async fn an_unknown_outcome_of_one_command_is_not_that_of_its_transaction() {
    let world = World::new();
    let mut client = world.client();
    let once = format!("ONCE {:032} 1 INCR a\r\n", 0);
    client.send(&format!("MULTI\r\n{once}INCR a\r\n")).await;
    client.hears("+OK\r\n+QUEUED\r\n+QUEUED\r\n").await;
    client.send("EXEC\r\n").await;
    assert_eq!(client.line().await, "*2");
    assert!(client.line().await.starts_with("-UNKNOWN "));
    assert_eq!(client.line().await, ":1");
}

#[tokio::test]
async fn a_backup_belongs_to_one_connection_and_goes_with_it() {
    let world = World::new();
    let (mut first, mut second) = (world.client(), world.client());
    first.says("SET a 1\r\n", "+OK\r\n").await;
    first
        .says(
            "BACKUP READ 0\r\n",
            "-ERR this connection has no backup open\r\n",
        )
        .await;
    first.send("BACKUP OPEN\r\n").await;
    first.hears("*2\r\n:1\r\n:").await;
    let bytes: usize = first.line().await.parse().unwrap();
    first.send("BACKUP READ 0\r\n").await;
    first.hears(&format!("${bytes}\r\nKVDSNAP1")).await;
    first.send("BACKUP CLOSE\r\nBACKUP OPEN\r\n").await;
    while first.line().await != "+OK" {}
    first.hears("*2\r\n:1\r\n:").await;
    first.line().await;
    second
        .says(
            "BACKUP OPEN\r\n",
            "-ERR another connection has a backup open; there is one at a time\r\n",
        )
        .await;
    first
        .says(&format!("BACKUP READ {bytes}\r\n"), "$0\r\n\r\n")
        .await;
    first.says("RESET\r\n", "+RESET\r\n").await;
    second.send("BACKUP OPEN\r\n").await;
    second.hears("*2\r\n:1\r\n:").await;
    let files = std::fs::read_dir(world.fake.0.folder.path()).unwrap();
    assert_eq!(files.count(), 1);
}

/// A client whose MULTI or DISCARD is refused does not know whether it still queues.
#[tokio::test]
async fn only_exec_can_fail_on_the_state_of_the_cluster() {
    let world = World::new();
    let (mut plain, mut aware) = (world.client(), world.client());
    aware.says("ASKING\r\n", "+OK\r\n").await;
    // There is no leader; then it is elsewhere, which a client that knows of clusters is told.
    let (down, moved) = (
        "-CLUSTERDOWN The cluster is down\r\n",
        "-MOVED 15495 other:7000\r\n",
    );
    for (client, refused) in [(&mut plain, down), (&mut aware, moved)] {
        {
            let mut state = world.fake.state();
            (state.refusal, state.elsewhere) = (None, None);
            if refused == down {
                state.leaderless = true;
                state.refusal = Some(Reply::error("CLUSTERDOWN The cluster is down"));
            } else {
                state.elsewhere = Some(Member {
                    client_addr: "other:7000".to_owned(),
                    ..Member::default()
                });
            }
        }
        let queued = "MULTI\r\nSET a 1\r\nGET a\r\n";
        client
            .says(
                &format!("{queued}DISCARD\r\n"),
                "+OK\r\n+QUEUED\r\n+QUEUED\r\n+OK\r\n",
            )
            .await;
        client
            .says(
                &format!("{queued}EXEC\r\n"),
                &format!("+OK\r\n+QUEUED\r\n+QUEUED\r\n{refused}"),
            )
            .await;
        // It has ended, whatever became of it.
        client
            .says("DISCARD\r\n", "-ERR DISCARD without MULTI\r\n")
            .await;
    }
}
