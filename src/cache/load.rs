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

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::{self, Miss, ReadFrom, Reading};
use super::failure::Failure;
use super::flight::{Open, Outcome, Running};
use super::lease::{Claim, Committed, Grant};
use super::order::Order;
use super::rounds::Rounds;
use super::solo::Seat;
use super::wake::Hint;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::tags::{Generation, Snapshot};

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

/// What came of asking for the lease.
enum Granted<V> {
    Lead {
        until: Instant,
        generations: Vec<Generation>,
    },
    Found(Arc<V>),
    /// The loads of others were of no use, or took too long to be.
    Alone,
    Deserted,
}

/// Why a flight that waits for another leader stops to wait.
enum Woken {
    ByStore,
    Otherwise,
    /// Nobody waits for this flight any more.
    Deserted,
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
    pub(super) async fn run<V, L, Fut, E>(
        mut self,
        loader: L,
        creator: oneshot::Sender<Result<Arc<V>>>,
    ) where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
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

    async fn fly<V, L, Fut, E>(&mut self, loader: L, mut creator: oneshot::Sender<Result<Arc<V>>>)
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let granted = match self.out.take() {
            None => self.lease(&mut creator).await,
            Some(error) => Err(error),
        };
        let bypasses = |error: &Error| self.order.cache.setup.outage.bypasses(error);
        let result = match granted {
            Ok(Granted::Lead { until, generations }) => {
                self.lead(loader, until, &generations).await
            }
            Ok(Granted::Found(value)) => Ok(value),
            Ok(Granted::Alone) => match self.alone(loader, &mut creator).await {
                Ok(Some(value)) => Ok(value),
                Ok(None) => return,
                Err(error) => Err(error),
            },
            Ok(Granted::Deserted) => return,
            Err(error) if bypasses(&error) => {
                match self.without(loader, error, &mut creator).await {
                    Ok(Some(value)) => Ok(value),
                    Ok(None) => return,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
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

    /// Asks for the lease until it is granted, a value or the record of a failure is found, or
    /// nobody wants either.
    async fn lease<V: DeserializeOwned + Send + Sync + 'static>(
        &mut self,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Granted<V>> {
        let client = self.order.cache.client.clone();
        let key = self.order.place.name.clone();
        let mut ear = self.order.room.ears.open(&self.order.place.value);
        let mut pauses = Pauses::default();
        for attempt in 0u32.. {
            if self.rounds.alone() {
                return Ok(Granted::Alone);
            }
            // Listen first: whatever ends the lease after it was asked for is heard.
            let value = &self.order.place.value;
            let mut missed = client.missed(value);
            let channel = self.order.room.ears.channel(&client, value).await;
            ear.clear();
            let closed = self.open.is_closed();
            let deadline = self.order.cache.deadline_now();
            let grant = self
                .claim
                .stake(&self.seen, self.dead, channel.as_ref(), deadline);
            let (takeover, noted, fence) = match grant.await {
                Ok(Grant::Lead { fence, until }) => {
                    tracing::debug!(target: "hedgerow::cache", key = key.shown().as_str(), fence, attempt, "lead");
                    let generations = self.stamps(attempt > 0).await?;
                    return Ok(Granted::Lead { until, generations });
                }
                Ok(Grant::Changed) => match self.take().await? {
                    Some(value) => return Ok(Granted::Found(value)),
                    None => continue,
                },
                Ok(Grant::Failed { fence, record }) => {
                    if !closed {
                        self.open.close();
                        // What was recorded before is not proved for the last who joined.
                        if self.open.has_joined() {
                            continue;
                        }
                    }
                    match self.failed_elsewhere(record).await? {
                        Some(error) => return Err(error),
                        None => self.dead = Some(fence),
                    }
                    continue;
                }
                Ok(Grant::Busy {
                    takeover,
                    noted,
                    fence,
                }) => (takeover, noted, fence),
                Err(error) => return Err(error),
            };
            if self
                .awaited
                .replace(fence)
                .is_some_and(|before| before != fence)
            {
                // The load before has ended without a value.
                self.rounds.another();
                if self.rounds.alone() {
                    return Ok(Granted::Alone);
                }
            }
            tracing::debug!(target: "hedgerow::cache", key = key.shown().as_str(), attempt, noted, "wait");
            let until = Instant::now() + pauses.next(noted).min(takeover);
            let until = until.min(self.rounds.patience());
            let woken = async {
                tokio::select! {
                    hint = ear.hint() => match hint {
                        Hint::Stored => Woken::ByStore,
                        Hint::Ended => Woken::Otherwise,
                    },
                    () = tokio::time::sleep_until(until) => Woken::Otherwise,
                    () = missed.again() => Woken::Otherwise,
                    () = deserted(creator, &self.open) => Woken::Deserted,
                }
            };
            match woken.await {
                Woken::ByStore => {
                    if let Some(value) = self.take().await? {
                        return Ok(Granted::Found(value));
                    }
                }
                Woken::Otherwise => {}
                Woken::Deserted => return Ok(Granted::Deserted),
            }
        }
        unreachable!("a flight asks until it is answered")
    }

    /// Takes what another leader has stored. From here on nobody joins: the value is read after
    /// all who joined began.
    async fn take<V: DeserializeOwned + Send + Sync + 'static>(
        &mut self,
    ) -> Result<Option<Arc<V>>> {
        self.open.close();
        let Order {
            cache, place, tags, ..
        } = &self.order;
        let deadline = cache.deadline_now();
        match entry::read::<V>(
            &cache.client,
            &place.value,
            tags,
            &cache.setup.stack,
            // A replica may not have yet what we were told of.
            ReadFrom::Primary,
            deadline,
        )
        .await?
        {
            Reading::Hit(value) => {
                self.open.settle(Outcome::Value {
                    value: value.clone(),
                    proved: true,
                });
                Ok(Some(value))
            }
            Reading::Miss(miss) => {
                self.open.settle(Outcome::Again);
                self.rounds.another();
                self.awaited = None;
                self.seen = miss.seen;
                self.snapshot = miss.snapshot;
                Ok(None)
            }
        }
    }

    /// The error that `record` tells of, if it is still valid; those who joined have it then, too.
    /// The flight is closed, and was when the record was asked for, unless nobody had joined.
    async fn failed_elsewhere(&self, record: Bytes) -> Result<Option<Error>> {
        let client = &self.order.cache.client;
        let deadline = self.order.cache.deadline_now();
        let judged = entry::record::<Failure>(client, record, &self.order.tags, deadline).await?;
        let error = judged.map(|failure| self.order.named(failure.error()));
        if let Some(error) = &error {
            self.open.settle(Outcome::Failed {
                error: error.clone(),
                proved: true,
            });
        }
        Ok(error)
    }

    /// What the value will be stamped with. The lease is held, and is given up when the flight fails
    /// for want of that. `waited` says that the snapshot is as old as the wait for the lease.
    async fn stamps(&self, waited: bool) -> Result<Vec<Generation>> {
        let deadline = self.order.cache.deadline_now();
        let generations = if waited {
            // An entry stamped with what was read before the wait could be dead on arrival.
            self.order.generations(deadline).await
        } else {
            self.order.settled(&self.snapshot, deadline).await
        };
        if let Err(error) = &generations
            && !self.order.cache.setup.outage.bypasses(error)
        {
            // Closed first, or a caller woken by it could join a flight that has failed.
            self.open.close();
            self.claim.abandon().await;
        }
        generations
    }

    /// The load has failed: tells those who wait, here and elsewhere. The lease is held.
    async fn fail(&self, error: &Error, generations: &[Generation]) {
        self.open.close();
        let record = match Failure::of(error) {
            Some(failure) => self.order.record(&failure, generations),
            None => {
                // It says more of who asked than of the key: each must ask by himself.
                self.claim.abandon().await;
                return self.open.settle(Outcome::Again);
            }
        };
        let ended = async {
            let Some((record, ttl)) = record else {
                return self.claim.abandon().await;
            };
            match self.claim.fail(&record, ttl).await {
                Ok(ours) => ours,
                // A full server takes no record.
                Err(error) if error.fate() == Fate::Refused => self.claim.abandon().await,
                Err(_) => false,
            }
        };
        let (ours, verified) = futures::join!(ended, self.verified(generations));
        self.open.settle(Outcome::Failed {
            error: error.clone(),
            proved: ours && verified,
        });
    }

    /// Loads, stores and shares the value. The lease is held.
    async fn lead<V, L, Fut, E>(
        &self,
        loader: L,
        until: Instant,
        generations: &[Generation],
    ) -> Result<Arc<V>>
    where
        V: Serialize + Send + Sync + 'static,
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let prepared = async {
            self.open.begin_load();
            let begun = Instant::now();
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
        let proved = self.commit(&entry, generations).await;
        self.open.settle(Outcome::Value {
            value: value.clone(),
            proved,
        });
        Ok(value)
    }

    /// Loads without Redis, because of `error`, and shares the value with those whose calls began
    /// before the load. It is not stored, and other processes are not told. `None` when nobody
    /// waits for it any more before it has begun.
    async fn without<V, L, Fut, E>(
        &self,
        loader: L,
        error: Error,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>>
    where
        V: Send + Sync + 'static,
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
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
        self.running.let_in();
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), %error, "loading without Redis");
        self.open.begin_load();
        let value = Arc::new(self.finished(loader, until).await?);
        self.open.close();
        self.open.settle(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        Ok(Some(value))
    }

    /// Loads by itself, because the loads of others were of no use to the caller: in its turn, but
    /// no later than the caller can wait. The value is not stored; who is there before the load
    /// begins shares it. `None` when nobody waits for it any more before it has begun.
    async fn alone<V, L, Fut, E>(
        &self,
        loader: L,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Option<Arc<V>>>
    where
        V: Send + Sync + 'static,
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
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
        self.running.let_in();
        tracing::debug!(target: "hedgerow::cache", key = self.order.place.name.shown().as_str(), rounds = self.rounds.used(), "loading alone");
        turn.begin();
        self.open.begin_load();
        let until = Instant::now() + self.order.terms.max_load.duration();
        let value = Arc::new(self.finished(loader, until).await?);
        self.open.settle(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        Ok(Some(value))
    }

    /// Runs the loader, and tells the server meanwhile that its leader is alive.
    async fn loaded<V, L, Fut, E>(&self, loader: L, until: Instant) -> Result<V>
    where
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        tokio::select! {
            biased;
            outcome = self.finished(loader, until) => outcome,
            never = self.renewals() => match never {},
        }
    }

    /// Runs the loader until `until` at the latest.
    async fn finished<V, L, Fut, E>(&self, loader: L, until: Instant) -> Result<V>
    where
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let load = self.running.clone().scope(async move { loader().await });
        let load = AssertUnwindSafe(load).catch_unwind();
        match tokio::time::timeout_at(until, load).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(cause))) => {
                Err(Error::of_loader(cause))
            }
            Ok(Err(_panic)) => Err(Error::new(
                ErrorKind::LoaderPanicked,
                "the loader panicked; the panic hook has reported where",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::LoaderTimeout,
                "the loader took longer than max_load and was dropped; raise max_load or make it faster",
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
    async fn commit(&self, entry: &[u8], generations: &[Generation]) -> bool {
        let place = &self.order.place;
        let ttl = self.order.jittered_ttl();
        let committed = self.claim.commit(entry, ttl);
        let (committed, verified) = futures::join!(committed, self.verified(generations));
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
                    self.claim.abandon().await;
                }
                false
            }
        }
    }

    /// Whether `generations` are still the present ones, if anybody has joined who must know. The
    /// flight is closed.
    async fn verified(&self, generations: &[Generation]) -> bool {
        if !self.open.has_late() {
            return true;
        }
        let client = &self.order.cache.client;
        let deadline = self.order.cache.deadline_now();
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

/// How long to wait for a wake-up that may not come, with jitter: from 1 s when one was promised,
/// from 50 ms when nothing can be heard. Never longer than 10 s.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self, noted: bool) -> Duration {
        let first = Duration::from_millis(if noted { 1000 } else { 50 });
        let whole = first * 2u32.pow(self.0.min(8));
        self.0 += 1;
        whole
            .min(Duration::from_secs(if noted { 10 } else { 1 }))
            .mul_f64(rand::random_range(0.75..1.25))
    }
}
