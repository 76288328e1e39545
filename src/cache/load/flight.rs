//! Flights: one shared execution in this process for one key, by calls of any deadline.
//!
//! Invariant: a call that began before the load may take whatever the flight loads. The call that
//! opened the flight began before it. A call that began later still began before the flight was
//! closed. It gets a value only if commands that were sent *after* the flight was closed prove the
//! value. So no call gets a value that was loaded before an invalidation which had returned when
//! the call began.
//!
//! Calls share a flight whatever their deadlines. The flight gives the server the longest time that
//! any of its calls gives it, and each call keeps its own time. A call leaves its flight in one of
//! these ways:
//!
//! - with what the flight came to: a value, or the error of the load;
//! - when the server has left a question of the flight unanswered for as long as the call gives it:
//!   with a timeout, or, if the load has ended by then, with what was loaded if the call may take
//!   it; otherwise the call asks again;
//! - with the error of a question that was not answered. A call with notably more time than the
//!   question had (an eighth more) asks again instead;
//! - without an outcome, because nothing is proved for it or the task of the flight is silent: the
//!   call asks again;
//! - as out of time, once it has waited for `max_load` and its deadline.
//!
//! `memoize` opens and joins flights. The load closes and settles them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::time::{Deadline, FOREVER, OnOutage, Patience};

/// The open flights of one client.
#[derive(Debug, Default)]
pub(in crate::cache) struct Flights {
    /// At most two flights for a key: one of the calls that keep trying while the server is out,
    /// and one of those that fail at once.
    open: Mutex<HashMap<Key, Vec<Arc<Flight>>>>,
    /// The number of keys in `open`. A hit usually meets no flight, and so takes no lock.
    count: AtomicUsize,
}

/// One execution, and the calls that wait for it. The call that opened it receives its result over
/// a channel of its own.
pub(in crate::cache) struct Flight {
    key: Key,
    /// What all calls that share it want of an outage. Calls that fail at once must not wait with
    /// calls that keep trying.
    on_outage: OnOutage,
    /// The longest time that one of its calls gives the server for an answer, in ms.
    longest: AtomicU64,
    /// When the question was asked that the server has not answered yet, in ms since the flight was
    /// opened; [`NOTHING`] if no question is under way.
    asked: AtomicU64,
    /// How long the server has for that answer, in ms.
    within: AtomicU64,
    /// What the load came to, for calls that began before it and cannot wait until it is stored.
    loaded: OnceLock<Outcome>,
    opened: Instant,
    /// When its task was last seen to run, in ms since the flight was opened.
    beat: AtomicU64,
    /// When the load began. It is set and read under the lock of the open flights, or of the solo
    /// loads, so that each call that joins is known to be early or late.
    load_began: OnceLock<Instant>,
    /// Some call that joined began after the load. Only then the end of the load reads the tags
    /// again.
    has_late: AtomicBool,
    /// Notified when a load that has a permit of the bulkhead waits for this one.
    urgent: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What a flight tells its followers.
#[derive(Clone)]
pub(in crate::cache) enum Outcome {
    /// A value. If `proved`, it is also fresh for calls that began after its load.
    Value {
        value: Arc<dyn Any + Send + Sync>,
        proved: bool,
    },
    /// The load failed. `proved` means the same as for a value.
    Failed { error: Error, proved: bool },
    /// Nothing was loaded: the server was asked, and had so much time. This says nothing to a call
    /// that has more time.
    Unanswered { error: Error, within: Duration },
    /// Nothing is proved. Each follower must ask again.
    Again,
    /// As [`Again`](Self::Again), but no load has ended, so it does not count as one in
    /// [`Rounds`](super::rounds::Rounds).
    NoLoad,
}

/// How a call came to a flight.
#[derive(Debug)]
pub(in crate::cache) enum Role {
    Joined(Follower),
    Opened(Leader),
}

/// A call that waits for a flight which another call opened.
pub(in crate::cache) struct Follower {
    flight: Arc<Flight>,
    outcome: watch::Receiver<Option<Outcome>>,
    joined: Instant,
    /// How long the call gives the server for an answer.
    limit: Duration,
    /// The call began after the load.
    late: bool,
}

/// A question to the server that is under way. Dropping it ends the question.
#[derive(Debug)]
#[must_use = "the question ends when this is dropped"]
pub(in crate::cache) struct Question {
    flight: Arc<Flight>,
    pub(in crate::cache) deadline: Deadline,
}

/// The right to settle a flight. If it is dropped in mid-flight, with its runtime, it closes the
/// flight and its followers ask again.
#[derive(Debug)]
pub(in crate::cache) struct Leader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
}

