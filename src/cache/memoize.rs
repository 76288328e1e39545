//! `memoize`: what the caller's own task does.
//!
//! Invariant: a hit costs one read, no task and no script. On a miss the loader is handed to a
//! flight, which outlives its callers; a caller only waits, so dropping it harms nobody.

use std::any::Any;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::Cache;
use super::entry::{self, Miss, ReadFrom, Reading};
use super::flight::{Boarding, Open, Outcome, Passenger, Running};
use super::load::Load;
use super::order::Order;
use super::reads::{Found, How, Reader, Shared, Slow, Turn};
use super::rounds::Rounds;
use crate::error::loader::{Captured, LoaderError};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::Name;
use crate::tags::Tag;
use crate::time::{OnOutage, Ttl};

/// A cached load, made by [`Cache::memoize`]; await it.
#[must_use = "nothing is read or loaded until it is awaited"]
pub struct Memoize<L> {
    cache: Cache,
    key: Name,
    ttl: Duration,
    tags: Result<Vec<Tag>>,
    loader: L,
    /// Keeps the loader's error, whose type is known where the call is made.
    captured: Capture,
}

/// Keeps an error of the one type that it is made for.
pub(super) type Capture = fn(Box<dyn Any + Send + Sync>) -> Captured;

/// Keeps an error of type `E`.
pub(super) fn capture<How, E: LoaderError<How>>(error: Box<dyn Any + Send + Sync>) -> Captured {
    match error.downcast::<E>() {
        Ok(error) => error.captured(),
        Err(_) => unreachable!("the loader of this call fails with this type"),
    }
}

impl<L> fmt::Debug for Memoize<L> {
    /// Without the loader, which may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memoize")
            .field("cache", &self.cache)
            .field("key", &self.key)
            .field("ttl", &self.ttl)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl<L> Memoize<L> {
    pub(super) fn new(
        cache: Cache,
        key: &str,
        ttl: Duration,
        loader: L,
        captured: Capture,
    ) -> Self {
        Self {
            tags: cache.tags(std::iter::empty::<&str>()),
            key: cache.client.name(key),
            cache,
            ttl,
            loader,
            captured,
        }
    }

    /// Labels what the loader loads: invalidating any of the tags invalidates the value.
    ///
    /// The tags belong to the value. A call that finds a value which another call has loaded
    /// gets it, whichever tags the two declare. At most 254; one that is named twice counts once.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    /// How long this call, its loader not counted, may take in all: by default as the cache
    /// [says](Cache::deadline). More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.cache = self.cache.deadline(deadline);
        self
    }

    /// Whether this call keeps trying while Redis is out: by default as the cache
    /// [says](Cache::on_outage).
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.cache = self.cache.on_outage(on_outage);
        self
    }

    /// Fails at once while Redis is out: the same as [`on_outage`](Self::on_outage) with
    /// [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }
}

impl<L, Fut, V, E> IntoFuture for Memoize<L>
where
    L: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    type Output = Result<Arc<V>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            cache,
            key,
            ttl,
            tags,
            loader,
            captured,
        } = self;
        let loader = move || {
            let loading = loader();
            async move { loading.await.map_err(|error| captured(Box::new(error))) }
        };
        let memoize = Memoize {
            cache,
            key,
            ttl,
            tags,
            loader,
            captured,
        };
        Box::pin(memoize.run())
    }
}

impl<L> Memoize<L> {
    async fn run<Fut, V, E>(self) -> Result<Arc<V>>
    where
        L: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let Self {
            cache,
            key,
            ttl,
            tags,
            loader,
            ..
        } = self;
        let ttl = Ttl::new("ttl", ttl)?;
        let (tags, value_key) = (tags?, cache.value(&key)?);
        let room = cache.room();
        Running::refuse_reentry(&room.flights, &value_key).map_err(|e| e.with_key(&key))?;
        let patience = cache.deadline_now().remaining();
        let mut rounds = Rounds::begin(cache.terms()?, patience);
        loop {
            // Who has been told often enough to ask again loads alone: its own load begins after
            // its call, so it may have the value whatever happens meanwhile.
            let alone = rounds.alone();
            let (began, silence, round) = (rounds.began(), rounds.silence(), rounds.used());
            let approach = approach::<V>(&cache, &value_key, &tags, &rounds).await;
            let mut passenger = match approach {
                Approach::Joined(passenger) => passenger,
                Approach::Read(reader, reading) => {
                    let miss = match reading {
                        Ok(Reading::Hit(value)) => {
                            tracing::trace!(target: "hedgerow::cache", cache = &*cache.setup.name, key = key.shown().as_str(), "hit");
                            end(reader, &tags, || Ok(Found::Hit(value.clone())));
                            return Ok(value);
                        }
                        Ok(Reading::Miss(miss)) => Ok(miss),
                        Err(error) if cache.setup.outage.bypasses(&error) => {
                            room.bulkhead.read(&cache.setup.name, &error);
                            Err(error)
                        }
                        Err(error) => {
                            end::<V>(reader, &tags, || Err(error.clone()));
                            return Err(error.with_key(&key));
                        }
                    };
                    tracing::debug!(target: "hedgerow::cache", cache = &*cache.setup.name, key = key.shown().as_str(), round, "miss");
                    let boarding = if alone {
                        Boarding::Opened(room.flights.alone(&value_key))
                    } else {
                        room.flights.board(&value_key, began, silence)
                    };
                    // Those who have waited for the read find the flight.
                    end::<V>(reader, &tags, || miss.clone().map(Found::Miss));
                    match boarding {
                        Boarding::Joined(passenger) => passenger,
                        Boarding::Opened(open) => {
                            let order = Order::new(cache.clone(), key, ttl, tags)?;
                            return fly(order, open, miss, rounds, loader).await;
                        }
                    }
                }
            };
            let outcome = passenger.outcome(silence, rounds.patience()).await;
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A flight for another type is no use here.
                    if let Ok(value) = value.downcast() {
                        return Ok(value);
                    }
                }
                // Of a flight that heeds another policy.
                Some(Outcome::Failed { error, .. }) if cache.setup.outage.bypasses(&error) => {}
                Some(Outcome::Failed { error, .. }) => return Err(error.about(&key)),
                None if Instant::now() >= rounds.over() => {
                    return Err(Rounds::out_of_time().with_key(&key));
                }
                Some(Outcome::Again) | None => {}
            }
            rounds.another();
        }
    }
}

