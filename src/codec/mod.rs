//! The codec stack: a value passes a serializer, then a compressor, then the envelope.
//!
//! Invariant: each entry names its codec and its compressor. So [`decode`] needs no configuration
//! except a size limit, and processes with different codecs share one cache. Bytes from the server
//! count as hostile: every length is checked before it is used, and no error quotes a value. The
//! cache calls this module.

mod budget;
mod checked;
mod compress;
pub(crate) mod envelope;
mod format;
mod option;
mod options;
mod payload;
mod reject;
pub(crate) mod testing;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use compress::lz4;
pub(crate) use envelope::{Envelope, HEADER, MOST_STAMPS, Outcome, Stamp, Unreadable};
use format::{cbor, json, raw};
pub use options::{Codec, Compression};
use payload::{MAX_DECODED, Payload, misfit, too_large, too_large_to_store};

use crate::error::{ErrorKind, Result};

/// The settings that a cache writes entries with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    pub(crate) codec: Codec,
    pub(crate) compression: Compression,
    /// The most bytes that an encoded value may have before compression.
    pub(crate) max_decoded: usize,
}

impl Default for Stack {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            compression: Compression::default(),
            max_decoded: MAX_DECODED,
        }
    }
}

impl Stack {
    /// Returns the entry for `value`. Both deadlines in it are zero: the script that stores the
    /// entry fills them in from the server's clock.
    pub(crate) fn encode<V: Serialize + ?Sized>(
        &self,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        self.encode_as(rand::random(), value, stamps, cost)
    }

    fn encode_as<V: Serialize + ?Sized>(
        &self,
        revision: u64,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        // CBOR and JSON write `None` and `Some(None)` alike. So the envelope records "no value".
        if option::is_none(value, self.codec) {
            let mut entry = envelope::begin(self.codec, stamps, cost, revision, 0)?;
            envelope::seal(&mut entry, Compression::None, Outcome::None);
            return Ok(entry);
        }
        let mut entry = envelope::begin(self.codec, stamps, cost, revision, USUAL)?;
        let start = entry.len();
        // The serializers hide the cause of a failed write, so the payload reports it here.
        let mut full = false;
        let payload = Payload {
            end: start.saturating_add(self.max_decoded),
            entry: &mut entry,
            built: budget::most_built(self.max_decoded),
            full: &mut full,
        };
        let encoded = match self.codec {
            Codec::Cbor => cbor::encode(value, payload),
            Codec::Json => json::encode(value, payload),
            Codec::Raw => raw::encode(value, payload),
        };
        if full {
            return Err(too_large_to_store(self.max_decoded));
        }
        encoded?;
        let mut compression = Compression::None;
        if self.compression == Compression::Lz4
            && entry.len() - start >= WORTH_COMPRESSING
            && let Some(smaller) = lz4::compress(&entry, start)
        {
            entry = smaller;
            compression = Compression::Lz4;
        }
        envelope::seal(&mut entry, compression, Outcome::Value);
        Ok(entry)
    }
}

/// Returns how many bytes the payload has, or would have without compression, as it claims.
#[cfg(feature = "near")]
pub(crate) fn decoded_length(envelope: &Envelope<'_>) -> usize {
    match envelope.compression {
        Compression::None => envelope.payload().len(),
        Compression::Lz4 => lz4::claimed_length(envelope.payload()),
    }
}

/// Returns the value of an entry, whichever codec and compressor wrote it.
///
/// # Errors
///
/// `Damaged` if the payload is not one well-formed value of its codec. `Foreign` if the payload
/// holds no `V`, if it would decode to more than `max_decoded` bytes, or if the entry holds a
/// failure instead of a value.
pub(crate) fn decode<V: DeserializeOwned>(
    envelope: &Envelope<'_>,
    max_decoded: usize,
) -> Result<V, Unreadable> {
    match envelope.outcome {
        Outcome::Value => {}
        Outcome::None => {
            let none = option::none(envelope.codec);
            return none.ok_or_else(|| {
                let name = std::any::type_name::<V>();
                Unreadable::Foreign(misfit("no value", &format!("it does not fit `{name}`")))
            });
        }
        Outcome::Failed => {
            let how = "it tells of a failed load, which this build does not read";
            return Err(Unreadable::Foreign(misfit("a value", how)));
        }
    }
    let unpacked;
    let payload = match envelope.compression {
        Compression::None => envelope.payload(),
        Compression::Lz4 => {
            unpacked = lz4::decompress(envelope.payload(), max_decoded).map_err(|error| {
                match error.kind() {
                    // A reader with a higher limit can read it, so it must not be removed.
                    ErrorKind::TooLarge => Unreadable::Foreign(error),
                    _ => Unreadable::Damaged(error),
                }
            })?;
            unpacked.as_slice()
        }
    };
    if payload.len() > max_decoded {
        return Err(Unreadable::Foreign(too_large(payload.len(), max_decoded)));
    }
    let value = budget::allowing(budget::most_built(max_decoded), || match envelope.codec {
        Codec::Cbor => cbor::decode(payload),
        Codec::Json => json::decode(payload),
        Codec::Raw => raw::decode(payload),
    });
    // A second pass, after a failure only: damage removes itself, another type's entry stays.
    value.map_err(|error| match is_whole(envelope.codec, payload) {
        true => Unreadable::Foreign(error),
        false => Unreadable::Damaged(error),
    })
}

/// Whether `payload` is one value of `codec`, of any type.
fn is_whole(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::Cbor => cbor::is_whole(payload),
        Codec::Json => json::is_whole(payload),
        // Any bytes are a raw value.
        Codec::Raw => true,
    }
}

/// The shortest payload that is compressed, in bytes. Below this, LZ4 gains about a tenth and costs
/// more than it saves.
const WORTH_COMPRESSING: usize = 4 << 10;
/// Bytes reserved for a payload. Most payloads fit, so the buffer seldom grows.
const USUAL: usize = 512;
