//! Any bytes as a snapshot: what is verified is read to its end.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::keyspace::stream::fuzz_stream(data));