impl Flights {
    /// Joins the open flight for `key`, if there is one, for a call of this `patience` that began
    /// at `began`. A flight whose task has been silent for `silence` does not count: its runtime is
    /// not driven, or its loader blocks the thread.
    pub(in crate::cache) fn join(
        &self,
        key: &Key,
        patience: Patience,
        began: Instant,
        silence: Duration,
    ) -> Option<Follower> {
        // A count that is out of date costs a read at most: `board` looks again, under the lock.
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let open = self.open();
        let flight = open
            .get(key)?
            .iter()
            .find(|flight| flight.on_outage == patience.on_outage);
        flight
            .filter(|flight| !flight.is_silent(silence))
            .map(|flight| {
                self.urge(flight);
                flight.joined(began, patience.limit())
            })
    }

    /// Joins the open flight for `key` as [`join`](Self::join) does, or opens one.
    pub(in crate::cache) fn board(
        self: &Arc<Self>,
        key: &Key,
        patience: Patience,
        began: Instant,
        silence: Duration,
    ) -> Role {
        let mut open = self.open();
        let flights = open.entry(key.clone()).or_default();
        if let Some(at) = flights
            .iter()
            .position(|flight| flight.on_outage == patience.on_outage)
        {
            if !flights[at].is_silent(silence) {
                self.urge(&flights[at]);
                return Role::Joined(flights[at].joined(began, patience.limit()));
            }
            // A silent flight is replaced. Its followers find out by themselves that it is silent.
            flights.swap_remove(at);
        }
        let flight = Flight::new(key, patience);
        self.urge(&flight);
        flights.push(flight.clone());
        self.count.store(open.len(), Ordering::Relaxed);
        Role::Opened(Leader {
            flights: self.clone(),
            flight,
        })
    }

    /// Opens a flight that no other call can join.
    pub(in crate::cache) fn alone(self: &Arc<Self>, key: &Key, patience: Patience) -> Leader {
        let flight = Flight::new(key, patience);
        self.urge(&flight);
        Leader {
            flights: self.clone(),
            flight,
        }
    }

