//! See `hedgerow::fuzzing::encrypt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::encrypt(data));
