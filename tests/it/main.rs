//! Integration tests: the public API against real servers.

mod client;
mod lock;
mod server;
