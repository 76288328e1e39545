//! The payload of an entry: the bytes that a codec writes and reads, and the errors that all share.
//!
//! Invariant: a payload that is being written never grows past its limit, and no error quotes it.

use std::io;

use crate::error::{Error, ErrorKind};

/// The end of an entry being written, which refuses to grow past the limit.
pub(super) struct Payload<'a> {
    pub(super) entry: &'a mut Vec<u8>,
    pub(super) end: usize,
    /// How many bytes of memory the value may take when it is read.
    pub(super) built: usize,
    pub(super) full: &'a mut bool,
}

impl io::Write for Payload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.end - self.entry.len() {
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

/// 64 MiB.
pub(super) const MAX_DECODED: usize = 64 << 20;