    /// Closes all flights for `key`. A call that comes now starts anew.
    pub(in crate::cache) fn detach(&self, key: &Key) {
        let mut open = self.open();
        open.remove(key);
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// Closes the flight that `follower` joined. Calls that come now do not wait for it.
    pub(in crate::cache) fn give_up(&self, follower: &Follower) {
        self.leave(&mut self.open(), &follower.flight);
    }

    fn leave(&self, open: &mut HashMap<Key, Vec<Arc<Flight>>>, flight: &Arc<Flight>) {
        let Some(flights) = open.get_mut(&flight.key) else {
            return;
        };
        flights.retain(|other| !Arc::ptr_eq(other, flight));
        if flights.is_empty() {
            open.remove(&flight.key);
            self.count.store(open.len(), Ordering::Relaxed);
        }
    }

    /// Urges `flight` if the present task runs a load that has a permit of the bulkhead. That load
    /// keeps its permit while it waits. If `flight` had to wait for a permit, too, all permits
    /// could be held by loads that wait for it.
    fn urge(&self, flight: &Flight) {
        if LoadChain::any(|running| {
            running.placed.load(Ordering::Relaxed) && std::ptr::eq(&*running.flights, self)
        }) {
            // The notification is kept if the flight does not wait for a permit yet.
            flight.urgent.notify_one();
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Vec<Arc<Flight>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn new(key: &Key, patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            key: key.clone(),
            on_outage: patience.on_outage,
            longest: AtomicU64::new(millis(patience.limit())),
            asked: AtomicU64::new(NOTHING),
            within: AtomicU64::new(0),
            loaded: OnceLock::new(),
            opened: Instant::now(),
            beat: AtomicU64::new(0),
            load_began: OnceLock::new(),
            has_late: AtomicBool::new(false),
            urgent: Notify::new(),
            outcome: watch::Sender::new(None),
        })
    }

    /// Makes a follower for a call that began at `began`. The caller holds the lock of the open
    /// flights.
    fn joined(self: &Arc<Self>, began: Instant, limit: Duration) -> Follower {
        // A question that is under way keeps its time. The next one gets the new maximum.
        self.longest.fetch_max(millis(limit), Ordering::Relaxed);
        // The same instant counts as late: which of the two came first is not known.
        let late = self.load_began.get().is_some_and(|load| *load <= began);
        if late {
            self.has_late.store(true, Ordering::Relaxed);
        }
        Follower {
            flight: self.clone(),
            outcome: self.outcome.subscribe(),
            joined: Instant::now(),
            limit,
            late,
        }
    }

    /// Makes a follower for a call that began at `began`. `None` if the load began no later than
    /// that, or the outcome is known already.
    pub(in crate::cache) fn early(self: &Arc<Self>, began: Instant) -> Option<Follower> {
        if self.load_began.get().is_some_and(|load| *load <= began) {
            return None;
        }
        let outcome = self.outcome.subscribe();
        let settled = outcome.borrow().is_some();
        (!settled).then(|| Follower {
            flight: self.clone(),
            outcome,
            joined: Instant::now(),
            // A load that is shared like this asks the server nothing.
            limit: FOREVER,
            late: false,
        })
    }

    pub(in crate::cache) fn key(&self) -> &Key {
        &self.key
    }

    /// The longest time that one of its calls gives the server for an answer.
    pub(in crate::cache) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }

    /// How long the server had for the last answer.
    pub(in crate::cache) fn within(&self) -> Duration {
        Duration::from_millis(self.within.load(Ordering::Relaxed))
    }

    /// Notes that the server is asked something and has `patience` for it. One question is asked at
    /// a time.
    pub(in crate::cache) fn ask(self: &Arc<Self>, patience: Patience) -> Question {
        self.within
            .store(millis(patience.limit()), Ordering::Relaxed);
        let asked = millis(self.opened.elapsed());
        self.asked.store(asked, Ordering::Relaxed);
        Question {
            flight: self.clone(),
            deadline: patience.deadline(),
        }
    }

    /// Returns when a call must look at the flight again. The call has waited since `since` and
    /// gives the server `limit` for an answer. If an answer is due that the flight waits for longer
    /// than the call does, this is when the call stops waiting. Otherwise the call only looks again
    /// then, because no answer is due or the flight itself stops in time.
    pub(in crate::cache) fn look(&self, since: Instant, limit: Duration) -> Instant {
        let limit = limit.max(SHORTEST_LOOK);
        match self.asked.load(Ordering::Relaxed) {
            // A question may be older than the call's wait. The server still gets the call's whole
            // limit.
            asked if asked != NOTHING && millis(limit) < millis(self.within()) => {
                (self.opened + Duration::from_millis(asked)).max(since) + limit
            }
            _ => Instant::now() + limit,
        }
    }

