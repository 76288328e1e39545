//! The codec stack: a value passes a serializer, then a compressor, then the envelope. A bare value
//! passes the serializer only.
//!
//! Invariant: each entry names its codec and its compressor. So a [`Decoder`] needs no
//! configuration except a size limit and what users have added, and processes with different codecs
//! share one cache. Bytes from the server count as hostile: every length is checked before it is
//! used, and no error quotes a value. The cache calls this module.

mod budget;
mod checked;
mod compress;
mod compression;
mod custom;
#[cfg(feature = "encrypt")]
mod encrypt;
pub(crate) mod envelope;
mod format;
mod option;
mod options;
mod payload;
mod reject;
pub(crate) mod testing;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use compression::{Compression, CompressionOptions};
pub(crate) use custom::CustomCodecs;
pub use custom::{CustomCodec, ValueIn, ValueOut};
#[cfg(feature = "encrypt")]
pub use encrypt::Keyring;
pub(crate) use envelope::{DEADLINES, Envelope, HEADER, MOST_STAMPS, Outcome, Stamp, Unreadable};
#[cfg(feature = "msgpack")]
use format::msgpack;
#[cfg(feature = "postcard")]
use format::postcard;
use format::{cbor, json, raw};
use option::Form;
pub use options::Codec;
use payload::{MAX_DECODED, Payload, misfit, too_large, too_large_to_store};

use crate::error::{Error, ErrorKind, Result};

/// How values stand in Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// In an envelope, which says how they are read and by which tags they are judged.
    #[default]
    Enveloped,
    /// As the codec has written them, with nothing added, for other programs.
    Bare,
}

/// The settings that a cache writes entries with.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    pub(crate) shape: Shape,
    pub(crate) codec: Codec,
    pub(crate) compression: CompressionOptions,
    /// The most bytes that an encoded value may have before compression.
    pub(crate) max_decoded: usize,
    pub(crate) custom: CustomCodecs,
    /// The keys that entries are encrypted with, if they are.
    #[cfg(feature = "encrypt")]
    pub(crate) keyring: Option<Keyring>,
}

/// How the entry at one key is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoder<'a> {
    /// The codec of bare values. `None` where envelopes name it.
    bare: Option<Codec>,
    /// The most bytes that an encoded value may have.
    max_decoded: usize,
    custom: &'a CustomCodecs,
    #[cfg(feature = "encrypt")]
    keyring: Option<&'a Keyring>,
    /// The Redis key.
    #[cfg(feature = "encrypt")]
    at: &'a str,
}

/// How many bytes a value takes, before and after compression. Both are zero for no value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) encoded: usize,
    pub(crate) compressed: usize,
}

/// What two decoders of one key have in common if they read alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecodesLike {
    bare: Option<Codec>,
    max_decoded: usize,
    custom: usize,
    /// The keyring; 0 if there is none.
    keyring: usize,
}

impl Default for Stack {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            codec: Codec::default(),
            compression: CompressionOptions::default(),
            max_decoded: MAX_DECODED,
            custom: CustomCodecs::default(),
            #[cfg(feature = "encrypt")]
            keyring: None,
        }
    }
}

