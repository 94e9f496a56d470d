//! kvd.
fn main() {}
