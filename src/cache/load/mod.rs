//! The life of a flight: ask for the lease, then wait for the process that has it, or load and
//! commit.
//!
//! Invariant: a flight may give what it finds to every call that began before the load. A call that
//! joined later gets only what was proved after the flight was closed:
//!
//! - A value loaded here: the generations in its stamps were read before the loader began, or are
//!   proved not to have changed since before that (the tags that the loader has named). After
//!   the flight is closed, the commit and a read of the tags are sent. A `remove` or `set` between
//!   the grant of the lease and the commit ends the lease, so the commit is refused. An
//!   invalidation between the stamps and the read changes a generation. If neither happened, every
//!   invalidation that had returned when a follower's call began took effect before the load.
//! - A value taken from Redis is read and judged after the flight is closed. So is the record of a
//!   load that failed elsewhere.
//! - The error of a load that failed here is proved as a value is, with the record instead of the
//!   commit.
//!
//! Otherwise the follower asks again. An invalidation that takes effect after that proof had not
//! returned when the follower's call began. `memoize` spawns the task of a flight.

mod admission;
mod asking;
pub(crate) mod failure;
pub(crate) mod flight;
pub(crate) mod flights;
pub(crate) mod gather;
mod lead;
pub(crate) mod lease;
pub(crate) mod limit;
pub(crate) mod loading;
pub(crate) mod refreshing;
pub(crate) mod rounds;
mod run;
pub(crate) mod solo;
pub(crate) mod under_way;
mod unleased;
pub(crate) mod upload;
pub(crate) mod waits;
pub(crate) mod wake;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::oneshot;

use super::outage::Outage;
use super::stats::Timed;
use super::store_request::StoreRequest;
use crate::cache::read::judge::Old;
use crate::cache::read::reading::Miss;
use crate::codec::Stamp;
use crate::error::{Error, ErrorKind, Result};
use crate::key::TagId;
use crate::tags::Snapshot;
use crate::time::Patience;
use flight::{Outcome, Question};
use flights::{Leader, LoadChain};
use gather::Member;
use lease::LoadLease;
use limit::LoadPermit;
use loading::{Loading, RunLoader, Said, Storing};
use rounds::Rounds;
use under_way::LoadUnderWay;

/// A flight under way.
#[derive(Debug)]
pub(super) struct Load<V> {
    request: StoreRequest,
    leader: Leader,
    lease: LoadLease,
    running: Arc<LoadChain>,
    /// Why the flight does without Redis from the start.
    out: Option<Error>,
    /// What the entry that was judged invalid last is recognised by. The server grants the lease
    /// only if the entry is still that one, or gone.
    seen: Bytes,
    /// The generations as they were before the lease was asked for.
    snapshot: Snapshot,
    /// The tags of that entry which the call does not declare.
    others: Box<[TagId]>,
    /// What the call that opened the flight has been through.
    rounds: Rounds,
    /// The fence of the load elsewhere that the flight waits for. A change shows that this load has
    /// ended.
    awaited: Option<i64>,
    /// The fence of a failed load whose record is no longer valid.
    dead: Option<i64>,
    /// The stale value that this load replaces, if a call was allowed to have it.
    old: Option<Replaced<V>>,
    /// The member of this load in a batch.
    member: Option<Arc<Member>>,
    /// The permit of the cache's [`LoadLimit`](limit::LoadLimit).
    permit: Option<LoadPermit>,
    /// Another load waits for this one, which therefore needs no permit.
    excused: bool,
    ended: Ended,
    /// Dropped after everything else of the load, when its lease is given up.
    under_way: LoadUnderWay,
}

/// What a flight came to, for the task that ran it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A loaded value was to be stored, and was stored or refused.
    Committed,
    /// Nothing was to be stored: another process loads, or the load has failed, or its value may
    /// not be stored.
    Otherwise,
}

/// A stale value that a load replaces.
#[derive(Debug, Clone)]
pub(super) struct Replaced<V> {
    pub(super) value: Arc<V>,
    /// The tags of its entry, with their generations.
    pub(super) stamps: Vec<Stamp>,
    /// The head of its entry.
    pub(super) head: Bytes,
}

impl<V> Replaced<V> {
    pub(super) fn of(old: Old<Arc<V>>, miss: &Miss) -> Self {
        Self {
            value: old.taken,
            stamps: old.stamps,
            head: miss.seen.clone(),
        }
    }
}

