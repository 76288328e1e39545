//! Synchronizers: what processes agree on through Redis.
//!
//! Invariant: imports run one way, from a synchronizer to `core`. `core` is the mechanism:
//! requests, the queues of this process and of the server, leases, and the keeper that renews and
//! releases them. Each synchronizer is a thin face of it, with a kind of its own: `lock`,
//! `semaphore`.

mod core;
mod fence;
pub mod lock;
mod loss;
pub mod semaphore;
