//! Loads without the lease: while Redis is out, and where the loads of others are of no use.
//!
//! Invariant: what is loaded here is not stored, and only those share it whose calls began before
//! the load did; it begins when there is a place for it. Last step of a [`Load`] that does not lead.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::flight::Outcome;
use super::super::rounds::Rounds;
use super::super::solo::Seat;
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
        let bulkhead = &self.order.room.bulkhead;
        let until = Instant::now() + self.order.terms.max_load.duration();
        let _place = tokio::select! {
            place = bulkhead.enter(until) => Some(place?),
            // Whoever waits for this load keeps his place meanwhile; it counts for both.
            () = self.open.urged() => None,
            () = deserted(creator, &self.open) => return Ok(None),
        };
        bulkhead.load(&self.order.cache.setup.name, &error);
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), %error, "loading without Redis");
        self.begun(loader, until).await.map(Some)
    }

    /// Loads by itself, because the loads of others were of no use to the caller: in its turn, but
    /// no later than the caller can wait. The value is not stored; who is there before the load
    /// begins shares it. `None` when nobody waits for it any more before it has begun.
    pub(super) async fn alone<V, L>(
        &self,
        loader: L,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>>
    where
        V: Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let (room, silence) = (&self.order.room, self.rounds.silence());
        // Those who have joined are there before any load that begins from now on.
        self.open.close();
        let turn = loop {
            let mut shared = match room.solos.board(&self.open, silence) {
                Seat::Own(turn) => break turn,
                Seat::Shared(passenger) => passenger,
            };
            let outcome = tokio::select! {
                outcome = shared.outcome(silence, self.rounds.over()) => outcome,
                () = deserted(creator, &self.open) => return Ok(None),
            };
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A load of another type is no use here.
                    if let Ok(typed) = value.clone().downcast() {
                        let proved = false;
                        self.open.settle(Outcome::Value { value, proved });
                        return Ok(Some(typed));
                    }
                }
                Some(Outcome::Failed { error, .. }) => return Err(error),
                Some(Outcome::Again) => {}
                None => return Err(Rounds::out_of_time()),
            }
        };
        let in_turn = async {
            let turn = turn.comes().await;
            (turn, room.bulkhead.place().await)
        };
        let _places = tokio::select! {
            places = in_turn => Some(places),
            () = tokio::time::sleep_until(self.rounds.alone_at()) => None,
            // Whoever waits for this load keeps his place meanwhile; it counts for both.
            () = self.open.urged() => None,
            () = deserted(creator, &self.open) => return Ok(None),
        };
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), rounds = self.rounds.used(), "loading alone");
        turn.begin();
        let until = Instant::now() + self.order.terms.max_load.duration();
        self.begun(loader, until).await.map(Some)
    }

    /// Loads, and shares the value with those whose calls began before this.
    async fn begun<V, L>(&self, loader: L, until: Instant) -> Result<Arc<V>>
    where
        V: Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        self.running.let_in();
        self.open.begin_load();
        let value = Arc::new(self.finished(loader, until).await?);
        self.open.close();
        self.open.settle(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        Ok(value)
    }
}
