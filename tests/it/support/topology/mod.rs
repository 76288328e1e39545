//! More than one server: pairs, clusters, sentinels, and what stands before them.
//!
//! Invariant: every server ends with the value that holds it, and with this process, however that
//! ends. A piece a file; `checks` holds the tests of the pieces themselves.

mod binary;
mod checks;
mod cluster;
mod migration;
mod node;
mod pool;
mod port;
mod replicated;
mod sentinels;
mod shards;
mod tls;

pub use binary::{binary, knows_shards, not_here};
pub use checks::own;
pub use cluster::Cluster;
pub use migration::Migration;
pub use node::{Node, Recipe, command};
pub use pool::{Lease, lease_cluster, lease_sentinels, lease_shards};
pub use port::Port;
pub use replicated::Replicated;
pub use sentinels::Sentinels;
pub use shards::Shards;
pub use tls::{Certificates, Clients, Identity, TlsServer, with_tls};
