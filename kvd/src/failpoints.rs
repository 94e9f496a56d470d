//! Steps of kvd's own at which a test build ends as by `kill -9`.
//!
//! `FAILPOINTS` in the environment says where, in the words of the `fail` crate:
//! `log_append_before=7*off->return` ends the process when it comes there for the eighth time.
//! Only the cargo feature `failpoints` makes such a build; in any other the points are nothing.
//!
//! The same build can be told to have one of the bugs in `PLANTS`: the simulation must find it.

/// A step by name. A test build ends here if it was told to; any other has nothing here.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::failpoints::is_listed($name), "not in POINTS") };
        $crate::failpoints::reach($name);
    }};
}

/// A step by name. A test build ends here if it was told to; any other has nothing here.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {};
}

/// Whether a test build was told to have this bug, see `PLANTS`; any other build never has it.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {{
        const { assert!($crate::failpoints::is_a_plant($name), "not in PLANTS") };
        $crate::failpoints::has_plant($name)
    }};
}

/// Whether a test build was told to have this bug; any other build, as this one, never has it.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "failpoints")]
pub use points::*;

#[cfg(feature = "failpoints")]
mod points {
    use std::io::Write as _;
    use std::sync::{Once, OnceLock};

    /// Bugs that kvd itself must have for a test to look for them; most others are planted at its
    /// doors.
    pub const PLANTS: &[&str] = &[
        // A write that may be in the log is answered as one that did not happen.
        "wrong_refusal",
        // A write that may be in the log is proposed again.
        "sent_again",
        // A leader that was started again goes on in its term, without an election.
        "leader_restored",
        // A member says that it has voted for no later leader, whether or not it has.
        "unheld_barrier",
    ];

    static PLANTED: OnceLock<&'static str> = OnceLock::new();

    /// Gives this process one of the bugs, for as long as it runs.
    ///
    /// # Panics
    ///
    /// There is no such bug, or the process has one already.
    pub fn plant(name: &'static str) {
        assert!(is_a_plant(name), "no bug is called {name}");
        assert!(PLANTED.set(name).is_ok(), "one bug at a time");
    }

    /// Whether this process was told to have this bug; see [`planted`](crate::planted).
    pub fn has_plant(name: &str) -> bool {
        PLANTED.get().is_some_and(|planted| *planted == name)
    }

    /// Whether a bug has this name.
    pub const fn is_a_plant(name: &str) -> bool {
        is_among(name, PLANTS)
    }

    /// Every point, in the order of a node's life: a test that crashes at all of them knows by this
    /// list that it does.
    pub const POINTS: &[&str] = &[
        // A data directory, and the files in it that are replaced as a whole.
        "dir_made",
        "dir_locked",
        "dir_folder_made",
        "dir_folder_synced",
        "file_created",
        "file_written",
        "file_synced",
        "file_renamed",
        "file_replaced",
        "addresses_noted",
        // A start.
        "open_engine_after",
        "open_recovered",
        "open_log_after",
        "open_raft_after",
        "found_initialized",
        "found_leads",
        "found_noted",
        "recover_install_before",
        "recover_install_after",
        // The log.
        "log_append_before",
        "log_append_begun",
        "log_append_after",
        "log_chunk_closed",
        "log_vote_before",
        "log_vote_after",
        "log_truncate_before",
        "log_truncate_begun",
        "log_truncate_after",
        "log_purge_before",
        "log_purge_begun",
        "log_purge_after",
        // The state.
        "apply_before",
        "apply_membership",
        "apply_visible",
        "apply_after",
        "store_taken",
        "engine_write_before",
        "engine_write_after",
        "store_dropped",
        "engine_sync_before",
        "engine_sync_after",
        "sweep_before",
        "sweep_after",
        // Snapshots: made, sent, received, installed, and dropped again.
        "snapshot_build_before",
        "snapshot_build_after",
        "spool_created",
        "spool_written",
        "spool_sync_before",
        "spool_sync_after",
        "spool_renamed",
        "spool_finished",
        "keep_before_pruning",
        "keep_pruned",
        "send_before",
        "send_chunk",
        "send_after",
        "receive_begun",
        "receive_chunk",
        "install_before",
        "engine_replace_before",
        "engine_replace_after",
        "install_after",
        "retire_before",
        "retire_after",
        // JOIN on the leader, and on the node that is taken in.
        "join_before",
        "join_intended",
        "join_adopted",
        "join_replaced",
        "join_learner",
        "join_level",
        "join_voter",
        "join_forgotten",
        "adopt_before",
        "adopt_given_up",
        "wipe_noted",
        "wipe_removed",
        "wipe_synced",
        "wipe_forgotten",
        "adopt_wiped",
        "adopt_after",
        "member_before",
        "member_after",
        "member_noted",
        // LEAVE on the leader, and on the node that is taken out.
        "leave_before",
        "leave_no_voter",
        "leave_taken_out",
        "leave_told",
        "removed_before",
        "removed_noted",
        "removed_after",
        // A member at another address; a handover.
        "move_before",
        "move_after",
        "transfer_before",
        "transfer_after",
        // A copy on another engine.
        "migrate_begun",
        "migrate_log_copied",
        "migrate_filled",
        "migrate_checked",
        "migrate_after",
        // An orderly stop.
        "stop_begun",
        "stop_stepped_down",
        "stop_drained",
        "end_raft_after",
        "end_log_after",
        "engine_close_before",
        "engine_close_after",
        "stop_after",
    ];

    /// Whether a point has this name.
    pub const fn is_listed(name: &str) -> bool {
        is_among(name, POINTS)
    }

    const fn is_among(name: &str, all: &[&str]) -> bool {
        let mut n = 0;
        while n < all.len() {
            if equal(all[n].as_bytes(), name.as_bytes()) {
                return true;
            }
            n += 1;
        }
        false
    }

    const fn equal(a: &[u8], b: &[u8]) -> bool {
        let mut n = 0;
        while n < a.len() && n < b.len() && a[n] == b[n] {
            n += 1;
        }
        n == a.len() && n == b.len()
    }

    /// Comes to a point: see [`crash_point`](crate::crash_point).
    ///
    /// # Panics
    ///
    /// `FAILPOINTS` names what is no point, or is not in the words of the `fail` crate.
    pub fn reach(name: &str) {
        static READ: Once = Once::new();
        READ.call_once(|| {
            if let Ok(told) = std::env::var("FAILPOINTS") {
                for point in told.split(';').filter(|point| !point.trim().is_empty()) {
                    let name = point.split('=').next().unwrap_or_default().trim();
                    assert!(is_listed(name), "FAILPOINTS: there is no point '{name}'");
                }
            }
            // It would take the settings back when it is dropped.
            std::mem::forget(fail::FailScenario::setup());
        });
        fail::fail_point!(name, |_| end(name));
    }

    /// Ends the process as `kill -9` does: nothing is flushed, and nobody is told.
    fn end(name: &str) {
        // Kept: nobody else gets a word in behind this one.
        let mut last_word = std::io::stderr().lock();
        // Where it is closed, nobody listens.
        let _ = writeln!(last_word, "kvd: ends at the failpoint {name}");
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("a process can kill itself: {killed:?}");
    }
}
