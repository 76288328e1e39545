//! The load of a flight that has the lease: the loader runs, and its value is stored and shared.
//!
//! Invariant: only commands that are sent after the flight was closed prove a value for late calls.
//! Second step of a [`Load`] that leads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use serde::Serialize;
use tokio::time::Instant;

use super::Load;
use super::failure::Failure;
use super::flight::{Closed, Outcome};
use super::lease::Committed;
use crate::cache::read::fetch;
use crate::error::loader::{Captured, Loader};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::tags::Generation;
use crate::time::Deadline;

impl Load {
    /// Loads, stores and shares the value. The lease is held.
    pub(super) async fn lead<V, L>(&self, loader: L, generations: &[Generation]) -> Result<Arc<V>>
    where
        V: Serialize + Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let prepared = async {
            self.leader.begin_load();
            let begun = Instant::now();
            let until = begun + self.request.terms.max_load.duration();
            let value = self.loaded(loader, until).await?;
            let cost = begun.elapsed();
            let entry = self.request.encode(&value, generations, cost)?;
            Ok((value, entry))
        };
        // The value's own code runs in there, too. If it panics, it must not leave the lease
        // behind.
        let prepared = AssertUnwindSafe(prepared).catch_unwind().await;
        let prepared = prepared.unwrap_or_else(|_panic| {
            Err(self.request.named(Error::new(
                ErrorKind::LoaderPanicked,
                "encoding the value panicked; the panic hook has reported where",
            )))
        });
        let (value, entry) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.fail(&error, generations).await;
                return Err(error);
            }
        };
        let value = Arc::new(value);
        let closed = self.leader.close();
        let question = self.stores(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        let proved = self
            .commit(closed, &entry, generations, question.deadline)
            .await;
        closed.settle(Outcome::Value {
            value: value.clone(),
            proved,
        });
        Ok(value)
    }

    /// Runs the loader. Meanwhile, shows the server that the leader is alive.
    async fn loaded<V, L>(&self, loader: L, until: Instant) -> Result<V>
    where
        L: Loader<Value = V, Error = Captured>,
    {
        tokio::select! {
            // A load that has ended needs no renewal.
            biased;
            outcome = self.finished(loader, until) => outcome,
            never = self.renewals() => match never {},
        }
    }

    /// Shows the server, for as long as this is polled, that the leader is alive. A lease that is
    /// lost is not renewed. The load then goes on for the calls that wait for it, but no further
    /// call may join: its commit will be refused, so nothing can be proved for late calls.
    async fn renewals(&self) -> std::convert::Infallible {
        self.lease.renewed_until_lost().await;
        tracing::debug!(target: "hedgerow::cache", key = self.request.place.name.shown().as_str(), "lease lost");
        self.leader.close();
        std::future::pending().await
    }

    /// Stores the entry. Returns whether it is proved fresh for all calls that joined, however
    /// late.
    async fn commit(
        &self,
        closed: Closed<'_>,
        entry: &[u8],
        generations: &[Generation],
        deadline: Deadline,
    ) -> bool {
        let place = &self.request.place;
        let ttl = self.request.jittered_ttl();
        let committed = self.lease.commit(entry, ttl, deadline);
        let verified = self.verified(closed, generations, deadline);
        // Both are sent after the flight was closed, so neither has to wait for the other.
        let (committed, verified) = futures::join!(committed, verified);
        let counts = &self.request.cache.setup.counts;
        match committed {
            Ok(Committed::Stored) => {
                counts.stores.one_more();
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), verified, "stored");
                verified
            }
            Ok(Committed::Refused) => {
                counts.refused_commits.one_more();
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), "commit refused");
                false
            }
            Err(error) => {
                tracing::warn!(target: "hedgerow::cache", key = place.name.shown().as_str(), %error, "not stored");
                // A server that answers learns that the lease is free before the caller goes on.
                // Other failures are left to the end of the task.
                if error.fate() == Fate::Refused {
                    self.lease.abandon(deadline).await;
                }
                false
            }
        }
    }

    /// Whether `generations` are still the present ones. This is read only if a late call has
    /// joined, and after the flight was closed, so that it holds for all calls that joined.
    async fn verified(
        &self,
        closed: Closed<'_>,
        generations: &[Generation],
        deadline: Deadline,
    ) -> bool {
        if !closed.has_late() {
            return true;
        }
        let client = &self.request.cache.client;
        let present = fetch::generations(client, &self.request.tags, deadline).await;
        present.is_ok_and(|present| {
            let all = present.iter().zip(generations);
            all.into_iter()
                .all(|(present, stamped)| *present == Some(*stamped))
        })
    }

    /// Ends a load that has failed: reports it to the calls that wait, here and elsewhere. The
    /// lease is held.
    async fn fail(&self, error: &Error, generations: &[Generation]) {
        let closed = self.leader.close();
        let record = match Failure::of(error) {
            Some(failure) => self.request.record(&failure, generations),
            None => {
                // Such an error concerns the caller, not the key, so each follower must ask again.
                // The call that opened the flight waits for this. If the lease is not given up in
                // the time of that call, it is given up afterwards.
                let question = self.leader.flight().ask(self.request.cache.setup.patience);
                self.lease.abandon(question.deadline).await;
                return closed.settle(Outcome::Again);
            }
        };
        let question = self.stores(Outcome::Failed {
            error: error.clone(),
            proved: false,
        });
        let deadline = question.deadline;
        let ended = async {
            let Some((record, ttl)) = record else {
                return self.lease.abandon(deadline).await;
            };
            match self.lease.fail(&record, ttl, deadline).await {
                Ok(ours) => ours,
                // A full server takes no record.
                Err(error) if error.fate() == Fate::Refused => self.lease.abandon(deadline).await,
                Err(_) => false,
            }
        };
        let (ours, verified) = futures::join!(ended, self.verified(closed, generations, deadline));
        closed.settle(Outcome::Failed {
            error: error.clone(),
            proved: ours && verified,
        });
    }
}
