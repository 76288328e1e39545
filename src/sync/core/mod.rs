//! The mechanism of synchronizers: each is a face of it, with a [`Kind`](kind::Kind).
//!
//! Invariant: whatever becomes of a call, a lease without a guard is released. Files use one
//! another in one direction, in this order:
//!
//! - what is known of a kind, an owner and a grant: `kind`, `owner`, `keys`, `hold`, `question`;
//! - what the keeper has to do: `watch`, `agenda`, `keeper_state`, `keeper`, `held`;
//! - requests and the queues: `request`, `answer`, `inbox`, `registry`, `queue_task`, `ticket`,
//!   `first_try`;
//! - what the tasks of the keeper carry out: `release`, `jobs`, `keeper_task`;
//! - what the faces call: `acquirer`, `held`, `release`.

pub(in crate::sync) mod acquirer;
pub(in crate::sync) mod agenda;
pub(in crate::sync) mod answer;
pub(in crate::sync) mod first_try;
pub(in crate::sync) mod held;
pub(in crate::sync) mod hold;
pub(in crate::sync) mod inbox;
pub(in crate::sync) mod jobs;
pub(in crate::sync) mod keeper;
pub(in crate::sync) mod keeper_state;
pub(in crate::sync) mod keeper_task;
pub(in crate::sync) mod keys;
pub(in crate::sync) mod kind;
pub(in crate::sync) mod owner;
pub(in crate::sync) mod question;
pub(in crate::sync) mod queue_task;
pub(in crate::sync) mod registry;
pub(in crate::sync) mod release;
pub(in crate::sync) mod request;
pub(in crate::sync) mod ticket;
pub(in crate::sync) mod watch;
