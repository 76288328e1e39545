//! `Question`: what a caller asks by itself, as the keeper knows it.
//!
//! Invariant: a question is its caller's or the keeper's. The keeper takes it from a caller that is
//! not polled, and from then on its answer counts no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::keys::Keys;
use super::owner::Owner;
use crate::pulse::Pulse;
use crate::time::Ttl;

/// What a caller asks, as the keeper knows it.
#[derive(Debug)]
pub(in crate::sync) struct Question {
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) keys: Arc<Keys>,
    pub(in crate::sync) pulse: Pulse,
    /// When the question is sent at the latest, and the lease that it asks for.
    pub(in crate::sync) asked: (Instant, Ttl),
    pub(in crate::sync) stands: Stands,
    /// Whether the keeper has taken it from its caller.
    pub(in crate::sync) taken_over: AtomicBool,
}

/// Where the caller of a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Stands {
    /// Others of this process leave the question to this one.
    InLine,
    /// Beside them: it does not wait.
    Aside,
}

impl Question {
    /// Whether the keeper has taken it from its caller.
    pub(in crate::sync) fn is_taken_over(&self) -> bool {
        self.taken_over.load(Ordering::SeqCst)
    }
}
