//! What is measured, against what, and what is wanted of it.

use serde::{Deserialize, Serialize};

use crate::systems::{Kind, NO_LOG};
use crate::work::{What, Work};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Its name on the command line.
    pub id: &'static str,
    /// The set it belongs to.
    pub set: Set,
    /// What is done.
    pub what: &'static str,
    /// What it is compared with.
    pub against: &'static str,
    /// What is wanted.
    pub goal: Option<Goal>,
    /// How it is measured.
    pub method: Method,
}

/// Rows that are asked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// What kvd is judged by.
    Table,
    /// Other engines, other promises of Redis, one node of etcd.
    More,
    /// What takes ten minutes by itself.
    Tail,
    /// Many keys against few.
    Scale,
}

impl Set {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Set::Table => "table",
            Set::More => "more",
            Set::Tail => "tail",
            Set::Scale => "scale",
        }
    }
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// Whether less is better.
    pub less: bool,
    /// What it must reach.
    pub floor: f64,
    /// What it should.
    pub stretch: f64,
}

impl Goal {
    const fn at_least(floor: f64, stretch: f64) -> Option<Self> {
        Some(Goal {
            less: false,
            floor,
            stretch,
        })
    }

    const fn at_most(floor: f64, stretch: f64) -> Option<Self> {
        Some(Goal {
            less: true,
            floor,
            stretch,
        })
    }

    /// How a figure stands to it.
    pub(crate) fn verdict(&self, figure: f64) -> &'static str {
        let meets = |wanted: f64| {
            if self.less {
                figure <= wanted
            } else {
                figure >= wanted
            }
        };
        match (meets(self.floor), meets(self.stretch)) {
            (_, true) => "stretch met",
            (true, false) => "pass",
            (false, _) => "FAIL",
        }
    }
}

/// One side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// The system.
    pub kind: Kind,
    /// What its clients do; without clients as many as suit it best.
    pub work: Work,
}

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// Rates of two systems, in turns.
    Rates {
        /// kvd.
        ours: Side,
        /// The other.
        theirs: Side,
        /// A minute each, until everything is in the engine, on disk.
        long: bool,
    },
    /// kvd's rate of writes, over a minute and drained, as a share of what its engine does alone.
    EngineShare(&'static str),
    /// The longest writes in ten minutes over many keys.
    Tail,
    /// Resident memory over a million keys.
    Memory,
    /// The time from a start after `kill -9` to the first answer.
    Ready,
    /// Rates, memory and restarts over many keys against few.
    Scale,
}

impl Method {
    /// The systems that it shares with other rows.
    pub(crate) fn shared(&self) -> Vec<Kind> {
        match self {
            Method::Rates { ours, theirs, .. } => vec![ours.kind, theirs.kind],
            _ => Vec::new(),
        }
    }

    /// The storage engine that it needs.
    pub(crate) fn engine(&self) -> &'static str {
        match self {
            Method::Rates {
                ours:
                    Side {
                        kind: Kind::Kvd(_, engine),
                        ..
                    },
                ..
            } => engine,
            Method::EngineShare(engine) => engine,
            _ => "redb",
        }
    }

    /// Whether etcd is part of it.
    pub(crate) fn has_etcd(&self) -> bool {
        self.shared()
            .iter()
            .any(|kind| matches!(kind, Kind::Etcd(_)))
    }

    /// Rows of one stage share systems; stages follow each other.
    pub(crate) fn stage(&self) -> u8 {
        match self {
            Method::Rates { ours, theirs, .. } => match (ours.kind, theirs.kind) {
                (Kind::Kvd(1, "redb"), Kind::Redis(_)) => 0,
                (Kind::Kvd(1, _), Kind::Redis(_)) => 1,
                (_, Kind::Redis(_)) => 2,
                (Kind::Kvd(1, _), _) => 3,
                // Puts before reads: they make the reads' servers neither faster nor slower, since
                // etcd is started anew.
                _ if ours.work.writes() => 4,
                _ => 5,
            },
            Method::EngineShare(_) => 6,
            Method::Memory | Method::Ready => 7,
            Method::Tail => 8,
            Method::Scale => 9,
        }
    }
}

const KVD1: Kind = Kind::Kvd(1, "redb");
const KVD3: Kind = Kind::Kvd(3, "redb");
const REDIS: Kind = Kind::Redis("always");
const ETCD3: Kind = Kind::Etcd(3);

const fn rates(ours: Kind, work: Work, theirs: Kind, other: Work) -> Method {
    Method::Rates {
        ours: Side { kind: ours, work },
        theirs: Side {
            kind: theirs,
            work: other,
        },
        long: false,
    }
}

const fn long(ours: Kind, work: Work, theirs: Kind, other: Work) -> Method {
    Method::Rates {
        ours: Side { kind: ours, work },
        theirs: Side {
            kind: theirs,
            work: other,
        },
        long: true,
    }
}

