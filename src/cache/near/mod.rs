//! The near cache.
mod table;
