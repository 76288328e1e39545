//! `Call`: what the task of one call of `memoize` does.
//!
//! Invariant: a hit costs one read, no task and no script. On a miss the loader is handed to a
//! flight, which outlives its callers. A call only waits, so dropping it harms no other call. A
//! stale value that a call is given was read by that call, so nothing that had been invalidated
//! when the call began is served. `memoize` and its relatives make calls.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::fallback::{Fallback, may_be_served_over, out_of_patience};
use super::launch;
use crate::cache::Cache;
use crate::cache::load::flight::{Follower, Outcome};
use crate::cache::load::flights::{LoadChain, Role};
use crate::cache::load::gather::Member;
use crate::cache::load::loading::RunLoader;
use crate::cache::load::rounds::Rounds;
use crate::cache::load::waits::Waiting;
use crate::cache::load_options::{EarlyRefresh, Kept, LoadOptions, Serves};
#[cfg(feature = "near")]
use crate::cache::near;
use crate::cache::outage::{Did, Outage};
use crate::cache::read::early::Draws;
use crate::cache::read::fetch;
use crate::cache::read::judge::{Age, Old, Want};
use crate::cache::read::reading::{Miss, ReadFrom, Reading};
use crate::cache::read::shared::{Found, Freshness, How, Reader, Shared, Slow, Turn};
use crate::cache::stats::Timed;
use crate::cache::store_request::StoreRequest;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
use crate::tags::Tag;
use crate::time::Patience;

#[cfg(feature = "near")]
mod held;

/// What a call asks for, parsed.
pub(super) struct Call {
    cache: Cache,
    key: Name,
    /// The key of the value.
    value: Key,
    kept: Kept,
    serves: Serves,
    /// Which entries it wants, beside hits.
    want: Want,
    /// Those that the call declares.
    tags: Vec<Tag>,
    /// The member of the call in a batch.
    member: Option<Arc<Member>>,
    /// Set if the call is given a stale value.
    stale_seen: Option<Arc<AtomicBool>>,
}

/// How a call comes to a flight, or to what Redis holds.
enum Arrival<'r, V> {
    Joined(Follower),
    Read(Option<Reader<'r>>, Result<Reading<Arc<V>>>),
}

/// Returns what `call` asks for. `loader` makes what loads it, if it must be loaded.
pub(super) async fn run<V, L>(call: Result<Call>, loader: L) -> Result<Arc<V>>
where
    L: FnOnce() -> RunLoader<V>,
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
        approach => Box::pin(call.waited(approach, rounds, loader())).await,
    }
}

/// Goes on for a call whose entry was read, together with others, at the beginning of `rounds`.
pub(super) async fn go_on<V>(
    call: &Call,
    reading: Result<Reading<Arc<V>>>,
    rounds: Rounds,
    loader: RunLoader<V>,
) -> Result<Arc<V>>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let flights = &call.cache.state().flights;
    LoadChain::refuse_reentry(flights, &call.value).map_err(|e| e.with_key(&call.key))?;
    call.waited(Arrival::Read(None, reading), rounds, loader)
        .await
}

impl Call {
    /// The same call, as part of a batch.
    pub(super) fn joining(self, member: Arc<Member>) -> Self {
        Self {
            member: Some(member),
            ..self
        }
    }

    /// The same call, which sets `seen` if it is given a stale value.
    pub(super) fn noting_stale(self, seen: Option<Arc<AtomicBool>>) -> Self {
        let stale_seen = seen;
        Self { stale_seen, ..self }
    }

    pub(super) fn place(&self) -> &Key {
        &self.value
    }

    pub(super) fn parsed(
        cache: Cache,
        key: Name,
        options: &LoadOptions,
        tags: Result<Vec<Tag>>,
    ) -> Result<Self> {
        let (kept, serves) = options.parsed()?;
        let want = match (serves.may_be_stale(), serves.early_refresh) {
            (false, EarlyRefresh::Off) => Want::Fresh,
            (true, EarlyRefresh::Off) => Want::STALE,
            (_, EarlyRefresh::On) => Want::Old {
                early: Some(Draws::new()),
            },
        };
        Ok(Self {
            kept,
            serves,
            want,
            tags: tags?,
            value: cache.value(&key)?,
            cache,
            key,
            member: None,
            stale_seen: None,
        })
    }

