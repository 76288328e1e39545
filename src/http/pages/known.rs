//! `Known`: what this process knows of pages that it has met.
//!
//! Invariant: what is known may be wrong, and then costs a trip to Redis or a render, and never a
//! wrong page. Its size is bounded. Serving looks here first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of pages, by their keys.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Generations>);

/// What is known of one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PageFacts {
    /// The tags that its handler has given it: read together with the page, if they are named.
    pub(super) tags: Arc<[String]>,
    pub(super) window: Window,
}

/// Whether a page may be served stale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Window {
    /// Perhaps: it is looked at.
    #[default]
    Unknown,
    None,
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
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = known.young.get(key).or_else(|| known.old.get(key));
        facts.cloned().unwrap_or_default()
    }

    /// Notes what was seen of the page at `key`.
    pub(super) fn note(&self, key: &str, tags: &[String], window: Window) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(facts) = known.young.get_mut(key) {
            if *facts.tags != *tags {
                facts.tags = tags.into();
            }
            facts.window = window;
            return;
        }
        if known.young.len() >= HALF {
            known.old = std::mem::take(&mut known.young);
        }
        let tags = tags.into();
        known.young.insert(key.into(), PageFacts { tags, window });
    }
}

/// How many pages are known at least, once so many were met.
const HALF: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> PageFacts {
        PageFacts {
            tags: vec!["t".to_owned()].into(),
            window: Window::None,
        }
    }

    #[test]
    fn the_latest_pages_are_known_and_their_number_is_bounded() {
        let known = Known::default();
        for page in 0..3 * HALF {
            known.note(&page.to_string(), &facts().tags, Window::None);
        }
        assert_eq!(known.of("0"), PageFacts::default());
        for page in 2 * HALF..3 * HALF {
            assert_eq!(known.of(&page.to_string()), facts());
        }
        let maps = known.0.lock().expect("no panic");
        assert!(maps.young.len() + maps.old.len() <= 2 * HALF);
    }
}