impl Stack {
    /// Returns the error of a setting that cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        if let Codec::Custom(number) = self.codec {
            self.custom_codec(number)?;
        }
        self.compression.check()
    }

    /// The settings for records of failed loads: in the default codec, which takes them, whatever
    /// codec the values are written in. Encrypted as the values are.
    pub(crate) fn of_records(&self) -> Self {
        Self {
            #[cfg(feature = "encrypt")]
            keyring: self.keyring.clone(),
            ..Self::default()
        }
    }

    /// How the entry at the Redis key `key` is read.
    pub(crate) fn decoder<'a>(
        &'a self,
        #[cfg_attr(not(feature = "encrypt"), expect(unused))] key: &'a str,
    ) -> Decoder<'a> {
        Decoder {
            bare: self.bare(),
            max_decoded: self.max_decoded,
            custom: &self.custom,
            #[cfg(feature = "encrypt")]
            keyring: self.keyring.as_ref(),
            #[cfg(feature = "encrypt")]
            at: key,
        }
    }

    /// See [`DecodesLike`].
    pub(crate) fn decodes_like(&self) -> DecodesLike {
        DecodesLike {
            bare: self.bare(),
            max_decoded: self.max_decoded,
            custom: self.custom.identity(),
            #[cfg(feature = "encrypt")]
            keyring: self.keyring.as_ref().map_or(0, Keyring::identity),
            #[cfg(not(feature = "encrypt"))]
            keyring: 0,
        }
    }

    /// By what the script that grants the lease recognises the entry that was read. Empty if there
    /// was none.
    pub(crate) fn recognised_by(&self, entry: Option<&[u8]>) -> Bytes {
        let Some(entry) = entry else {
            return Bytes::new();
        };
        let head = &entry[..entry.len().min(HEADER)];
        match self.shape {
            // With revision and checksum.
            Shape::Enveloped => Bytes::copy_from_slice(head),
            // As `lease.lua` spells it. Never empty, because an empty value is a value.
            Shape::Bare => {
                let length = format!("{}:", entry.len());
                let tail = &entry[entry.len().saturating_sub(HEADER)..];
                Bytes::from([length.as_bytes(), head, tail].concat())
            }
        }
    }

    /// The codec that bare values are read with.
    fn bare(&self) -> Option<Codec> {
        (self.shape == Shape::Bare).then_some(self.codec)
    }

    /// Returns the entry of `value` for the Redis key `key`, and its sizes. Both deadlines in it
    /// are zero: the script that stores the entry fills them in from the server's clock.
    pub(crate) fn entry<V: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<(Vec<u8>, Sizes)> {
        self.encode_as(key, rand::random(), value, stamps, cost)
    }

    /// Whether the entry of `value` says that there is no value.
    pub(crate) fn is_none<V: Serialize + ?Sized>(&self, value: &V) -> bool {
        self.form().is_ok_and(|form| option::is_none(value, form))
    }

    fn form(&self) -> Result<Form> {
        Ok(match self.codec {
            Codec::Custom(number) => form_of(self.custom_codec(number)?),
            codec => form(codec),
        })
    }

    fn custom_codec(&self, number: u8) -> Result<&dyn CustomCodec> {
        self.custom
            .of(number)
            .ok_or_else(|| custom::unknown(number))
    }

    fn encode_as<V: Serialize + ?Sized>(
        &self,
        key: &str,
        revision: u64,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<(Vec<u8>, Sizes)> {
        let is_none = option::is_none(value, self.form()?);
        if self.shape == Shape::Bare {
            if is_none {
                return Err(Error::invalid(NO_BARE_NONE));
            }
            let mut bare = Vec::with_capacity(USUAL);
            self.write(value, &mut bare)?;
            let sizes = Sizes {
                encoded: bare.len(),
                compressed: bare.len(),
            };
            return Ok((bare, sizes));
        }
        // Most codecs write `None` and `Some(None)` alike. So the envelope records "no value".
        if is_none {
            let entry = envelope::begin(self.codec, stamps, cost, revision, 0)?;
            let start = entry.len();
            let entry = self.sealed(entry, start, key, Compression::None, Outcome::None)?;
            return Ok((entry, Sizes::default()));
        }
        let mut entry = envelope::begin(self.codec, stamps, cost, revision, USUAL)?;
        let start = entry.len();
        self.write(value, &mut entry)?;
        let encoded = entry.len() - start;
        let mut compression = Compression::None;
        if let Some(compressed) = compress::compress(&self.compression, &entry, start) {
            entry = compressed;
            compression = self.compression.compressor;
        }
        let compressed = entry.len() - start;
        let entry = self.sealed(entry, start, key, compression, Outcome::Value)?;
        let sizes = Sizes {
            encoded,
            compressed,
        };
        Ok((entry, sizes))
    }

    /// Appends `value` to `entry`, as the codec writes it.
    fn write<V: Serialize + ?Sized>(&self, value: &V, entry: &mut Vec<u8>) -> Result<()> {
        // The serializers hide the cause of a failed write, so the payload reports it here.
        let mut full = false;
        let payload = Payload {
            end: entry.len().saturating_add(self.max_decoded),
            entry,
            built: budget::most_built(self.max_decoded),
            full: &mut full,
        };
        let encoded = match self.codec {
            Codec::Cbor => cbor::encode(value, payload),
            Codec::Json => json::encode(value, payload),
            Codec::Raw => raw::encode(value, payload),
            #[cfg(feature = "msgpack")]
            Codec::MessagePack => msgpack::encode(value, payload),
            #[cfg(feature = "postcard")]
            Codec::Postcard => postcard::encode(value, payload),
            Codec::Custom(number) => custom::encode(self.custom_codec(number)?, value, payload),
        };
        if full {
            return Err(too_large_to_store(self.max_decoded));
        }
        encoded
    }

    /// Completes the entry for the Redis key `key`, whose payload begins at `start`.
    #[cfg_attr(not(feature = "encrypt"), expect(clippy::unnecessary_wraps))]
    fn sealed(
        &self,
        mut entry: Vec<u8>,
        #[cfg_attr(not(feature = "encrypt"), expect(unused))] start: usize,
        #[cfg_attr(not(feature = "encrypt"), expect(unused))] key: &str,
        compression: Compression,
        outcome: Outcome,
    ) -> Result<Vec<u8>> {
        #[cfg(feature = "encrypt")]
        if let Some(keyring) = &self.keyring {
            // First the header, since the payload is bound to it.
            envelope::describe(&mut entry, compression, outcome, keyring.id());
            keyring.seal(&mut entry, start, key)?;
            envelope::rewrite_checksum(&mut entry);
            return Ok(entry);
        }
        envelope::seal(&mut entry, compression, outcome);
        Ok(entry)
    }
}

