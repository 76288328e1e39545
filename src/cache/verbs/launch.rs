//! Launching: a call hands its loader to a flight, and waits for it, or not.
//!
//! Invariant: the flight is a task of its own, so it goes on when the call is dropped. Its load
//! ends by itself, and a panic of its loader is caught. Calls of `memoize` and its relatives launch
//! flights.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use crate::cache::load::flight;
use crate::cache::load::flight::Outcome;
use crate::cache::load::flights::Leader;
use crate::cache::load::gather::Member;
use crate::cache::load::loading::RunLoader;
use crate::cache::load::rounds::Rounds;
use crate::cache::load::{Ended, Load, Replaced};
use crate::cache::read::judge::Old;
use crate::cache::read::reading::Miss;
use crate::cache::store_request::StoreRequest;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::pulse::TICK;

/// Starts a flight and waits for it. `read` is what the read came to, or why the flight does
/// without Redis, and the stale value that was found.
pub(super) async fn run_flight<V>(
    request: StoreRequest,
    open: Leader,
    read: (Result<Miss>, Option<Replaced<V>>),
    rounds: Rounds,
    (loader, member): (RunLoader<V>, Option<Arc<Member>>),
) -> Result<Arc<V>>
where
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
    let load = Load::new(request, open, read, rounds).joining(member);
    let load = async move {
        load.run(loader, creator).await;
    };
    let mut launched = spawner.launch(load.instrument(span));
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

/// Loads a key anew behind its old value, unless that is under way. No call waits for it.
pub(super) fn refresh<V>(
    request: StoreRequest,
    (old, miss): (Old<Arc<V>>, Miss),
    (loader, member): (RunLoader<V>, Option<Arc<Member>>),
) where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let (cache, place) = (request.cache.clone(), request.place.clone());
    let Ok(terms) = cache.terms() else {
        return;
    };
    let state = cache.state();
    // The load, and what it asks the server before and after it.
    let longest = terms.max_load.duration() + LONGEST_AROUND_A_LOAD;
    let Some(refresh) = state.refreshing.begin(&place.value, longest) else {
        return;
    };
    cache.setup.counts.refreshes.one_more();
    let (name, key) = (&*cache.setup.name, place.name.shown());
    let span =
        tracing::debug_span!(target: "hedgerow::cache", "load", cache = name, key = key.as_str());
    let patience = cache.setup.patience;
    let open = state.flights.alone(&place.value, patience);
    let rounds = Rounds::begin(terms, patience.limit());
    let old = Replaced::of(old, &miss);
    let load = Load::behind(request, open, (miss, old), rounds).joining(member);
    // No call waits. If another process loads, this ends at once.
    let (creator, _) = oneshot::channel();
    let load = async move {
        // Otherwise, the next call would begin another load at once.
        if load.run(loader, creator).await == Ended::Otherwise {
            tokio::time::sleep(BETWEEN_REFRESHES).await;
        }
        drop(refresh);
    };
    cache.client.spawner().spawn(load.instrument(span));
}

/// The pause after a load behind a value that has come to nothing: it was left to another process,
/// has failed, or its value was not to be stored. Calls are served the old value meanwhile.
const BETWEEN_REFRESHES: Duration = Duration::from_millis(500);

/// What a load behind a value may take beside its loader, before another one may begin.
const LONGEST_AROUND_A_LOAD: Duration = Duration::from_secs(60);
