//! Tests of kvd as a whole, one binary for all.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes live in real time"
)]

mod cluster;
mod crash;
mod licences;
mod power;
mod raft_suite;
mod readme;
