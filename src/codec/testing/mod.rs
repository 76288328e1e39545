//! What tests of the stack share, and what the fuzzers call. No code of a user runs through here.

pub mod fuzzing;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
