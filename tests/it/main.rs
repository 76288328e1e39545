//! Integration tests: the public API against real servers.

mod client;
mod fuzz_corpora;
mod lock;
mod server;
