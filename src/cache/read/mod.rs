//! Reading: an entry is fetched and judged, and calls for one key share that.

pub(super) mod fetch;
mod judge;
pub(super) mod reading;
pub(super) mod shared;
