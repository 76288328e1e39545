//! `Refusals`: keys that the server has refused, so that the process can refuse them again without
//! asking.
//!
//! Invariant: a key is never refused for longer than the server has said. The time counts from an
//! instant before the request was sent, by the monotonic clock of this process, so it ends before
//! the server would let the request through, or with it. What this process gives back ends it at
//! once. What another process gives back, it does not hear of.
//!
//! The table has a fixed size. Two keys in one place take turns, and a key that was pushed out is
//! asked about again. Checks look here first and note what was refused.

use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::decision::{DecidedBy, Decision};
use super::quota::Terms;
use crate::hash::Seeded;
use crate::key::Key;

/// What is known of refused keys.
#[derive(Debug)]
pub(super) struct Refusals {
    places: Box<[Mutex<Place>]>,
    hasher: Seeded,
}

#[derive(Debug, Default)]
struct Place {
    /// Rises whenever something is given back, so that a refusal from before is not noted after it.
    returns: u32,
    refusal: Option<Box<Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    key: Key,
    terms: Terms,
    cost: u32,
    decision: Decision,
    /// Not after the instant of the refusal.
    since: Instant,
}

/// What the table says of a request.
#[derive(Debug)]
pub(super) enum Known {
    /// It is refused.
    Refused(Decision),
    /// The server must be asked. A refusal is noted with this.
    Ask(Asked),
}

/// How often anything had been given back when the server was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked(u32);

impl Default for Refusals {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| Mutex::default()).collect(),
            hasher: Seeded::default(),
        }
    }
}

impl Refusals {
    /// Whether a request of `cost` is refused without asking.
    pub(super) fn look(&self, key: &Key, terms: &Terms, cost: u32, now: Instant) -> Known {
        let mut place = self.place(key);
        let ask = Known::Ask(Asked(place.returns));
        let Some(refusal) = &place.refusal else {
            return ask;
        };
        let passed = now.saturating_duration_since(refusal.since);
        if refusal.decision.retry_after <= passed {
            place.refusal = None;
            return ask;
        }
        // A smaller cost may fit.
        if refusal.key != *key || refusal.terms != *terms || cost < refusal.cost {
            return ask;
        }
        Known::Refused(refusal.after(passed))
    }

    /// Notes that the server has refused a request of `cost`, which was not sent before `since`.
    pub(super) fn note(
        &self,
        key: &Key,
        (terms, cost): (&Terms, u32),
        decision: &Decision,
        since: Instant,
        asked: Asked,
    ) {
        let mut place = self.place(key);
        if place.returns != asked.0 || decision.retry_after < WORTHWHILE {
            return;
        }
        place.refusal = Some(Box::new(Refusal {
            key: key.clone(),
            terms: *terms,
            cost,
            decision: *decision,
            since,
        }));
    }

    /// Forgets what is known of `key`, because something is given back.
    pub(super) fn forget(&self, key: &Key) {
        let mut place = self.place(key);
        place.returns = place.returns.wrapping_add(1);
        place.refusal = None;
    }

    fn place(&self, key: &Key) -> MutexGuard<'_, Place> {
        let at = self.hasher.hash_one(key.as_str()) as usize % self.places.len();
        self.places[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusal {
    /// The decision once `passed` is over.
    fn after(&self, passed: Duration) -> Decision {
        Decision {
            retry_after: self.decision.retry_after.saturating_sub(passed),
            reset_after: self.decision.reset_after.saturating_sub(passed),
            decided_by: DecidedBy::KnownRefusal,
            ..self.decision
        }
    }
}

/// How many keys are known at most.
const PLACES: usize = 4096;

/// A refusal that ends sooner than a request takes is of no use.
const WORTHWHILE: Duration = Duration::from_micros(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Namespace;
    use crate::limit::Quota;

    const MILLI: Duration = Duration::from_millis(1);

    fn key(name: &str) -> Key {
        let keys = Namespace::new("hr").and_then(|space| space.limiter("api", "r"));
        keys.and_then(|keys| keys.of(name)).expect("a good name")
    }

    fn terms() -> Terms {
        Quota::per_second(10).terms().expect("a good quota")
    }

    fn refused_for(retry_after: Duration) -> Decision {
        Decision {
            allowed: false,
            limit: 10,
            remaining: 1,
            retry_after,
            reset_after: 2 * retry_after,
            decided_by: DecidedBy::Server,
        }
    }

    /// A table in which a cost of 3 was refused for 100 ms, and the instant of the question.
    fn noted() -> (Refusals, Instant) {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let Known::Ask(asked) = refusals.look(&key("a"), &terms(), 3, now) else {
            unreachable!("nothing is known yet")
        };
        let decision = refused_for(100 * MILLI);
        refusals.note(&key("a"), (&terms(), 3), &decision, now, asked);
        (refusals, now)
    }

    fn known(refusals: &Refusals, name: &str, cost: u32, now: Instant) -> Option<Decision> {
        match refusals.look(&key(name), &terms(), cost, now) {
            Known::Refused(decision) => Some(decision),
            Known::Ask(_) => None,
        }
    }

    #[test]
    fn a_refusal_is_known_until_the_time_that_the_server_gave_and_no_longer() {
        let (refusals, began) = noted();
        let later = known(&refusals, "a", 3, began + 60 * MILLI).expect("known");
        assert_eq!(later.retry_after, 40 * MILLI);
        assert_eq!(later.reset_after, 140 * MILLI);
        assert_eq!(later.decided_by, DecidedBy::KnownRefusal);
        assert!(known(&refusals, "a", 3, began + 100 * MILLI).is_none());
    }

    #[test]
    fn a_smaller_cost_another_key_and_other_terms_are_asked_about() {
        let (refusals, now) = noted();
        assert!(known(&refusals, "a", 4, now).is_some());
        assert!(known(&refusals, "a", 2, now).is_none());
        assert!(known(&refusals, "b", 3, now).is_none());
        let larger = Quota::per_second(20).terms().expect("good");
        let asked = refusals.look(&key("a"), &larger, 3, now);
        assert!(matches!(asked, Known::Ask(_)));
    }

    #[test]
    fn what_is_given_back_ends_a_refusal_also_one_that_is_on_its_way() {
        let (refusals, now) = noted();
        let Known::Ask(asked) = refusals.look(&key("a"), &terms(), 1, now) else {
            unreachable!("it costs less")
        };
        refusals.forget(&key("a"));
        assert!(known(&refusals, "a", 3, now).is_none());
        refusals.note(&key("a"), (&terms(), 1), &refused_for(MILLI), now, asked);
        assert!(known(&refusals, "a", 1, now).is_none());
    }
}
