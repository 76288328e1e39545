//! Integration tests: the public API against real servers, a topic a file.

mod cache;
mod cache_model;
mod client;
mod freshness;
mod fuzz_corpora;
mod lock;
mod memoize;
mod monitor;
mod server;
mod tags;
