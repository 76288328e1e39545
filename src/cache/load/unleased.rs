//! Loads without the lease: while Redis is out, and where the loads of others are of no use.
//!
//! Invariant: what is loaded here is not stored, and only calls that began before the load did
//! share it. So a flight with passengers shares only a solo load that begins after the flight is
//! closed: of one that runs already nobody knows whether it began after the calls of the
//! passengers. A load begins when there is a place for it. Last step of a [`Load`] that does not
//! lead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::flight::Outcome;
use super::solo::Seat;
use super::{Load, deserted};
use crate::error::loader::{Captured, Loader};
use crate::error::{Error, Result};

impl Load {
    /// Loads without Redis, because of `error`, and shares the value with those whose calls began
    /// before the load. It is not stored, and other processes are not told. `None` when nobody
    /// waits for it any more before it has begun.
    pub(super) async fn without<V, L>(
        &self,
        loader: L,
        error: Error,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>>
    where
        V: Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let bulkhead = &self.order.state.bulkhead;
        let until = Instant::now() + self.max_load();
        let _place = tokio::select! {
            place = bulkhead.enter(until) => Some(place?),
            // A caller that waits for this load keeps its own place, which counts for both.
            () = self.open.urged() => None,
            () = deserted(creator, &self.open) => return Ok(None),
        };
        bulkhead.load(&self.order.cache.setup.name, &error);
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), %error, "loading without Redis");
        self.begun(loader).await.map(Some)
    }

    /// Loads by itself, because the loads of others were of no use to the caller: in its turn, but
    /// no later than the caller can wait. The value is not stored; calls that began before the load
    /// share it. `None` when nobody waits for it any more before it has begun.
    pub(super) async fn alone<V, L>(
        &self,
        loader: L,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>>
    where
        V: Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let (state, silence) = (&self.order.state, self.rounds.silence());
        // Calls that have joined began before any load that begins from now on; what runs already
        // may have begun before they did.
        let closed = self.open.close();
        let mut urged = false;
        let turn = loop {
            let began = match self.open.has_joined() {
                true => Instant::now(),
                false => self.rounds.began(),
            };
            let mut shared = match state.solos.board(&self.open, began, silence) {
                Seat::Own(turn) => break turn,
                Seat::Shared(passenger) => passenger,
            };
            let outcome = loop {
                if urged {
                    shared.urge();
                }
                tokio::select! {
                    outcome = shared.outcome(silence, self.rounds.over()) => break outcome,
                    // Callers that hold a place and wait for this load now wait for the shared one.
                    () = self.open.urged(), if !urged => urged = true,
                    () = deserted(creator, &self.open) => return Ok(None),
                }
            };
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A load of another type is no use here.
                    if let Ok(typed) = value.clone().downcast() {
                        let proved = false;
                        closed.settle(Outcome::Value { value, proved });
                        return Ok(Some(typed));
                    }
                }
                Some(Outcome::Failed { error, .. } | Outcome::Unanswered { error, .. }) => {
                    return Err(error);
                }
                Some(Outcome::Again | Outcome::NoLoad) => {}
                None => return self.out_of_time(),
            }
        };
        let in_turn = async {
            let turn = turn.comes().await;
            (turn, state.bulkhead.place().await)
        };
        let _places = tokio::select! {
            biased;
            () = deserted(creator, &self.open) => return Ok(None),
            // A place that is free is taken, however late it is.
            places = in_turn => Some(places),
            // A caller that waits for this load keeps its own place, which counts for both.
            () = async { if !urged { self.open.urged().await } } => None,
            () = tokio::time::sleep_until(self.rounds.alone_at()) => None,
        };
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), rounds = self.rounds.used(), "loading alone");
        turn.begin(&self.open);
        self.begun(loader).await.map(Some)
    }

    fn max_load(&self) -> Duration {
        self.order.terms.max_load.duration()
    }

    /// Loads, and shares the value with those whose calls began before this.
    async fn begun<V, L>(&self, loader: L) -> Result<Arc<V>>
    where
        V: Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        self.running.let_in();
        self.open.begin_load();
        let until = Instant::now() + self.max_load();
        let value = Arc::new(self.finished(loader, until).await?);
        self.open.close().settle(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        Ok(value)
    }
}
