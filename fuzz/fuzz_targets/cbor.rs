//! See `hedgerow::fuzzing::cbor`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hedgerow::fuzzing::cbor(data));