impl Decoder<'_> {
    /// Parses what was read from the key. Anything can be a bare value.
    pub(crate) fn parse<'e>(&self, entry: &'e [u8]) -> Result<Envelope<'e>, Unreadable> {
        match self.bare {
            Some(codec) => Ok(Envelope::around_bare(codec, entry)),
            None => Envelope::parse(entry),
        }
    }

    /// Checks that this decoder has the codec and the key that the entry names.
    pub(crate) fn admits(&self, envelope: &Envelope<'_>) -> Result<(), Unreadable> {
        if let Codec::Custom(number) = envelope.codec {
            self.custom_codec(number)?;
        }
        #[cfg(feature = "encrypt")]
        match (envelope.key_id, self.keyring) {
            (0, None) => {}
            // Otherwise anybody who may write to Redis could make up an entry.
            (0, Some(_)) => return Err(Unreadable::Foreign(misfit("encrypted", NOT_ENCRYPTED))),
            (id, Some(keyring)) if keyring.has(id) => {}
            (id, _) => return Err(envelope::unknown("encryption key", id)),
        }
        Ok(())
    }

    /// Returns the value of an entry, whichever codec and compressor wrote it.
    ///
    /// # Errors
    ///
    /// `Damaged` if the payload is not one well-formed value of its codec. `Foreign` if the entry
    /// is not [admitted](Self::admits) or cannot be decrypted, if the payload holds no `V` or would
    /// decode to more than `max_decoded` bytes, or if the entry holds a failure instead of a value.
    pub(crate) fn decode<V: DeserializeOwned>(
        &self,
        envelope: &Envelope<'_>,
    ) -> Result<V, Unreadable> {
        self.measured(envelope).map(|(value, _)| value)
    }

    /// As [`decode`](Self::decode). Also returns how many bytes the value takes without
    /// compression.
    pub(crate) fn measured<V: DeserializeOwned>(
        &self,
        envelope: &Envelope<'_>,
    ) -> Result<(V, usize), Unreadable> {
        self.admits(envelope)?;
        let opened = self.opened(envelope)?;
        match envelope.outcome {
            Outcome::Value => {}
            Outcome::None if opened.is_some_and(|payload| !payload.is_empty()) => {
                return Err(Unreadable::Foreign(misfit("no value", "it carries one")));
            }
            Outcome::None => return self.none(envelope.codec).map(|none| (none, 0)),
            Outcome::Failed => {
                let how = "it tells of a failed load, which this build does not read";
                return Err(Unreadable::Foreign(misfit("a value", how)));
            }
        }
        let payload = opened.as_deref().unwrap_or(envelope.payload());
        let value = self.value(envelope, payload);
        match self.bare {
            // Another program may have written it, and can read it.
            Some(_) => value.map_err(Unreadable::into_foreign),
            None => value,
        }
    }

    /// The payload as it was before it was encrypted, or `None` if it was not.
    #[cfg(feature = "encrypt")]
    fn opened(&self, envelope: &Envelope<'_>) -> Result<Option<Vec<u8>>, Unreadable> {
        let Some(keyring) = self.keyring else {
            return Ok(None);
        };
        // Foreign, not damaged: if two processes give one id to two keys, they must not remove each
        // other's entries.
        let opened = keyring.open(envelope, self.at);
        opened.map(Some).map_err(Unreadable::Foreign)
    }

    #[cfg(not(feature = "encrypt"))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self)]
    fn opened(&self, _: &Envelope<'_>) -> Result<Option<Vec<u8>>, Unreadable> {
        Ok(None)
    }

    fn none<V: DeserializeOwned>(&self, codec: Codec) -> Result<V, Unreadable> {
        let form = match codec {
            Codec::Custom(number) => form_of(self.custom_codec(number)?),
            codec => form(codec),
        };
        option::none(form).ok_or_else(|| {
            let name = std::any::type_name::<V>();
            Unreadable::Foreign(misfit("no value", &format!("it does not fit `{name}`")))
        })
    }

    fn value<V: DeserializeOwned>(
        &self,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<(V, usize), Unreadable> {
        let max_decoded = self.max_decoded;
        let unpacked = compress::decompress(envelope.compression, payload, max_decoded);
        let unpacked = unpacked.map_err(|error| match error.kind() {
            // A reader with a higher limit can read it, so it must not be removed.
            ErrorKind::TooLarge => Unreadable::Foreign(error),
            _ => Unreadable::Damaged(error),
        })?;
        let payload = unpacked.as_deref().unwrap_or(payload);
        if payload.len() > max_decoded {
            return Err(Unreadable::Foreign(too_large(payload.len(), max_decoded)));
        }
        let custom = match envelope.codec {
            Codec::Custom(number) => Some(self.custom_codec(number)?),
            _ => None,
        };
        let value = budget::allowing(budget::most_built(max_decoded), || match envelope.codec {
            Codec::Cbor => cbor::decode(payload),
            Codec::Json => json::decode(payload),
            Codec::Raw => raw::decode(payload),
            #[cfg(feature = "msgpack")]
            Codec::MessagePack => msgpack::decode(payload),
            #[cfg(feature = "postcard")]
            Codec::Postcard => postcard::decode(payload),
            Codec::Custom(number) => match custom {
                Some(custom) => custom::decode(custom, payload),
                None => Err(custom::unreadable(number)),
            },
        });
        // A second pass, after a failure only: damage removes itself, another type's entry stays.
        let value = value.map_err(|error| match is_whole(envelope.codec, payload) {
            true => Unreadable::Foreign(error),
            false => Unreadable::Damaged(error),
        })?;
        Ok((value, payload.len()))
    }

    fn custom_codec(&self, number: u8) -> Result<&dyn CustomCodec, Unreadable> {
        let codec = self.custom.of(number);
        codec.ok_or_else(|| Unreadable::Foreign(custom::unreadable(number)))
    }
}

