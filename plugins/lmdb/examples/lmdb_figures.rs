//! Prints the figures of the README: `cargo run --release --example lmdb_figures`.

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    figures::run::<kvd_lmdb::LmdbBackend>();
}
