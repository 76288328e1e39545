//! The harness does what it says, or tests built on it show nothing.

mod cluster;
mod node;
mod proxy;
mod sentinels;

pub use node::own;
