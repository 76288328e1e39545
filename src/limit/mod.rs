//! Rate limits: [`RateLimiter`], and [`RateLimits`] for several limits in one call.
//!
//! Invariant: as far as the server keeps its data and its clock goes on, no more is let through
//! than the [algorithm](Algorithm) promises, by all processes of a namespace together. Where
//! something is in doubt, such as a lost reply, less is let through, never more. A refused request
//! takes nothing.
//!
//! Everything is decided by the server's clock, which each script reads once: a process with a
//! wrong clock does no harm.
//!
//! [`Client::rate_limiter`](crate::Client::rate_limiter) and
//! [`Client::rate_limits`](crate::Client::rate_limits) make them. `Semaphore` limits how many calls
//! run at the same time. The guide has a page on
//! [limits](https://github.com/hedgerow-rs/hedgerow/blob/main/docs/guide/limits.md).

mod check;
mod decision;
mod group;
mod limiter;
mod local;
mod locals;
mod outage;
mod places;
mod quota;
mod refund;
mod refusals;
mod scripts;
mod settings;
mod state;
mod stats;
mod until_ready;

pub use check::Check;
pub use decision::{DecidedBy, Decision};
pub use group::{CheckAll, Decisions, RateLimits};
pub use limiter::RateLimiter;
pub use outage::LimitOutage;
pub use quota::{Algorithm, Quota};
pub(crate) use state::turns_under_way;
pub use stats::LimitStats;
pub use until_ready::UntilReady;
