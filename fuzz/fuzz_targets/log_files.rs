//! Any bytes as a file of the log: each is read, torn or damaged at one place, and nothing behind it is believed.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::raft::log::fuzz_log(data));
