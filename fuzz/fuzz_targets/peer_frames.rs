//! Any bytes on the Raft port behind a handshake: no panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::raft::transport::fuzz_frames(data));
