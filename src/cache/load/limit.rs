//! `LoadLimit`: how many loaders of a cache run at once in this process.
//!
//! Invariant: each permit belongs to one call of a loader. Loads wait for permits in `admission`,
//! and the loads of a batch wait for one together (`gather`).

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// The permits of a cache. All clones of a handle share them.
#[derive(Debug, Clone)]
pub(in crate::cache) struct LoadLimit(Arc<Semaphore>);

/// The right to run one loader.
pub(in crate::cache) type LoadPermit = OwnedSemaphorePermit;

/// A permit that several loads wait for. It is given back when the last of them has dropped it.
/// `None` if they need none.
pub(in crate::cache) type SharedPermit = Shared<BoxFuture<'static, Option<Arc<LoadPermit>>>>;

impl LoadLimit {
    /// # Errors
    /// `InvalidInput` for zero, with which nothing could be loaded.
    pub(in crate::cache) fn new(loads: usize) -> Result<Self> {
        if loads == 0 {
            return Err(Error::invalid(
                "max_loads is 0, with which nothing is ever loaded; give at least 1",
            ));
        }
        // The semaphore panics above its maximum.
        let loads = loads.min(Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Semaphore::new(loads))))
    }

    /// Waits for a permit, in the order of the calls.
    ///
    /// Cancel safety: safe. A dropped wait gives up its position in the queue.
    pub(in crate::cache) async fn permit(&self) -> Option<LoadPermit> {
        // The semaphore is never closed.
        self.0.clone().acquire_owned().await.ok()
    }

    /// The same permit for all that wait for clones of what this returns. Once `excused` is
    /// notified, they wait no longer.
    pub(in crate::cache) fn shared(&self, excused: Arc<Notify>) -> SharedPermit {
        let limit = self.clone();
        let permit = async move {
            tokio::select! {
                biased;
                permit = limit.permit() => permit.map(Arc::new),
                () = excused.notified() => None,
            }
        };
        permit.boxed().shared()
    }
}
