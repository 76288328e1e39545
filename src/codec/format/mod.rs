//! The formats that a value is written in, one file each.
//!
//! Invariant: a format never writes past the limit of its payload, and its errors never quote the
//! value. Each format has `encode` into a payload and `decode` from one. Each format with a syntax
//! also has `is_whole`, which distinguishes a damaged payload from one of another type. Only the
//! [`Stack`](crate::codec::Stack) calls them.

pub(super) mod cbor;
pub(super) mod json;
#[cfg(feature = "msgpack")]
pub(super) mod msgpack;
#[cfg(feature = "postcard")]
pub(super) mod postcard;
pub(super) mod raw;
