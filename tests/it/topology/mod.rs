//! More than one server: pairs, clusters, sentinels, and what stands before them.
//!
//! Invariant: every server ends with the value that holds it, and with this process, however that
//! ends. A piece a file; `checks` holds the tests of the pieces themselves.

#![expect(
    dead_code,
    reason = "a harness is ahead of the tests that are written on it"
)]

mod checks;
mod cluster;
mod migration;
mod node;
mod port;
mod replicated;
mod sentinels;

pub use checks::own;
pub use cluster::Cluster;
pub use migration::Migration;
pub use node::{Node, Recipe};
pub use port::Port;
pub use replicated::Replicated;
pub use sentinels::Sentinels;
