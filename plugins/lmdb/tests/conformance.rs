//! The conformance suite, in a process of its own: the kill loops beside the engine start children,
//! and between fork and exec a child holds every lock of its parent, also one that was just let go.

#[test]
fn conforms_to_the_contract() {
    let options = &[("map_size", "4GiB")];
    kvd_plugin_api::testkit::check::<kvd_lmdb::LmdbBackend>(options);
}
