//! `LimitState`: what all limiters of a client share.
//!
//! Invariant: it lives as long as the client, and everything in it is bounded. So a handle may be
//! made for each request, and still counts, refuses and goes through an outage as the others of its
//! name do. Limiters and groups get it when they are made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::local::LocalLimit;
use super::quota::Terms;
use super::refusals::Refusals;
use super::stats::AllCounts;
use crate::client::Client;
use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub(super) struct LimitState {
    pub(super) refusals: Refusals,
    pub(super) counts: AllCounts,
    locals: Mutex<HashMap<LocalName, Arc<LocalLimit>>>,
    turns: AtomicUsize,
    /// When it was last told that limits do without Redis, and for how many requests since.
    told: Mutex<Told>,
}

/// A local limit: the name of its limiter or group, that of the limit in the group, its terms, and
/// the bits of its share.
type LocalName = (Box<str>, Option<Box<str>>, Terms, u64);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

impl LimitState {
    /// Returns the local limit of a limiter, by its name, or of the limit of a group, by both
    /// names.
    pub(super) fn local(
        &self,
        (name, limit): (&str, Option<&str>),
        terms: &Terms,
        share: f64,
    ) -> Result<Arc<LocalLimit>> {
        let mut locals = self.locals.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limit.map(Box::from);
        let by_name: LocalName = (name.into(), limit, *terms, share.to_bits());
        if let Some(known) = locals.get(&by_name) {
            return Ok(known.clone());
        }
        let local = Arc::new(LocalLimit::new(terms, share)?);
        // Names are few. With more, each handle has a local limit of its own.
        if locals.len() < MOST_LOCALS {
            locals.insert(by_name, local.clone());
        }
        Ok(local)
    }

    /// Tells that the limiter `name` has decided without Redis: at once, then at most once a
    /// minute.
    pub(super) fn does_without(&self, name: &str, error: &Error) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.since += 1;
        let now = Instant::now();
        if told.last.is_some_and(|last| now < last + BETWEEN_WARNINGS) {
            return;
        }
        told.last = Some(now);
        let count = std::mem::take(&mut told.since);
        // Released before the event: a subscriber is the user's code.
        drop(told);
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

/// How many local limits a client keeps at most.
const MOST_LOCALS: usize = 1024;

/// The least time from one warning of a client to the next.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);
