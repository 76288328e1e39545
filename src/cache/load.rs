//! The life of a flight: ask for the lease, wait for whoever has it, or load and commit.
//!
//! Invariant: a flight may give what it finds to whoever began before the load did; to those who
//! joined later only what was proved after the flight was closed:
//!
//! - A value loaded here: the generations in its stamps were read before the loader began. After
//!   closing, the commit and a read of the tags are sent. `remove` or `set` between the grant of
//!   the lease and the commit ends the lease, so the commit is refused; an invalidation between
//!   the stamps and the read changes a generation. If neither happened, every invalidation that
//!   had returned when a joiner began took effect before the load did.
//! - A value taken from Redis is read and judged after closing. So is the record of a load that
//!   has failed elsewhere.
//! - The error of a load that failed here is proved as a value is, with the record in the place of
//!   the commit.
//!
//! Otherwise they ask again. An invalidation that takes effect after that proof has not returned
//! when they began. Spawned by `memoize`.

mod asking;
mod unleased;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::asking::Granted;
use super::entry::{self, Miss};
use super::failure::Failure;
use super::flight::{Open, Outcome, Question, Running};
use super::lease::{Claim, Committed};
use super::order::Order;
use super::outage::Outage;
use super::rounds::Rounds;
use crate::error::loader::{Captured, Loader};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::tags::{Generation, Snapshot};
use crate::time::{Deadline, Patience};

/// A flight under way.
#[derive(Debug)]
pub(super) struct Load {
    order: Order,
    open: Open,
    claim: Claim,
    running: Arc<Running>,
    /// Why Redis is done without from the start.
    out: Option<Error>,
    /// The head of the entry that was judged invalid last.
    seen: Bytes,
    /// Generations as they were before the lease was asked for.
    snapshot: Snapshot,
    /// What the call that opened the flight has been through.
    rounds: Rounds,
    /// The fence of the load elsewhere that is waited for.
    awaited: Option<i64>,
    /// The fence of a failed load whose record is no longer valid.
    dead: Option<i64>,
}

impl Load {
    /// A flight that `read` has made necessary: a miss, or an outage that is bypassed.
    pub(super) fn new(order: Order, open: Open, read: Result<Miss>, rounds: Rounds) -> Self {
        let (miss, out) = match read {
            Ok(miss) => (miss, None),
            Err(error) => (Miss::default(), Some(error)),
        };
        Self {
            out,
            claim: Claim::new(order.cache.client.clone(), order.place.clone(), order.terms),
            running: Running::begin(&order.room.flights, &order.place.value),
            order,
            open,
            seen: miss.seen,
            snapshot: miss.snapshot,
            rounds,
            awaited: None,
            dead: None,
        }
    }

    /// The task of a flight, spawned by the caller that opened it. It ends by itself: while it
    /// waits, when nobody waits for it; once it loads, at `max_load` and the deadline of the
    /// commit; and where the server may still hold the lease, once that is given up. A panic of the
    /// loader is caught and told as an error; if the task itself is torn down, the creator is told
    /// so and those who joined ask again.
    pub(super) async fn run<V, L>(mut self, loader: L, creator: oneshot::Sender<Result<Arc<V>>>)
    where
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

