//! One server: where it is, the connections to it, and what is sent over them.
//!
//! Invariant: nothing here knows another server, or what a command means.
//!
//! A topology chooses a [`node`], which owns the pipeline and the connections of one server.

pub(crate) mod address;
pub(crate) mod address_map;
pub(crate) mod breaker;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod durable;
pub(crate) mod endpoint;
pub(crate) mod node;
pub(crate) mod pipeline;
pub(crate) mod pubsub;
pub(crate) mod server_run;
pub(crate) mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(feature = "near")]
pub(crate) mod tracked;
#[cfg(feature = "near")]
pub(crate) mod tracking;
pub(crate) mod url;
