//! Wires between the Raft ports of real nodes that can be cut, from each node to each other.
//!
//! A node is reached through its proxy, which it announces as its own address. Who dials is read
//! from the first frame of a connection (see docs/peer-protocol.md), so what is held can be told
//! by both ends.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// A node's identity, as INFO shows it.
pub type Id = u64;

/// Bytes of a frame's head.
const HEAD_BYTES: usize = 20;

/// Where in the first frame's body the dialer's identity is: behind magic, version, kind, group,
/// target and cluster.
const ID_AT: usize = 8 + 2 + 1 + 4 + 8 + 16;

/// All wires of a cluster.
#[derive(Default)]
pub struct Wires {
    cut: Mutex<BTreeSet<(Id, Id)>>,
    changed: Condvar,
}

impl Wires {
    /// Nothing gets from one node to another until it is healed; what is sent is held.
    pub fn cut(&self, from: Id, to: Id) {
        self.cut.lock().unwrap().insert((from, to));
    }

    /// Everything gets through.
    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
        self.changed.notify_all();
    }

    fn wait(&self, from: Id, to: Id) {
        let mut cut = self.cut.lock().unwrap();
        while cut.contains(&(from, to)) {
            cut = self.changed.wait(cut).unwrap();
        }
    }

    /// A proxy for a node that listens on `port`; returns its own port. The node's identity is
    /// known once it runs: until then nothing to it is cut.
    pub fn proxy(self: &Arc<Self>, port: u16, node: Arc<Mutex<Id>>) -> io::Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let own = listener.local_addr()?.port();
        let wires = self.clone();
        std::thread::spawn(move || {
            for dialer in listener.incoming().map_while(Result::ok) {
                let (wires, node) = (wires.clone(), node.clone());
                std::thread::spawn(move || drop(wires.connect(dialer, port, &node)));
            }
        });
        Ok(own)
    }

    fn connect(
        self: &Arc<Self>,
        mut dialer: TcpStream,
        port: u16,
        node: &Mutex<Id>,
    ) -> io::Result<()> {
        let mut first = [0; HEAD_BYTES + ID_AT + 8];
        dialer.read_exact(&mut first)?;
        let id = first[HEAD_BYTES + ID_AT..].try_into().expect("eight bytes");
        let (from, to) = (Id::from_le_bytes(id), *node.lock().unwrap());
        self.wait(from, to);
        let mut acceptor = TcpStream::connect(("127.0.0.1", port))?;
        dialer.set_nodelay(true)?;
        acceptor.set_nodelay(true)?;
        acceptor.write_all(&first)?;
        let (back_from, back_to) = (acceptor.try_clone()?, dialer.try_clone()?);
        let wires = self.clone();
        std::thread::spawn(move || wires.carry(back_from, back_to, to, from));
        self.carry(dialer, acceptor, from, to);
        Ok(())
    }

    fn carry(&self, mut source: TcpStream, mut sink: TcpStream, from: Id, to: Id) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            self.wait(from, to);
            if sink.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // Either end may have gone already.
        drop(sink.shutdown(Shutdown::Both));
        drop(source.shutdown(Shutdown::Both));
    }
}
