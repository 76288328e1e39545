//! Solo loads: those of callers whom the loads of others were of no use.
//!
//! Invariant: in one process at most one solo load of a key waits to begin, and whoever is there
//! before it begins shares it; while one runs the next waits, for as long as its opener says. A
//! solo load needs no lease and is not stored. Boarded by the load of a flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::flight::{Flight, Open, Passenger};
use crate::key::Key;

/// The solo loads of one client.
#[derive(Debug, Default)]
pub(super) struct Solos {
    keys: Mutex<HashMap<Key, Queue>>,
}

/// The solo loads of one key.
#[derive(Debug)]
struct Queue {
    /// The one that has not begun.
    next: Option<Arc<Flight>>,
    /// Held by the one that runs.
    turn: Arc<Semaphore>,
    /// How many [`Turn`]s there are.
    turns: usize,
}

/// How a flight that goes solo came in.
#[derive(Debug)]
pub(super) enum Seat {
    /// It shares a load that has not begun.
    Shared(Passenger),
    /// Its load is the next.
    Own(Turn),
}

/// The place of a solo load, from before it begins to its end.
#[derive(Debug)]
pub(super) struct Turn {
    solos: Arc<Solos>,
    flight: Arc<Flight>,
    turn: Arc<Semaphore>,
}

impl Solos {
    /// Shares the solo load of the flight's key that has not begun, or makes the flight's the next
    /// one. A load whose task has been silent for `silence` is not waited for.
    pub(super) fn board(self: &Arc<Self>, open: &Open, silence: Duration) -> Seat {
        let flight = open.flight();
        let mut keys = self.keys();
        let queue = keys.entry(flight.key().clone()).or_insert_with(|| Queue {
            next: None,
            turn: Arc::new(Semaphore::new(1)),
            turns: 0,
        });
        if let Some(next) = queue.next.as_ref().filter(|next| !next.is_silent(silence)) {
            return Seat::Shared(next.early());
        }
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
    /// Cancel safety: a dropped wait gives its place up.
    pub(super) async fn comes(&self) -> Option<OwnedSemaphorePermit> {
        self.turn.clone().acquire_owned().await.ok()
    }

    /// The load begins: nobody shares it from now on.
    pub(super) fn begin(&self) {
        self.leave(&mut self.solos.keys());
    }

    fn leave(&self, keys: &mut HashMap<Key, Queue>) {
        let Some(queue) = keys.get_mut(self.flight.key()) else {
            return;
        };
        let is_next = |next: &Arc<Flight>| Arc::ptr_eq(next, &self.flight);
        if queue.next.as_ref().is_some_and(is_next) {
            queue.next = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut keys = self.solos.keys();
        self.leave(&mut keys);
        let Some(queue) = keys.get_mut(self.flight.key()) else {
            return;
        };
        queue.turns -= 1;
        if queue.turns == 0 {
            keys.remove(self.flight.key());
        }
    }
}
