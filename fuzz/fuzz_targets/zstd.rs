//! See `hedgerow::fuzzing::zstd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::zstd(data));
