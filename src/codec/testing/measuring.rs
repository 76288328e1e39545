//! Entry points for the benchmark of the codecs, `benches/codecs`. Not part of the public API.
//!
//! Invariant: each function does what a cache does with one value, between the caller and the
//! connection to Redis: neither less nor more.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::decode as decode_within;
use crate::codec::payload::MAX_DECODED;
use crate::codec::{Codec, CompressionOptions, Envelope, Stack, Unreadable};
use crate::error::Result;

/// Returns the entry of `value`, without tags.
///
/// # Errors
/// As those of a `set`: `Encode` or `TooLarge`.
pub fn encode<V: Serialize + ?Sized>(
    codec: Codec,
    compression: CompressionOptions,
    value: &V,
) -> Result<Vec<u8>> {
    let stack = Stack {
        codec,
        compression,
        ..Stack::default()
    };
    stack.check()?;
    let (entry, _) = stack.entry("hr:v:{bench:key}", value, &[], Duration::ZERO)?;
    Ok(entry)
}

/// Returns the value of an entry.
///
/// # Errors
/// The reason why a cache would take the entry for a miss.
pub fn decode<V: DeserializeOwned>(entry: &[u8]) -> Result<V> {
    let value = Envelope::parse(entry).and_then(|entry| decode_within(&entry, MAX_DECODED));
    value.map_err(|reason| match reason {
        Unreadable::Damaged(error) | Unreadable::Foreign(error) => error,
    })
}
