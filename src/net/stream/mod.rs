//! The bytes of a connection: counted, and bounded, between the socket and the driver.
//!
//! Invariant: the bytes pass unchanged. [`dial`](super::connection::dial) puts these layers around
//! each socket.

pub(crate) mod bounded;
pub(crate) mod tapped;
pub(crate) mod traffic;
