//! `Places`: what a local limit counts apart.
//!
//! Invariant: a key that has a place keeps it until it is as good as new, and their number is
//! bounded. Further keys share a fixed number of places. A key that gets a place of its own later
//! begins where its shared place stands. So no key gets its share twice. The local limit calls
//! this through `governor`.

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;

use crate::hash::{Seeded, SeededMap};

/// The places of the keys of one local limit. Clones share them.
#[derive(Clone)]
pub(super) struct Places {
    /// How many keys have a place of their own at most.
    most: usize,
    held: Arc<Mutex<Held>>,
    hasher: Seeded,
}

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Own(Nanos),
    /// It has none of its own, and begins where the shared one stands.
    Shared(Option<Nanos>),
}

/// Each number is the theoretical arrival time of GCRA, on the clock of the local limit.
struct Held {
    keys: SeededMap<Box<str>, Nanos>,
    /// The places of all keys that have none of their own, by their hashes.
    shared: Box<[Option<Nanos>]>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            held: Arc::new(Mutex::new(Held {
                keys: SeededMap::default(),
                shared: vec![None; SHARED].into(),
            })),
            hasher: Seeded::default(),
        }
    }

    /// Returns where `key` stands.
    pub(super) fn of(&self, key: &str) -> Place {
        let held = self.lock();
        match held.keys.get(key) {
            Some(known) => Place::Own(*known),
            None => Place::Shared(held.shared[self.shared(key)]),
        }
    }

    /// Puts `key` back where it stood, as if nothing had been counted since.
    pub(super) fn put_back(&self, key: &str, place: Place) {
        let mut held = self.lock();
        match place {
            Place::Own(known) => {
                held.keys.insert(key.into(), known);
            }
            Place::Shared(shared) => {
                held.keys.remove(key);
                held.shared[self.shared(key)] = shared;
            }
        }
    }

    /// Which of the shared places is that of `key`.
    fn shared(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % SHARED
    }

    /// Runs `then` while nobody can count anything.
    #[cfg(test)]
    pub(super) fn while_held<T>(&self, then: impl FnOnce() -> T) -> T {
        let _held = self.lock();
        then()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Places {
    type Key = Box<str>;

    fn measure_and_replace<T, F, E>(&self, key: &Self::Key, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut held = self.lock();
        let Held { keys, shared } = &mut *held;
        if let Some(known) = keys.get_mut(key) {
            let (answer, next) = decide(Some(*known))?;
            *known = next;
            return Ok(answer);
        }
        let shared = &mut shared[self.shared(key)];
        let (answer, next) = decide(*shared)?;
        if keys.len() < self.most {
            keys.insert(key.clone(), next);
        } else {
            *shared = Some(next);
        }
        Ok(answer)
    }
}

impl ShrinkableKeyedStateStore<Box<str>> for Places {
    fn retain_recent(&self, drop_below: Nanos) {
        self.lock().keys.retain(|_, next| *next > drop_below);
    }

    fn len(&self) -> usize {
        self.lock().keys.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many places those keys share that have none of their own.
const SHARED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts one request for `key`. Returns how many were counted in its place before.
    fn counted(places: &Places, key: &str) -> u64 {
        let count = places.measure_and_replace(&key.into(), |before| {
            let before = before.map_or(0, Nanos::as_u64);
            Ok::<_, ()>((before, Nanos::new(before + 1)))
        });
        count.expect("nothing is refused")
    }

    /// As many keys as there are shared places, twice. So most places are shared by some.
    fn further() -> impl Iterator<Item = String> {
        (0..2 * SHARED).map(|number| number.to_string())
    }

    #[test]
    fn a_key_that_has_a_place_keeps_it_when_there_are_no_more() {
        let places = Places::new(2);
        for key in ["a", "a", "b"] {
            counted(&places, key);
        }
        for key in further() {
            counted(&places, &key);
        }
        assert_eq!(places.len(), 2);
        assert_eq!((counted(&places, "a"), counted(&places, "b")), (2, 1));
    }

    #[test]
    fn keys_without_a_place_share_those_that_all_such_keys_have() {
        let places = Places::new(0);
        let alone = further().filter(|key| counted(&places, key) == 0).count();
        assert!(alone <= SHARED, "{alone}");
        for key in further() {
            assert!(counted(&places, &key) > 0, "{key} is counted");
        }
        assert!(places.is_empty());
    }

    #[test]
    fn keys_that_are_as_good_as_new_make_room_and_a_key_that_gets_it_begins_as_counted() {
        let places = Places::new(2);
        for key in ["a", "b", "b", "late", "late", "late"] {
            counted(&places, key);
        }
        places.retain_recent(Nanos::new(1));
        assert_eq!(places.len(), 1, "one was as good as new");
        assert_eq!(counted(&places, "late"), 3);
        assert_eq!(places.len(), 2, "it has a place of its own");
        assert_eq!(counted(&places, "late"), 4);
        assert_eq!(counted(&places, "b"), 2);
    }

    #[test]
    fn a_key_that_is_put_back_stands_where_it_stood() {
        // With a place of its own, and with one that it shares.
        for most in [1, 0] {
            let places = Places::new(most);
            let new = places.of("a");
            assert_eq!(new, Place::Shared(None));
            counted(&places, "a");
            let once = places.of("a");
            assert_eq!(matches!(once, Place::Own(_)), most == 1);
            counted(&places, "a");
            places.put_back("a", once);
            assert_eq!(places.of("a"), once);
            assert_eq!(counted(&places, "a"), 1);
            places.put_back("a", new);
            assert_eq!(places.of("a"), new);
            assert!(places.is_empty());
            assert_eq!(counted(&places, "a"), 0);
        }
    }

    #[test]
    fn what_is_refused_takes_no_place() {
        let places = Places::new(1);
        let refused = places.measure_and_replace(&"a".into(), |_| Err::<((), _), _>("no"));
        assert_eq!(refused, Err("no"));
        assert!(places.is_empty());
    }
}
