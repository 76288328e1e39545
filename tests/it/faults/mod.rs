//! The fault matrix: what a fault does to counters, locks and loads while they are in use.
//!
//! A cell starts [`Traffic`], waits until it flows, brings the fault about, proves that the fault
//! has hit something, waits until the traffic flows again, and checks the books: what was
//! acknowledged is there, what was told as unknown is there once or not at all, what was told as
//! not executed is not there, fences have risen, and nobody was given a value older than an
//! invalidation that had returned. Each cell leaves a row for the table in `docs/faults.md` (see
//! [`report`]).

mod clock;
mod conditions;
mod failover;
mod network;
mod process;
pub mod report;
mod soak;
pub mod traffic;

pub use report::Row;
pub use traffic::{Loss, Traffic};
