//! The compressors, one file each.
//!
//! Invariant: a compressor returns exactly the bytes that it was given, or an error. Only the
//! [`Stack`](crate::codec::Stack) calls them.

pub(super) mod lz4;
