//! Gzip (RFC 1952) and zlib (RFC 1950), one stream in each payload.
//!
//! Invariant: neither states its length where it can be believed, so a payload is decoded into a
//! buffer that grows with what comes out, up to the limit. The stream must end with its payload,
//! and its own checksum must match. The [`Stack`](crate::codec::Stack) calls this module.

use std::io::Write as _;

use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression as Level, Decompress, FlushDecompress, Status};

use crate::codec::payload::{too_long, undecompressible};
use crate::error::Result;

/// Returns `entry` with everything from `start` on compressed.
pub(super) fn gzip(entry: &[u8], start: usize, level: Option<i32>) -> Option<Vec<u8>> {
    let (head, payload) = begin(entry, start);
    let mut encoder = GzEncoder::new(head, level_of(level));
    encoder.write_all(payload).ok()?;
    encoder.finish().ok()
}

/// Returns `entry` with everything from `start` on compressed.
pub(super) fn zlib(entry: &[u8], start: usize, level: Option<i32>) -> Option<Vec<u8>> {
    let (head, payload) = begin(entry, start);
    let mut encoder = ZlibEncoder::new(head, level_of(level));
    encoder.write_all(payload).ok()?;
    encoder.finish().ok()
}

/// Returns the payload as it was before [`gzip`], at most `max_decoded` bytes.
pub(in crate::codec) fn gunzip(payload: &[u8], max_decoded: usize) -> Result<Vec<u8>> {
    inflated("gzip", Decompress::new_gzip(WINDOW), payload, max_decoded)
}

/// Returns the payload as it was before [`zlib`], at most `max_decoded` bytes.
pub(in crate::codec) fn unzlib(payload: &[u8], max_decoded: usize) -> Result<Vec<u8>> {
    inflated("zlib", Decompress::new(true), payload, max_decoded)
}

/// The head of the compressed entry, and what is compressed.
fn begin(entry: &[u8], start: usize) -> (Vec<u8>, &[u8]) {
    let (head, payload) = entry.split_at(start);
    let mut compressed = Vec::with_capacity(start + payload.len() / 2);
    compressed.extend_from_slice(head);
    (compressed, payload)
}

fn level_of(level: Option<i32>) -> Level {
    let level = level.and_then(|level| u32::try_from(level).ok());
    level.map_or(Level::default(), Level::new)
}

fn inflated(
    name: &str,
    mut state: Decompress,
    payload: &[u8],
    max_decoded: usize,
) -> Result<Vec<u8>> {
    // One byte more than is allowed, to notice that there is more.
    let most = max_decoded.saturating_add(1);
    let mut decoded = vec![0; payload.len().saturating_mul(USUAL_RATIO).clamp(1, most)];
    let (mut read, mut written) = (0, 0);
    loop {
        let (from, into) = (&payload[read..], &mut decoded[written..]);
        let status = state.decompress(from, into, FlushDecompress::None);
        let status =
            status.map_err(|cause| undecompressible(name, "malformed").with_source(cause))?;
        let before = (read, written);
        (read, written) = (count(state.total_in()), count(state.total_out()));
        if written > max_decoded {
            return Err(too_long(max_decoded));
        }
        match status {
            Status::StreamEnd if read < payload.len() => {
                return Err(undecompressible(name, "bytes left over"));
            }
            Status::StreamEnd => {
                decoded.truncate(written);
                return Ok(decoded);
            }
            Status::Ok | Status::BufError if written == decoded.len() => {
                let longer = written.saturating_mul(2).min(most);
                // Exactly: a vector that grows by itself may take twice the limit.
                decoded.reserve_exact(longer - written);
                decoded.resize(longer, 0);
            }
            Status::Ok | Status::BufError if (read, written) == before => {
                return Err(undecompressible(name, "it ends too early"));
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

/// A count of bytes that are in memory.
fn count(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The largest window of the format, as a power of two.
const WINDOW: u8 = 15;
/// Most values shrink to a quarter or less of their size.
const USUAL_RATIO: usize = 4;
