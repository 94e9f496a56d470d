//! Wires between the Raft ports of real nodes that can be cut, slowed and made to break, from each
//! node to each other.
//!
//! A node is reached through its proxy, which it announces as its own address. Who dials is read
//! from the first frame of a connection (see docs/peer-protocol.md), so what is held can be told
//! by both ends.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A node's identity, as INFO shows it.
pub type Id = u64;

/// Bytes of a frame's head.
const HEAD_BYTES: usize = 20;

/// Where in the first frame's body the dialer's identity is: behind magic, version, kind, group,
/// target and cluster.
const ID_AT: usize = 8 + 2 + 1 + 4 + 8 + 16;

/// What is wrong with the wire from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing gets through; what is sent is held.
    Cut,
    /// What is sent takes so long, and up to [`CHUNK_BYTES`] go at a time.
    Slow(Duration),
    /// One of so many chunks is lost, and the connection breaks with it.
    Lossy(u32),
}

/// What is passed on at a time.
pub const CHUNK_BYTES: usize = 64 << 10;

/// All wires of a cluster.
#[derive(Default)]
pub struct Wires {
    troubles: Mutex<BTreeMap<(Id, Id), Trouble>>,
    changed: Condvar,
}

impl Wires {
    /// Something is wrong with the wire from one node to another until it is healed.
    pub fn trouble(&self, from: Id, to: Id, trouble: Trouble) {
        self.troubles.lock().unwrap().insert((from, to), trouble);
        self.changed.notify_all();
    }

    /// Nothing gets from one node to another.
    pub fn cut(&self, from: Id, to: Id) {
        self.trouble(from, to, Trouble::Cut);
    }

    /// Everything gets through.
    pub fn heal(&self) {
        self.troubles.lock().unwrap().clear();
        self.changed.notify_all();
    }

    /// Waits until something may get through; what is wrong with the wire then.
    fn wait(&self, from: Id, to: Id) -> Option<Trouble> {
        let mut troubles = self.troubles.lock().unwrap();
        loop {
            match troubles.get(&(from, to)) {
                Some(Trouble::Cut) => troubles = self.changed.wait(troubles).unwrap(),
                other => return other.copied(),
            }
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
        // A new connection has nothing yet that could be late or lost.
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
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut chunks: u32 = 0;
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            chunks = chunks.wrapping_add(1);
            match self.wait(from, to) {
                Some(Trouble::Slow(delay)) => std::thread::sleep(delay),
                Some(Trouble::Lossy(of)) if chunks.is_multiple_of(of) => break,
                _ => {}
            }
            if sink.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // Either end may have gone already.
        drop(sink.shutdown(Shutdown::Both));
        drop(source.shutdown(Shutdown::Both));
    }
}