    /// Whether a call stops waiting now, as [`look`](Self::look) says.
    pub(in crate::cache) fn is_unanswered(&self, since: Instant, limit: Duration) -> bool {
        self.look(since, limit) <= Instant::now()
    }

    /// Whether the loader runs, or has run.
    pub(in crate::cache) fn has_begun(&self) -> bool {
        self.load_began.get().is_some()
    }

    /// Notes what the load came to. It is stored or recorded from now on.
    pub(in crate::cache) fn loaded(&self, outcome: Outcome) {
        self.loaded.get_or_init(|| outcome);
    }

    /// Returns what the load came to, once it has ended, for the call that opened the flight. It
    /// may not be stored yet.
    pub(in crate::cache) fn has_loaded(&self) -> Option<Outcome> {
        self.loaded.get().cloned()
    }

    /// Returns when the task was last seen to run.
    fn last_beat(&self) -> Instant {
        self.opened + Duration::from_millis(self.beat.load(Ordering::Relaxed))
    }

    /// Whether the task has not been seen to run for `silence`.
    pub(in crate::cache) fn is_silent(&self, silence: Duration) -> bool {
        self.last_beat() + silence <= Instant::now()
    }

    /// Shows, for as long as this is polled, that the task of the flight runs.
    pub(in crate::cache) async fn beats(&self) -> std::convert::Infallible {
        loop {
            // Polled by the task of the flight: there is no beat while its runtime is not driven,
            // or its loader blocks the thread.
            tokio::time::sleep(BEAT).await;
            let since = self.opened.elapsed().as_millis();
            let since = u64::try_from(since).unwrap_or(u64::MAX);
            self.beat.store(since, Ordering::Relaxed);
        }
    }
}

/// A flight that no call can join any more. Only such a flight has an outcome: a call that joined a
/// settled flight would get an outcome from before its own beginning.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Closed<'l>(&'l Leader);

impl Leader {
    pub(in crate::cache) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Whether no call can join any more.
    pub(in crate::cache) fn is_closed(&self) -> bool {
        !self.is_among(&self.flights.open())
    }

    /// Whether a call that joined still waits.
    pub(in crate::cache) fn has_joined(&self) -> bool {
        self.flight.outcome.receiver_count() > 0
    }

    /// Notes that the load begins. A call that begins from now on may begin after an invalidation
    /// that the load does not know of.
    pub(in crate::cache) fn begin_load(&self) {
        // Under the lock, so that each call that joins is known to be early or late.
        let _open = self.flights.open();
        self.flight.load_began.get_or_init(Instant::now);
    }

    /// Closes the flight: no call joins from now on.
    pub(in crate::cache) fn close(&self) -> Closed<'_> {
        self.flights.leave(&mut self.flights.open(), &self.flight);
        Closed(self)
    }

    /// Closes the flight if no follower is left.
    pub(in crate::cache) fn close_if_deserted(&self) -> bool {
        let mut open = self.flights.open();
        // Counted under the lock: no call can join between the count and the close.
        let deserted = self.flight.outcome.receiver_count() == 0;
        if deserted {
            self.flights.leave(&mut open, &self.flight);
        }
        deserted
    }

    /// Whether this flight is among the open ones. After a detach, another flight may be open for
    /// the same key.
    fn is_among(&self, open: &HashMap<Key, Vec<Arc<Flight>>>) -> bool {
        let flights = open.get(&self.flight.key);
        flights.is_some_and(|all| all.iter().any(|flight| Arc::ptr_eq(flight, &self.flight)))
    }

    /// Returns when no follower is left, for the moment: another call may still join.
    pub(in crate::cache) async fn deserted(&self) {
        self.flight.outcome.closed().await;
    }

    /// Returns once a load that has a permit of the bulkhead waits for this flight.
    pub(in crate::cache) async fn urged(&self) {
        self.flight.urgent.notified().await;
    }
}

