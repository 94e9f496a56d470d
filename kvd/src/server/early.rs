//! Replies that go to the socket from the thread that has them.
//!
//! While one client waits for one write, waking the thread of its socket takes as long as a third
//! of the sync that the write waited for. So the reply is written right where it comes to be, if
//! the socket takes it; the connection, which is woken all the same, has only the rest to write.

use std::sync::{Arc, Mutex};

use bytes::Buf as _;

use crate::doors::Aside;
use crate::node::Early;
use crate::resp::{self, OutputBuffer, Protocol, Reply};

/// Where a reply is left for its connection, or is not.
pub(super) struct Hand {
    protocol: Protocol,
    state: Mutex<State>,
}

enum State {
    /// The connection waits, and has nothing else to write to its socket.
    Waits(Arc<dyn Aside>),
    /// The replies were written but for the rest.
    Written { rest: OutputBuffer, sent: usize },
    /// The connection has given up waiting, or writes for itself.
    Withdrawn,
}

impl Hand {
    pub(super) fn new(aside: Arc<dyn Aside>, protocol: Protocol) -> Arc<Self> {
        Arc::new(Hand {
            protocol,
            state: Mutex::new(State::Waits(aside)),
        })
    }

    /// What is called with the replies.
    pub(super) fn early(self: &Arc<Self>) -> Early {
        let hand = self.clone();
        Box::new(move |replies| hand.write(replies))
    }

    fn write(&self, replies: &[Reply]) {
        let mut state = self.state.lock().expect("no panic while held");
        let State::Waits(aside) = &*state else { return };
        let mut rest = OutputBuffer::new();
        for reply in replies {
            resp::write(reply, self.protocol, &mut rest);
        }
        // What went wrong, the connection finds out when it writes the rest.
        let sent = aside.try_write(rest.chunk()).unwrap_or(0);
        rest.advance(sent);
        *state = State::Written { rest, sent };
    }

    /// Takes back the right to write, and the socket: a proposal may outlive the connection by far.
    /// What is left to write, and how much went out already, if the replies were written.
    pub(super) fn withdraw(&self) -> Option<(OutputBuffer, usize)> {
        let mut state = self.state.lock().expect("no panic while held");
        match std::mem::replace(&mut *state, State::Withdrawn) {
            State::Written { rest, sent } => Some((rest, sent)),
            State::Waits(_) | State::Withdrawn => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A socket that takes so many bytes.
    struct Narrow(Mutex<(usize, Vec<u8>)>);

    impl Aside for Narrow {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let (room, taken) = &mut *self.0.lock().unwrap();
            if *room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(*room);
            *room -= count;
            taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
    }

    fn narrow(room: usize) -> Arc<Narrow> {
        Arc::new(Narrow(Mutex::new((room, Vec::new()))))
    }

    #[test]
    fn what_the_socket_does_not_take_is_left_to_the_connection() {
        for room in 0..=7 {
            let socket = narrow(room);
            let hand = Hand::new(socket.clone(), Protocol::Resp2);
            hand.early()(&[Reply::Ok, Reply::Int(7)]);
            let (rest, sent) = hand.withdraw().unwrap();
            let mut all = socket.0.lock().unwrap().1.clone();
            assert_eq!(all.len(), sent);
            for chunk in rest.chunks() {
                all.extend_from_slice(chunk);
            }
            assert_eq!(all, b"+OK\r\n:7\r\n", "{room}");
        }
    }

    #[test]
    fn a_reply_that_comes_after_its_connection_gave_up_is_not_written() {
        let socket = narrow(100);
        let hand = Hand::new(socket.clone(), Protocol::Resp2);
        let early = hand.early();
        assert!(hand.withdraw().is_none());
        early(&[Reply::Ok]);
        assert!(socket.0.lock().unwrap().1.is_empty());
        assert!(hand.withdraw().is_none());
        assert_eq!(Arc::strong_count(&socket), 1, "the socket can be closed");
    }
}
