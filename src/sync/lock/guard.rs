//! `Guard`: a held lock, as the user has it.
//!
//! Invariant: the drop of a guard never blocks, spawns or waits. It leaves a note for the keeper.
//! `Lock` makes guards.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::error::{Error, Result};
use crate::sync::core::held::Held;
use crate::sync::core::registry::Registry;
use crate::sync::core::release::release;
use crate::sync::fence::Fence;
use crate::sync::loss::LossReason;

/// A lock that is held, made by [`Lock::acquire`](super::Lock::acquire).
///
/// As long as it lives, it renews its lease by itself. [`release`](Self::release) gives the lock
/// up. Dropping the guard does so too, in the background.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    held: Held,
    locks: Arc<Registry>,
}

impl Guard {
    pub(in crate::sync) fn new(held: Held, locks: Arc<Registry>) -> Self {
        Self { held, locks }
    }

    /// Returns the error for a loss.
    pub(in crate::sync) fn error(&self, reason: LossReason) -> Error {
        self.held.error(reason)
    }

    /// Returns the fence of this grant. Pass it to what the lock protects.
    pub fn fence(&self) -> Fence {
        self.held.hold().fence
    }

    /// Returns whether the lock is still held, as far as this process can prove. No I/O.
    pub fn is_held(&self) -> bool {
        self.held.hold().status().is_ok()
    }

    /// Returns how long the lock is surely held without another renewal. Zero once it is lost. No
    /// I/O.
    pub fn remaining(&self) -> Duration {
        self.held.remaining()
    }

    /// Returns why the lock was lost. `None` while it is held. No I/O.
    pub fn loss(&self) -> Option<LossReason> {
        self.held.loss()
    }

    /// Waits until the lock is lost, and returns the reason. No I/O: it returns at the local
    /// deadline even if the server never answers.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        self.held.hold().lost().await
    }

    /// Releases the lock. The next waiter gets it at once.
    ///
    /// # Errors
    /// `Lost` if the lock was no longer held. `WrongType` if something else, or a client of another
    /// format, has written to the keys of the lock. Any other error means that the server could not
    /// be asked. The release is then tried again in the background until the lease has run out. The
    /// deadline of the client limits how long this call takes, not
    /// [`Lock::deadline`](super::Lock::deadline).
    ///
    /// # Cancel safety
    /// Safe: a dropped call is completed in the background.
    pub async fn release(self) -> Result<()> {
        let now = Instant::now();
        let Self { held, locks } = self;
        let span = tracing::debug_span!(target: "hedgerow::lock", "release", lock = held.hold().keys.name.shown().as_str(), fence = %held.hold().fence);
        // Pinned here, because it is large: the span around it would hold a copy.
        let released = pin!(release(&locks, held, now));
        released.instrument(span).await
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("lock", &self.held.hold().keys.name)
            .field("fence", &self.held.hold().fence)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
