//! Prints the figures of the README: `cargo run --release --example lmdb_figures`.

use kvd_plugin_api::{Backend, OpenContext, Options};
use kvd_lmdb::LmdbBackend;

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    let options = Options::parse(LmdbBackend::OPTIONS, []).unwrap();
    figures::run(|dir| {
        LmdbBackend::open(&OpenContext {
            dir,
            options: &options,
        })
        .unwrap()
    });
}
