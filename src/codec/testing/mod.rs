//! Tests of the stack, and the entry points of the fuzzers and of a benchmark.
//!
//! Invariant: no call of a user runs through here. Only tests, `benches/codecs` and
//! `fuzz/fuzz_targets/` do.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Envelope, Stack, Stamp, Unreadable};
use crate::error::Result;

pub mod fuzzing;
#[cfg(test)]
mod golden;
pub mod measuring;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;

/// Decodes as a cache with default settings does, but for the size limit.
fn decode<V: DeserializeOwned>(
    envelope: &Envelope<'_>,
    max_decoded: usize,
) -> Result<V, Unreadable> {
    let stack = Stack {
        max_decoded,
        ..Stack::default()
    };
    stack.decoder("").decode(envelope)
}

impl Stack {
    /// Returns the entry for `value`, at no key.
    #[cfg(test)]
    pub(crate) fn encode<V: Serialize + ?Sized>(
        &self,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        self.entry("", value, stamps, cost).map(|(entry, _)| entry)
    }

    /// Returns the entry for `value`, at no key, with a revision that does not change.
    fn frozen<V: Serialize + ?Sized>(
        &self,
        revision: u64,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        let entry = self.encode_as("", revision, value, stamps, cost);
        entry.map(|(entry, _)| entry)
    }
}
