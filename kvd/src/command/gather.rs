//! Replies made of many parts, as long as there is room for them.

use super::{Call, Failure};
use crate::command::spec::REPLY_BYTES_MAX;
use crate::resp::Reply;

/// The parts of one reply.
pub(super) struct Gather {
    parts: Vec<Reply>,
    room: usize,
    over: bool,
}

impl Gather {
    pub(super) fn new(call: &Call<'_>) -> Self {
        Gather {
            parts: Vec::new(),
            room: call.room,
            over: false,
        }
    }

    /// Takes another part; says whether there is room for more.
    pub(super) fn push(&mut self, part: Reply) -> bool {
        let bytes = part.bytes();
        if self.over || bytes > self.room {
            self.over = true;
            self.parts = Vec::new();
            return false;
        }
        self.room -= bytes;
        self.parts.push(part);
        true
    }

    /// All parts; an error when there was no room for them.
    pub(super) fn finish(self) -> Result<Reply, Failure> {
        match self.over {
            true => Err(Failure::Answer(too_long())),
            false => Ok(Reply::Array(self.parts)),
        }
    }
}

/// What is answered instead of a reply that there is no room for.
pub fn too_long() -> Reply {
    Reply::error(format!(
        "ERR replies of one request take more than {REPLY_BYTES_MAX} bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_beyond_the_room_make_an_error_and_take_no_memory() {
        let call = Call {
            room: 1000,
            ..Call::new(&[], 0)
        };
        let mut few = Gather::new(&call);
        assert!((0..10).all(|_| few.push(Reply::bulk("value"))));
        assert_eq!(
            few.finish().unwrap(),
            Reply::Array(vec![Reply::bulk("value"); 10])
        );
        let mut many = Gather::new(&call);
        let taken = (0..100).filter(|_| many.push(Reply::bulk("value"))).count();
        assert!(taken < 100);
        assert_eq!(many.parts.capacity(), 0);
        assert!(matches!(many.finish(), Err(Failure::Answer(reply)) if reply == too_long()));
    }
}
