//! What a caller can do with a cache, one verb per file.
//!
//! Invariant: reading and loading know no verb. The verbs put them together. Users call them on a
//! `Cache`.

mod get;
mod invalidate;
pub(crate) mod memoize;
mod remove;
pub(crate) mod set;