const fn table(
    id: &'static str,
    what: &'static str,
    against: &'static str,
    goal: Option<Goal>,
    method: Method,
) -> Row {
    Row {
        id,
        set: Set::Table,
        what,
        against,
        goal,
        method,
    }
}

const fn more(
    id: &'static str,
    what: &'static str,
    against: &'static str,
    ours: Kind,
    clients: u32,
    pipeline: u32,
    theirs: Kind,
) -> Row {
    let work = Work::set(clients, pipeline);
    Row {
        set: Set::More,
        ..table(id, what, against, None, rates(ours, work, theirs, work))
    }
}

const KIB: Work = Work {
    value_bytes: 1024,
    ..Work::set(50, 1)
};

const FOLLOWER: Work = Work {
    what: What::FollowerGet,
    ..Work::get(50, 1)
};

const LOCAL: Work = Work {
    what: What::LocalGet,
    ..Work::get(50, 16)
};

/// Every row, in the order in which it is shown.
pub(crate) const ROWS: &[Row] = &[
    table(
        "set-c1",
        "SET, 1 node, c=1",
        "redis, always",
        Goal::at_least(0.7, 0.9),
        rates(KVD1, Work::set(1, 1), REDIS, Work::set(1, 1)),
    ),
    table(
        "set-c50",
        "SET, 1 node, c=50",
        "redis, always",
        Goal::at_least(0.75, 0.9),
        rates(KVD1, Work::set(50, 1), REDIS, Work::set(50, 1)),
    ),
    table(
        "set-p16",
        "SET, 1 node, c=50 P=16, a minute and drained",
        "redis, always",
        Goal::at_least(0.25, 0.6),
        long(KVD1, Work::set(50, 16), REDIS, Work::set(50, 16)),
    ),
    table(
        "share-redb",
        "the same, redb",
        "`kvd plugin bench redb`",
        Goal::at_least(0.7, 0.9),
        Method::EngineShare("redb"),
    ),
    table(
        "share-fjall",
        "the same, fjall",
        "`kvd plugin bench fjall`",
        Goal::at_least(0.7, 0.9),
        Method::EngineShare("fjall"),
    ),
    table(
        "set3-c1",
        "SET, 3 nodes, c=1",
        "etcd, 3 nodes, put",
        Goal::at_least(1.8, 2.3),
        rates(KVD3, Work::set(1, 1), ETCD3, Work::set(1, 1)),
    ),
    table(
        "set3-c50",
        "SET, 3 nodes, c=50",
        "etcd, 3 nodes, put",
        Goal::at_least(3.0, 4.5),
        rates(KVD3, Work::set(50, 1), ETCD3, Work::set(50, 1)),
    ),
    table(
        "set3-c200",
        "SET, 3 nodes, c=200",
        "etcd, 3 nodes, put",
        Goal::at_least(3.0, 4.0),
        rates(KVD3, Work::set(200, 1), ETCD3, Work::set(200, 1)),
    ),
    table(
        "set3-1k",
        "SET of 1 KiB, 3 nodes, c=50",
        "etcd, 3 nodes, put",
        Goal::at_least(3.0, 4.0),
        rates(KVD3, KIB, ETCD3, KIB),
    ),
    table(
        "set3-p16-memory",
        "SET, 3 nodes, c=50 P=16, memory engine",
        "redis, always, 1 node",
        Goal::at_least(0.6, 0.8),
        rates(
            Kind::Kvd(3, "memory"),
            Work::set(50, 16),
            REDIS,
            Work::set(50, 16),
        ),
    ),
    table(
        "set3-p16",
        "SET, 3 nodes, c=50 P=16, a minute and drained",
        "etcd, 3 nodes, put, best c",
        Goal::at_least(5.0, 15.0),
        long(KVD3, Work::set(50, 16), ETCD3, Work::set(0, 1)),
    ),
    table(
        "get3-c50",
        "GET, 3 nodes, leader, c=50",
        "redis",
        Goal::at_least(0.6, 0.8),
        rates(KVD3, Work::get(50, 1), REDIS, Work::get(50, 1)),
    ),
    table(
        "get3-p16",
        "GET, 3 nodes, leader, c=50 P=16",
        "redis",
        Goal::at_least(0.6, 0.8),
        rates(KVD3, Work::get(50, 16), REDIS, Work::get(50, 16)),
    ),
    table(
        "get-p64",
        "GET, 1 node, c=50 P=64",
        "redis",
        Goal::at_least(0.7, 1.0),
        rates(KVD1, Work::get(50, 64), REDIS, Work::get(50, 64)),
    ),
    table(
        "get3-follower",
        "GET, 3 nodes, follower, c=50",
        "etcd, 3 nodes, range on a follower",
        Goal::at_least(2.5, 3.5),
        rates(KVD3, FOLLOWER, ETCD3, FOLLOWER),
    ),
    table(
        "get3-local",
        "GET after READONLY, 3 nodes, follower, c=50 P=16",
        "redis",
        Goal::at_least(0.7, 1.0),
        rates(KVD3, LOCAL, REDIS, Work::get(50, 16)),
    ),
    table(
        "get3-etcd",
        "GET, 3 nodes, leader, c=50",
        "etcd, 3 nodes, range on the leader",
        Goal::at_least(3.0, 4.0),
        rates(KVD3, Work::get(50, 1), ETCD3, Work::get(50, 1)),
    ),
    Row {
        set: Set::Tail,
        ..table(
            "tail",
            "p99.99 of SET in ms, 3 nodes, c=50, ten minutes, 10 million keys",
            "-",
            Goal::at_most(50.0, 20.0),
            Method::Tail,
        )
    },
    table(
        "memory",
        "resident memory, 1 node, 1 million keys of 100 B, engine cache 64 MiB",
        "redis, always",
        Goal::at_most(1.0, 0.6),
        Method::Memory,
    ),
    table(
        "ready",
        "seconds to the first answer after `kill -9`, 1 million keys",
        "-",
        Goal::at_most(1.0, 0.3),
        Method::Ready,
    ),
    more(
        "set-everysec",
        "SET, 1 node, c=50",
        "redis, everysec",
        KVD1,
        50,
        1,
        Kind::Redis("everysec"),
    ),
    more(
        "set-nolog",
        "SET, 1 node, c=50",
        "redis without a log",
        KVD1,
        50,
        1,
        Kind::Redis(NO_LOG),
    ),
    more(
        "set-sled",
        "SET, 1 node, c=50 P=16, sled",
        "redis, always",
        Kind::Kvd(1, "sled"),
        50,
        16,
        REDIS,
    ),
    more(
        "set-memory",
        "SET, 1 node, c=50 P=16, memory engine",
        "redis, always",
        Kind::Kvd(1, "memory"),
        50,
        16,
        REDIS,
    ),
    more(
        "set-fjall",
        "SET, 1 node, c=50 P=16, fjall",
        "redis, always",
        Kind::Kvd(1, "fjall"),
        50,
        16,
        REDIS,
    ),
    more(
        "set-etcd",
        "SET, 1 node, c=50",
        "etcd, 1 node, put",
        KVD1,
        50,
        1,
        Kind::Etcd(1),
    ),
    Row {
        set: Set::Scale,
        ..table(
            "scale",
            "SET c=50 with 10 million keys of 100 B, 3 nodes",
            "the same with 100,000",
            None,
            Method::Scale,
        )
    },
];

