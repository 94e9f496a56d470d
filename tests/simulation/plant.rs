//! Bugs that are planted, each of them one that a server like this could have: a run with one must
//! fail. They are planted at the doors, so that kvd itself holds no such code; those for which no door
//! will do are in kvd's test builds alone (`kvd::failpoints::PLANTS`).

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
    /// One of kvd's own.
    Within(&'static str),
}

/// All of them, by name.
pub(crate) const ALL: [(&str, Plant); 12] = [
    ("early-sync", Plant::EarlySync),
    ("early-vote", Plant::EarlyVote),
    ("forgotten-vote", Plant::ForgottenVote),
    ("early-truncation", Plant::EarlyTruncation),
    ("eager-purge", Plant::EagerPurge),
    ("local-expiry", Plant::LocalExpiry),
    ("lost-mark", Plant::LostMark),
    ("local-reads", Plant::LocalReads),
    ("wrong-refusal", Plant::Within("wrong_refusal")),
    ("sent-again", Plant::Within("sent_again")),
    ("leader-restored", Plant::Within("leader_restored")),
    ("unheld-barrier", Plant::Within("unheld_barrier")),
];

/// Where the run is told its bug.
pub(crate) const VARIABLE: &str = "KVD_PLANT";

static TOLD: OnceLock<Option<Plant>> = OnceLock::new();

/// Plants what this run was told, before anything else happens in it.
///
/// # Panics
///
/// No bug is called so.
pub(crate) fn sow() {
    let told = std::env::var(VARIABLE).ok().map(|name| {
        let found = ALL.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no bug is called {name}")).1
    });
    if let Some(Plant::Within(name)) = told {
        kvd::failpoints::plant(name);
    }
    TOLD.set(told).expect("a run is sown once");
}

/// Whether this run has this bug.
pub(crate) fn planted(plant: Plant) -> bool {
    TOLD.get() == Some(&Some(plant))
}
