//! Prints the figures of the README: `cargo run --release -p kvd-sled --example sled_figures`.

use kvd_plugin_api::{Backend, OpenContext, Options};
use kvd_sled::SledBackend;

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    let options = Options::parse(SledBackend::OPTIONS, []).unwrap();
    figures::run(|dir| {
        SledBackend::open(&OpenContext {
            dir,
            options: &options,
        })
        .unwrap()
    });
}
