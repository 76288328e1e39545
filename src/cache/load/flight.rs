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
//! [`Flights`](super::flights::Flights) makes flights and followers. The load asks the questions.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Fate};
use crate::key::Key;
use crate::time::{Deadline, FOREVER, OnOutage, Patience};

/// One execution, and the calls that wait for it. The call that opened it receives its result over
/// a channel of its own.
pub(in crate::cache) struct Flight {
    pub(super) key: Key,
    /// What all calls that share it want of an outage. Calls that fail at once must not wait with
    /// calls that keep trying.
    pub(super) on_outage: OnOutage,
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
    pub(super) load_began: OnceLock<Instant>,
    /// Some call that joined began after the load. Only then the end of the load reads the tags
    /// again.
    pub(super) has_late: AtomicBool,
    /// Notified when a load that has a permit of the bulkhead waits for this one.
    pub(super) urgent: Notify,
    /// Notified when any load waits for this one.
    pub(super) nested: Notify,
    pub(super) outcome: watch::Sender<Option<Outcome>>,
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

/// A call that waits for a flight which another call opened.
pub(in crate::cache) struct Follower {
    pub(super) flight: Arc<Flight>,
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

impl Flight {
    pub(super) fn new(key: &Key, patience: Patience) -> Arc<Self> {
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
            nested: Notify::new(),
            outcome: watch::Sender::new(None),
        })
    }

    /// Makes a follower for a call that began at `began`. The caller holds the lock of the open
    /// flights.
    pub(super) fn joined(self: &Arc<Self>, began: Instant, limit: Duration) -> Follower {
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

    /// Tells the flight that a load waits for it.
    pub(in crate::cache) fn excuse(&self) {
        self.flight.nested.notify_one();
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
