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
