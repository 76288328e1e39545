//! The compressors, one file each.
//!
//! Invariant: a compressor returns exactly the bytes that it was given, or an error, and takes no
//! memory for a length that is only claimed. Only the [`Stack`](crate::codec::Stack) calls them.

#[cfg(feature = "deflate")]
pub(super) mod deflate;
pub(super) mod lz4;
#[cfg(feature = "zstd")]
pub(super) mod zstd;

use super::compression::{Compression, CompressionOptions, Keep};
use crate::error::Result;

/// Returns `entry` with everything from `start` on compressed, or `None` if it stays as it is.
pub(super) fn compress(
    options: &CompressionOptions,
    entry: &[u8],
    start: usize,
) -> Option<Vec<u8>> {
    if entry.len() - start < options.min_size {
        return None;
    }
    let compressed = match options.compressor {
        Compression::None => None,
        Compression::Lz4 => lz4::compress(entry, start),
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstd::compress(entry, start, options.level),
        #[cfg(feature = "deflate")]
        Compression::Gzip => deflate::gzip(entry, start, options.level),
        #[cfg(feature = "deflate")]
        Compression::Zlib => deflate::zlib(entry, start, options.level),
    };
    compressed.filter(|compressed| match options.keep {
        Keep::IfSmaller => compressed.len() < entry.len(),
        Keep::Always => true,
    })
}

/// Returns the payload as it was before [`compress`], at most `max_decoded` bytes. `None` if it was
/// not compressed.
pub(super) fn decompress(
    compressor: Compression,
    payload: &[u8],
    max_decoded: usize,
) -> Result<Option<Vec<u8>>> {
    match compressor {
        Compression::None => return Ok(None),
        Compression::Lz4 => lz4::decompress(payload, max_decoded),
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstd::decompress(payload, max_decoded),
        #[cfg(feature = "deflate")]
        Compression::Gzip => deflate::gunzip(payload, max_decoded),
        #[cfg(feature = "deflate")]
        Compression::Zlib => deflate::unzlib(payload, max_decoded),
    }
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MAX: usize = 1 << 20;

    fn packing() -> impl Iterator<Item = Compression> {
        let all = Compression::ALL.iter().copied();
        all.filter(|compressor| *compressor != Compression::None)
    }

    fn packed(compressor: Compression, plain: &[u8]) -> Vec<u8> {
        compress(&compressor.min_size(0).keep_always(), plain, 0).expect("compressed")
    }

    fn unpacked(compressor: Compression, payload: &[u8], max: usize) -> Result<Vec<u8>> {
        decompress(compressor, payload, max).map(|plain| plain.expect("a compressor"))
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        for compressor in packing() {
            for plain in [
                vec![7; MAX],
                b"hedge ".repeat(1000),
                noise(70_000),
                vec![],
                vec![1],
            ] {
                let read = unpacked(compressor, &packed(compressor, &plain), MAX);
                assert_eq!(read.expect("ours"), plain, "{compressor:?}");
            }
        }
    }

    #[test]
    fn every_level_is_read_alike() {
        let plain = b"hedge ".repeat(1000);
        for compressor in packing() {
            for level in 1..=22 {
                let options = compressor.level(level);
                if options.check().is_ok() {
                    let packed = compress(&options, &plain, 0).expect("compressible");
                    let read = unpacked(compressor, &packed, MAX).expect("ours");
                    assert_eq!(read, plain, "{options:?}");
                }
            }
        }
    }

    #[test]
    fn a_higher_level_is_smaller() {
        let text: Vec<u8> = (0..20_000_u32)
            .flat_map(|n| format!("{} ", n.wrapping_mul(2_654_435_761) >> 20).into_bytes())
            .collect();
        for compressor in packing().filter(|compressor| *compressor != Compression::Lz4) {
            let length = |level| {
                let packed = compress(&compressor.level(level), &text, 0);
                packed.expect("compressible").len()
            };
            assert!(length(9) < length(1), "{compressor:?}");
        }
    }

    #[test]
    fn noise_is_left_alone_unless_it_is_always_kept() {
        for compressor in packing() {
            let noise = noise(10_000);
            assert_eq!(compress(&compressor.into(), &noise, 0), None);
            let kept = compress(&compressor.keep_always(), &noise, 0).expect("kept");
            assert!(kept.len() > noise.len(), "{compressor:?}");
        }
    }

    #[test]
    fn the_head_of_the_entry_stays_as_it_is() {
        for compressor in packing() {
            let entry = [b"head".as_slice(), &[7; 5000]].concat();
            let smaller = compress(&compressor.into(), &entry, 4).expect("compressible");
            assert!(smaller.starts_with(b"head"), "{smaller:?}");
            let read = unpacked(compressor, &smaller[4..], MAX);
            assert_eq!(read.expect("ours"), [7; 5000], "{compressor:?}");
            let short = compressor.min_size(5001);
            assert_eq!(compress(&short, &entry, 4), None, "{compressor:?}");
        }
    }

    #[test]
    fn more_than_the_limit_is_too_large_and_never_built() {
        for compressor in packing() {
            let bomb = packed(compressor, &vec![7; MAX + 1]);
            assert!(bomb.len() < MAX / 100, "{compressor:?}");
            let error = unpacked(compressor, &bomb, MAX).expect_err("one over");
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{compressor:?}");
            let most = packed(compressor, &vec![7; MAX]);
            let read = unpacked(compressor, &most, MAX).expect("the most");
            assert!(read.capacity() <= MAX + 1, "{compressor:?}");
        }
    }

    #[test]
    fn a_missing_or_added_byte_is_noticed() {
        for compressor in packing() {
            let packed = packed(compressor, &b"hedge ".repeat(1000));
            for end in 0..packed.len() {
                let error = unpacked(compressor, &packed[..end], MAX);
                assert!(error.is_err(), "{compressor:?} {end}");
            }
            for more in [&[0][..], &packed] {
                let longer = [&packed, more].concat();
                let error = unpacked(compressor, &longer, MAX).expect_err("added");
                assert_eq!(error.kind(), ErrorKind::Decode, "{compressor:?}");
            }
        }
    }
}
