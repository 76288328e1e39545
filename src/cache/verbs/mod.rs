//! What a caller can do with a cache, one verb a file. Only these use what is below them together.

mod get;
mod invalidate;
mod remove;
