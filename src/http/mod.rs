//! Layers for tower services: [`PageCache`] and, with the feature `limit`, `RateLimitLayer`.
//!
//! Invariant: only what is public at the root of the crate is used here, so that this module could
//! be a crate of its own. Users add the layers to their services.

#[cfg(feature = "limit")]
mod limits;
mod pages;
mod warnings;

#[cfg(feature = "limit")]
pub use limits::{
    ClientAddress, InvalidProxy, Keyless, LayerLimits, NoAddress, RateLimitLayer, RateLimited,
    RateLimiting,
};
pub use pages::{
    CacheTags, InvalidArgument, PageBody, PageCache, PageService, PageStats, PurgeEndpoint,
};
