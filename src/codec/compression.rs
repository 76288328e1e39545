//! `Compression`: how a cache compresses what it writes, and the numbers that entries name
//! compressors by.
//!
//! Invariant: a number is never given to another compressor, since entries outlive the code that
//! wrote them. Users choose a compressor through the settings of a cache; the
//! [`Stack`](super::Stack) and the [envelope](super::envelope) read it.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// How encoded values are compressed.
///
/// A reader decompresses with the compressor that an entry names. By default, values that encode to
/// 4 KiB or more are compressed, and the result is kept if it is smaller. The methods change that:
///
/// ```no_run
/// # fn example(client: hedgerow::Client) {
/// use hedgerow::Compression;
///
/// let cache = client.cache("catalogue").compression(Compression::Lz4);
/// let eager = cache.compression(Compression::Lz4.min_size(1 << 10));
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// LZ4: the fastest. It has no levels.
    #[default]
    Lz4,
    /// Zstandard: a sixth to a third smaller than LZ4, and written more slowly. Levels 1 to 22, 3
    /// by default. Above 9, each gains little and costs much time and memory.
    #[cfg(feature = "zstd")]
    Zstd,
    /// Gzip (RFC 1952), for other programs. Levels 1 to 9, 6 by default.
    #[cfg(feature = "deflate")]
    Gzip,
    /// Zlib (RFC 1950): as [`Gzip`](Self::Gzip), twelve bytes shorter. Levels 1 to 9, 6 by default.
    #[cfg(feature = "deflate")]
    Zlib,
}

/// A [`Compression`] with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CompressionOptions {
    pub(super) compressor: Compression,
    pub(super) level: Option<i32>,
    pub(super) min_size: usize,
    pub(super) keep: Keep,
}

/// When the compressed form of a value is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Keep {
    IfSmaller,
    Always,
}

impl Compression {
    /// Sets the level: how much time is spent to make the result smaller. See the variants for
    /// their ranges. A level never matters to readers. Values are compressed in the task of the
    /// call: with a high level, a large value may hold its thread for seconds.
    ///
    /// If the compressor has no such level, each call of the cache fails with `InvalidInput`.
    #[must_use]
    pub fn level(self, level: i32) -> CompressionOptions {
        CompressionOptions::from(self).level(level)
    }

    /// Sets from which encoded size on values are compressed, in bytes: 4096 by default.
    #[must_use]
    pub fn min_size(self, bytes: usize) -> CompressionOptions {
        CompressionOptions::from(self).min_size(bytes)
    }

    /// Keeps the compressed form of a value even if it is not smaller. By default, such a value is
    /// stored as it was.
    #[must_use]
    pub fn keep_always(self) -> CompressionOptions {
        CompressionOptions::from(self).keep_always()
    }

    /// The compressors of this build.
    pub(super) const ALL: &[Self] = &[
        Self::None,
        Self::Lz4,
        #[cfg(feature = "zstd")]
        Self::Zstd,
        #[cfg(feature = "deflate")]
        Self::Gzip,
        #[cfg(feature = "deflate")]
        Self::Zlib,
    ];

    // Part of the format: entries in Redis hold these numbers.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            #[cfg(feature = "zstd")]
            Self::Zstd => 2,
            #[cfg(feature = "deflate")]
            Self::Gzip => 3,
            #[cfg(feature = "deflate")]
            Self::Zlib => 4,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|compression| compression.id() == id)
    }

    fn levels(self) -> Option<RangeInclusive<i32>> {
        match self {
            Self::None | Self::Lz4 => None,
            #[cfg(feature = "zstd")]
            Self::Zstd => Some(1..=22),
            #[cfg(feature = "deflate")]
            Self::Gzip | Self::Zlib => Some(1..=9),
        }
    }
}

impl CompressionOptions {
    /// See [`Compression::level`].
    #[must_use]
    pub fn level(self, level: i32) -> Self {
        Self {
            level: Some(level),
            ..self
        }
    }

    /// See [`Compression::min_size`].
    #[must_use]
    pub fn min_size(self, bytes: usize) -> Self {
        Self {
            min_size: bytes,
            ..self
        }
    }

    /// See [`Compression::keep_always`].
    #[must_use]
    pub fn keep_always(self) -> Self {
        Self {
            keep: Keep::Always,
            ..self
        }
    }

    /// Checks the level, since the setters return no error.
    pub(super) fn check(&self) -> Result<()> {
        let Some(level) = self.level else {
            return Ok(());
        };
        let compressor = self.compressor;
        match compressor.levels() {
            None => Err(Error::invalid(format!(
                "{compressor:?} has no levels; leave the level out, or choose another compression"
            ))),
            Some(levels) if !levels.contains(&level) => Err(Error::invalid(format!(
                "the level {level} is not one of {compressor:?}; give one from {} to {}",
                levels.start(),
                levels.end()
            ))),
            Some(_) => Ok(()),
        }
    }
}

impl From<Compression> for CompressionOptions {
    fn from(compressor: Compression) -> Self {
        Self {
            compressor,
            level: None,
            min_size: WORTH_COMPRESSING,
            keep: Keep::IfSmaller,
        }
    }
}

impl Default for CompressionOptions {
    fn default() -> Self {
        Compression::default().into()
    }
}

/// The shortest payload that is compressed by default, in bytes. Below this, LZ4 gains about a
/// tenth and costs more than it saves.
const WORTH_COMPRESSING: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_level_that_the_compressor_does_not_have_is_refused() {
        for compressor in Compression::ALL {
            assert!(CompressionOptions::from(*compressor).check().is_ok());
            let (least, most) = match compressor.levels() {
                Some(levels) => levels.into_inner(),
                // No level at all.
                None => (1, 0),
            };
            for level in least..=most {
                assert!(compressor.level(level).check().is_ok(), "{compressor:?}");
            }
            for level in [i32::MIN, least - 1, most + 1, i32::MAX] {
                let refused = compressor.min_size(0).level(level).check();
                let refused = refused.expect_err("no such level");
                assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{compressor:?}");
            }
        }
    }
}
