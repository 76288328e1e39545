//! Admission: a load waits until it may be one of the loads that its cache has at once.
//!
//! Invariant: a load that waits for a permit holds neither a load lease nor a permit, so other
//! processes load meanwhile. A load that has a permit waits for no load that waits for one: a load
//! within a load needs none, and a load that waits for one is let in when a load joins it. So loads
//! that wait for each other cannot hold all permits. First step of a [`Load`].

use std::pin::pin;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio::time::sleep_until;

use super::flight::Outcome;
use super::limit::{LoadLimit, LoadPermit};
use super::{Load, deserted};
use crate::error::{Error, ErrorKind, Fate, Result};

/// How a load was admitted, if it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    AtOnce,
    /// What was read before is as old as the wait.
    Waited,
    /// No call waits for the load any more.
    Deserted,
}

impl<V> Load<V> {
    /// Waits for a permit, if the load needs one.
    ///
    /// # Errors
    /// `LoaderTimeout` when `max_load` has passed since the call that opened the flight.
    pub(super) async fn admitted<T>(
        &mut self,
        creator: &mut oneshot::Sender<T>,
    ) -> Result<Admitted> {
        let Some(limit) = self.limit().cloned() else {
            return Ok(Admitted::AtOnce);
        };
        // A batch has one permit for the one call of its loader.
        let of_batch = self.member.as_ref().and_then(|member| member.permit());
        let mut permit = pin!(async {
            match of_batch {
                Some(permit) => drop(permit.await),
                None => self.permit = limit.permit().await,
            }
        });
        // A permit that is free is taken, also for a load that no call waits for.
        if permit.as_mut().now_or_never().is_some() {
            return Ok(Admitted::AtOnce);
        }
        tokio::select! {
            biased;
            () = permit => {}
            () = deserted(creator, &self.leader) => return Ok(Admitted::Deserted),
            // The permit of the load that waits for this one counts for both.
            () = self.leader.joined_within() => self.excused = true,
            () = sleep_until(self.rounds.admitted_by()) => {
                // No load has ended, so this must not count as one of the followers' rounds.
                self.leader.close().settle(Outcome::NoLoad);
                return Err(no_permit());
            }
        }
        Ok(Admitted::Waited)
    }

    /// Waits for a permit as long as it takes, if the load needs one. For a load that asks for no
    /// lease.
    pub(super) async fn permit(&self) -> Option<LoadPermit> {
        self.limit()?.permit().await
    }

    /// Returns once another load waits for this one, if it needs a permit.
    pub(super) async fn excused(&self) {
        match self.limit() {
            Some(_) => self.leader.joined_within().await,
            None => std::future::pending().await,
        }
    }

    /// The limit of the cache, unless the load has a permit or needs none.
    fn limit(&self) -> Option<&LoadLimit> {
        let limit = self.request.cache.setup.max_loads.as_ref()?;
        let needs_one = self.permit.is_none() && !self.excused && !self.running.is_within();
        needs_one.then_some(limit)
    }
}

/// The error of a load that has waited too long to begin.
fn no_permit() -> Error {
    Error::new(
        ErrorKind::LoaderTimeout,
        "as many loads of the cache as max_loads allows ran in this process for longer than \
         max_load; raise max_loads or make the loader faster",
    )
    // No loader has run, so the caller may try again.
    .with_fate(Fate::NotExecuted)
}
