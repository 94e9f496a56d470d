//! The network: streams between named places that delay, hold and cut what goes through them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::doors::{BoxFuture, Listener, Net, Random, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// What a socket holds.
const BUFFER_BYTES: usize = 64 << 10;

/// A place: a node or a client.
pub(crate) type Place = usize;

type Door = mpsc::UnboundedSender<(Stream, String)>;

/// The whole network.
pub(crate) struct Wires {
    doors: Mutex<BTreeMap<String, (Place, Door)>>,
    /// From one place to another nothing gets through.
    cut: watch::Sender<BTreeSet<(Place, Place)>>,
    /// What carries a connection between two places.
    carriers: Mutex<Vec<(Place, Place, AbortHandle)>>,
    random: Random,
    /// Changes with everything that is carried, and when.
    pub(crate) hash: Mutex<u64>,
    began: Instant,
}

impl Wires {
    pub(crate) fn new(random: Random) -> Arc<Self> {
        Arc::new(Wires {
            doors: Mutex::default(),
            cut: watch::Sender::new(BTreeSet::new()),
            carriers: Mutex::default(),
            random,
            hash: Mutex::new(0xcbf2_9ce4_8422_2325),
            began: Instant::now(),
        })
    }

    /// The network as `place` sees it.
    pub(crate) fn at(self: &Arc<Self>, place: Place) -> Arc<dyn Net> {
        Arc::new(Socket {
            wires: self.clone(),
            place,
        })
    }

    /// Nothing gets from one place to the other until it is healed; what is sent is held.
    pub(crate) fn cut(&self, from: Place, to: Place) {
        self.cut.send_modify(|cut| {
            cut.insert((from, to));
        });
    }

    /// What comes from or goes to `place` gets through again.
    pub(crate) fn heal_at(&self, place: Place) {
        self.cut.send_modify(|cut| {
            cut.retain(|(from, to)| *from != place && *to != place);
        });
    }

    /// Everything gets through again.
    pub(crate) fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
    }

    /// Breaks all connections between two places.
    pub(crate) fn reset(&self, a: Place, b: Place) {
        let mut carriers = self.carriers.lock().unwrap();
        carriers.retain(|(from, to, carrier)| {
            let broken = (*from, *to) == (a, b) || (*from, *to) == (b, a);
            if broken {
                carrier.abort();
            }
            !broken && !carrier.is_finished()
        });
    }

    fn delay(&self) -> Duration {
        // Mostly a fast network; sometimes something is slow.
        let us = match self.random.next() % 100 {
            0 => 20_000 + self.random.next() % 60_000,
            1..=9 => 1000 + self.random.next() % 5000,
            _ => 50 + self.random.next() % 450,
        };
        Duration::from_micros(us)
    }

    async fn open(&self, from: Place, to: Place) {
        let mut cut = self.cut.subscribe();
        // The sender lives as long as this does.
        drop(cut.wait_for(|cut| !cut.contains(&(from, to))).await);
    }

    fn note(&self, from: Place, to: Place, bytes: &[u8]) {
        let mut hash = self.hash.lock().unwrap();
        let us = self.began.elapsed().as_micros() as u64;
        let head = [us, from as u64, to as u64].into_iter();
        let head = head.flat_map(u64::to_le_bytes);
        for byte in head.chain(bytes.iter().copied()) {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    async fn carry(
        self: Arc<Self>,
        from: Place,
        to: Place,
        mut source: ReadHalf<tokio::io::DuplexStream>,
        mut sink: WriteHalf<tokio::io::DuplexStream>,
    ) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count @ 1..) = source.read(&mut buffer).await {
            sleep_until(Instant::now() + self.delay()).await;
            self.open(from, to).await;
            self.note(from, to, &buffer[..count]);
            if sink.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
        self.open(from, to).await;
        drop(sink.shutdown().await);
    }

    fn join(self: &Arc<Self>, from: Place, to: Place) -> (Stream, Stream) {
        let (near, near_wire) = tokio::io::duplex(BUFFER_BYTES);
        let (far_wire, far) = tokio::io::duplex(BUFFER_BYTES);
        let (near_read, near_write) = tokio::io::split(near_wire);
        let (far_read, far_write) = tokio::io::split(far_wire);
        // The network is no part of a node that crashes.
        let there = tokio::spawn(self.clone().carry(from, to, near_read, far_write));
        let back = tokio::spawn(self.clone().carry(to, from, far_read, near_write));
        let mut carriers = self.carriers.lock().unwrap();
        carriers.push((from, to, there.abort_handle()));
        carriers.push((to, from, back.abort_handle()));
        (Box::new(near), Box::new(far))
    }
}

struct Socket {
    wires: Arc<Wires>,
    place: Place,
}

impl Net for Socket {
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (door, comers) = mpsc::unbounded_channel();
            let mut doors = self.wires.doors.lock().unwrap();
            doors.insert(addr.to_owned(), (self.place, door));
            let addr = addr.to_owned();
            Ok(Box::new(Bound { addr, comers }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            sleep(self.wires.delay()).await;
            let place = {
                let doors = self.wires.doors.lock().unwrap();
                doors.get(addr).map(|(place, _)| *place)
            };
            let Some(place) = place else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            self.wires.open(self.place, place).await;
            self.wires.open(place, self.place).await;
            let (near, far) = self.wires.join(self.place, place);
            let doors = self.wires.doors.lock().unwrap();
            let heard = match doors.get(addr) {
                Some((_, door)) => door.send((far, format!("10.0.0.{}:1", self.place))).is_ok(),
                None => false,
            };
            match heard {
                true => Ok(near),
                false => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

struct Bound {
    addr: String,
    comers: mpsc::UnboundedReceiver<(Stream, String)>,
}

impl Listener for Bound {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async {
            let comer = self.comers.recv().await;
            comer.ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}
