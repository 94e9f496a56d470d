//! What an error says became of its command.
//!
//! Clients act on the first word of an error: they repeat what did not happen, and must not repeat
//! what may have. So every error about the cluster is made here, and a command that has entered
//! the log is never answered with one that says it did not happen. For people the same is in
//! `docs/errors.md`.

use crate::resp::Reply;

/// What became of a command that was answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It did not happen, and will not.
    NotDone,
    /// It was looked at and changed nothing.
    Refused,
    /// It may have happened, or may still.
    Unknown,
}

/// The first words that are more than `ERR`, and what they say.
pub const PREFIXES: &[(&str, Fate)] = &[
    ("MOVED", Fate::NotDone),
    ("REDIRECT", Fate::NotDone),
    ("CLUSTERDOWN", Fate::NotDone),
    ("NOCLUSTER", Fate::NotDone),
    ("LOADING", Fate::NotDone),
    ("MASTERDOWN", Fate::NotDone),
    ("MISCONF", Fate::NotDone),
    ("NOAUTH", Fate::NotDone),
    ("WRONGPASS", Fate::NotDone),
    ("NOPROTO", Fate::NotDone),
    ("DENIED", Fate::NotDone),
    ("EXECABORT", Fate::NotDone),
    ("WRONGTYPE", Fate::Refused),
    ("ERR", Fate::Refused),
    ("TIMEOUT", Fate::Unknown),
    ("UNKNOWN", Fate::Unknown),
];

/// What an error says; nothing for a reply that is none, or has a word that is not kvd's.
pub fn fate(reply: &Reply) -> Option<Fate> {
    let prefix = reply.error_prefix()?;
    PREFIXES
        .iter()
        .find_map(|(known, fate)| (*known == prefix).then_some(*fate))
}

/// No leader was found, or none confirmed, within the hold: nothing was appended.
pub(crate) fn cluster_down() -> Reply {
    Reply::error("CLUSTERDOWN The cluster is down")
}

/// The node belongs to no cluster, or was taken out of service.
pub(crate) fn no_cluster() -> Reply {
    Reply::error("NOCLUSTER No Raft Cluster")
}

/// A local read before what was known to be committed is carried out.
pub(crate) fn loading() -> Reply {
    Reply::error("LOADING kvd is carrying out what was committed before the start")
}

/// A local read of what may be older than allowed; Redis's text for a replica without a primary.
pub(crate) fn stale() -> Reply {
    Reply::error("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.")
}

/// The leader has no room.
pub(crate) fn disk_full() -> Reply {
    Reply::error(
        "MISCONF The leader's disk is nearly full: commands that may grow the data are refused",
    )
}

/// The proposal was dropped or replaced.
pub(crate) fn leadership_changed() -> Reply {
    Reply::error("UNKNOWN the outcome of the command is unknown: leadership changed under it")
}

/// The proposal waits for its majority still.
pub(crate) fn no_majority() -> Reply {
    Reply::error("TIMEOUT no majority answered in time: the outcome of the command is unknown")
}

/// A JOIN or LEAVE was forwarded, and its answer did not come.
pub(crate) fn answer_lost() -> Reply {
    Reply::error("UNKNOWN the leader's answer was lost; ask again")
}

/// A JOIN that goes on.
pub(crate) fn join_goes_on() -> Reply {
    Reply::error("TIMEOUT the node has not caught up yet; JOIN it again to go on")
}

/// A LEAVE that goes on.
pub(crate) fn leave_goes_on() -> Reply {
    Reply::error("TIMEOUT the change is not finished; LEAVE again to go on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_prefix_and_every_text() {
        let page = include_str!("../../docs/errors.md");
        for (prefix, fate) in PREFIXES {
            let row = page
                .lines()
                .find(|line| line.starts_with("| `") && line.contains(&format!("`{prefix}")));
            let row = row.unwrap_or_else(|| panic!("{prefix} is not on the page"));
            let said = match fate {
                Fate::NotDone => ["did not happen", "nothing of the transaction happened"],
                Fate::Refused => ["changed nothing", "did not happen"],
                Fate::Unknown => ["unknown", "unknown"],
            };
            assert!(said.iter().any(|text| row.contains(text)), "{row}");
        }
        for reply in [
            cluster_down(),
            no_cluster(),
            loading(),
            stale(),
            disk_full(),
            leadership_changed(),
            no_majority(),
            answer_lost(),
            join_goes_on(),
            leave_goes_on(),
        ] {
            let Reply::Error(text) = &reply else {
                panic!("{reply:?} is no error");
            };
            assert!(page.contains(&**text), "{text}");
            assert!(fate(&reply).is_some());
        }
        assert_eq!(fate(&Reply::Ok), None);
    }
}
