//! LZ4 blocks, each preceded by its decoded length (`u32`, big-endian).
//!
//! Invariant: no memory is allocated for a length that is only claimed. The claimed length is
//! checked against the limit and against the most that a block of that size can hold. The decoded
//! block must have exactly that length. The [`Stack`](crate::codec::Stack) calls this module.

use crate::codec::payload::{too_large, undecompressible};
use crate::error::Result;

/// Returns `entry` with everything from `start` on compressed, or `None` if it is too long.
pub(in crate::codec) fn compress(entry: &[u8], start: usize) -> Option<Vec<u8>> {
    let (head, payload) = entry.split_at(start);
    if payload.len() > LONGEST {
        return None;
    }
    let length = u32::try_from(payload.len()).ok()?;
    let block = start + LENGTH;
    let mut compressed =
        Vec::with_capacity(block + lz4_flex::block::get_maximum_output_size(payload.len()));
    compressed.extend_from_slice(head);
    compressed.extend_from_slice(&length.to_be_bytes());
    // `compress_into` writes into a slice, so the room must be part of the vector.
    compressed.resize(compressed.capacity(), 0);
    let written = lz4_flex::block::compress_into(payload, &mut compressed[block..]).ok()?;
    compressed.truncate(block + written);
    Some(compressed)
}

/// Returns the payload as it was before [`compress`], at most `max_decoded` bytes.
pub(in crate::codec) fn decompress(payload: &[u8], max_decoded: usize) -> Result<Vec<u8>> {
    let (length, block) = decoded_length(payload, max_decoded)?;
    let mut decoded = vec![0; length];
    match lz4_flex::block::decompress_into(block, &mut decoded) {
        Ok(written) if written == length => Ok(decoded),
        Ok(written) => Err(undecompressible(
            NAME,
            format_args!("{written} bytes instead of {length}"),
        )),
        Err(cause) => Err(undecompressible(NAME, "the block is malformed").with_source(cause)),
    }
}

/// The length that the payload claims, checked, and the block.
fn decoded_length(payload: &[u8], max_decoded: usize) -> Result<(usize, &[u8])> {
    let Some((length, block)) = payload.split_first_chunk::<LENGTH>() else {
        return Err(undecompressible(NAME, "its length is missing"));
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > max_decoded {
        return Err(too_large(length, max_decoded));
    }
    // Before anything is allocated: a few bytes could claim 4 GiB.
    if length > block.len().saturating_mul(EXPANSION) {
        let how = format_args!("{} bytes cannot hold {length}", block.len());
        return Err(undecompressible(NAME, how));
    }
    Ok((length, block))
}

const NAME: &str = "lz4";
/// Bytes that the length takes.
const LENGTH: usize = 4;
/// One byte of a block stands for at most 255 decoded bytes.
const EXPANSION: usize = 255;
/// The longest input of an LZ4 block (`LZ4_MAX_INPUT_SIZE`).
const LONGEST: usize = 0x7e00_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MAX: usize = 1 << 20;

    fn packed(plain: &[u8]) -> Vec<u8> {
        compress(plain, 0).expect("compressible")
    }

    #[test]
    fn the_head_of_the_entry_stays_as_it_is() {
        let entry = [b"head".as_slice(), &[7; 500]].concat();
        let compressed = compress(&entry, 4).expect("compressible");
        assert!(
            compressed.starts_with(b"head\0\0\x01\xf4"),
            "{compressed:?}"
        );
        assert_eq!(decompress(&compressed[4..], MAX).expect("ours"), [7; 500]);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_block_is_looked_at() {
        let error = decompress(&packed(&vec![7; MAX + 1]), MAX).expect_err("one over");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let error = decompress(&[0xff; 9], MAX).expect_err("forged 4 GiB");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_length_that_the_block_cannot_hold_is_refused() {
        let mut forged = packed(&[7; 5000]);
        forged[..LENGTH].copy_from_slice(&(MAX as u32).to_be_bytes());
        let error = decompress(&forged, MAX).expect_err("forged");
        assert!(error.to_string().contains("cannot hold"), "{error}");
    }

    #[test]
    fn a_length_that_is_not_what_comes_out_is_refused() {
        for wrong in [4999_u32, 5001] {
            let mut forged = packed(&[7; 5000]);
            forged[..LENGTH].copy_from_slice(&wrong.to_be_bytes());
            let error = decompress(&forged, MAX).expect_err("forged");
            assert_eq!(error.kind(), ErrorKind::Decode, "{wrong}");
        }
        assert!(decompress(&[0, 0, 1], MAX).is_err(), "no whole length");
    }
}
