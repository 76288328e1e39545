//! Rate limits for tower services: [`RateLimitLayer`], and [`ClientAddress`] to limit by address.
//!
//! Invariant: the layer uses the public API of limits only. A request that is refused never reaches
//! the service. Every answer of a limit is told to the client in the header fields of the IETF
//! draft.

mod address;
mod fields;
mod layer;
mod service;

pub use address::{ClientAddress, InvalidProxy};
pub use layer::{Keyless, RateLimitLayer};
pub use service::{RateLimited, RateLimiting};
