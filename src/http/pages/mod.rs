//! Pages of a web service, kept in a [`Cache`](crate::Cache).
//!
//! Invariant: a request is given a stored page only if the page was stored for requests like it,
//! and no purge of it has returned since it was rendered. [`PageCache`] is the layer, and
//! everything else is a part of it: a file for an idea.

mod attempt;
mod body;
mod conditional;
mod directives;
mod endpoint;
mod freshness;
mod headers;
mod hosts;
mod key;
mod known;
mod origin;
mod page;
mod page_cache;
mod passing;
mod purge;
mod query;
mod quiet;
mod render;
mod request;
mod selection;
mod serve;
mod service;
mod serving;
mod settings;
mod stats;
mod status;
mod tags;
mod under_way;

pub use body::PageBody;
pub use endpoint::PurgeEndpoint;
pub use page_cache::PageCache;
pub use purge::InvalidArgument;
pub use service::PageService;
pub use stats::PageStats;
pub use tags::CacheTags;
