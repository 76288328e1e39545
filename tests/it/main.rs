//! Integration tests: the public API against real servers.

mod client;
mod counter;
mod counter_model;
mod fuzz_corpora;
mod lock;
mod server;