    fn into_claim(self) -> Claim {
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
                self.open.close();
                self.open.settle(Outcome::Unanswered {
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
            self.open.close();
            self.open.settle(Outcome::Failed {
                error: error.clone(),
                proved: false,
            });
        }
        let _ = creator.send(result);
    }

    /// Asks the server something: the calls on board with the most time wait for the answer. Where
    /// they can do without the server, they do so once it is late for the opener.
    fn ask(&self) -> Question {
        let setup = &self.order.cache.setup;
        self.open.flight().ask(match setup.outage {
            Outage::Fail => self.longest(),
            Outage::Bypass => setup.patience,
        })
    }

    /// The load has ended, and is stored or recorded, however little time the opener has: what the
    /// cache holds then concerns all on board, and whoever calls later. Each call, the opener too,
    /// waits for that within its own time, and then takes `loaded` if it may.
    fn stores(&self, loaded: Outcome) -> Question {
        let flight = self.open.flight();
        flight.loaded(loaded);
        flight.ask(self.longest())
    }

    /// What the call on board with the most time gives the server for an answer.
    fn longest(&self) -> Patience {
        let patience = self.order.cache.setup.patience;
        patience.within(patience.limit().max(self.open.flight().longest()))
    }

    /// The load has failed: tells those who wait, here and elsewhere. The lease is held.
    async fn fail(&self, error: &Error, generations: &[Generation]) {
        self.open.close();
        let record = match Failure::of(error) {
            Some(failure) => self.order.record(&failure, generations),
            None => {
                // It says more of who asked than of the key: each must ask by himself. The opener
                // waits for this; what is not given up in its time is given up after it.
                let question = self.open.flight().ask(self.order.cache.setup.patience);
                self.claim.abandon(question.deadline).await;
                return self.open.settle(Outcome::Again);
            }
        };
        let question = self.stores(Outcome::Failed {
            error: error.clone(),
            proved: false,
        });
        let deadline = question.deadline;
        let ended = async {
            let Some((record, ttl)) = record else {
                return self.claim.abandon(deadline).await;
            };
            match self.claim.fail(&record, ttl, deadline).await {
                Ok(ours) => ours,
                // A full server takes no record.
                Err(error) if error.fate() == Fate::Refused => self.claim.abandon(deadline).await,
                Err(_) => false,
            }
        };
        let (ours, verified) = futures::join!(ended, self.verified(generations, deadline));
        self.open.settle(Outcome::Failed {
            error: error.clone(),
            proved: ours && verified,
        });
    }

    /// Loads, stores and shares the value. The lease is held.
    async fn lead<V, L>(&self, loader: L, generations: &[Generation]) -> Result<Arc<V>>
    where
        V: Serialize + Send + Sync + 'static,
        L: Loader<Value = V, Error = Captured>,
    {
        let prepared = async {
            self.open.begin_load();
            let begun = Instant::now();
            let until = begun + self.order.terms.max_load.duration();
            let value = self.loaded(loader, until).await?;
            let cost = begun.elapsed();
            let entry = self.order.encode(&value, generations, cost)?;
            Ok((value, entry))
        };
        // The value's own code runs in there too: what panics must not leave the lease behind.
        let prepared = AssertUnwindSafe(prepared).catch_unwind().await;
        let prepared = prepared.unwrap_or_else(|_panic| {
            Err(self.order.named(Error::new(
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
        self.open.close();
        let question = self.stores(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        let proved = self.commit(&entry, generations, question.deadline).await;
        self.open.settle(Outcome::Value {
            value: value.clone(),
            proved,
        });
        Ok(value)
    }

    /// The call that opened the flight has waited long enough. Those who joined may have more time.
    fn out_of_time<T>(&self) -> Result<T> {
        self.open.close();
        self.open.settle(Outcome::NoLoad);
        Err(Rounds::out_of_time())
    }

    /// Runs the loader, and tells the server meanwhile that its leader is alive.
    async fn loaded<V, L>(&self, loader: L, until: Instant) -> Result<V>
    where
        L: Loader<Value = V, Error = Captured>,
    {
        tokio::select! {
            biased;
            outcome = self.finished(loader, until) => outcome,
            never = self.renewals() => match never {},
        }
    }

    /// Runs the loader until `until` at the latest.
    async fn finished<V, L>(&self, loader: L, until: Instant) -> Result<V>
    where
        L: Loader<Value = V, Error = Captured>,
    {
        let load = self.running.clone().scope(async move { loader().await });
        let load = AssertUnwindSafe(load).catch_unwind();
        match tokio::time::timeout_at(until, load).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(cause))) => Err(Error::of_loader(cause)),
            Ok(Err(_panic)) => Err(Error::new(
                ErrorKind::LoaderPanicked,
                "the loader panicked; the panic hook has reported where",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::LoaderTimeout,
                "the loader took longer than max_load and was dropped; \
                 raise max_load or make it faster",
            )),
        }
        .map_err(|error| self.order.named(error))
    }

    /// Tells the server, for as long as this is polled, that the leader is alive. A lease that is
    /// lost is not renewed: the load goes on for those who wait for it, and nobody joins them.
    async fn renewals(&self) -> std::convert::Infallible {
        self.claim.renewed_until_lost().await;
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), "lease lost");
        self.open.close();
        std::future::pending().await
    }

    /// Stores the entry; whether it is proved fresh for all who joined, however late. The flight
    /// is closed.
    async fn commit(&self, entry: &[u8], generations: &[Generation], deadline: Deadline) -> bool {
        let place = &self.order.place;
        let ttl = self.order.jittered_ttl();
        let committed = self.claim.commit(entry, ttl, deadline);
        let verified = self.verified(generations, deadline);
        let (committed, verified) = futures::join!(committed, verified);
        match committed {
            Ok(Committed::Stored) => {
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), verified, "stored");
                verified
            }
            Ok(Committed::Refused) => {
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), "commit refused");
                false
            }
            Err(error) => {
                tracing::warn!(target: "hedgerow::cache", key = place.name.shown().as_str(), %error, "not stored");
                // A server that answers hears of it before the caller does.
                if error.fate() == Fate::Refused {
                    self.claim.abandon(deadline).await;
                }
                false
            }
        }
    }

    /// Whether `generations` are still the present ones, if anybody has joined who must know. The
    /// flight is closed.
    async fn verified(&self, generations: &[Generation], deadline: Deadline) -> bool {
        if !self.open.has_late() {
            return true;
        }
        let client = &self.order.cache.client;
        let present = entry::generations(client, &self.order.tags, deadline).await;
        present.is_ok_and(|present| {
            let all = present.iter().zip(generations);
            all.into_iter()
                .all(|(present, stamped)| *present == Some(*stamped))
        })
    }
}

/// Returns, with the flight closed, when nobody waits for it any more.
async fn deserted<V>(creator: &mut oneshot::Sender<Result<Arc<V>>>, open: &Open) {
    creator.closed().await;
    loop {
        open.deserted().await;
        if open.close_if_deserted() {
            return;
        }
    }
}
