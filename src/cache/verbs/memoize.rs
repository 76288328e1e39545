//! `memoize`: what the caller's own task does.
//!
//! Invariant: a hit costs one read, no task and no script. On a miss the loader is handed to a
//! flight, which outlives its callers. A caller only waits, so dropping it harms no other call.
//! Users call this.

use std::any::Any;
use std::fmt;
use std::future::IntoFuture;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use crate::cache::Cache;
use crate::cache::load::Load;
use crate::cache::load::flight;
use crate::cache::load::flight::{Follower, Leader, LoadChain, Outcome, Role};
use crate::cache::load::rounds::Rounds;
#[cfg(feature = "near")]
use crate::cache::near::{self, held::NearHit};
use crate::cache::outage::Outage;
use crate::cache::read::fetch;
use crate::cache::read::reading::{Miss, ReadFrom, Reading};
use crate::cache::read::shared::{Found, Freshness, How, Reader, Shared, Slow, Turn};
use crate::cache::store_request::StoreRequest;
use crate::error::loader::{Captured, Loader, LoaderError};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::name::Name;
use crate::pulse::TICK;
use crate::tags::Tag;
use crate::time::{OnOutage, Patience, Ttl};

/// A cached load, made by [`Cache::memoize`]. Await it to get the value.
#[must_use = "nothing is read or loaded until it is awaited"]
pub struct Memoize<L> {
    cache: Cache,
    key: Name,
    ttl: Duration,
    /// The declared tags. If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
    loader: L,
    /// Keeps the loader's error, whose type is known where the call is made.
    captured: Capture,
}

impl Cache {
    /// Returns the value of `key`. If there is none, `loader` loads it, and the value is kept for
    /// `ttl`.
    ///
    /// However many callers ask for a missing key, in however many processes, one of them loads and
    /// all get its value. The load runs in a task of its own: it is completed and stored even if
    /// every caller is dropped. The value is kept for `ttl`, give or take the
    /// [`jitter`](Self::jitter).
    ///
    /// # Errors
    /// - `InvalidInput` if the key, a tag or a duration is invalid.
    /// - `Loader` if the loader fails. It has the text of the loader's error, and, where the loader
    ///   ran, for the calls that shared the load, the error itself (see
    ///   [`Error::loader_error`](crate::Error::loader_error)).
    /// - `LoaderPanicked` if the loader panics.
    /// - `LoaderTimeout` if the loader runs longer than [`max_load`](Self::max_load), or no load of
    ///   another caller ends in time: within `max_load` and the [deadline](Self::deadline).
    /// - `Reentrant` if the loader asks for its own key.
    /// - `Encode` or `TooLarge` if the value cannot be stored.
    /// - Whatever Redis refuses or does not answer before the load, unless [`outage`](Self::outage)
    ///   says to do without Redis. Then it is `LoaderTimeout` if no permit to load becomes free
    ///   within `max_load`.
    ///
    /// All calls that wait for a load that fails get its error, and so do calls within
    /// [`error_ttl`](Self::error_ttl) of its end. If the loader failed because of `Reentrant`, or
    /// because too many loads or calls ran in its process, its error is not kept: another caller
    /// may succeed, so the waiting calls ask again. Only calls that share a load which is not
    /// stored get such an error together. If only storing fails, the loaded value is returned.
    ///
    /// # Cancel safety
    /// Safe. A load that has begun goes on and is stored, if Redis is there to store it.
    ///
    /// # Panics
    /// If it is first polled outside a tokio runtime.
    pub fn memoize<V, E, L, How>(&self, key: &str, ttl: Duration, loader: L) -> Memoize<L>
    where
        L: Loader<Value = V, Error = E>,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        let captured = capture::<How, E>;
        Memoize::new(self.clone(), key, ttl, loader, captured)
    }
}

/// Keeps an error of the one type that it is made for.
type Capture = fn(Box<dyn Any + Send + Sync>) -> Captured;

/// Keeps an error of type `E`.
fn capture<How, E: LoaderError<How>>(error: Box<dyn Any + Send + Sync>) -> Captured {
    match error.downcast::<E>() {
        Ok(error) => error.captured(),
        Err(_) => unreachable!("the loader of this call fails with this type"),
    }
}

impl<L> fmt::Debug for Memoize<L> {
    /// Leaves out the loader, which may hold anything.
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
    fn new(cache: Cache, key: &str, ttl: Duration, loader: L, captured: Capture) -> Self {
        Self {
            tags: Ok(Vec::new()),
            key: cache.client.name(key),
            cache,
            ttl,
            loader,
            captured,
        }
    }

