//! The formats that a value is written in, one file each.
//!
//! Each has `encode` into a payload with a limit, `decode` from one, and, where bytes can be
//! damaged unnoticed, `is_whole`. Only the stack calls them.

pub(super) mod cbor;
pub(super) mod json;
pub(super) mod raw;
