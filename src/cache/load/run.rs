//! The task of a flight: from the lease to an outcome, whatever it is.
//!
//! Invariant: a flight is closed before it is settled, so nobody joins one that has an outcome.

use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Load;
use super::asking::Granted;
use super::flight::Outcome;
use super::lease::LoadLease;
use crate::error::loader::{Captured, Loader};
use crate::error::{Error, Result};

impl Load {
    /// The task of a flight, spawned by the caller that opened it. It ends by itself: while it
    /// waits, when nobody waits for it; once it loads, at `max_load` and the deadline of the
    /// commit; and where the server may still hold the lease, once that is given up. A panic of the
    /// loader is caught and told as an error; if the task itself is torn down, the creator is told
    /// so and those who joined ask again.
    pub(in crate::cache) async fn run<V, L>(
        mut self,
        loader: L,
        creator: oneshot::Sender<Result<Arc<V>>>,
    ) where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let flight = self.open.flight().clone();
        {
            let mut beats = pin!(flight.beats());
            tokio::select! {
                biased;
                () = self.fly(loader, creator) => {}
                never = &mut beats => match never {},
            }
        }
        self.into_claim().end().await;
    }

    fn into_claim(self) -> LoadLease {
        self.claim
    }

    async fn fly<V, L>(&mut self, loader: L, mut creator: oneshot::Sender<Result<Arc<V>>>)
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let granted = match self.out.take() {
            // Whatever has become of a script, no loader has begun.
            None => self.lease(&mut creator).await.map_err(Error::of_a_read),
            Some(error) => Err(error),
        };
        let bypasses = |error: &Error| self.order.cache.setup.outage.bypasses(error);
        let result = match granted {
            Ok(Granted::Lead(generations)) => self.lead(loader, &generations).await.map(Some),
            Ok(Granted::Found(value)) => Ok(Some(value)),
            Ok(Granted::Alone) => self.alone(loader, &mut creator).await,
            Ok(Granted::Deserted) => Ok(None),
            Err(error) if bypasses(&error) => self.without(loader, error, &mut creator).await,
            Err(error) => {
                let error = self.order.named(error);
                let within = self.open.flight().within();
                self.open.close().settle(Outcome::Unanswered {
                    error: error.clone(),
                    within,
                });
                Err(error)
            }
        };
        let Some(result) = result.transpose() else {
            // Nobody waits for it any more.
            return;
        };
        let result = result.map_err(|error| self.order.named(error));
        if let Err(error) = &result {
            self.open.close().settle(Outcome::Failed {
                error: error.clone(),
                proved: false,
            });
        }
        let _ = creator.send(result);
    }
}