    /// Labels what the loader loads: invalidating any of the tags invalidates the value.
    ///
    /// The tags belong to the value. A call that finds a value which another call has loaded gets
    /// that value, whichever tags the two calls declare. At most 254 tags; one that is named twice
    /// counts once.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    /// Sets how long this call may take in all, its loader not counted. By default, the cache
    /// [decides](Cache::deadline). More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.cache = self.cache.deadline(deadline);
        self
    }

    /// Sets whether this call keeps trying while Redis is out. By default, the cache
    /// [decides](Cache::on_outage).
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
        // Parsed here, and not in the future, which would then hold the parts twice.
        let call = Call::parsed(cache, key, ttl, tags);
        Box::pin(run(call, loader))
    }
}

/// What a call asks for, parsed.
struct Call {
    cache: Cache,
    key: Name,
    /// The key of the value.
    value: Key,
    ttl: Ttl,
    /// Those that the call declares.
    tags: Vec<Tag>,
}

async fn run<V, L>(call: Result<Call>, loader: L) -> Result<Arc<V>>
where
    L: Loader<Value = V, Error = Captured>,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let call = match &call {
        Ok(call) => call,
        Err(error) => return Err(error.clone()),
    };
    let Call { cache, key, .. } = call;
    let flights = &cache.state().flights;
    // Checked before anything else: the call would wait for the load that waits for it.
    LoadChain::refuse_reentry(flights, &call.value).map_err(|e| e.with_key(key))?;
    #[cfg(feature = "near")]
    if let Some(value) = call.near_hit() {
        return Ok(value);
    }
    let rounds = Rounds::begin(cache.terms()?, cache.setup.patience.limit());
    match call.approach::<V>(&rounds).await {
        Arrival::Read(reader, Ok(Reading::Hit(value))) => {
            call.hit(reader, &value);
            Ok(value)
        }
        approach => Box::pin(call.missed(approach, rounds, loader)).await,
    }
}

impl Call {
    fn parsed(cache: Cache, key: Name, ttl: Duration, tags: Result<Vec<Tag>>) -> Result<Self> {
        Ok(Self {
            ttl: Ttl::new("ttl", ttl)?,
            tags: tags?,
            value: cache.value(&key)?,
            cache,
            key,
        })
    }

