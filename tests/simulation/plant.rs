//! Bugs that are planted, each of them one that a server like this could have: a run with one must
//! fail. They are planted at the doors, so that kvd itself holds no such code.

use std::sync::OnceLock;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The log says that it is synced, and is not: acknowledged before a majority has it.
    EarlySync,
    /// Votes are reported before they reach the disk; entries are not.
    EarlyVote,
    /// Votes are not written at all.
    ForgottenVote,
    /// A truncation is reported before it reaches the disk, and so is what was written behind it.
    EarlyTruncation,
    /// The log is cut up to what is committed, not only up to what the engine has kept.
    EagerPurge,
    /// Expiry is judged by each node's own clock.
    LocalExpiry,
    /// The engine keeps changes over a crash, but not the mark that belongs to them.
    LostMark,
    /// Reads see what their node has applied, without asking the leader.
    LocalReads,
    /// What became of a write is unknown, and the error says that it did not happen.
    WrongRefusal,
    /// A write of unknown outcome is sent again as if it had not happened.
    SentAgain,
}

/// All of them, by name.
pub(crate) const ALL: [(&str, Plant); 10] = [
    ("early-sync", Plant::EarlySync),
    ("early-vote", Plant::EarlyVote),
    ("forgotten-vote", Plant::ForgottenVote),
    ("early-truncation", Plant::EarlyTruncation),
    ("eager-purge", Plant::EagerPurge),
    ("local-expiry", Plant::LocalExpiry),
    ("lost-mark", Plant::LostMark),
    ("local-reads", Plant::LocalReads),
    ("wrong-refusal", Plant::WrongRefusal),
    ("sent-again", Plant::SentAgain),
];

/// Where the run is told its bug.
pub(crate) const VARIABLE: &str = "KVD_PLANT";

/// Whether this run has this bug.
pub(crate) fn planted(plant: Plant) -> bool {
    static TOLD: OnceLock<Option<Plant>> = OnceLock::new();
    let told = TOLD.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let found = ALL.iter().find(|(known, _)| *known == name);
        Some(found.unwrap_or_else(|| panic!("no bug is called {name}")).1)
    });
    *told == Some(plant)
}