impl Closed<'_> {
    /// Whether a call joined that began after the load.
    pub(in crate::cache) fn has_late(&self) -> bool {
        self.0.flight.has_late.load(Ordering::Relaxed)
    }

    /// Gives the followers an outcome. Only the first call counts.
    pub(in crate::cache) fn settle(&self, outcome: Outcome) {
        self.0.flight.outcome.send_if_modified(|settled| {
            // A later outcome is that of a load that went on after the followers had theirs.
            let first = settled.is_none();
            if first {
                *settled = Some(outcome);
            }
            first
        });
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Without effect if the flight is settled: only the first outcome counts.
        self.close().settle(Outcome::Again);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.flight.asked.store(NOTHING, Ordering::Relaxed);
    }
}

impl Follower {
    /// Tells the flight that a load with a permit of the bulkhead waits for it.
    pub(in crate::cache) fn urge(&self) {
        self.flight.urgent.notify_one();
    }

    /// The outcome for this call when the server has left a question of the flight unanswered for
    /// as long as the call gives it.
    fn unanswered(&self) -> Outcome {
        if self.flight.load_began.get().is_none() {
            let (error, within) = (unanswered(), self.limit);
            return Outcome::Unanswered { error, within };
        }
        // A late call needs the proof that is still under way, so it asks again.
        let loaded = self.flight.loaded.get().filter(|_| !self.late);
        loaded.cloned().unwrap_or(Outcome::Again)
    }

    /// Returns what the flight came to, for this caller. `None` if it has come to nothing by
    /// `until`. If the task of the flight is silent for `silence`, the outcome is
    /// [`Outcome::Again`].
    ///
    /// Cancel safety: safe. The outcome can be asked for again.
    pub(in crate::cache) async fn outcome(
        &mut self,
        silence: Duration,
        until: Instant,
    ) -> Option<Outcome> {
        loop {
            let look = self.flight.look(self.joined, self.limit);
            let until_silent = self.flight.last_beat() + silence;
            let wake = until_silent.min(until).min(look);
            let settled = timeout_at(wake, self.outcome.wait_for(Option::is_some)).await;
            let settled = settled.map(|outcome| outcome.ok().and_then(|o| Option::clone(&o)));
            let outcome = match settled {
                Ok(outcome) => outcome,
                Err(_) if Instant::now() >= until => return None,
                // Its runtime may not be driven any more: an outcome might never come.
                Err(_) if self.flight.is_silent(silence) => return Some(Outcome::Again),
                Err(_) if self.flight.is_unanswered(self.joined, self.limit) => {
                    return Some(self.unanswered());
                }
                Err(_) => continue,
            };
            return Some(match outcome {
                // Errors need the proof, too: "no such row" may come from a load that began before
                // the row was there.
                Some(
                    Outcome::Value { proved: false, .. } | Outcome::Failed { proved: false, .. },
                ) if self.late => Outcome::Again,
                // An eighth of tolerance: otherwise, calls whose deadlines differ only by the time
                // they took to get here would ask the same again.
                Some(Outcome::Unanswered { within, .. }) if self.limit > within + within / 8 => {
                    Outcome::NoLoad
                }
                Some(outcome) => outcome,
                None => Outcome::Again,
            });
        }
    }
}

tokio::task_local! {
    /// The load that the present task runs, and the loads that led to it.
    static RUNNING: Arc<LoadChain>;
}

/// One load in a chain of loads, each started by the loader of the one before.
#[derive(Debug)]
pub(in crate::cache) struct LoadChain {
    flights: Arc<Flights>,
    key: Key,
    /// The other keys of a batch that one call of a loader loads.
    others: HashSet<Key>,
    /// It counts as a load with a permit of the bulkhead: it has one, or a load that waits for it
    /// has one, or it could wait for a permit no longer.
    placed: AtomicBool,
    outer: Option<Arc<LoadChain>>,
}

