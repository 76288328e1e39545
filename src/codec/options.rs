//! `Codec` and `Compression`: what a cache writes with, and the numbers that entries know them by.
//!
//! Invariant: a number is never given to another codec, since entries outlive the code that wrote
//! them.

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

impl Codec {
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

    pub(super) fn is_human_readable(self) -> bool {
        self != Self::Cbor
    }
}

impl Compression {
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
