//! The harness does what it says, or tests built on it show nothing.

mod cluster;
mod node;
mod pool;
mod proxy;
mod sentinels;
mod server;
mod tls;

pub use node::own;
