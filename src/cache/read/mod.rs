//! Reading: an entry is fetched and judged, and calls for one key share that.
//!
//! Invariant: an entry is a hit only if all its generations are the present ones, read with the
//! entry or after it. The verbs and the loads of the cache read through here.

mod answers;
pub(in crate::cache) mod early;
pub(super) mod fetch;
pub(in crate::cache) mod judge;
pub(super) mod mark;
pub(super) mod reading;
pub(super) mod shared;
mod wanted;
