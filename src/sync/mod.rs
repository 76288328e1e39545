//! Synchronizers: what processes agree on by Redis.
//!
//! `core` is the mechanism: requests, the queues of this process and of the server, leases and the
//! keeper that renews and releases them. Each synchronizer is a thin face of it.

mod core;
mod fence;
pub mod lock;
mod loss;
