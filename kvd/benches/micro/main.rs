//! What the steps of a command cost, each alone and in one thread.
//!
//! ```sh
//! cargo bench -p kvd --bench micro
//! cargo bench -p kvd --bench micro -- resp
//! ```

mod apply;
mod command;
mod keyspace;
mod log;
mod plugin;
mod resp;

fn main() {
    divan::main();
}

/// A key as redis-benchmark has it.
fn key(number: u64) -> String {
    format!("key:{number:012}")
}

/// A number below `bound` that is not near the one before.
fn spread(number: u64, bound: u64) -> u64 {
    number.wrapping_mul(7919) % bound
}
