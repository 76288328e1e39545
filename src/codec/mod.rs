//! The codec stack: serializer, then compressor, then envelope.
//!
//! Invariant: an entry says itself how it is to be read, so [`decode`] needs no configuration but
//! a size limit, and processes with different codecs share one cache. Bytes from the server are
//! hostile: every length is checked before it is believed, and no error quotes a value.
//! Called by the cache.

mod absent;
mod budget;
mod cbor;
mod checked;
pub(crate) mod envelope;
pub mod fuzzing;
mod json;
mod lz4;
mod raw;
mod refuse;

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use envelope::{Envelope, HEADER, MOST_STAMPS, Outcome, Stamp, Unreadable};

use crate::error::{Error, ErrorKind, Result};

/// How values become bytes.
///
/// A reader decodes whatever an entry names, not what it is configured to write: processes may
/// change their codec one after the other.
///
/// A value that could not be read back is refused with `Encode` when it is written: one that is
/// nested deeper than 127, or an option, below the top of the value, that holds what is written
/// like no value (`Some(None)`, `Some(())`). At the top "no value" is stored beside the codec, so
/// `None` and `Some(None)` are told apart there. This holds for types whose `Serialize` and
/// `Deserialize` agree.
///
/// A value may be as long as [`max_value_size`](crate::ClientBuilder::max_value_size) before
/// compression. In memory it may take 512 MiB in lists and maps, or eight times that size if that
/// is more: entries that would take more are not read, since one byte of an entry can stand for a
/// large item. A value that is seen to take half of it is refused when it is written. The writer
/// does not see skipped fields, the larger variants of an enum, or what serde buffers for untagged
/// enums and flattened fields: raise `max_value_size` for very large values of such types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// CBOR (RFC 8949): compact, self-describing, keeps every integer and float.
    ///
    /// Types that serialize as bytes (`bytes::Bytes`, `serde_bytes::ByteBuf`) take one byte for
    /// each. `Vec<u8>` and `[u8; N]` do not: serde writes them as lists of numbers, which take
    /// two bytes for each of 24 or more. Each reads what the other has written. A value that is
    /// nothing but bytes is smallest with [`Raw`](Self::Raw).
    #[default]
    Cbor,
    /// JSON (RFC 8259): for other programs and human readers.
    ///
    /// Map keys must be strings, numbers or booleans. NaN and infinities are refused.
    Json,
    /// Strings and bytes as they are, without quotes or lengths; any other value is refused.
    ///
    /// `String`, `Vec<u8>`, `[u8; N]`, types that serialize as a string or as bytes, and newtypes
    /// and options of these.
    Raw,
}

/// How encoded values are made smaller.
///
/// A reader decompresses whatever an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4, for encoded values of 4 KiB or more, and kept only when it makes them smaller.
    #[default]
    Lz4,
}

/// What a cache writes with.
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
    /// The entry for `value`, its deadlines still zero: the server's script writes them.
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
        if absent::is_none(value, self.codec.is_human_readable()) {
            let mut entry = envelope::begin(self.codec, stamps, cost, revision, 0)?;
            envelope::seal(&mut entry, Compression::None, Outcome::None);
            return Ok(entry);
        }
        let mut entry = envelope::begin(self.codec, stamps, cost, revision, USUAL)?;
        let start = entry.len();
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

/// The value of an entry, whatever it was written with.
///
/// # Errors
///
/// `Damaged` when no type could be read from the payload. `Foreign` when it holds no `V`, when it
/// would decode to more than `max_decoded` bytes, or when it is no value but a failure.
pub(crate) fn decode<V: DeserializeOwned>(
    envelope: &Envelope<'_>,
    max_decoded: usize,
) -> Result<V, Unreadable> {
    match envelope.outcome {
        Outcome::Value => {}
        Outcome::None => {
            let none = absent::none(envelope.codec.is_human_readable());
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
            unpacked =
                lz4::decompress(envelope.payload(), max_decoded).map_err(|error| {
                    match error.kind() {
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
    value.map_err(|error| match envelope.codec.is_whole(payload) {
        true => Unreadable::Foreign(error),
        false => Unreadable::Damaged(error),
    })
}

impl Codec {
    fn id(self) -> u8 {
        match self {
            Self::Cbor => 0,
            Self::Json => 1,
            Self::Raw => 2,
        }
    }

    fn from_id(id: u8) -> Option<Self> {
        [Self::Cbor, Self::Json, Self::Raw]
            .into_iter()
            .find(|codec| codec.id() == id)
    }

    fn is_human_readable(self) -> bool {
        self != Self::Cbor
    }

    /// Whether `payload` is one value of this codec, of whatever type.
    fn is_whole(self, payload: &[u8]) -> bool {
        match self {
            Self::Cbor => cbor::is_whole(payload),
            Self::Json => json::is_whole(payload),
            Self::Raw => true,
        }
    }
}

impl Compression {
    fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    fn from_id(id: u8) -> Option<Self> {
        [Self::None, Self::Lz4]
            .into_iter()
            .find(|compression| compression.id() == id)
    }
}

/// The end of an entry being written, which refuses to grow past the limit.
struct Payload<'a> {
    entry: &'a mut Vec<u8>,
    end: usize,
    /// How many bytes of memory the value may take when it is read.
    built: usize,
    full: &'a mut bool,
}

impl io::Write for Payload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.end - self.entry.len() {
            *self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.entry.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large_to_store(limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the value encodes to more than {limit} bytes; split it or raise ClientBuilder::max_value_size"
        ),
    )
}

fn too_large(length: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the entry decodes to {length} bytes, the limit is {limit}; \
             remove it or raise ClientBuilder::max_value_size"
        ),
    )
}

fn unencodable(codec: &str, how: &str) -> Error {
    Error::new(
        ErrorKind::Encode,
        format!("cannot write the value as {codec}: {how}; choose another codec or another type"),
    )
}

fn misfit(what: &str, how: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "cannot read the entry as {what}: {how}; \
             remove the key, or use `Cache::version` where a type has changed"
        ),
    )
}

/// 64 MiB.
const MAX_DECODED: usize = 64 << 20;
/// Below this LZ4 gains about a tenth and costs more than it saves.
const WORTH_COMPRESSING: usize = 4 << 10;
/// Room for the payload of most entries.
const USUAL: usize = 512;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
