//! `Codec`: how a cache writes values, and the numbers that entries name codecs by.
//!
//! Invariant: a number is never given to another codec, since entries outlive the code that wrote
//! them. Users choose a codec through the settings of a cache; the [`Stack`](super::Stack) and the
//! [envelope](super::envelope) read it.

use super::custom;

/// How values become bytes.
///
/// A reader decodes with the codec that an entry names, not with the one that it is configured to
/// write with. So processes may change their codec one after the other.
///
/// A write fails with `Encode` if the value could not be read back. That is a value that is nested
/// deeper than 128 levels (127 with JSON; options count as levels except with CBOR and JSON). It is
/// also a value with an option below its top that holds something written like no value
/// (`Some(None)`, `Some(())`), except with Postcard. At the top, "no value" is stored beside the
/// codec, so `None` and `Some(None)` stay distinct there. This holds for types whose `Serialize`
/// and `Deserialize` agree.
///
/// A value may be as long as [`max_value_size`](crate::ClientBuilder::max_value_size) before
/// compression. In memory, its lists and maps may take 512 MiB, or eight times `max_value_size` if
/// that is more. Entries that would take more are not read, since one byte of an entry can stand
/// for a large item. A write fails if the value is seen to take more than half of that memory. The
/// writer does not see skipped fields, the larger variants of an enum, or what serde buffers for
/// untagged enums and flattened fields: raise `max_value_size` for very large values of such types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// CBOR (RFC 8949): compact and self-describing. It keeps every integer and float.
    ///
    /// Types that serialize as bytes (`bytes::Bytes`, `serde_bytes::ByteBuf`) take one byte for
    /// each byte. `Vec<u8>` and `[u8; N]` do not: serde writes them as lists of numbers, which take
    /// two bytes for each number of 24 or more. Each of these types reads what the other has
    /// written. A value that consists of bytes only is smallest with [`Raw`](Self::Raw).
    #[default]
    Cbor,
    /// JSON (RFC 8259): for other programs and human readers.
    ///
    /// Map keys must be strings, numbers or booleans. A write of NaN or an infinity fails.
    Json,
    /// Strings and bytes, stored unchanged, without quotes or lengths. A write of any other value
    /// fails.
    ///
    /// It takes `String`, `Vec<u8>`, `[u8; N]`, types that serialize as a string or as bytes, and
    /// newtypes and options of these.
    Raw,
    /// MessagePack: as compact as CBOR and self-describing, and faster. Structs are written with
    /// the names of their fields.
    ///
    /// It keeps every integer and float. 128-bit integers are written as bytes, which types that
    /// serde buffers (`untagged`, `flatten`, internally tagged enums) do not read as numbers.
    #[cfg(feature = "msgpack")]
    MessagePack,
    /// [Postcard](https://postcard.jamesmunns.com): the fastest, and the smallest without
    /// compression, for types that do not change.
    ///
    /// It writes no names and no types. So it reads only the type that was written, field for
    /// field: after each change of a type, give the cache another
    /// [version](crate::Cache::version). Bytes of another type are foreign if they do not fit, but
    /// they may fit and be read as a wrong value.
    ///
    /// Types that find out from the entry what they are cannot be read: `untagged` and internally
    /// tagged enums, `flatten`, `serde_json::Value`. A write fails where that shows: with
    /// `flatten`, and where `skip_serializing_if` leaves a field out. Nothing shows with the
    /// others: they are written, and are foreign to each reader.
    #[cfg(feature = "postcard")]
    Postcard,
    /// The codec that [`Cache::custom_codec`](crate::Cache::custom_codec) has added under this
    /// number, from 8 to 15. Each call of the cache fails with `InvalidInput` if there is none.
    Custom(u8),
}

impl Codec {
    /// The codecs of this build, without custom ones.
    pub(super) const ALL: &[Self] = &[
        Self::Cbor,
        Self::Json,
        Self::Raw,
        #[cfg(feature = "msgpack")]
        Self::MessagePack,
        #[cfg(feature = "postcard")]
        Self::Postcard,
    ];

    // Part of the format: entries in Redis hold these numbers.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::Cbor => 0,
            Self::Json => 1,
            Self::Raw => 2,
            #[cfg(feature = "msgpack")]
            Self::MessagePack => 3,
            #[cfg(feature = "postcard")]
            Self::Postcard => 4,
            // 5 to 7 are free, the rest belongs to users.
            Self::Custom(number) => number,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        if (custom::LEAST..=custom::MOST).contains(&id) {
            return Some(Self::Custom(id));
        }
        let mut all = Self::ALL.iter().copied();
        all.find(|codec| codec.id() == id)
    }
}

/// A codec or a compressor that builds have by a feature.
pub(super) struct ByFeature {
    id: u8,
    pub(super) name: &'static str,
    pub(super) feature: &'static str,
}

impl ByFeature {
    pub(super) fn codec(id: u8) -> Option<&'static Self> {
        CODECS.iter().find(|codec| codec.id == id)
    }

    pub(super) fn compressor(id: u8) -> Option<&'static Self> {
        COMPRESSORS.iter().find(|compressor| compressor.id == id)
    }

    const fn new(id: u8, name: &'static str, feature: &'static str) -> Self {
        Self { id, name, feature }
    }
}

/// The numbers that a build without the feature does not read. They are listed in
/// `docs/keys-and-scripts.md`, with all others.
const CODECS: [ByFeature; 2] = [
    ByFeature::new(3, "MessagePack", "msgpack"),
    ByFeature::new(4, "Postcard", "postcard"),
];
const COMPRESSORS: [ByFeature; 3] = [
    ByFeature::new(2, "zstd", "zstd"),
    ByFeature::new(3, "gzip", "deflate"),
    ByFeature::new(4, "zlib", "deflate"),
];
