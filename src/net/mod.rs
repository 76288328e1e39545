//! TODO: what it is, its invariant, who calls it.

pub(crate) mod address;
pub(crate) mod address_map;
pub(crate) mod breaker;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod node;
pub(crate) mod pipeline;
pub(crate) mod pubsub;
pub(crate) mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod url;
