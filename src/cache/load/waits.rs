//! `Waits`: which loads of one client wait for which.
//!
//! Invariant: no chain of waits in one client leads back to where it began. A call within a load
//! that would close such a cycle is refused at once: all loads of the cycle would wait for each
//! other until `max_load` ends one of them. `memoize` notes each wait.
//!
//! A wait is noted by keys. If a key was invalidated during its load, an older and a newer load of
//! it count as one, and a call may be refused although only the older one waits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::flights::{Flights, LoadChain};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// The waits of one client. There are few: most loaders ask the cache nothing.
#[derive(Debug, Default)]
pub(in crate::cache) struct Waits(Mutex<Vec<Edge>>);

/// A running load waits for that of another key.
#[derive(Debug, Clone)]
struct Edge {
    /// One load, also where it loads many keys.
    waits: Arc<LoadChain>,
    awaited: Key,
}

/// A wait under way. Dropping it ends the wait.
#[derive(Debug)]
#[must_use = "the wait ends when this is dropped"]
pub(in crate::cache) struct Waiting {
    all: Arc<Waits>,
    edge: Edge,
}

impl Waits {
    /// Notes that the load which the present task runs waits for the load of `awaited`. `None` if
    /// the task runs no load.
    ///
    /// # Errors
    /// `Reentrant` if the load of `awaited` waits for this one.
    pub(in crate::cache) fn begin(
        self: &Arc<Self>,
        flights: &Arc<Flights>,
        awaited: &Key,
    ) -> Result<Option<Waiting>> {
        let Some(waits) = LoadChain::running(flights) else {
            return Ok(None);
        };
        let edge = Edge {
            waits,
            awaited: awaited.clone(),
        };
        let mut edges = self.edges();
        if leads(&edges, &edge.awaited, |key| edge.waits.loads(key)) {
            return Err(Error::new(
                ErrorKind::Reentrant,
                "the loader of a key asks for a key whose load waits for it, directly or through \
                 others; both would wait for ever",
            ));
        }
        edges.push(edge.clone());
        drop(edges);
        Ok(Some(Waiting {
            all: self.clone(),
            edge,
        }))
    }

    fn edges(&self) -> MutexGuard<'_, Vec<Edge>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether waits lead from the load of `from` to one that `is_goal`.
fn leads(edges: &[Edge], from: &Key, is_goal: impl Fn(&Key) -> bool) -> bool {
    let mut reached = vec![from];
    let mut seen: HashSet<&Key> = HashSet::from([from]);
    while let Some(key) = reached.pop() {
        if is_goal(key) {
            return true;
        }
        for edge in edges.iter().filter(|edge| edge.waits.loads(key)) {
            if seen.insert(&edge.awaited) {
                reached.push(&edge.awaited);
            }
        }
    }
    false
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut edges = self.all.edges();
        let own = edges.iter().rposition(|edge| {
            Arc::ptr_eq(&edge.waits, &self.edge.waits) && edge.awaited == self.edge.awaited
        });
        // One of those that are equal: a load may wait for a key in several calls.
        if let Some(own) = own {
            edges.swap_remove(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    fn key(name: &str) -> Key {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let cache = client.cache("c");
        cache.value(&client.name(name)).expect("a good key")
    }

    fn edges(pairs: &[(&str, &str)]) -> Vec<Edge> {
        let flights = Arc::default();
        let edges = pairs.iter().map(|(waits, awaited)| Edge {
            waits: LoadChain::root(&flights, &key(waits)),
            awaited: key(awaited),
        });
        edges.collect()
    }

    #[test]
    fn waits_lead_along_all_their_branches_and_not_back() {
        let waits = edges(&[("a", "b"), ("a", "c"), ("c", "d"), ("d", "c")]);
        for (from, to, expected) in [
            ("a", "d", true),
            ("a", "a", true),
            ("b", "a", false),
            ("d", "d", true),
            ("x", "a", false),
        ] {
            let leads = leads(&waits, &key(from), |at| *at == key(to));
            assert_eq!(leads, expected, "{from} {to}");
        }
    }
}
