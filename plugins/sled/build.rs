//! Lets sled write its log in the right order, its flush be a real sync, and no sync fail unheard: see
//! `src/flush.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(wrapped)");
    let is = |name, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // The names that the standard library and sled use with this C library.
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo::rustc-cfg=wrapped");
        for name in ["fsync", "pwrite64", "sync_file_range"] {
            println!("cargo::rustc-link-arg=-Wl,--wrap={name}");
        }
    }
}
