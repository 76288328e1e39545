//! See `hedgerow::fuzzing::deflate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::deflate(data));
