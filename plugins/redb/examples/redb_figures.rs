//! Prints the figures of the README: `cargo run --release -p kvd-redb --example redb_figures`.

use kvd_plugin_api::{Backend, OpenContext, Options};
use kvd_redb::RedbBackend;

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    let options = Options::parse(RedbBackend::OPTIONS, []).unwrap();
    figures::run(|dir| {
        RedbBackend::open(&OpenContext {
            dir,
            options: &options,
        })
        .unwrap()
    });
}
