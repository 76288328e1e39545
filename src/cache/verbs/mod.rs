//! What a caller can do with a cache, one verb a file. Only these use what is below them together.

mod get;
mod invalidate;
pub(crate) mod memoize;
mod remove;
pub(crate) mod set;
