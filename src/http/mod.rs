//! Layers for tower services: [`PageCache`].
//!
//! Invariant: only what is public at the root of the crate is used here, so that this module could
//! be a crate of its own. Users add the layers to their services.

mod pages;

pub use pages::{
    CacheTags, InvalidArgument, PageBody, PageCache, PageService, PageStats, PurgeEndpoint,
};