/// How a call comes to a flight, or to what Redis holds.
enum Approach<'r, V> {
    Joined(Passenger),
    Read(Option<Reader<'r>>, Result<Reading<V>>),
}

/// Joins the flight for `key`, or reads the entry, together with others who call for it.
async fn approach<'r, V>(
    cache: &'r Cache,
    key: &'r Key,
    tags: &[Tag],
    rounds: &Rounds,
) -> Approach<'r, V>
where
    V: DeserializeOwned + Send + Sync + 'static,
{
    let (room, began) = (cache.room(), rounds.began());
    let stack = &cache.setup.stack;
    // Whoever was told to ask again is not told by a replica.
    let from = match rounds.used() {
        0 => cache.setup.read_from,
        _ => ReadFrom::Primary,
    };
    let how = How {
        from,
        max_decoded: stack.max_decoded,
        patience: cache.setup.patience,
    };
    let (mut reader, mut now) = (None, began);
    for _ in 0..MOST_WAITS {
        if !rounds.alone()
            && let Some(passenger) = room.flights.join(key, began, rounds.silence())
        {
            return Approach::Joined(passenger);
        }
        let wait = match room.reads.turn(key, how, began, now) {
            Turn::Read(turn) => {
                reader = turn;
                break;
            }
            Turn::Wait(wait) => wait,
        };
        match wait.ended::<V>().await {
            Ok(Some(shared)) => {
                if let Some(reading) = shared.reading(tags) {
                    // The call that read may show names, and this one not.
                    let reading = reading.map_err(|error| cache.client.told(error));
                    return Approach::Read(None, reading);
                }
            }
            Ok(None) => {}
            Err(Slow) => break,
        }
        now = Instant::now();
    }
    let deadline = cache.deadline_now().at_most(rounds.over());
    let reading = entry::read::<V>(&cache.client, key, tags, stack, from, deadline).await;
    Approach::Read(reader, reading)
}

/// Tells those who have waited for a read what it has found.
fn end<V: Send + Sync + 'static>(
    reader: Option<Reader<'_>>,
    tags: &[Tag],
    found: impl FnOnce() -> Result<Found<V>>,
) {
    if let Some(reader) = reader {
        reader.end(|| Shared::new(found(), tags));
    }
}

/// Sends a flight off and waits for it. `read` is what the read came to, or why it is done without.
async fn fly<V, L, Fut, E>(
    order: Order,
    open: Open,
    read: Result<Miss>,
    rounds: Rounds,
    loader: L,
) -> Result<Arc<V>>
where
    L: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let (creator, value) = oneshot::channel();
    let name = order.place.name.clone();
    let cache = &*order.cache.setup.name;
    let span =
        tracing::debug_span!(target: "hedgerow::cache", "load", cache, key = name.shown().as_str());
    let spawner = order.cache.client.spawner().clone();
    let load = Load::new(order, open, read, rounds);
    spawner.spawn(load.run(loader, creator).instrument(span));
    match timeout_at(rounds.over(), value).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Error::new(
            ErrorKind::Disconnected,
            "the runtime that carried the load has shut down",
        )),
        // The load goes on, for those who come later.
        Err(_) => Err(Rounds::out_of_time().with_key(&name)),
    }
}

/// How often a call waits for reads of others: one that began before it, and one that began after.
/// Once more if one of them came to nothing.
const MOST_WAITS: usize = 3;
