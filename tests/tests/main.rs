//! Tests of kvd as a whole, one binary for all.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes live in real time"
)]

mod backend_info;
mod c_plugin;
mod catch_up;
mod chaos;
mod clients;
mod clocks;
mod cluster;
mod commands;
mod compare;
mod crash;
mod disk;
mod engine_power;
mod failover;
mod failpoints;
mod first_release;
mod fuzz;
mod hazards;
mod identity;
mod io_errors;
mod leave;
mod licences;
mod limits;
mod migrate;
mod offline;
mod once;
mod plugin_kit;
mod power;
mod preload;
mod raft_suite;
mod readme;
mod replicas;
mod ride;
mod starting;
mod transactions;
