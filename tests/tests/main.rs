//! Tests of kvd as a whole.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes live in real time"
)]

mod cluster;
mod crash;
