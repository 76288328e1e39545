//! Rate limits for tower services: [`RateLimitLayer`], and [`ClientAddress`] to limit by address.
//!
//! Invariant: the layer uses the public API of limits only. A request that is refused never reaches
//! the service. The client gets every answer of a limit in the header fields of the IETF
//! draft.

mod address;
mod fields;
mod keys;
mod layer;
mod layer_limits;
mod service;

pub use address::{ClientAddress, InvalidProxy, NoAddress};
pub use keys::Keyless;
pub use layer::RateLimitLayer;
pub use layer_limits::LayerLimits;
pub use service::{RateLimited, RateLimiting};
