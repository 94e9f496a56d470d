//! A client that is alone is served where Raft runs, over real sockets.

use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::*;
use crate::net::Tcp;

/// A server, and the runtime that stands for Raft's.
struct Sides {
    world: World,
    raft: Option<Runtime>,
    listener: Box<dyn Listener>,
}

impl Sides {
    async fn new() -> Self {
        let raft = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let world = World::new();
        world.fake.state().raft = Some(raft.handle().clone());
        Sides {
            world,
            raft: Some(raft),
            listener: Tcp.bind("127.0.0.1:0").await.unwrap(),
        }
    }

    async fn client(&mut self) -> Client<TcpStream> {
        let addr = self.listener.local_addr();
        let (client, accepted) = tokio::join!(TcpStream::connect(&addr), self.listener.accept());
        let (stream, peer) = accepted.unwrap();
        listener::begin(&self.world.server, stream, peer, &addr);
        Client(client.unwrap())
    }

    /// Whether each group since this was asked last was proposed where Raft runs.
    fn beside_raft(&self) -> Vec<bool> {
        let raft = self.raft.as_ref().map(|raft| raft.handle().id());
        let proposed = std::mem::take(&mut self.world.fake.state().proposed_on);
        proposed.into_iter().map(|id| Some(id) == raft).collect()
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        if let Some(raft) = self.raft.take() {
            raft.shutdown_background();
        }
    }
}

fn request(words: &[&str]) -> String {
    let words = words
        .iter()
        .map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let (count, words) = (words.len(), words.collect::<String>());
    format!("*{count}\r\n{words}")
}

impl Client<TcpStream> {
    async fn sets(&mut self, count: usize) {
        for _ in 0..count {
            self.says(&request(&["SET", "a", "1"]), "+OK\r\n").await;
        }
    }
}

#[tokio::test]
async fn short_writes_of_a_client_that_is_alone_are_proposed_where_raft_runs() {
    let mut sides = Sides::new().await;
    let mut client = sides.client().await;
    client.sets(100).await;
    let beside = sides.beside_raft();
    let at_home = beside.iter().take_while(|beside| !**beside).count();
    assert!((30..40).contains(&at_home), "{at_home}");
    assert!(beside[at_home..].iter().all(|beside| *beside));
    // Whatever is sent, it is answered in order.
    let set = request(&["SET", "a", "7"]);
    let get = request(&["GET", "a"]);
    let keys = request(&["KEYS", "*"]);
    for _ in 0..3 {
        client
            .says(
                &format!("{set}{set}{get}{keys}{set}"),
                "+OK\r\n+OK\r\n$1\r\n7\r\n*1\r\n$1\r\na\r\n+OK\r\n",
            )
            .await;
        let multi = [request(&["MULTI"]), set.clone(), request(&["EXEC"])].concat();
        client.says(&multi, "+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n").await;
        sides.beside_raft();
        client.sets(50).await;
        assert_eq!(sides.beside_raft().last(), Some(&true));
    }
    // What comes in pieces, too.
    let (first, second) = set.split_at(9);
    client.says(first, "").await;
    tokio::task::yield_now().await;
    client.says(second, "+OK\r\n").await;
}

#[tokio::test]
async fn anything_but_a_few_short_writes_is_done_away_from_raft() {
    let long = "x".repeat(2000);
    let pipeline = request(&["SET", "a", "1"]).repeat(17);
    for (what, answer) in [
        (request(&["SET", "a", &long]), "+OK\r\n".to_owned()),
        (request(&["APPEND", "b", "1"]), ":1\r\n".to_owned()),
        (pipeline, "+OK\r\n".repeat(17)),
    ] {
        let mut sides = Sides::new().await;
        let mut client = sides.client().await;
        client.sets(50).await;
        assert_eq!(sides.beside_raft().last(), Some(&true));
        client.says(&what, &answer).await;
        assert_eq!(sides.beside_raft().last(), Some(&false));
        client.sets(1).await;
        assert_eq!(sides.beside_raft(), [false]);
    }
}

#[tokio::test]
async fn clients_that_are_not_alone_keep_to_their_own_threads() {
    let mut sides = Sides::new().await;
    let (mut one, mut other) = (sides.client().await, sides.client().await);
    for _ in 0..100 {
        one.sets(1).await;
        other.sets(1).await;
    }
    assert!(!sides.beside_raft().contains(&true));
    // One that was alone takes one more with it.
    one.sets(50).await;
    other.sets(1).await;
    sides.beside_raft();
    one.sets(3).await;
    assert_eq!(sides.beside_raft(), [true, false, false]);
}

#[tokio::test]
async fn a_client_of_a_node_that_does_not_lead_keeps_to_its_own_thread() {
    let mut sides = Sides::new().await;
    let mut client = sides.client().await;
    client.sets(50).await;
    sides.world.fake.state().raft = None;
    client.sets(1).await;
    sides.beside_raft();
    client.sets(100).await;
    assert!(!sides.beside_raft().contains(&true));
}

#[tokio::test]
async fn a_client_that_was_moved_can_be_killed_and_is_seen_to_leave() {
    let mut sides = Sides::new().await;
    for kill in [true, false] {
        let mut client = sides.client().await;
        client.sets(50).await;
        assert_eq!(sides.world.server.connected(), 1);
        if kill {
            for entry in sides.world.server.shared.clients.lock().unwrap().values() {
                entry.kill();
            }
            assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
        }
        drop(client);
        let gone = async {
            while sides.world.server.connected() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone)
            .await
            .expect("the connection ends");
    }
}

#[tokio::test]
async fn a_server_that_stops_ends_a_client_that_was_moved() {
    let mut sides = Sides::new().await;
    let mut client = sides.client().await;
    client.sets(50).await;
    sides.world.server.stop();
    assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
}
