//! Prints the figures of the README: `cargo run --release -p kvd-redb --example redb_figures`.

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    figures::run::<kvd_redb::RedbBackend>();
}
