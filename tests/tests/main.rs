//! Tests of kvd as a whole, one binary for all.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes live in real time"
)]

mod clients;
mod cluster;
mod commands;
mod crash;
mod licences;
mod limits;
mod power;
mod raft_suite;
mod readme;
mod starting;