/// The rows that are asked for by names of rows and sets, in the order of [`ROWS`]; none where a
/// name is neither.
pub(crate) fn chosen(names: &[String]) -> Option<Vec<Row>> {
    let known = |name: &str| {
        name == "all"
            || ROWS
                .iter()
                .any(|row| row.id == name || row.set.name() == name)
    };
    if !names.iter().all(|name| known(name)) {
        return None;
    }
    let wanted = |row: &&Row| {
        names
            .iter()
            .any(|name| name == "all" || name == row.id || name == row.set.name())
    };
    Some(ROWS.iter().filter(wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own() {
        let ids: BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), ROWS.len());
    }

    #[test]
    fn the_page_has_every_row() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md");
        let page = std::fs::read_to_string(page).unwrap();
        for row in ROWS {
            assert!(
                page.contains(&format!("`{}`", row.id)),
                "{} is not there",
                row.id
            );
        }
    }

    #[test]
    fn rows_are_chosen_by_name_and_by_set() {
        let ids = |names: &[&str]| -> Option<Vec<&str>> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Some(chosen(&names)?.iter().map(|row| row.id).collect())
        };
        assert_eq!(ids(&["ready", "set-c1"]).unwrap(), ["set-c1", "ready"]);
        assert_eq!(ids(&["tail", "tail"]).unwrap(), ["tail"]);
        assert_eq!(ids(&["all"]).unwrap().len(), ROWS.len());
        assert_eq!(ids(&["set-c1", "set-c2"]), None);
        let table = ids(&["table"]).unwrap();
        assert!(
            table.contains(&"get-p64") && !table.contains(&"tail") && !table.contains(&"set-sled")
        );
    }

    #[test]
    fn a_goal_is_met_from_its_side() {
        let more = Goal::at_least(0.7, 0.9).unwrap();
        assert_eq!(
            [0.69, 0.7, 0.9].map(|figure| more.verdict(figure)),
            ["FAIL", "pass", "stretch met"]
        );
        let less = Goal::at_most(50.0, 20.0).unwrap();
        assert_eq!(
            [51.0, 50.0, 20.0].map(|figure| less.verdict(figure)),
            ["FAIL", "pass", "stretch met"]
        );
    }
}
