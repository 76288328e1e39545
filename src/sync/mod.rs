//! Synchronizers: what processes agree on through Redis.
//!
//! Invariant: imports run one way, from a synchronizer to `core`. `core` is the mechanism:
//! requests, the queues of this process and of the server, leases, and the keeper that renews and
//! releases them. Each synchronizer is a thin face of it. Today there is one, `lock`.

mod core;
mod fence;
pub mod lock;
mod loss;
