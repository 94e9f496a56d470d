//! Any bytes as a request between nodes, or its answer: what is understood reads the same when it is written.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvd::node::fuzz_requests(data));
