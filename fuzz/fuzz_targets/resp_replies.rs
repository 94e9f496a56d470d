//! Any bytes from a server: no panic, the same replies whatever the pieces they come in, and what
//! was read is written as something that reads the same.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::resp::fuzz_replies(data));
