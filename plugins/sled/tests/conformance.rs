//! The conformance suite, in a process of its own: the kill loops beside the engine start children,
//! and between fork and exec a child holds every lock of its parent, also one that was just let go.

#[test]
fn conforms_to_the_contract() {
    kvd_plugin_api::testkit::check::<kvd_sled::SledBackend>(&[("cache_capacity", "16MiB")]);
}
