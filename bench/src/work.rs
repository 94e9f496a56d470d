//! What the clients of a measurement do.

use std::fmt;

/// Which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// SET, or etcd's put, to the leader.
    Set,
    /// GET, or etcd's range of one key, linearizable, to the leader.
    Get,
    /// The same to a follower.
    FollowerGet,
    /// GET of what a follower has applied, after READONLY.
    LocalGet,
}

/// A closed loop of clients, each of which sends when it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Which command.
    pub what: What,
    /// How many clients.
    pub clients: u32,
    /// Commands that a client sends at once.
    pub pipeline: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
}

impl Work {
    /// SETs of values of 3 bytes.
    pub(crate) const fn set(clients: u32, pipeline: u32) -> Self {
        Work {
            what: What::Set,
            clients,
            pipeline,
            value_bytes: 3,
        }
    }

    /// GETs of values of 3 bytes.
    pub(crate) const fn get(clients: u32, pipeline: u32) -> Self {
        Work {
            what: What::Get,
            ..Work::set(clients, pipeline)
        }
    }

    /// Whether it changes something.
    pub(crate) fn writes(&self) -> bool {
        self.what == What::Set
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Set => "SET",
            What::Get => "GET",
            What::FollowerGet => "GET on a follower",
            What::LocalGet => "local GET on a follower",
        };
        write!(f, "{what} c={}", self.clients)?;
        if self.pipeline > 1 {
            write!(f, " P={}", self.pipeline)?;
        }
        if self.value_bytes != 3 {
            write!(f, " {} B", self.value_bytes)?;
        }
        Ok(())
    }
}
