//! See `hedgerow::fuzzing::raw`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::raw(data));