    fn hit<V: Send + Sync + 'static>(&self, reader: Option<Reader<'_>>, value: &Arc<V>) {
        let Self { cache, key, .. } = self;
        tracing::trace!(target: "hedgerow::cache", cache = &*cache.setup.name, key = key.shown().as_str(), "hit");
        cache.setup.counts.hits.one_more();
        self.end(reader, || Ok(Found::Hit(value.clone())));
    }

    /// Returns the value that the near cache holds, and counts it.
    #[cfg(feature = "near")]
    fn near_hit<V: Send + Sync + 'static>(&self) -> Option<Arc<V>> {
        let near = self.cache.setup.near.as_ref()?;
        match near.hit(&self.cache.client, &self.value)? {
            NearHit::Value(value) => {
                self.cache.setup.counts.near_hits.one_more();
                self.hit(None, &value);
                Some(value)
            }
            // Loaded as if it were not known: the lease is asked for in any case.
            NearHit::Absent => None,
        }
    }

    /// Gets the value loaded, here or by others.
    async fn missed<'r, V, L>(
        &'r self,
        mut approach: Arrival<'r, V>,
        mut rounds: Rounds,
        loader: L,
    ) -> Result<Arc<V>>
    where
        L: Loader<Value = V, Error = Captured>,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let Self { cache, key, .. } = self;
        let (state, patience) = (cache.state(), self.patience());
        // Once for the call, however often it is sent round.
        let mut missed = Some(&cache.setup.counts.misses);
        loop {
            // A call that has been sent back often enough loads by itself; its load begins after
            // the call, so its value is always valid for it.
            let (began, silence, round) = (rounds.began(), rounds.silence(), rounds.used());
            let mut follower = match approach {
                Arrival::Joined(follower) => {
                    if let Some(count) = missed.take() {
                        count.one_more();
                    }
                    follower
                }
                Arrival::Read(reader, reading) => {
                    let miss = match reading {
                        Ok(Reading::Hit(value)) => {
                            self.hit(reader, &value);
                            return Ok(value);
                        }
                        Ok(Reading::Miss(miss)) => Ok(miss),
                        Err(error) if cache.setup.outage.bypasses(&error) => {
                            state.bulkhead.read(&cache.setup.name, &error);
                            Err(error)
                        }
                        Err(error) => {
                            self.end::<V>(reader, || Err(error.clone()));
                            return Err(error.with_key(key));
                        }
                    };
                    tracing::debug!(target: "hedgerow::cache", cache = &*cache.setup.name, key = key.shown().as_str(), round, "miss");
                    if let Some(count) = missed.take() {
                        count.one_more();
                    }
                    let role = if rounds.alone() {
                        Role::Opened(state.flights.alone(&self.value, patience))
                    } else {
                        state.flights.board(&self.value, patience, began, silence)
                    };
                    // After the flight is open: the calls that have waited for the read find it.
                    self.end::<V>(reader, || miss.clone().map(Found::Miss));
                    match role {
                        Role::Joined(follower) => follower,
                        Role::Opened(open) => {
                            let (cache, tags) = (cache.clone(), &self.tags);
                            let request = StoreRequest::new(cache, key.clone(), self.ttl, tags)?;
                            return run_flight(request, open, miss, rounds, loader).await;
                        }
                    }
                }
            };
            let outcome = follower.outcome(silence, rounds.patience()).await;
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A flight for another type is of no use here.
                    if let Ok(value) = value.downcast() {
                        cache.setup.counts.shared_loads.one_more();
                        return Ok(value);
                    }
                }
                // The error of a flight under another policy for outages: this call asks again
                // under its own.
                Some(Outcome::Failed { error, .. }) if cache.setup.outage.bypasses(&error) => {}
                Some(Outcome::Failed { error, .. }) => return Err(error.about(key)),
                None if Instant::now() >= rounds.over() => {
                    return Err(Rounds::out_of_time().with_key(key));
                }
                Some(Outcome::Unanswered { error, .. }) => {
                    if !cache.setup.outage.bypasses(&error) {
                        return Err(error.about(key));
                    }
                    // The call does without the server, together with the others that get no
                    // answer.
                    state.flights.give_up(&follower);
                    rounds.again();
                    approach = Arrival::Read(None, Err(error));
                    continue;
                }
                Some(Outcome::NoLoad) => {
                    rounds.again();
                    approach = self.approach(&rounds).await;
                    continue;
                }
                Some(Outcome::Again) | None => {}
            }
            rounds.another();
            approach = self.approach(&rounds).await;
        }
    }

    /// Joins the flight for the key, or reads the entry, together with other calls for it.
    async fn approach<V>(&self, rounds: &Rounds) -> Arrival<'_, V>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let Self { cache, value, .. } = self;
        let (state, began) = (cache.state(), rounds.began());
        let patience = cache.setup.patience;
        let (from, deadline) = match rounds.is_first() {
            true => (cache.setup.read_from, patience.deadline_from(began)),
            // A retry reads from the primary only: a replica may not have what ended the last load.
            false => (ReadFrom::Primary, patience.deadline()),
        };
        let how = How {
            from,
            max_decoded: cache.setup.stack.max_decoded,
            on_outage: patience.on_outage,
            freshness: self.freshness(rounds),
        };
        let (mut reader, mut now) = (None, began);
        for _ in 0..MOST_WAITS {
            if !rounds.alone()
                && let Some(follower) =
                    state
                        .flights
                        .join(value, self.patience(), began, rounds.silence())
            {
                return Arrival::Joined(follower);
            }
            let wait = match state.reads.turn(value, how, began, now) {
                Turn::Read(turn) => {
                    reader = turn;
                    break;
                }
                Turn::Wait(wait) => wait,
            };
            // In a box: a call that reads by itself need not be as large as one that waits.
            let over = deadline.at.min(rounds.over());
            match Box::pin(wait.ended::<V>(over)).await {
                Ok(Some(shared)) => {
                    if let Some(reading) = shared.reading(&self.tags, patience.limit()) {
                        // The call that read may show names that this one hides.
                        let reading = reading.map_err(|error| cache.client.told(error));
                        return Arrival::Read(None, reading);
                    }
                }
                Ok(None) => {}
                Err(Slow) => break,
            }
            now = Instant::now();
        }
        let deadline = deadline.at_most(rounds.over());
        // A retry follows a load, which has stored, or removed, what a near cache knows.
        #[cfg(feature = "near")]
        if let Freshness::Near(_) = how.freshness
            && let Some(near) = cache.near_to_fill()
        {
            let read = near::read::read(cache, near, value, &self.tags, deadline);
            return Arrival::Read(reader, Box::pin(read).await);
        }
        // In a box: two futures of a size that the allocator keeps at hand are cheaper than one
        // larger.
        let reading = Box::pin(fetch::read(cache, value, &self.tags, from, deadline)).await;
        Arrival::Read(reader, reading)
    }

    /// By which generations the next read judges.
    #[cfg(feature = "near")]
    fn freshness(&self, rounds: &Rounds) -> Freshness {
        match self.cache.near_to_fill() {
            Some(near) if rounds.is_first() => Freshness::Near(Arc::as_ptr(near).addr()),
            _ => Freshness::Strict,
        }
    }

    /// By which generations the next read judges.
    #[cfg(not(feature = "near"))]
    fn freshness(&self, _: &Rounds) -> Freshness {
        Freshness::Strict
    }

    /// Hands what a read has found to the calls that have waited for it.
    fn end<V: Send + Sync + 'static>(
        &self,
        reader: Option<Reader<'_>>,
        found: impl FnOnce() -> Result<Found<V>>,
    ) {
        if let Some(reader) = reader {
            let limit = self.cache.setup.patience.limit();
            reader.end(|| Shared::new(found(), &self.tags, limit));
        }
    }

    /// How long the call gives the server in a flight of others. A call that can do without the
    /// server gives an eighth more: the flight of such calls does without it for all of them.
    fn patience(&self) -> Patience {
        let patience = self.cache.setup.patience;
        match self.cache.setup.outage {
            Outage::Fail => patience,
            Outage::Bypass => patience.within(patience.limit() + patience.limit() / 8),
        }
    }
}

