//! Tests of kvd as a whole, one binary for all.

mod licences;
mod readme;
