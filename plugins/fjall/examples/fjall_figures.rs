//! Prints the figures of the README: `cargo run --release -p kvd-fjall --example fjall_figures`.

use kvd_fjall::FjallBackend;
use kvd_plugin_api::{Backend, OpenContext, Options};

#[path = "../../testing/figures.rs"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
mod figures;

fn main() {
    let options = Options::parse(FjallBackend::OPTIONS, []).unwrap();
    figures::run(|dir| {
        FjallBackend::open(&OpenContext {
            dir,
            options: &options,
        })
        .unwrap()
    });
}
