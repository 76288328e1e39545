//! `Locals`: the local limits that one request to a group asks.
//!
//! Invariant: a request takes from all of them, or from none. Requests to groups take their turns
//! one after the other, in the whole client, so what a refused one puts back was taken by itself.
//! Groups with [`LimitOutage::Local`] call this: to feed the limits while Redis answers, and to
//! decide when it does not.

use std::sync::{Arc, PoisonError};

use super::decision::Decision;
use super::local::LocalLimit;
use super::outage::LimitOutage;
use super::scripts::Asked;
use super::state::LimitState;

/// One for each limit that the request asks, in that order. None if the policy has none.
pub(super) struct Locals(Vec<Local>);

/// A local limit, and the key that it counts.
pub(super) struct Local {
    /// `None` if there are too many: then it lets nothing through.
    pub(super) limit: Option<Arc<LocalLimit>>,
    pub(super) key: String,
}

impl Locals {
    pub(super) fn new(each: Vec<Local>) -> Self {
        Self(each)
    }

    /// Counts what the server has let through, at `cost` of each.
    pub(super) fn feed(&self, state: &LimitState, cost: u32) {
        if self.0.is_empty() {
            return;
        }
        let _turn = state.groups.lock().unwrap_or_else(PoisonError::into_inner);
        for Local { limit, key } in &self.0 {
            if let Some(limit) = limit {
                limit.feed(key, cost);
            }
        }
    }

    /// Decides on a request by `outage`. The decisions are those on each limit, as if it were
    /// asked alone.
    pub(super) fn decide(
        &self,
        state: &LimitState,
        outage: LimitOutage,
        asked: &[Asked],
    ) -> Vec<Decision> {
        let _turn = state.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut decisions = Vec::with_capacity(asked.len());
        let mut taken = Vec::new();
        for (at, it) in asked.iter().enumerate() {
            let (local, key) = match self.0.get(at) {
                Some(Local { limit, key }) => (limit.as_deref(), &**key),
                None => (None, ""),
            };
            let before = local.map(|local| (local, key, local.place(key)));
            let decision = outage.decision(local, key, (&it.terms, it.cost));
            if decision.allowed {
                taken.extend(before);
            }
            decisions.push(decision);
        }
        if decisions.iter().any(|decision| !decision.allowed) {
            // The last one first: two keys may share a place.
            for (local, key, place) in taken.into_iter().rev() {
                local.put_back(key, place);
            }
        }
        decisions
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::key::Namespace;
    use crate::limit::Quota;

    const SHARE: LimitOutage = LimitOutage::Local { share: 1.0 };

    /// A local limit of one request in a day for the key `a`, and the request for it.
    fn local(limit: &str) -> (Local, Asked) {
        let terms = Quota::per_day(1).terms().expect("a good quota");
        let of = Namespace::new("hr").and_then(|space| space.limiter(limit, "r"));
        let asked = Asked {
            key: of.and_then(|keys| keys.of("a")).expect("good names"),
            terms,
            cost: 1,
        };
        let local = Local {
            limit: Some(Arc::new(LocalLimit::new(&terms, 1.0).expect("good"))),
            key: "a".to_owned(),
        };
        (local, asked)
    }

    fn limit(locals: &Locals, at: usize) -> &LocalLimit {
        locals.0[at].limit.as_deref().expect("one for each")
    }

    /// Runs `request`, which takes from the first limit and then from the second, and holds the
    /// second until the first was taken from. Nobody else has a turn between the two.
    fn has_its_turn(request: impl Fn(&Locals, &LimitState, &[Asked]) + Sync) -> Locals {
        let ((first, first_asked), (second, second_asked)) = (local("first"), local("second"));
        let locals = Locals::new(vec![first, second]);
        let (state, asked) = (LimitState::default(), [first_asked, second_asked]);
        // The second is used up, so it refuses.
        limit(&locals, 1).feed("a", 1);
        let before = limit(&locals, 0).place("a");
        std::thread::scope(|scope| {
            limit(&locals, 1).while_held(|| {
                scope.spawn(|| request(&locals, &state, &asked));
                let began = Instant::now();
                while limit(&locals, 0).place("a") == before {
                    assert!(began.elapsed() < Duration::from_secs(60), "nothing taken");
                    std::thread::yield_now();
                }
                assert!(state.groups.try_lock().is_err(), "another could take now");
            });
        });
        locals
    }

    #[test]
    fn a_refused_request_has_its_turn_until_it_has_put_back_what_it_took() {
        let locals = has_its_turn(|locals, state, asked| {
            let decisions = locals.decide(state, SHARE, asked);
            let allowed = decisions.iter().map(|decision| decision.allowed);
            assert_eq!(allowed.collect::<Vec<_>>(), [true, false]);
        });
        assert!(limit(&locals, 0).decide("a", 1).allowed, "it was put back");
    }

    #[test]
    fn what_the_server_let_through_is_counted_in_one_turn() {
        let locals = has_its_turn(|locals, state, _| locals.feed(state, 1));
        assert!(!limit(&locals, 0).decide("a", 1).allowed, "it was counted");
    }
}
