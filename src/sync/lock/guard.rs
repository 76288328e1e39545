//! `Guard`: a held lock.
//!
//! Invariant: dropping a guard never blocks, spawns or waits: it leaves a note for the keeper.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::error::Result;
use crate::sync::core::held::Held;
use crate::sync::core::hold::End;
use crate::sync::core::registry::Registry;
use crate::sync::core::release::release;
use crate::sync::fence::Fence;
use crate::sync::loss::LossReason;

/// A lock that is held; made by [`Lock::acquire`](super::Lock::acquire).
///
/// It renews its lease by itself, as long as it lives. [`release`](Self::release) gives the lock
/// up; dropping the guard does so too, in the background.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    held: Held,
    locks: Arc<Registry>,
}

impl Guard {
    pub(in crate::sync) fn new(held: Held, locks: Arc<Registry>) -> Self {
        Self { held, locks }
    }
    /// The fence of this grant: pass it to what the lock protects.
    pub fn fence(&self) -> Fence {
        self.held.hold.fence
    }

    /// Whether the lock is still held, as far as this process can prove. No I/O.
    pub fn is_held(&self) -> bool {
        self.held.hold.status().is_ok()
    }

    /// How long the lock is surely held without another renewal; zero once it is lost. No I/O.
    pub fn remaining(&self) -> Duration {
        match self.held.hold.status() {
            Ok(deadline) => deadline.saturating_duration_since(Instant::now()),
            Err(_) => Duration::ZERO,
        }
    }

    /// Why the lock was lost; `None` while it is held. No I/O.
    pub fn loss(&self) -> Option<LossReason> {
        match self.held.hold.status() {
            Err(End::Lost(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Waits until the lock is lost, and says why. No I/O: it fires at the local deadline even
    /// when the server never answers.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        self.held.hold.lost().await
    }

    /// Releases the lock; the next waiter gets it at once.
    ///
    /// # Errors
    /// `Lost` when it was no longer held. `WrongType` when something else, or a client of another
    /// format, has written to the keys of the lock. Any other error means that the server could not
    /// be asked: the release is tried again in the background until the lease has run out. How long
    /// this takes is limited by the deadline of the client, not by
    /// [`Lock::deadline`](super::Lock::deadline).
    ///
    /// # Cancel safety
    /// Safe: a dropped call is completed in the background.
    pub async fn release(self) -> Result<()> {
        let now = Instant::now();
        if let Err(End::Lost(reason)) = self.held.hold.status_at(now) {
            return Err(reason.error(&self.held.hold.keys.name));
        }
        let span = tracing::debug_span!(target: "hedgerow::lock", "release", lock = self.held.hold.keys.name.shown().as_str(), fence = %self.held.hold.fence);
        let released = pin!(release(&self.locks, &self.held, now));
        released.instrument(span).await
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("lock", &self.held.hold.keys.name)
            .field("fence", &self.held.hold.fence)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
