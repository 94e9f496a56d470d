//! kvd.
fn main(){}
