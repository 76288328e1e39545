//! `Held`: what a caller has of one grant. Several holders of this process may share a grant, and
//! so its lease.
//!
//! Invariant: a grant is given up when its last holder ends, and not before. A drop never blocks,
//! spawns or waits: it leaves a note for the keeper. The registry and first tries make the first
//! holder, and the guards of each synchronizer wrap one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold::{End, Hold};
use super::keeper::Keeper;
use crate::client::Client;
use crate::error::Error;
use crate::sync::loss::LossReason;

/// One holder of a grant.
#[derive(Debug)]
pub(in crate::sync) struct Held(Arc<SharedLease>);

/// The lease of a grant. Its last holder drops it, which gives the grant up.
#[derive(Debug)]
pub(in crate::sync) struct SharedLease {
    pub(in crate::sync) hold: Arc<Hold>,
    keeper: Arc<Keeper>,
    pub(in crate::sync) client: Client,
}

impl Held {
    pub(in crate::sync) fn new(hold: Arc<Hold>, keeper: Arc<Keeper>, client: Client) -> Self {
        tracing::debug!(target: "hedgerow::sync", kind = hold.keys.kind.name, name = hold.keys.name.shown().as_str(), fence = %hold.fence, "acquired");
        Self(Arc::new(SharedLease {
            hold,
            keeper,
            client,
        }))
    }

    pub(in crate::sync) fn hold(&self) -> &Hold {
        &self.0.hold
    }

    /// Returns another holder of the same grant. It shares the lease, even if the lease is already
    /// lost.
    pub(in crate::sync) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Ends this holder. Returns the lease if it was the last one: of several that end at the same
    /// time, exactly one is.
    pub(in crate::sync) fn last(self) -> Option<SharedLease> {
        Arc::into_inner(self.0)
    }

    /// Takes the grant for the waiter to which it was handed. Returns whether the waiter may keep
    /// it: the keeper takes back what is not taken in time.
    pub(in crate::sync) fn take(&self) -> bool {
        self.hold().take()
    }

    /// Returns how long the grant is surely held without another renewal. Zero once it has ended.
    pub(in crate::sync) fn remaining(&self) -> Duration {
        match self.hold().status() {
            Ok(deadline) => deadline.saturating_duration_since(Instant::now()),
            Err(_) => Duration::ZERO,
        }
    }

    /// Returns why the grant was lost. `None` while it is held.
    pub(in crate::sync) fn loss(&self) -> Option<LossReason> {
        self.loss_at(Instant::now())
    }

    /// Does the same for a caller that read the clock at `now`.
    pub(in crate::sync) fn loss_at(&self, now: Instant) -> Option<LossReason> {
        match self.hold().status_at(now) {
            Err(End::Lost(reason)) => Some(reason),
            // A grant that was released is not lost.
            _ => None,
        }
    }

    /// Returns the error for a loss.
    pub(in crate::sync) fn error(&self, reason: LossReason) -> Error {
        self.hold().error(reason)
    }
}

impl Drop for SharedLease {
    fn drop(&mut self) {
        // Only the first end counts: what was released or lost has nothing left to give up.
        if self.hold.end(End::Released) {
            self.keeper.discard(&self.client, &self.hold);
        }
    }
}
