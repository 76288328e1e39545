//! The page cache, around a service that answers as a test says, and over real HTTP.

mod herd;
mod keys;
#[cfg(feature = "near")]
mod near;
mod outage;
mod over_http;
mod purge;
mod serving;
mod site;
mod stale;
mod storing;
