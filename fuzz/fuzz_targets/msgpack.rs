//! See `hedgerow::fuzzing::msgpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::msgpack(data));