impl<V> Load<V> {
    /// Makes the flight that `read` has made necessary: a miss, or an outage that is bypassed.
    pub(super) fn new(
        request: StoreRequest,
        leader: Leader,
        (read, old): (Result<Miss>, Option<Replaced<V>>),
        rounds: Rounds,
    ) -> Self {
        let (miss, out) = match read {
            Ok(miss) => (miss, None),
            Err(error) => (Miss::default(), Some(error)),
        };
        Self {
            out,
            lease: LoadLease::new(
                request.cache.client.clone(),
                (request.place.clone(), request.cache.setup.stack.shape),
                request.terms,
            ),
            running: LoadChain::begin(&request.state.flights, &request.place.value),
            under_way: request.state.loads.begin(),
            request,
            leader,
            seen: miss.seen,
            snapshot: miss.snapshot,
            others: miss.others,
            rounds,
            awaited: None,
            dead: None,
            old,
            member: None,
            permit: None,
            excused: false,
            ended: Ended::Otherwise,
        }
    }

    /// Makes the load of a value that is served meanwhile. No call waits for it, so it is part of
    /// no other load.
    pub(super) fn behind(
        request: StoreRequest,
        leader: Leader,
        (miss, old): (Miss, Replaced<V>),
        rounds: Rounds,
    ) -> Self {
        let running = LoadChain::root(&request.state.flights, &request.place.value);
        Self {
            running,
            ..Self::new(request, leader, (Ok(miss), Some(old)), rounds)
        }
    }

    /// The same, as part of a batch.
    pub(super) fn joining(self, member: Option<Arc<Member>>) -> Self {
        Self { member, ..self }
    }

    /// Asks the server something. The flight waits for the answer as long as the call with the most
    /// time does. If the calls can do without the server, they do so as soon as the answer is late
    /// for the call that opened the flight.
    pub(super) fn ask(&self) -> Question {
        let setup = &self.request.cache.setup;
        self.leader.flight().ask(match setup.outage {
            Outage::Fail => self.longest(),
            Outage::Bypass => setup.patience,
        })
    }

    /// Notes that the load has ended with `loaded`, and asks the server to store or record it. This
    /// takes as long as the call with the most time allows: what the cache holds then concerns all
    /// calls of the flight, and later ones. Each call waits for it within its own time, also the
    /// call that opened the flight, and then takes `loaded` if it may.
    pub(super) fn stores(&self, loaded: Outcome) -> Question {
        let flight = self.leader.flight();
        flight.loaded(loaded);
        flight.ask(self.longest())
    }

    /// The time that the call with the most time gives the server for an answer.
    fn longest(&self) -> Patience {
        let patience = self.request.cache.setup.patience;
        patience.within(patience.limit().max(self.leader.flight().longest()))
    }

    /// Ends the flight because the call that opened it has waited long enough. The calls that
    /// joined may have more time, so they ask again.
    pub(super) fn out_of_time<T>(&self) -> Result<T> {
        // No load has ended, so this must not count as one of the followers' rounds.
        self.leader.close().settle(Outcome::NoLoad);
        Err(Rounds::out_of_time())
    }

    /// Runs the loader until `until` at the latest. Returns its value, and what it has said of it.
    pub(super) async fn finished(
        &self,
        loader: RunLoader<V>,
        until: tokio::time::Instant,
    ) -> Result<(Arc<V>, Said)>
    where
        V: Send + Sync + 'static,
    {
        let old = self.old.as_ref().map(|old| old.value.clone());
        let loading = Loading::new(self.lease.fence(), old.clone());
        let said = loading.said();
        // So that calls of the cache within the loader know which load they are part of.
        let load = self
            .running
            .clone()
            .scope(async move { loader(loading).await });
        // A panic must end as an error, or the followers would learn nothing of the load.
        let load = AssertUnwindSafe(load).catch_unwind();
        let counts = &self.request.cache.setup.counts;
        let timer = counts.time(Timed::Load);
        let loaded = match tokio::time::timeout_at(until, load).await {
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
        };
        timer.stop();
        match &loaded {
            Ok(_) => counts.loads.one_more(),
            Err(_) => counts.failed_loads.one_more(),
        }
        let value = loaded.map_err(|error| self.request.named(error))?;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let value = match (said.storing, old) {
            // What all callers get is what the entry holds.
            (Storing::NotModified, Some(old)) => old,
            _ => Arc::new(value),
        };
        Ok((value, said))
    }
}

/// Returns, with the flight closed, when no call waits for it any more.
async fn deserted<T>(creator: &mut oneshot::Sender<T>, open: &Leader) {
    creator.closed().await;
    // A call may join between the two checks, so the second check is made under the lock.
    loop {
        open.deserted().await;
        if open.close_if_deserted() {
            return;
        }
    }
}
