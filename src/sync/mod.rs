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

use crate::client::Client;

/// How many leases of locks and semaphores this client holds, asks for, or has yet to release.
pub(crate) fn leases_under_way(client: &Client) -> usize {
    core::keeper_task::registry(client).keeper().notes()
}
