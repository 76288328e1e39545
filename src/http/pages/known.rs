//! `Known`: what this process knows of pages that it has met.
//!
//! Invariant: what is known may be wrong, and then costs a trip to Redis or a render, and never a
//! wrong page. Its size is bounded. Serving looks here first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::page::Windows;
use crate::error::Error;
use crate::http::warnings::Warnings;

/// What is known of pages, by their keys.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: Mutex<State>,
    /// Notified when a page was noted that may not be stored.
    told: Notify,
    /// Of purges that are lost.
    lost: Warnings,
}

/// What is known of one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PageFacts {
    /// The tags that its handler has given it: read together with the page, if they are named.
    pub(super) tags: Arc<[String]>,
    pub(super) names: Names,
    /// How long it may be served stale.
    pub(super) windows: Option<Windows>,
    /// How often it was noted that it may not be stored.
    pub(super) noted: u64,
    unstored: Option<Unstored>,
}

/// How many of its tags a page is read and rendered with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Names {
    #[default]
    All,
    /// As many as leave room for a whole list of others: its tags change a lot.
    AsThereIsRoom,
}

/// A page that may not be stored, and that Redis cannot be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unstored {
    /// When a request looks again whether it may be.
    look_at: Instant,
    /// When all do.
    until: Instant,
}

#[derive(Debug, Default)]
struct State {
    facts: Generations,
    warned: Option<Instant>,
}

/// Two maps: when the younger one is full, it becomes the older one, whose facts are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, PageFacts>,
    old: HashMap<Box<str>, PageFacts>,
}

impl Known {
    /// Returns what is known of the page at `key`.
    pub(super) fn of(&self, key: &str) -> PageFacts {
        let state = self.state();
        let facts = state.facts.young.get(key);
        let facts = facts.or_else(|| state.facts.old.get(key));
        facts.cloned().unwrap_or_default()
    }

    /// Notes a page that is stored at `key`.
    pub(super) fn note(&self, key: &str, tags: &[String], windows: Windows) {
        self.change(key, |facts| {
            facts.name(tags);
            facts.windows = Some(windows);
            facts.unstored = None;
        });
    }

    /// Notes that Redis has a marker at `key`. It is kept stale, whatever was known of the page.
    pub(super) fn note_marker(&self, key: &str) {
        self.change(key, |facts| facts.windows = None);
    }

    /// Notes the tags of a page that have no room beside those that were known.
    pub(super) fn note_changing_tags(&self, key: &str, tags: &[String]) {
        self.change(key, |facts| {
            facts.name(tags);
            facts.names = Names::AsThereIsRoom;
        });
    }

    /// Notes that the page at `key` may not be stored, for a process that cannot leave a marker. It
    /// is remembered for `ttl`, and beyond that by all but the one that looks again.
    pub(super) fn note_unstored(&self, key: &str, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let look_at = Instant::now() + ttl;
        self.change(key, |facts| {
            facts.noted += 1;
            facts.unstored = Some(Unstored {
                look_at,
                until: look_at + LOOKED_AT_WITHIN,
            });
        });
        self.told.notify_waiters();
    }

    /// Returns whether a request for the page at `key` need not ask the cache, because the page
    /// may not be stored. `false` after `ttl` for one request, which looks again.
    pub(super) fn is_unstored(&self, key: &str, ttl: Duration) -> bool {
        let is_known = |facts: &HashMap<Box<str>, PageFacts>| {
            let facts = facts.get(key);
            facts.is_some_and(|facts| facts.unstored.is_some())
        };
        let state = self.state();
        if !is_known(&state.facts.young) && !is_known(&state.facts.old) {
            return false;
        }
        drop(state);
        let (now, mut is_unstored) = (Instant::now(), false);
        self.change(key, |facts| {
            facts.unstored = facts.unstored.filter(|it| now < it.until);
            if let Some(unstored) = &mut facts.unstored {
                is_unstored = now < unstored.look_at;
                if !is_unstored {
                    unstored.look_at = now + ttl;
                }
            }
        });
        is_unstored
    }

    /// Waits until it is noted that the page at `key` may not be stored, more often than `noted`.
    pub(super) async fn unstored(&self, key: &str, noted: u64) {
        loop {
            let told = self.told.notified();
            // From here on, none is missed.
            if self.of(key).noted > noted {
                return;
            }
            told.await;
        }
    }

    /// Whether something may be warned of now: once a minute.
    pub(super) fn warns(&self) -> bool {
        let (mut state, now) = (self.state(), Instant::now());
        let is_due = state.warned.is_none_or(|at| now >= at + BETWEEN_WARNINGS);
        if is_due {
            state.warned = Some(now);
        }
        is_due
    }

    /// Warns of a purge that is lost: at once, then at most once a minute.
    pub(super) fn lost_purge(&self, error: &Error) {
        if let Some(count) = self.lost.one_more(Instant::now()) {
            tracing::warn!(target: "hedgerow::pages", count, %error, "a purge is lost");
        }
    }

    /// Changes what is known of the page at `key`.
    fn change(&self, key: &str, change: impl FnOnce(&mut PageFacts)) {
        let facts = &mut self.state().facts;
        if let Some(known) = facts.young.get_mut(key) {
            return change(known);
        }
        let mut known = facts.old.remove(key).unwrap_or_default();
        change(&mut known);
        if facts.young.len() >= HALF {
            facts.old = std::mem::take(&mut facts.young);
        }
        facts.young.insert(key.into(), known);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageFacts {
    /// Whether it was noted that the page may not be stored. [`Known::is_unstored`] says whether
    /// that still counts.
    pub(super) fn was_unstored(&self) -> bool {
        self.unstored.is_some()
    }

    fn name(&mut self, tags: &[String]) {
        if *self.tags != *tags {
            self.tags = tags.into();
        }
    }
}

/// How many pages are known at least, once so many were met.
const HALF: usize = 4096;

/// How long it is remembered that a page may not be stored, beyond the time when one request looks.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(60);

const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows {
        while_revalidate: Duration::from_secs(1),
        if_error: Duration::ZERO,
    };

    #[test]
    fn the_latest_pages_are_known_and_their_number_is_bounded() {
        let known = Known::default();
        for page in 0..3 * HALF {
            known.note(&page.to_string(), &["t".to_owned()], WINDOWS);
        }
        assert_eq!(known.of("0"), PageFacts::default());
        for page in 2 * HALF..3 * HALF {
            let facts = known.of(&page.to_string());
            assert_eq!(
                (&*facts.tags, facts.windows),
                (&["t".to_owned()][..], Some(WINDOWS))
            );
        }
        let state = known.state();
        assert!(state.facts.young.len() + state.facts.old.len() <= 2 * HALF);
    }

    #[test]
    fn one_request_looks_again_whether_a_page_may_be_stored_and_the_others_do_not() {
        let known = Known::default();
        let hour = Duration::from_secs(3600);
        assert!(!known.is_unstored("k", hour), "nothing is known");
        known.note_unstored("k", hour);
        assert!(known.is_unstored("k", hour));
        known.note_unstored("k", Duration::from_nanos(1));
        while Instant::now() <= known.of("k").unstored.expect("noted").look_at {}
        assert!(!known.is_unstored("k", hour), "this one looks");
        assert!(known.is_unstored("k", hour));
        known.note("k", &[], WINDOWS);
        assert!(!known.is_unstored("k", hour), "it was stored");
        known.note_unstored("k", Duration::ZERO);
        assert!(!known.is_unstored("k", hour), "nothing is to be remembered");
    }
}
