//! Solo loads: loads without a lease, for calls that the loads of others did not help.
//!
//! Invariant: at most one solo load of a key waits to begin in one client, silent ones not counted.
//! A flight shares a solo load, also while it runs, if all calls that wait for the flight began
//! before the load. While one runs, the next waits for it, at most until half of `max_load` has
//! passed for the call that opened the next. So however many calls can wait no longer, one load
//! begins for all of them. A solo load needs no lease and is not stored.
//!
//! The load of a flight comes here when its call must load alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::flight::{Flight, Follower};
use super::flights::Leader;
use crate::key::Key;

/// The solo loads of one client.
#[derive(Debug, Default)]
pub(in crate::cache) struct Solos {
    keys: Mutex<HashMap<Key, Queue>>,
}

/// The solo loads of one key.
#[derive(Debug)]
struct Queue {
    /// The load that has not begun.
    next: Option<Arc<Flight>>,
    /// The loads that run. There is more than one only where a call could not wait for the load
    /// before.
    running: Vec<Arc<Flight>>,
    /// Its one permit belongs to the load that runs.
    turn: Arc<Semaphore>,
    /// The number of [`Turn`]s. With the last one, the queue of the key is removed.
    turns: usize,
}

/// How a flight that goes solo gets its value.
#[derive(Debug)]
pub(in crate::cache) enum Seat {
    /// It shares a load that began after the calls that wait for the flight, or has not begun.
    Shared(Follower),
    /// Its own load is the next.
    Own(Turn),
}

/// The position of a solo load, from before it begins to its end.
#[derive(Debug)]
pub(in crate::cache) struct Turn {
    solos: Arc<Solos>,
    flight: Arc<Flight>,
    turn: Arc<Semaphore>,
}

impl Solos {
    /// Shares a solo load of the flight's key that began after `began`, or has not begun. If there
    /// is none, makes the flight's load the next. All calls that wait for the flight have begun by
    /// `began`. A load whose task has been silent for `silence` is not shared.
    pub(in crate::cache) fn board(
        self: &Arc<Self>,
        open: &Leader,
        began: Instant,
        silence: Duration,
    ) -> Seat {
        let flight = open.flight();
        let mut keys = self.keys();
        let queue = keys.entry(flight.key().clone()).or_insert_with(|| Queue {
            next: None,
            running: Vec::new(),
            turn: Arc::new(Semaphore::new(1)),
            turns: 0,
        });
        // Running loads come first: they end sooner than the load that waits for them.
        let mut loads = queue.running.iter().chain(&queue.next);
        let shared = loads.find_map(|load| match load.is_silent(silence) {
            true => None,
            false => load.early(began),
        });
        if let Some(follower) = shared {
            return Seat::Shared(follower);
        }
        // Replaces only a load that cannot be shared any more.
        queue.next = Some(flight.clone());
        queue.turns += 1;
        Seat::Own(Turn {
            solos: self.clone(),
            flight: flight.clone(),
            turn: queue.turn.clone(),
        })
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Key, Queue>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Waits until no other solo load of the key runs.
    ///
    /// Cancel safety: safe. A dropped wait gives up its position in the queue of the semaphore.
    pub(in crate::cache) async fn comes(&self) -> Option<OwnedSemaphorePermit> {
        self.turn.clone().acquire_owned().await.ok()
    }

    /// Begins the load, and notes that in `open`. Calls that begin from now on do not share it.
    pub(in crate::cache) fn begin(&self, open: &Leader) {
        let mut keys = self.solos.keys();
        // Under the lock, so that each call either finds the load not begun or sees when it began.
        open.begin_load();
        if let Some(queue) = keys.get_mut(self.flight.key()) {
            queue.forget(&self.flight);
            queue.running.push(self.flight.clone());
        }
    }
}

impl Queue {
    fn forget(&mut self, flight: &Arc<Flight>) {
        let is_it = |load: &Arc<Flight>| Arc::ptr_eq(load, flight);
        self.next.take_if(|next| is_it(next));
        self.running.retain(|load| !is_it(load));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut keys = self.solos.keys();
        let Some(queue) = keys.get_mut(self.flight.key()) else {
            return;
        };
        queue.forget(&self.flight);
        queue.turns -= 1;
        // Waiting and running loads are all gone, so nothing is left to share.
        if queue.turns == 0 {
            keys.remove(self.flight.key());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::load::flights::{Flights, Role};
    use crate::client::Client;
    use crate::time::{OnOutage, Patience};

    const SILENCE: Duration = Duration::from_secs(60);

    fn key() -> Key {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let cache = client.cache("c");
        cache.value(&client.name("k")).expect("a good key")
    }

    fn flight(flights: &Arc<Flights>) -> Leader {
        flights.alone(&key(), Patience::new(SILENCE, OnOutage::FailFast))
    }

    fn own(seat: Seat) -> Turn {
        match seat {
            Seat::Own(turn) => turn,
            Seat::Shared(_) => panic!("it shares a load that is older than its calls"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_is_shared_by_calls_that_began_before_it_and_by_no_others() {
        let (flights, solos) = (Arc::<Flights>::default(), Arc::<Solos>::default());
        let (first, second, third) = (flight(&flights), flight(&flights), flight(&flights));
        let early = Instant::now();
        let turn = own(solos.board(&first, early, SILENCE));
        let next = solos.board(&second, Instant::now(), SILENCE);
        assert!(matches!(next, Seat::Shared(_)), "it has not begun");
        tokio::time::advance(Duration::from_millis(1)).await;
        turn.begin(&first);
        let running = solos.board(&second, early, SILENCE);
        assert!(
            matches!(running, Seat::Shared(_)),
            "it began after the call"
        );
        // A call of the same instant may have begun before or after the load.
        let next = own(solos.board(&second, Instant::now(), SILENCE));
        let waiting = solos.board(&third, Instant::now(), SILENCE);
        assert!(
            matches!(waiting, Seat::Shared(_)),
            "one load waits to begin"
        );
        drop((turn, next));
        assert!(solos.keys().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_with_passengers_says_so_once_it_is_closed() {
        let flights = Arc::<Flights>::default();
        let patience = Patience::new(SILENCE, OnOutage::FailFast);
        let board = || flights.board(&key(), patience, Instant::now(), SILENCE);
        let Role::Opened(open) = board() else {
            panic!("nobody was there");
        };
        let Role::Joined(follower) = board() else {
            panic!("the flight is open");
        };
        open.close();
        assert!(open.has_joined());
        drop(follower);
        assert!(!open.has_joined());
    }
}
