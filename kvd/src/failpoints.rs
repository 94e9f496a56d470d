//! Steps of kvd's own at which a test build ends as by `kill -9`.
//!
//! `FAILPOINTS` in the environment says where, in the words of the `fail` crate:
//! `log_append_before=7*off->return` ends the process when it comes there for the eighth time.
//! Only the cargo feature `failpoints` makes such a build; in any other the points are nothing.

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

#[cfg(feature = "failpoints")]
pub use points::*;

#[cfg(feature = "failpoints")]
mod points {
    use std::sync::Once;

    /// Every point, in the order of a node's life: a test that crashes at all of them knows by this
    /// list that it does.
    pub const POINTS: &[&str] = &[
        // The log.
        "log_append_before",
        "log_append_begun",
        "log_append_after",
        "log_vote_before",
        "log_vote_after",
        // The state.
        "apply_before",
        "apply_visible",
        "apply_after",
        "engine_write_before",
        "engine_write_after",
        "engine_sync_before",
        "engine_sync_after",
    ];

    /// Whether a point has this name.
    pub const fn is_listed(name: &str) -> bool {
        let mut n = 0;
        while n < POINTS.len() {
            if equal(POINTS[n].as_bytes(), name.as_bytes()) {
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
        eprintln!("kvd: ends at the failpoint {name}");
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        unreachable!("a process can kill itself: {killed:?}");
    }
}
