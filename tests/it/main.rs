//! Integration tests: the public API against real servers.
#![expect(
    unreachable_pub,
    reason = "a test binary exports nothing; `pub` says what a file offers"
)]

mod client;
mod lock;
mod lock_cancel;
mod lock_faults;
mod lock_hold;
mod lock_model;
mod lock_process;
mod lock_push;
mod lock_queue;
mod lock_storm;
mod process;
mod server;
mod wait;
