//! Any bytes from a client: no panic, and the same requests whatever the pieces they come in.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::resp::fuzz_requests(data));
