//! kvd.
