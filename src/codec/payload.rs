//! The payload of an entry: the bytes that a codec writes and reads, and the errors of all codecs.
//!
//! Invariant: a payload never grows past its limit while it is written, and no error quotes it. The
//! codecs, the compressors and the [`Stack`](super::Stack) use it.

use std::io;

use crate::error::{Error, ErrorKind};

/// The tail of an entry that is being written. It refuses to grow past the limit.
pub(super) struct Payload<'a> {
    pub(super) entry: &'a mut Vec<u8>,
    /// The most bytes that the whole entry may have.
    pub(super) end: usize,
    /// The most bytes of memory that the value may take when it is read.
    pub(super) built: usize,
    /// Set when a write would pass the limit: the error of the serializer no longer shows it.
    pub(super) full: &'a mut bool,
}

impl io::Write for Payload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Compares the difference, since a sum could overflow.
        if bytes.len() > self.end - self.entry.len() {
            // The serializers drop the kind of this error, so the flag reports it.
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

pub(super) fn too_large_to_store(limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the value encodes to more than {limit} bytes; split it or raise ClientBuilder::max_value_size"
        ),
    )
}

pub(super) fn too_large(length: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the entry decodes to {length} bytes, the limit is {limit}; \
             remove it or raise ClientBuilder::max_value_size"
        ),
    )
}

/// As [`too_large`], where the length is not known.
#[cfg(feature = "deflate")]
pub(super) fn too_long(limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the entry decodes to more than {limit} bytes; \
             remove it or raise ClientBuilder::max_value_size"
        ),
    )
}

pub(super) fn undecompressible(name: &str, how: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "cannot decompress the entry as {name}: {how}; \
             remove the key and load the value again"
        ),
    )
}

pub(super) fn unencodable(codec: &str, how: &str) -> Error {
    Error::new(
        ErrorKind::Encode,
        format!("cannot write the value as {codec}: {how}; choose another codec or another type"),
    )
}

pub(super) fn misfit(what: &str, how: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "cannot read the entry as {what}: {how}; \
             remove the key, or use `Cache::version` where a type has changed"
        ),
    )
}

/// The default of the longest payload: 64 MiB.
pub(super) const MAX_DECODED: usize = 64 << 20;
