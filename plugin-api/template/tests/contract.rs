//! The contract, clause by clause, and what a killed process leaves.

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
