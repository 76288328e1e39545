//! What a caller can do with a cache, one verb per file.
//!
//! Invariant: reading and loading know no verb. The verbs put them together. Users call them on a
//! `Cache`.

mod batch;
mod call;
mod conditional;
mod expiry;
mod explain;
mod fallback;
mod get;
pub(crate) mod invalidate;
pub(crate) mod keys;
pub(crate) mod memo;
pub(crate) mod memoize;
pub(crate) mod memoize_many;
pub(crate) mod pattern;
mod remove;
pub(crate) mod remove_matching;
pub(crate) mod set;
pub(crate) mod set_if;
pub(crate) mod set_many;
mod settings;
pub(crate) mod tag_snapshot;
mod take;
pub(crate) mod update;
mod walk;
