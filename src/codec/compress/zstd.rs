//! Zstandard frames (RFC 8878), one in each payload.
//!
//! Invariant: no memory is allocated for a length that is only claimed. The claimed length is
//! checked against the limit and against the most that a frame of that size can hold. The decoded
//! frame must have exactly that length, and nothing may stand behind it. The
//! [`Stack`](crate::codec::Stack) calls this module.

use std::cell::RefCell;

use zstd::bulk::{self, Decompressor};
use zstd::zstd_safe::{compress_bound, find_frame_compressed_size, get_frame_content_size};

use crate::codec::payload::{too_large, undecompressible};
use crate::error::Result;

/// Returns `entry` with everything from `start` on compressed.
pub(super) fn compress(entry: &[u8], start: usize, level: Option<i32>) -> Option<Vec<u8>> {
    let (head, payload) = entry.split_at(start);
    let mut compressed = Vec::with_capacity(start + compress_bound(payload.len()));
    compressed.extend_from_slice(head);
    // Written into a slice, so the room must be part of the vector.
    compressed.resize(compressed.capacity(), 0);
    let level = level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL);
    let room = &mut compressed[start..];
    let written = bulk::compress_to_buffer(payload, room, level).ok()?;
    compressed.truncate(start + written);
    Some(compressed)
}

/// Returns the payload as it was before [`compress`], at most `max_decoded` bytes.
pub(in crate::codec) fn decompress(payload: &[u8], max_decoded: usize) -> Result<Vec<u8>> {
    let length = decoded_length(payload, max_decoded)?;
    // In one step: what is decoded is the window, so a claimed window takes no memory.
    let mut decoded = vec![0; length];
    match with_context(|context| context.decompress_to_buffer(payload, &mut decoded[..])) {
        Ok(written) if written == length => Ok(decoded),
        Ok(written) => Err(undecompressible(
            NAME,
            format_args!("{written} bytes, not {length}"),
        )),
        Err(cause) => Err(undecompressible(NAME, "the frame is malformed").with_source(cause)),
    }
}

/// The first bytes of a frame with content (RFC 8878).
const FRAME: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// The length that the frame claims, checked.
fn decoded_length(payload: &[u8], max_decoded: usize) -> Result<usize> {
    // Another kind of frame holds no content, and any bytes.
    if !payload.starts_with(&FRAME) {
        return Err(undecompressible(NAME, "it is no frame"));
    }
    let Ok(Some(length)) = get_frame_content_size(payload) else {
        return Err(undecompressible(NAME, "its length is missing"));
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > max_decoded {
        return Err(too_large(length, max_decoded));
    }
    // Before anything is allocated: a few bytes could claim any length.
    if length > (payload.len() / BLOCK).saturating_mul(MOST_IN_A_BLOCK) {
        let how = format_args!("{} bytes cannot hold {length}", payload.len());
        return Err(undecompressible(NAME, how));
    }
    match find_frame_compressed_size(payload) {
        Ok(frame) if frame == payload.len() => Ok(length),
        Ok(_) => Err(undecompressible(NAME, "bytes left over")),
        Err(_) => Err(undecompressible(NAME, "the frame is malformed")),
    }
}

/// Runs `read` with the context of this thread, which would take longer to make than a small
/// payload takes to be read.
fn with_context<R>(
    read: impl FnOnce(&mut Decompressor<'static>) -> std::io::Result<R>,
) -> std::io::Result<R> {
    thread_local! {
        static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(Decompressor::new()?),
        };
        read(context)
    })
}

const NAME: &str = "zstd";
/// The fewest bytes of a block, and the most bytes that it stands for.
const BLOCK: usize = 4;
const MOST_IN_A_BLOCK: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MAX: usize = 1 << 20;
    /// The last block of a frame: one byte, a hundred times.
    const RUN_OF_100: [u8; 4] = [0x23, 0x03, 0, 7];

    #[test]
    fn a_claimed_length_is_checked_before_memory_is_taken() {
        // One block of one repeated byte, in a frame that claims eight bytes of length.
        let frame = |claimed: u64| {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
            frame.extend_from_slice(&claimed.to_le_bytes());
            frame.extend_from_slice(&RUN_OF_100);
            frame
        };
        assert_eq!(decompress(&frame(100), MAX).expect("whole"), [7; 100]);
        for wrong in [0, 99, 101, MAX as u64] {
            let error = decompress(&frame(wrong), MAX).expect_err("forged");
            assert_eq!(error.kind(), ErrorKind::Decode, "{wrong}: {error}");
        }
        let forged = decompress(&frame(16 << 20), 64 << 20).expect_err("forged");
        assert!(forged.to_string().contains("cannot hold"), "{forged}");
        for claimed in [MAX as u64 + 1, u64::MAX / 2, u64::MAX] {
            let error = decompress(&frame(claimed), MAX).expect_err("forged");
            assert!(
                matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Decode),
                "{error}"
            );
        }
    }

    #[test]
    fn a_frame_with_an_empty_one_behind_it_is_refused() {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 100][..], &RUN_OF_100].concat();
        assert_eq!(decompress(&frame, MAX).expect("whole"), [7; 100]);
        // zstd skips such a frame.
        let more = [&frame[..], b"\x50\x2a\x4d\x18\0\0\0\0"].concat();
        let error = decompress(&more, MAX).expect_err("added");
        assert!(error.to_string().contains("left over"), "{error}");
    }

    #[test]
    fn a_frame_without_a_length_is_refused() {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58][..], &RUN_OF_100].concat();
        let error = decompress(&frame, MAX).expect_err("no length");
        assert!(error.to_string().contains("length is missing"), "{error}");
    }
}
