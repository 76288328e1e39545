//! `Codec` and `Compression`: how a cache writes values, and the numbers that entries name them by.
//!
//! Invariant: a number is never given to another codec or compressor, since entries outlive the
//! code that wrote them. Users choose both through the settings of a cache; the
//! [`Stack`](super::Stack) and the [envelope](super::envelope) read them.

/// How values become bytes.
///
/// A reader decodes with the codec that an entry names, not with the one that it is configured to
/// write with. So processes may change their codec one after the other.
///
/// A write fails with `Encode` if the value could not be read back. That is a value that is nested
/// deeper than 127 levels (128 with CBOR). It is also a value with an option below its top that
/// holds something written like no value (`Some(None)`, `Some(())`). At the top, "no value" is
/// stored beside the codec, so `None` and `Some(None)` stay distinct there. This holds for types
/// whose `Serialize` and `Deserialize` agree.
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
}

/// How encoded values are compressed.
///
/// A reader decompresses with the compressor that an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// LZ4. It is tried on encoded values of 4 KiB or more, and kept only if the result is smaller.
    #[default]
    Lz4,
}

impl Codec {
    // Part of the format: entries in Redis hold these numbers.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::Cbor => 0,
            Self::Json => 1,
            Self::Raw => 2,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        [Self::Cbor, Self::Json, Self::Raw]
            .into_iter()
            .find(|codec| codec.id() == id)
    }

    // Types choose their form by this, so a change would be a change of the format.
    pub(super) fn is_human_readable(self) -> bool {
        self != Self::Cbor
    }
}

impl Compression {
    // Part of the format: entries in Redis hold these numbers.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        [Self::None, Self::Lz4]
            .into_iter()
            .find(|compression| compression.id() == id)
    }
}
