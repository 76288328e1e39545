//! `Question`: a first try, as the keeper knows it.
//!
//! Invariant: a question belongs to its caller or to the keeper. The keeper takes it from a caller
//! that is not polled. From then on, the answer no longer counts. `FirstTry` makes it, and `Watch`
//! looks at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::keys::Keys;
use super::owner::Owner;
use crate::pulse::Pulse;
use crate::time::Ttl;

/// A first try, as the keeper knows it.
#[derive(Debug)]
pub(in crate::sync) struct Question {
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) keys: Arc<Keys>,
    /// The polls of the caller's future. The keeper sees from them whether it is polled.
    pub(in crate::sync) pulse: Pulse,
    /// The moment after which the question is not sent, and the lease that it asks for.
    pub(in crate::sync) asked: (Instant, Ttl),
    pub(in crate::sync) stands: Stands,
    /// Whether the keeper has taken the question from its caller.
    pub(in crate::sync) taken_over: AtomicBool,
}

/// Whether other calls of the process depend on a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Stands {
    /// They do: others of this process wait for its answer.
    InLine,
    /// They do not: its caller asks beside them.
    Aside,
}

impl Question {
    /// Returns whether the keeper has taken the question from its caller.
    pub(in crate::sync) fn is_taken_over(&self) -> bool {
        self.taken_over.load(Ordering::SeqCst)
    }
}
