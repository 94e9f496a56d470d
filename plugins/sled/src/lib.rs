//! kvd storage plugin.
