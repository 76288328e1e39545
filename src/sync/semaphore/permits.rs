//! `Permits`: permits of a semaphore that are held, as the user has them.
//!
//! Invariant: the permits are given back when the last of their holders ends. `Semaphore` makes
//! them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::sync::core::held::Held;
use crate::sync::core::registry::Registry;
use crate::sync::core::release::release;
use crate::sync::loss::LossReason;

/// Permits that are held, made by [`Semaphore::acquire`](super::Semaphore::acquire). They renew
/// their lease by themselves. [`release`](Self::release) gives them back, a drop does so later.
#[must_use = "dropping the permits releases them"]
pub struct Permits {
    held: Held,
    registry: Arc<Registry>,
    weight: u32,
}

impl Permits {
    pub(super) fn new(held: Held, registry: Arc<Registry>, weight: u32) -> Self {
        Self {
            held,
            registry,
            weight,
        }
    }

    /// Returns how many permits these are.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns another holder of the same permits, for another task of the same work. They share
    /// one lease. The permits are given back when the last holder is released or dropped.
    pub fn share(&self) -> Self {
        Self::new(self.held.share(), self.registry.clone(), self.weight)
    }

    /// Returns whether the permits are still held, as far as this process can prove. No I/O.
    pub fn is_held(&self) -> bool {
        self.held.loss().is_none()
    }

    /// Returns how long they are surely held without another renewal. Zero once lost. No I/O.
    pub fn remaining(&self) -> Duration {
        self.held.remaining()
    }

    /// Returns why the permits were lost. `None` while they are held. No I/O.
    pub fn loss(&self) -> Option<LossReason> {
        self.held.loss()
    }

    /// Waits until the permits are lost, and returns the reason. No I/O.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        self.held.hold().lost().await
    }

    /// Gives the permits back to waiters that fit. If others share them, only this holder ends.
    ///
    /// # Errors
    /// `Lost` if the permits were no longer held, `WrongType` if something else is at their keys.
    /// Any other error means that the server did not answer in time, by the deadline of the client.
    /// The release is then tried again in the background until the lease has run out.
    ///
    /// # Cancel safety
    /// Safe: a dropped call is completed in the background.
    pub async fn release(self) -> Result<()> {
        release(&self.registry, self.held, Instant::now()).await
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Permits");
        shown.field("semaphore", &self.held.hold().keys.name);
        shown.field("weight", &self.weight).finish_non_exhaustive()
    }
}
