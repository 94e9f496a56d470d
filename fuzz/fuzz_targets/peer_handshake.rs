//! Any bytes as a peer's part of a handshake: it ends, and nobody is let in without the secret.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::raft::transport::fuzz_handshake(data));
