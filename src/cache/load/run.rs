//! The task of a flight: from the lease to an outcome, whatever it is.
//!
//! Invariant: a flight is closed before it is settled, so no call joins a flight that has an
//! outcome. `memoize` spawns this task.

use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::asking::Granted;
use super::flight::Outcome;
use super::lease::LoadLease;
use super::loading::RunLoader;
use super::under_way::LoadUnderWay;
use super::{Ended, Load};
use crate::error::{Error, Result};

impl<V> Load<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// The task of a flight, spawned by the call that opened it.
    ///
    /// It ends by itself. While it waits, it ends when no call waits for it any more. Once it
    /// loads, it ends by `max_load` and the deadline of the commit. Where the server may still hold
    /// the lease, it ends once the lease is given up, or may be taken over anyway. A panic of the
    /// loader is caught and becomes an error. If the task itself is torn down, the call that opened
    /// the flight gets an error, and the calls that joined ask again.
    pub(in crate::cache) async fn run(
        mut self,
        loader: RunLoader<V>,
        creator: oneshot::Sender<Result<Arc<V>>>,
    ) -> Ended {
        let flight = self.leader.flight().clone();
        {
            let mut beats = pin!(flight.beats());
            tokio::select! {
                // The flight comes first: once it has an outcome, its beat no longer matters.
                biased;
                () = self.fly(loader, creator) => {}
                never = &mut beats => match never {},
            }
        }
        let ended = self.ended;
        // The outcome is out, so this costs no caller any time.
        let (lease, _under_way) = self.into_lease();
        lease.end().await;
        ended
    }

    fn into_lease(self) -> (LoadLease, LoadUnderWay) {
        (self.lease, self.under_way)
    }

    async fn fly(&mut self, loader: RunLoader<V>, mut creator: oneshot::Sender<Result<Arc<V>>>) {
        let granted = match self.out.take() {
            // Whatever became of a script, no loader has begun: for the caller this is a read.
            None => self.lease(&mut creator).await.map_err(Error::of_a_read),
            Some(error) => Err(error),
        };
        let outage = self.request.cache.setup.outage;
        let may_lead = match &granted {
            Ok(granted) => matches!(granted, Granted::Lead(_)),
            Err(error) => outage.bypasses(error),
        };
        if let Some(member) = &self.member
            && !may_lead
        {
            member.decide();
        }
        let bypasses = |error: &Error| outage.bypasses(error);
        let result = match granted {
            Ok(Granted::Lead(generations)) => self.lead(loader, generations).await.map(Some),
            Ok(Granted::Found(value)) => {
                // Before the caller gets the value: then it knows that its loader has not run.
                drop(loader);
                // A refresh has no caller that waits, and one that has left was saved nothing.
                if !creator.is_closed() {
                    self.request.cache.setup.counts.saved_loads.one_more();
                }
                Ok(Some(value))
            }
            Ok(Granted::Alone) => {
                // Others have loaded since it was read.
                self.old = None;
                // It may wait for another load, which needs a permit, too.
                self.permit = None;
                self.alone(loader, &mut creator).await
            }
            Ok(Granted::Deserted) => Ok(None),
            Err(error) if bypasses(&error) => {
                // Whether it may still be served cannot be known.
                self.old = None;
                self.without(loader, error, &mut creator).await
            }
            Err(error) => {
                let error = self.request.named(error);
                let within = self.leader.flight().within();
                self.leader.close().settle(Outcome::Unanswered {
                    error: error.clone(),
                    within,
                });
                Err(error)
            }
        };
        let Some(result) = result.transpose() else {
            // No call waits for it any more.
            return;
        };
        let result = result.map_err(|error| self.request.named(error));
        // Where the flight is settled already, this changes nothing: the first outcome counts.
        if let Err(error) = &result {
            self.leader.close().settle(Outcome::Failed {
                error: error.clone(),
                proved: false,
            });
        }
        let _ = creator.send(result);
    }
}
