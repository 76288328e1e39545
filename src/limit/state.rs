//! `LimitState`: what all limiters of a client share.
//!
//! Invariant: it lives as long as the client, and everything in it is bounded. So a handle may be
//! made for each request, and still counts, refuses and goes through an outage as the others of its
//! name do. Limiters and groups get it when they are made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::local::LocalLimit;
use super::quota::Terms;
use super::refusals::Refusals;
use super::stats::AllCounts;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::time::Seldom;

#[derive(Debug, Default)]
pub(super) struct LimitState {
    pub(super) refusals: Refusals,
    /// Of limiters and of groups: one of each may have the same name.
    pub(super) counts: AllCounts,
    pub(super) group_counts: AllCounts,
    locals: Mutex<HashMap<LocalName, Arc<LocalLimit>>>,
    /// Held while a request to a group takes from its local limits, or gives back to them.
    pub(super) groups: Mutex<()>,
    turns: AtomicUsize,
    /// Of requests that were decided without Redis.
    warned: Mutex<Seldom>,
}

/// A local limit: the name of its limiter or group, that of the limit in the group, its terms, and
/// the bits of its share.
type LocalName = (Box<str>, Option<Box<str>>, Terms, u64);

impl LimitState {
    /// Returns the local limit of a limiter, by its name, or of the limit of a group, by both
    /// names. `None` if there are too many: then it lets nothing through in an outage.
    pub(super) fn local(
        &self,
        (name, limit): (&str, Option<&str>),
        terms: &Terms,
        share: f64,
    ) -> Result<Option<Arc<LocalLimit>>> {
        let mut locals = self.locals.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limit.map(Box::from);
        let mut by_name: LocalName = (name.into(), limit, *terms, share.to_bits());
        if let Some(known) = locals.get(&by_name) {
            return Ok(Some(known.clone()));
        }
        // Names are few. If they are made from input, further ones share: one local limit for each
        // handle would let everything through. No limiter and no group has an empty name. Groups
        // share none with limiters, which do not wait for their turn.
        if locals.len() >= MOST_LOCALS {
            (by_name.0, by_name.1) = ("".into(), by_name.1.map(|_| "".into()));
            if let Some(known) = locals.get(&by_name) {
                return Ok(Some(known.clone()));
            }
        }
        if locals.len() >= MOST_LOCALS + MOST_SHARED {
            LocalLimit::verify(terms, share)?;
            return Ok(None);
        }
        // Only now: it has room for keys.
        let local = Arc::new(LocalLimit::new(terms, share)?);
        locals.insert(by_name, local.clone());
        Ok(Some(local))
    }

    /// Tells that the limiter `name` has decided without Redis: at once, then at most once a
    /// minute.
    pub(super) fn does_without(&self, name: &str, error: &Error) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let count = warned.one_more(Instant::now());
        // Released before the event: a subscriber is the user's code.
        drop(warned);
        let Some(count) = count else { return };
        let kind = error.kind();
        tracing::warn!(target: "hedgerow::limit", limiter = name, ?kind, count, %error, "limits do without Redis");
    }
}

/// A turn that is reserved, and neither used nor given back, as long as this lives.
#[derive(Debug)]
pub(super) struct Turn(Arc<LimitState>);

impl Turn {
    pub(super) fn of(state: &Arc<LimitState>) -> Self {
        state.turns.fetch_add(1, Ordering::SeqCst);
        Self(state.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How many turns this client has reserved, or is about to, that are neither used nor given back.
pub(crate) fn turns_under_way(client: &Client) -> usize {
    client
        .shared(LimitState::default)
        .turns
        .load(Ordering::SeqCst)
}

/// How many local limits a client keeps by their names, and how many those of further names share.
const MOST_LOCALS: usize = 1024;
const MOST_SHARED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Quota;

    /// A state that has as many local limits as are kept by name, and their terms.
    fn full() -> (LimitState, Terms) {
        let state = LimitState::default();
        let terms = Quota::per_day(2).terms().expect("a good quota");
        for number in 0..MOST_LOCALS {
            let local = local(&state, &number.to_string(), &terms);
            local.expect("a place").feed("a", 2);
        }
        (state, terms)
    }

    fn local(state: &LimitState, name: &str, terms: &Terms) -> Option<Arc<LocalLimit>> {
        state.local((name, None), terms, 1.0).expect("a good share")
    }

    #[test]
    fn limits_of_further_names_share_one_that_does_not_begin_anew() {
        let (state, terms) = full();
        let of = |name| local(&state, name, &terms).expect("a place");
        for name in ["late", "later", "late"] {
            assert!(Arc::ptr_eq(&of(name), &of("late")), "{name}");
        }
        of("late").feed("a", 2);
        assert!(!of("later").decide("a", 1).allowed);
        assert!(!of("0").decide("a", 1).allowed, "it is kept by its name");
        assert!(of("0").decide("b", 1).allowed);
    }

    #[test]
    fn further_groups_share_one_of_their_own() {
        let (state, terms) = full();
        let of = |name, limit| {
            let local = state.local((name, limit), &terms, 1.0);
            local.expect("a good share").expect("a place")
        };
        let (limiter, group) = (of("late", None), of("late", Some("a")));
        assert!(!Arc::ptr_eq(&limiter, &group));
        assert!(Arc::ptr_eq(&group, &of("later", Some("b"))));
    }

    #[test]
    fn with_too_many_quotas_there_is_no_local_limit_and_those_that_are_there_stay() {
        let (state, terms) = full();
        let other = |limit| Quota::per_day(limit).terms().expect("a good quota");
        let places = (3..1000).map(|limit| local(&state, "late", &other(limit)).is_some());
        assert_eq!(places.filter(|has| *has).count(), MOST_SHARED);
        assert!(local(&state, "late", &other(3)).is_some());
        assert!(local(&state, "0", &terms).is_some());
        let none = state.local(("late", None), &other(2000), 0.0);
        let error = none.expect_err("a share of nothing is an error also then");
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
    }
}
