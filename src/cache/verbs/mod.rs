//! What a caller can do with a cache, one verb per file.
//!
//! Invariant: reading and loading know no verb. The verbs put them together. Users call them on a
//! `Cache`.

mod batch;
mod by_tag;
mod call;
mod conditional;
mod expiry;
mod explain;
mod fallback;
mod get;
mod get_many;
pub(crate) mod invalidate;
mod judged;
pub(crate) mod keys;
mod launch;
pub(crate) mod memo;
pub(crate) mod memoize;
pub(crate) mod memoize_many;
mod move_version;
pub(crate) mod pattern;
mod remove;
pub(crate) mod remove_matching;
pub(crate) mod set;
pub(crate) mod set_if;
pub(crate) mod set_many;
mod settings;
mod store_all;
pub(crate) mod tag_snapshot;
mod take;
pub(crate) mod update;
mod walk;
