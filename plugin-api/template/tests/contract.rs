//! The contract, clause by clause, and what a killed process leaves.
//!
//! An engine that claims DURABLE also wants `testkit::crash::check_power`, written as `check` is
//! below: a kill leaves what was not synced, and only a loss of power shows a sync that is missing.

use kvd_engine_name::Engine;

#[test]
fn keeps_the_contract() {
    kvd_plugin_api::testkit::check::<Engine>(&[]);
}

#[test]
fn keeps_its_promises_when_it_is_killed() {
    let this = "keeps_its_promises_when_it_is_killed";
    kvd_plugin_api::testkit::crash::check::<Engine>(this, 5, &[]);
}