/// What a codec that is not a custom one calls itself.
fn form(codec: Codec) -> Form {
    match codec {
        Codec::Json | Codec::Raw => Form::Text,
        _ => Form::Binary,
    }
}

fn form_of(codec: &dyn CustomCodec) -> Form {
    match codec.is_human_readable() {
        true => Form::Text,
        false => Form::Binary,
    }
}

/// Whether `payload` is one value of `codec`, of any type.
fn is_whole(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::Cbor => cbor::is_whole(payload),
        Codec::Json => json::is_whole(payload),
        // Any bytes are a raw value.
        Codec::Raw => true,
        #[cfg(feature = "msgpack")]
        Codec::MessagePack => msgpack::is_whole(payload),
        // Only the type would tell.
        #[cfg(feature = "postcard")]
        Codec::Postcard => true,
        // What its codec means is not for us to say.
        Codec::Custom(_) => true,
    }
}

/// Nothing in a bare value could say that there is none.
const NO_BARE_NONE: &str =
    "a bare value cannot be `None`; remove the key instead, or use a cache with envelopes";
#[cfg(feature = "encrypt")]
const NOT_ENCRYPTED: &str = "it is not, and this cache reads only entries that are";
/// Bytes reserved for a payload. Most payloads fit, so the buffer seldom grows.
const USUAL: usize = 512;