impl LoadChain {
    /// Makes the load of `key`, started from the present task.
    ///
    /// A cycle over tasks that a loader spawns by itself is not detected; `max_load` ends it.
    pub(in crate::cache) fn begin(flights: &Arc<Flights>, key: &Key) -> Arc<Self> {
        Arc::new(Self {
            flights: flights.clone(),
            key: key.clone(),
            others: HashSet::new(),
            placed: AtomicBool::new(false),
            // Taken in the task of the caller: the task of the flight, spawned later, does not
            // inherit it.
            outer: RUNNING.try_with(Arc::clone).ok(),
        })
    }

    /// Makes the load of `key` that no call waits for.
    pub(in crate::cache) fn root(flights: &Arc<Flights>, key: &Key) -> Arc<Self> {
        Arc::new(Self {
            flights: flights.clone(),
            key: key.clone(),
            others: HashSet::new(),
            placed: AtomicBool::new(false),
            outer: None,
        })
    }

    /// Notes that the load runs without a lease and was let in. Loads within it need no permit.
    pub(in crate::cache) fn let_in(&self) {
        self.placed.store(true, Ordering::Relaxed);
    }

    /// Whether the load of the present task, or one that led to it, satisfies `is_such`.
    fn any(is_such: impl Fn(&Self) -> bool) -> bool {
        let any = |running: &Arc<Self>| {
            std::iter::successors(Some(running), |running| running.outer.as_ref())
                .any(|running| is_such(running))
        };
        RUNNING.try_with(any).unwrap_or(false)
    }

    /// The load of this client that the present task runs.
    pub(in crate::cache) fn running(flights: &Arc<Flights>) -> Option<Arc<Self>> {
        let running = RUNNING.try_with(Arc::clone).ok();
        running.filter(|running| Arc::ptr_eq(&running.flights, flights))
    }

    /// Whether it loads `key`.
    pub(in crate::cache) fn loads(&self, key: &Key) -> bool {
        self.key == *key || self.others.contains(key)
    }

    /// Runs `load`, which loads also `others`, within the load that the present task runs.
    pub(in crate::cache) async fn with_others<F: Future>(
        others: HashSet<Key>,
        load: F,
    ) -> F::Output {
        let Ok(running) = RUNNING.try_with(Arc::clone) else {
            return load.await;
        };
        let batch = Arc::new(Self {
            flights: running.flights.clone(),
            key: running.key.clone(),
            others,
            placed: AtomicBool::new(running.placed.load(Ordering::Relaxed)),
            outer: Some(running),
        });
        RUNNING.scope(batch, load).await
    }

    /// Runs `load` as this one.
    pub(in crate::cache) async fn scope<F: Future>(self: Arc<Self>, load: F) -> F::Output {
        RUNNING.scope(self, load).await
    }

    /// Refuses a call for `key` from within its own load, which would wait for itself.
    pub(in crate::cache) fn refuse_reentry(flights: &Arc<Flights>, key: &Key) -> Result<()> {
        let is_it = |running: &Self| running.loads(key) && Arc::ptr_eq(&running.flights, flights);
        if Self::any(is_it) {
            return Err(Error::new(
                ErrorKind::Reentrant,
                "the loader of a key asks for the same key; it would wait for itself",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight")
            .field("key", &self.key)
            .field("passengers", &self.outcome.receiver_count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}

/// The error of a call that stops waiting for the server before its flight does. Nothing was
/// loaded.
pub(in crate::cache) fn unanswered() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "no answer from Redis within the deadline of the call; another call of the key has more \
         time and goes on waiting",
    )
    .with_fate(Fate::Unanswered)
}

// Rounded up, so that the flight's time is never shorter than that of the call that set it.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(NOTHING - 1)
}

/// No question is under way.
const NOTHING: u64 = u64::MAX;

/// A waiting call checks no more often than this whether the server is late.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

/// How often the task of a flight shows that it runs.
const BEAT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod orders;
#[cfg(test)]
mod tests;
