//! The contract, clause by clause, and what a killed process and a loss of power leave.

use kvd_files::Files;

#[test]
fn keeps_the_contract() {
    kvd_plugin_api::testkit::check::<Files>(&[]);
}

/// Nearly every sync writes the file anew.
#[test]
fn keeps_the_contract_with_short_files() {
    kvd_plugin_api::testkit::check::<Files>(&[("slack", "0")]);
}

#[test]
fn keeps_its_promises_when_it_is_killed() {
    let this = "keeps_its_promises_when_it_is_killed";
    kvd_plugin_api::testkit::crash::check::<Files>(this, 5, &[]);
}

#[test]
fn keeps_its_promises_when_it_is_killed_with_short_files() {
    let this = "keeps_its_promises_when_it_is_killed_with_short_files";
    kvd_plugin_api::testkit::crash::check::<Files>(this, 5, &[("slack", "0")]);
}

#[test]
fn lost_power_takes_nothing_that_was_synced() {
    let this = "lost_power_takes_nothing_that_was_synced";
    kvd_plugin_api::testkit::crash::check_power::<Files>(this, 5, &[]);
}

#[test]
fn lost_power_takes_nothing_that_was_synced_with_short_files() {
    let this = "lost_power_takes_nothing_that_was_synced_with_short_files";
    kvd_plugin_api::testkit::crash::check_power::<Files>(this, 5, &[("slack", "0")]);
}