    fn hit<V: Send + Sync + 'static>(&self, reader: Option<Reader<'_>>, value: &Arc<V>) {
        let Self { cache, key, .. } = self;
        tracing::trace!(target: "hedgerow::cache", cache = &*cache.setup.name, key = key.shown().as_str(), "hit");
        cache.setup.counts.hits.one_more();
        self.end(reader, || Ok(Found::Hit(value.clone())));
    }

    /// Gets the value loaded, or a stale value if the load fails or takes too long.
    async fn waited<'r, V>(
        &'r self,
        approach: Arrival<'r, V>,
        rounds: Rounds,
        loader: RunLoader<V>,
    ) -> Result<Arc<V>>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let began = rounds.began();
        let fallback = Fallback::none();
        let mut missed = pin!(self.missed(approach, rounds, loader, &fallback));
        let after = |timeout: Option<Duration>| async move {
            match timeout {
                Some(timeout) => sleep_until(began + timeout).await,
                None => std::future::pending().await,
            }
        };
        let soft = async {
            after(self.serves.soft_timeout).await;
            loop {
                if let Some(value) = fallback.value(self.serves.stale_if_error) {
                    return value;
                }
                // A later read of this call may find one.
                fallback.kept().await;
            }
        };
        // Dropping `missed` ends this call only: a load that has begun goes on.
        let outcome = tokio::select! {
            biased;
            outcome = &mut missed => outcome,
            value = soft => return Ok(self.served_stale(value)),
            () = after(self.serves.hard_timeout) => Err(out_of_patience().with_key(&self.key)),
        };
        self.or_stale(outcome, &fallback)
    }

    /// `outcome`, or a stale value in its place if a load, or Redis, has failed.
    fn or_stale<V>(&self, outcome: Result<Arc<V>>, fallback: &Fallback<V>) -> Result<Arc<V>> {
        match outcome {
            Err(error) if may_be_served_over(&error) => {
                let Some(value) = fallback.value(self.serves.stale_if_error) else {
                    return Err(error);
                };
                let (cache, key) = (&*self.cache.setup.name, self.key.shown());
                tracing::debug!(target: "hedgerow::cache", cache, key = key.as_str(), %error, "served stale");
                Ok(self.served_stale(value))
            }
            outcome => outcome,
        }
    }

    fn served_stale<V>(&self, value: Arc<V>) -> Arc<V> {
        self.cache.setup.counts.stale_served.one_more();
        if let Some(seen) = &self.stale_seen {
            seen.store(true, Ordering::Relaxed);
        }
        value
    }

    /// Gets the value loaded, here or by others.
    async fn missed<'r, V>(
        &'r self,
        mut approach: Arrival<'r, V>,
        mut rounds: Rounds,
        loader: RunLoader<V>,
        fallback: &Fallback<V>,
    ) -> Result<Arc<V>>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let Self { cache, key, .. } = self;
        let (state, patience) = (cache.state(), self.patience());
        // Noted when the call first waits for a load.
        let mut waiting = None;
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
                Arrival::Read(mut reader, reading) => {
                    #[cfg(feature = "near")]
                    if let Err(error) = &reading
                        && let Some(value) = self.held_yet(error)
                    {
                        if missed.is_some() {
                            cache.setup.counts.hits.one_more();
                        }
                        // The others may be strict, or have another near cache.
                        self.end::<V>(reader, || Err(error.clone()));
                        return Ok(value);
                    }
                    let (miss, old) = match reading {
                        // Not a hit: the call has waited for the load of this value.
                        Ok(Reading::Hit(value)) if missed.is_none() => {
                            cache.setup.counts.saved_loads.one_more();
                            self.end(reader, || Ok(Found::Hit(value.clone())));
                            return Ok(value);
                        }
                        Ok(Reading::Hit(value)) => {
                            self.hit(reader, &value);
                            return Ok(value);
                        }
                        Ok(Reading::Old(old, miss)) => {
                            self.end(reader, || Ok(Found::Old(old.clone(), miss.clone())));
                            reader = None;
                            if self.serves_now(old.age) {
                                return Ok(self.refreshed(old, miss, loader));
                            }
                            let old = fallback.keep(old, &miss);
                            (Ok(miss), old)
                        }
                        Ok(Reading::Miss(miss)) => {
                            fallback.clear();
                            (Ok(miss), None)
                        }
                        Err(error) if cache.setup.outage.bypasses(&error) => {
                            cache.does_without(Did::FindNothing, "memoize", &error);
                            (Err(error), None)
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
                            self.wait(&mut waiting)?;
                            let (request, member) = (self.request()?, self.member.clone());
                            let found = (miss, old);
                            return launch::run_flight(
                                request,
                                open,
                                found,
                                rounds,
                                (loader, member),
                            )
                            .await;
                        }
                    }
                }
            };
            if let Some(member) = &self.member {
                member.decide();
            }
            self.wait(&mut waiting)?;
            let outcome = follower.outcome(silence, rounds.patience()).await;
            match outcome {
                Some(Outcome::Value { value, .. }) => {
                    // A flight for another type is of no use here.
                    if let Ok(value) = value.downcast() {
                        cache.setup.counts.shared_loads.one_more();
                        cache.setup.counts.saved_loads.one_more();
                        // The flight may be one of a handle without this near cache.
                        #[cfg(feature = "near")]
                        if let Some(near) = &cache.setup.near {
                            near.forget(&self.value);
                        }
                        return Ok(value);
                    }
                }
                // The error of a flight under another setting of `Outage`: this call asks again
                // under its own.
                Some(Outcome::Failed { error, .. }) if cache.setup.outage.bypasses(&error) => {}
                Some(Outcome::Failed { error, .. }) => return Err(error.about(key)),
                None if Instant::now() >= rounds.over() => {
                    return Err(Rounds::out_of_time().with_key(key));
                }
                Some(Outcome::Unanswered { error, .. }) => {
                    #[cfg(feature = "near")]
                    if let Some(value) = self.in_grace(&error) {
                        return Ok(value);
                    }
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
            true => (cache.setup.read_from, cache.deadline_since(began, patience)),
            // A retry reads from the primary only: a replica may not have what ended the last load.
            false => (ReadFrom::Primary, cache.deadline_by(patience)),
        };
        let want = self.want;
        let how = How {
            from,
            old: want != Want::Fresh,
            decodes: cache.setup.stack.decodes_like(),
            on_outage: patience.on_outage,
            freshness: self.freshness(rounds),
        };
        let (mut reader, mut now) = (None, began);
        for _ in 0..MOST_WAITS {
            // A call that may be given a stale value reads first: it need not wait for a load.
            if !rounds.alone()
                && !self.serves.may_be_stale()
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
            let asked = (&*self.tags, want, near::read::Absence::Loaded);
            let read = near::read::read(cache, near, value, asked, deadline);
            return Arrival::Read(reader, Box::pin(read).await);
        }
        #[cfg(feature = "near")]
        if rounds.is_first()
            && self.serves.may_be_stale()
            && let Some(near) = cache.near_to_fill()
        {
            let asked = (&*self.tags, want, near::read::Absence::Loaded);
            let read = near::read::read_old(cache, near, value, asked, deadline);
            return Arrival::Read(reader, Box::pin(read).await);
        }
        // In a box: two futures of a size that the allocator keeps at hand are cheaper than one
        // larger.
        let how = (from, want);
        let _timer = cache.setup.counts.time(Timed::Read);
        let reading = Box::pin(fetch::read_old(cache, value, &self.tags, how, deadline)).await;
        #[cfg(feature = "near")]
        if let (Ok(_), Some(near)) = (&reading, &cache.setup.near) {
            near.forget(value);
        }
        Arrival::Read(reader, reading)
    }

    /// Notes that the load which this call is part of, if it is, waits for the key.
    fn wait(&self, waiting: &mut Option<Waiting>) -> Result<()> {
        if waiting.is_none() {
            let state = self.cache.state();
            let begun = state.waits.begin(&state.flights, &self.value);
            *waiting = begun.map_err(|error| error.with_key(&self.key))?;
        }
        Ok(())
    }

    /// Which entries the call wants, beside hits.
    pub(super) fn want(&self) -> Want {
        self.want
    }

    /// Whether an old value of this age is served at once.
    fn serves_now(&self, age: Age) -> bool {
        match age {
            Age::Due => true,
            Age::Stale(age) => !self.serves.stale.is_zero() && age <= self.serves.stale,
        }
    }

    /// Loads the key anew in the background, unless that is under way, and returns the old value.
    fn refreshed<V>(&self, old: Old<Arc<V>>, miss: Miss, loader: RunLoader<V>) -> Arc<V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        self.cache.setup.counts.hits.one_more();
        let value = old.taken.clone();
        let value = match old.age {
            Age::Stale(_) => self.served_stale(value),
            Age::Due => value,
        };
        // Whatever was wrong with the request would have failed before the read.
        if let Ok(request) = self.request() {
            launch::refresh(request, (old, miss), (loader, self.member.clone()));
        }
        value
    }

    fn request(&self) -> Result<StoreRequest> {
        let (cache, key) = (self.cache.clone(), self.key.clone());
        StoreRequest::keeping(cache, key, self.kept.clone(), &self.tags)
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
        let options = LoadOptions::new(Duration::from_secs(1));
        let call = Call::parsed(cache.clone(), client.name("k"), &options, Ok(Vec::new()));
        let call = call.expect("a good call");
        let (value, within) = (call.value.clone(), Deadline::after(Duration::from_secs(1)));
        let how = (ReadFrom::Primary, Want::Fresh);
        let read = fetch::read_old::<Arc<u8>>(&cache, &value, &[], how, within);
        let read = size_of_val(&read);
        let call = size_of_val(&run::<u8, _>(Ok(call), || {
            unreachable!("nothing is loaded")
        }));
        // The allocator of the GNU C library does not keep larger blocks at hand.
        assert!(read.max(call) <= 1032, "{read} and {call} bytes");
    }
}
