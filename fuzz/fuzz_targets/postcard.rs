//! See `hedgerow::fuzzing::postcard`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::postcard(data));
