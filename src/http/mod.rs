//! Layers for tower services.

#[cfg(feature = "limit")]
mod limits;

#[cfg(feature = "limit")]
pub use limits::{ClientAddress, InvalidProxy, Keyless, RateLimitLayer, RateLimited, RateLimiting};
