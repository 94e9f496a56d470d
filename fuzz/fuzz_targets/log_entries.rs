//! Any bytes as an entry of the log: what is understood is written as the same bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::raft::entry::fuzz_entries(data));
