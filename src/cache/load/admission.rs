//! Admission: a load waits until it may be one of the loads that its cache has at once.
//!
//! Invariant: a load waits for a permit before it asks for the load lease, and gives it back when
//! it must wait for another process, so others may load meanwhile. A load that another load waits
//! for needs none, because the permit of the first counts for both: so loads that wait for each
//! other cannot hold all permits. A load that gets its lease too late for the one call of its batch
//! waits for a permit of its own, with the lease, before its loader runs. First step of a [`Load`].

use std::pin::pin;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

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
        let member = self.member.clone();
        // A batch has one permit for the one call of its loader, which takes it.
        let of_batch = member.as_ref().and_then(|member| member.permit());
        let permit = async {
            match of_batch {
                Some(permit) => permit.await.and(None),
                None => limit.permit().await,
            }
        };
        let mut permit = pin!(permit);
        // By the first poll, and not by the clock: a permit that is free must cost no further read.
        if let Some(permit) = (&mut permit).now_or_never() {
            self.permit = permit;
            return Ok(Admitted::AtOnce);
        }
        tokio::select! {
            // A permit that comes is taken, also for a load that no call waits for.
            biased;
            permit = permit => self.permit = permit,
            () = deserted(creator, &self.leader) => return Ok(Admitted::Deserted),
            // The permit of the load that waits for this one counts for both.
            () = self.leader.joined_within() => {
                self.excused = true;
                if let Some(member) = member {
                    member.excuse();
                }
            }
            () = sleep_until(self.rounds.admitted_by()) => {
                // No load has ended, so this must not count as one of the followers' rounds.
                self.leader.close().settle(Outcome::NoLoad);
                return Err(no_permit());
            }
        }
        Ok(Admitted::Waited)
    }

    /// Waits for a permit of its own, if the load was to be part of a batch whose loader has been
    /// called without it. The lease is held, and the load has begun.
    ///
    /// # Errors
    /// `LoaderTimeout` if there is none by `until`.
    pub(super) async fn late_permit(&self, until: Instant) -> Result<Option<LoadPermit>> {
        let (Some(limit), Some(member)) = (self.limit(), &self.member) else {
            return Ok(None);
        };
        if member.leads(self.lease.fence()) {
            return Ok(None);
        }
        tokio::select! {
            biased;
            permit = limit.permit() => Ok(permit),
            () = self.leader.joined_within() => Ok(None),
            () = sleep_until(until) => Err(no_permit()),
        }
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
