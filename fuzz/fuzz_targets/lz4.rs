//! See `hedgerow::fuzzing::lz4`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::lz4(data));