/// How a call comes to a flight, or to what Redis holds.
enum Arrival<'r, V> {
    Joined(Follower),
    Read(Option<Reader<'r>>, Result<Reading<Arc<V>>>),
}

/// Starts a flight and waits for it. `read` is what the read came to, or why the flight does
/// without Redis.
async fn run_flight<V, L>(
    request: StoreRequest,
    open: Leader,
    read: Result<Miss>,
    rounds: Rounds,
    loader: L,
) -> Result<Arc<V>>
where
    L: Loader<Value = V, Error = Captured>,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let (creator, value) = oneshot::channel();
    let name = request.place.name.clone();
    let cache = &*request.cache.setup.name;
    let span =
        tracing::debug_span!(target: "hedgerow::cache", "load", cache, key = name.shown().as_str());
    let spawner = request.cache.client.spawner().clone();
    let limit = request.cache.setup.patience.limit();
    let (flight, since) = (open.flight().clone(), Instant::now());
    let load = Load::new(request, open, read, rounds);
    let mut launched = spawner.launch(load.run(loader, creator).instrument(span));
    let mut value = pin!(value);
    loop {
        let look = flight.look(since, limit).min(Instant::now() + TICK);
        match timeout_at(rounds.over().min(look), &mut value).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    "the load ended without an answer: its runtime has shut down, or its task has \
                     panicked; call again",
                )
                .with_fate(Fate::Unanswered)
                .with_key(&name));
            }
            // The load goes on, for calls that come later.
            Err(_) if look >= rounds.over() => {
                return Err(Rounds::out_of_time().with_key(&name));
            }
            // The flight waits on, for calls with more time, and stores what it has loaded.
            Err(_) if flight.is_unanswered(since, limit) => match flight.has_loaded() {
                Some(Outcome::Value { value, .. }) => match value.downcast() {
                    Ok(value) => return Ok(value),
                    Err(_) => unreachable!("the opener has loaded this"),
                },
                Some(Outcome::Failed { error, .. }) => return Err(error.about(&name)),
                None if !flight.has_begun() => {
                    return Err(flight::unanswered().with_key(&name));
                }
                _ => launched.look(),
            },
            Err(_) => launched.look(),
        }
    }
}

/// How often a call waits for reads of others: for one that began before it, and one that began
/// after. Once more if one of them came to nothing.
const MOST_WAITS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::time::Deadline;

    #[test]
    fn the_future_of_a_hit_is_small() {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let cache = client.cache("c");
        let load = || async { Ok::<_, std::convert::Infallible>(1u8) };
        let loader = move || async move { load().await.map_err(LoaderError::captured) };
        let captured = |_: Box<dyn Any + Send + Sync>| unreachable!("nothing is loaded");
        let memoize = Memoize::new(cache, "k", Duration::from_secs(1), loader, captured);
        let Memoize {
            cache,
            key,
            ttl,
            tags,
            loader,
            ..
        } = memoize;
        let call = Call::parsed(cache.clone(), key, ttl, tags).expect("a good call");
        let (value, within) = (call.value.clone(), Deadline::after(Duration::from_secs(1)));
        let read = size_of_val(&fetch::read::<Arc<u8>>(
            &cache,
            &value,
            &[],
            ReadFrom::Primary,
            within,
        ));
        let call = size_of_val(&run::<u8, _>(Ok(call), loader));
        // The allocator of the GNU C library does not keep larger blocks at hand.
        assert!(read.max(call) <= 1032, "{read} and {call} bytes");
    }
}
