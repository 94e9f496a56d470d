//! Bugs that are planted, each of them one that a server like this could have: a run with one must
//! fail. They are planted at the doors, so that kvd itself holds no such code.

use std::sync::OnceLock;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The log says that it is synced, and is not: acknowledged before a majority has it.
    EarlySync,
    /// Votes and truncations are reported before they are synced; entries are not.
    EarlyVote,
    /// Votes are not written at all.
    ForgottenVote,
    /// The engine keeps changes over a crash, but not the mark that belongs to them.
    LostMark,
    /// Reads see what their node has applied, without asking the leader.
    LocalReads,
    /// What became of a write is unknown, and the error says that it did not happen.
    WrongRefusal,
    /// A write of unknown outcome is sent again as if it had not happened.
    SentAgain,
}

/// All of them, by name, each with so many seeds that one of them shows it.
pub(crate) const ALL: [(&str, Plant, u64); 7] = [
    ("early-sync", Plant::EarlySync, 30),
    // It takes two votes in one term, with a loss of power between them at the right moment.
    ("early-vote", Plant::EarlyVote, 1000),
    ("forgotten-vote", Plant::ForgottenVote, 30),
    ("lost-mark", Plant::LostMark, 30),
    ("local-reads", Plant::LocalReads, 30),
    ("wrong-refusal", Plant::WrongRefusal, 30),
    ("sent-again", Plant::SentAgain, 30),
];

/// Where the run is told its bug.
pub(crate) const VARIABLE: &str = "KVD_PLANT";

/// Whether this run has this bug.
pub(crate) fn planted(plant: Plant) -> bool {
    static TOLD: OnceLock<Option<Plant>> = OnceLock::new();
    let told = TOLD.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let found = ALL.iter().find(|(known, ..)| *known == name);
        Some(found.unwrap_or_else(|| panic!("no bug is called {name}")).1)
    });
    *told == Some(plant)
}
