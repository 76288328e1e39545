//! The cache: verbs, memoize, tags, outages.

mod bare;
mod bulkhead;
mod cache_many;
mod cache_model;
mod cache_terms;
mod codecs;
mod conditional;
mod cycles;
mod durable;
#[cfg(feature = "encrypt")]
mod encryption;
mod expiry;
mod explain;
mod foreign;
pub mod freshness;
mod herd;
pub mod herd_process;
pub mod history;
mod lease;
mod load_errors;
mod load_limit;
mod load_limit_batches;
mod load_limit_within;
mod loader_errors;
mod memo;
mod memoize;
mod memoize_bounds;
mod memoize_deadlines;
mod memoize_fleet;
mod memoize_many;
mod memoize_patience;
mod memoize_process;
mod memoize_runtimes;
mod memoize_solo;
mod memoize_with;
#[cfg(feature = "metrics")]
mod metrics;
mod move_version;
mod moving_slot;
#[cfg(feature = "near")]
mod near;
#[cfg(feature = "near")]
mod near_faults;
mod outage;
mod outage_table;
mod remove_many;
mod set_many;
mod stale;
mod stats;
mod tag_ids;
mod tag_index;
mod tag_snapshot;
mod tags;
mod undelivered;
mod update;
mod verbs;
mod walks;
