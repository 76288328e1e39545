//! Integration tests: the public API against real servers, a topic a file.
#![expect(
    unreachable_pub,
    reason = "a test binary exports nothing; `pub` says what a file offers"
)]

mod cache;
mod client;
mod codec;
mod counter;
mod embedded;
mod faults;
mod house;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "limit")]
mod limit;
mod net;
mod ops;
#[cfg(feature = "session")]
mod session;
#[cfg(all(
    feature = "http",
    feature = "limit",
    feature = "metrics",
    feature = "session"
))]
mod shop;
mod support;
mod sync;
mod topology;
