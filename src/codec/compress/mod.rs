//! The compressors, one file each. Only the stack calls them.

pub(super) mod lz4;
