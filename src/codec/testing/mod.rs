//! Tests of the stack, and the entry points of the fuzzers.
//!
//! Invariant: no call of a user runs through here. Only tests and `fuzz/fuzz_targets/` do.

pub mod fuzzing;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
