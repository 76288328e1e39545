//! Loads without the lease: while Redis is out, and where the loads of others are of no use.
//!
//! Invariant: what is loaded here is not stored, and only calls that began before the load share
//! it. So a flight with followers shares only a solo load that begins after the flight was closed:
//! of a load that runs already, it is not known whether it began after the calls of the followers.
//! A load begins with a permit of the bulkhead. It needs none if a load that has a permit waits for
//! it, or if a call that loads alone has waited for half of `max_load`. Last step of a [`Load`]
//! that does not lead.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Admitted;
use super::flight::Outcome;
use super::gather::Member;
use super::loading::RunLoader;
use super::solo::Seat;
use super::{Load, deserted};
use crate::cache::outage::Did;
use crate::error::{Error, Result};

impl<V: Send + Sync + 'static> Load<V> {
    /// Loads without Redis, because of `error`, and shares the value with the calls that began
    /// before the load. The value is not stored, and other processes learn nothing of it. `None` if
    /// no call waits for the load any more before it has begun.
    pub(super) async fn without(
        &mut self,
        loader: RunLoader<V>,
        error: Error,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>> {
        let until = Instant::now() + self.max_load();
        let state = self.request.state.clone();
        let queued = state.bulkhead.queue(&self.request.place.value);
        if self.admitted(creator).await? == Admitted::Deserted {
            return Ok(None);
        }
        if let Some(member) = self.member.clone() {
            if member.leads(None) {
                drop(queued);
                self.request
                    .cache
                    .does_without(Did::Load, "memoize", &error);
                return self.in_batch(loader, &member).await.map(Some);
            }
            // The permit that it has waited for is that of the batch, which goes on without it.
            if self.admitted(creator).await? == Admitted::Deserted {
                return Ok(None);
            }
        }
        let _place = tokio::select! {
            biased;
            // A load that no call waits for is not begun: its value would be stored nowhere.
            () = deserted(creator, &self.leader) => return Ok(None),
            place = state.bulkhead.enter(until) => Some(place?),
            // The load that waits for this one keeps its own permit, which counts for both.
            () = self.leader.urged() => None,
        };
        drop(queued);
        self.request
            .cache
            .does_without(Did::Load, "memoize", &error);
        tracing::debug!(target: "hedgerow::cache", key = self.request.place.name.shown().as_str(), %error, "loading without Redis");
        self.begun(loader).await.map(Some)
    }

    /// Loads alone, because the loads of others were of no use to the caller. The load waits for
    /// its turn, but no longer than the caller can wait. The value is not stored, and calls that
    /// began before the load share it. `None` if no call waits for the load any more before it has
    /// begun.
    pub(super) async fn alone(
        &self,
        loader: RunLoader<V>,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>> {
        let (state, silence) = (&self.request.state, self.rounds.silence());
        // Closed first: the calls that have joined began before any load that begins from now on. A
        // load that runs already may have begun before they did.
        let closed = self.leader.close();
        let (mut urged, mut excused) = (false, self.excused);
        let turn = loop {
            // When each follower began is not known, only that it was before now.
            let began = match self.leader.has_joined() {
                true => Instant::now(),
                false => self.rounds.began(),
            };
            let mut shared = match state.solos.board(&self.leader, began, silence) {
                Seat::Own(turn) => break turn,
                Seat::Shared(follower) => follower,
            };
            let outcome = loop {
                if urged {
                    shared.urge();
                }
                if excused {
                    shared.excuse();
                }
                tokio::select! {
                    outcome = shared.outcome(silence, self.rounds.over()) => break outcome,
                    // Loads that hold a permit and wait for this load now wait for the shared one.
                    () = self.leader.urged(), if !urged => urged = true,
                    () = self.leader.joined_within(), if !excused => excused = true,
                    () = deserted(creator, &self.leader) => return Ok(None),
                }
            };
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A load of another type is of no use here.
                    if let Ok(typed) = value.clone().downcast() {
                        let counts = &self.request.cache.setup.counts;
                        counts.shared_loads.one_more();
                        counts.saved_loads.one_more();
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
            let permit = match excused {
                true => None,
                false => self.permit().await,
            };
            (turn, permit, state.bulkhead.place().await)
        };
        let _places = tokio::select! {
            biased;
            () = deserted(creator, &self.leader) => return Ok(None),
            // A permit that is free is taken, however late it is.
            places = in_turn => Some(places),
            // The load that waits for this one keeps its own permit, which counts for both.
            () = async { if !urged { self.leader.urged().await } } => None,
            () = self.excused() => None,
            () = tokio::time::sleep_until(self.rounds.alone_at()) => None,
        };
        tracing::debug!(target: "hedgerow::cache", key = self.request.place.name.shown().as_str(), rounds = self.rounds.used(), "loading alone");
        turn.begin(&self.leader);
        self.begun(loader).await.map(Some)
    }

    /// Loads as part of a batch, which takes one permit for all its loads.
    async fn in_batch(&self, loader: RunLoader<V>, member: &Member) -> Result<Arc<V>> {
        let mut load = pin!(self.begun(loader));
        tokio::select! {
            biased;
            loaded = &mut load => return loaded,
            // The load that waits for this one keeps its own permit, which counts for the batch.
            () = self.leader.urged() => member.urge(),
        }
        load.await
    }

    fn max_load(&self) -> Duration {
        self.request.terms.max_load.duration()
    }

    /// Loads, and shares the value with the calls that began before this.
    async fn begun(&self, loader: RunLoader<V>) -> Result<Arc<V>> {
        self.running.let_in();
        self.leader.begin_load();
        let until = Instant::now() + self.max_load();
        let (value, _) = self.finished(loader, until).await?;
        self.leader.close().settle(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        Ok(value)
    }
}
