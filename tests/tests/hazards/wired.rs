//! Members that reach each other through wires with which something can be wrong.

use std::path::Path;
use std::sync::{Arc, Mutex};

use kvd::resp::Reply;
use kvd_tests::proxy::{Id, Trouble, Wires};
use kvd_tests::{Node, leader, until};

pub(super) struct Wired {
    pub(super) nodes: Vec<Node>,
    pub(super) wires: Arc<Wires>,
    ids: Vec<Arc<Mutex<Id>>>,
    /// Where others reach them.
    addrs: Vec<String>,
}

/// A small log, so that it is cut all the time.
pub(super) const SMALL_LOG: [&str; 2] = ["--max-log-bytes", "100000"];

pub(super) fn name(n: usize) -> String {
    format!("node{n}")
}

impl Wired {
    /// `count` nodes that run, of which the first `members` are a cluster.
    pub(super) fn start(root: &Path, count: usize, members: usize, flags: &[&str]) -> Self {
        let mut wired = Wired {
            nodes: Vec::new(),
            wires: Arc::default(),
            ids: Vec::new(),
            addrs: Vec::new(),
        };
        for n in 0..count {
            let node = Node::new(root, &name(n), "redb").with(flags);
            let id = Arc::<Mutex<Id>>::default();
            let proxy = wired.wires.proxy(node.raft_port, id.clone()).unwrap();
            let addr = format!("127.0.0.1:{proxy}");
            let mut node = node.with(&["--announce-raft-addr", &addr]);
            node.start();
            wired.nodes.push(node);
            wired.ids.push(id);
            wired.addrs.push(addr);
            wired.learn_id(n);
        }
        for n in 1..members {
            assert_eq!(wired.join(0, n), Reply::Ok);
        }
        wired
    }

    fn learn_id(&self, n: usize) {
        let text = self.nodes[n].info("raft_node_id").unwrap();
        *self.ids[n].lock().unwrap() = Id::from_str_radix(&text, 16).unwrap();
    }

    /// `n` begins anew with an empty disk.
    pub(super) fn renew(&mut self, n: usize) {
        self.nodes[n].kill();
        std::fs::remove_dir_all(&self.nodes[n].dir).unwrap();
        self.nodes[n].start();
        self.learn_id(n);
    }

    /// Has `via` take `n` in.
    pub(super) fn join(&self, via: usize, n: usize) -> Reply {
        let call = ["JOIN", &name(n), self.addr(n)];
        self.nodes[via].client().call(&call)
    }

    pub(super) fn addr(&self, n: usize) -> &str {
        &self.addrs[n]
    }

    fn id(&self, n: usize) -> Id {
        *self.ids[n].lock().unwrap()
    }

    /// Something is wrong with the wire from one to another.
    pub(super) fn trouble(&self, from: usize, to: usize, trouble: Trouble) {
        self.wires.trouble(self.id(from), self.id(to), trouble);
    }

    /// Nothing gets from one to the other, nor back.
    pub(super) fn cut(&self, a: usize, b: usize) {
        self.trouble(a, b, Trouble::Cut);
        self.trouble(b, a, Trouble::Cut);
    }

    /// Nothing gets from or to `n`.
    pub(super) fn cut_off(&self, n: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != n) {
            self.cut(n, other);
        }
    }

    /// Has `n` lead.
    pub(super) fn lead(&self, n: usize) {
        until("leadership has moved", || {
            // One that is not level yet is refused.
            let mut client = self.nodes[n].client();
            drop(client.call(&["RAFT.TRANSFER_LEADER", &name(n)]));
            leader(&self.nodes) == n
        });
    }

    pub(super) fn term(&self, n: usize) -> u64 {
        self.nodes[n].info_number("raft_current_term")
    }
}

/// Writes through a node until its log is cut beyond entry `index`.
pub(super) fn write_beyond(node: &Node, index: u64) {
    let mut client = node.client();
    let value = "x".repeat(40_000);
    let mut n = 0;
    until("the log is cut", || {
        for _ in 0..10 {
            n += 1;
            let key = format!("large:{}", n % 50);
            assert_eq!(client.call(&["SET", &key, &value]), Reply::Ok);
        }
        node.info_number("raft_purged_index") > index
    });
}

/// Waits until each of `nodes` knows so many members, and so many that vote.
pub(super) fn members_are(nodes: &[&Node], members: u64, voters: u64) {
    until("the members are known", || {
        nodes.iter().all(|node| {
            node.info_number("raft_num_nodes") == members
                && node.info_number("raft_num_voting_nodes") == voters
        })
    });
}
