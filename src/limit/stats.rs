//! `LimitStats`: what a limiter has decided so far.
//!
//! Invariant: all limiters of one name on one client share their counts, all groups of one name do,
//! and a count only rises. Each decision is in exactly one count. Checks, waits and groups count.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::decision::{DecidedBy, Decision};
use crate::meters::{Labels, Meters, counts};

counts! {
    /// What a limiter, or a group of limits, has decided in this process since its client was made.
    ///
    /// Each number only rises.
    pub struct LimitStats, named "hedgerow_limit_";
    /// Requests that the server let through.
    allowed,
    /// Requests that the server refused.
    refused,
    /// Requests that this process refused without a command, because the server had refused the
    /// key.
    known_refusals,
    /// Requests that were let through because of an outage.
    outage_allowed,
    /// Requests that were refused because of an outage.
    outage_refused,
}

impl Counts {
    fn new(labels: Labels<'_>) -> Self {
        Self::of(&Meters::new(labels, Self::METRICS, &[]))
    }

    /// Counts a decision.
    pub(super) fn note(&self, decision: &Decision) {
        let count = match (decision.decided_by, decision.allowed) {
            (DecidedBy::Server, true) => &self.allowed,
            (DecidedBy::Server, false) => &self.refused,
            (DecidedBy::KnownRefusal, _) => &self.known_refusals,
            (DecidedBy::Outage, true) => &self.outage_allowed,
            (DecidedBy::Outage, false) => &self.outage_refused,
        };
        count.one_more();
    }
}

/// The counts of all limiters of one client, or of all its groups, by their names.
#[derive(Debug, Default)]
pub(super) struct AllCounts(Mutex<HashMap<Box<str>, Arc<Counts>>>);

impl AllCounts {
    /// Returns the counts of the limiter or group called `name`, in this namespace. Metrics have
    /// one label for a limiter and a group of one name.
    pub(super) fn of(&self, namespace: &str, name: &str) -> Arc<Counts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return known.clone();
        }
        let counts = |limiter| {
            Arc::new(Counts::new(&[
                ("namespace", namespace),
                ("limiter", limiter),
            ]))
        };
        // Names of limiters are few. If they are made from input, each handle counts for itself,
        // and the metrics of all these handles are one.
        if all.len() >= MOST_LIMITERS {
            return counts(OTHERS);
        }
        let counts = counts(name);
        all.insert(name.into(), counts.clone());
        counts
    }
}

/// How many names are remembered at most.
const MOST_LIMITERS: usize = 1024;

/// What the metrics of all further names are labelled with.
const OTHERS: &str = "(others)";
