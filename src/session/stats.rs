//! `SessionStats`: what a store has done so far.
//!
//! Invariant: all clones of a store count together, and a count only rises.

use crate::Cache;
use crate::meters::{Meters, counts};

counts! {
    /// What a store has done in this process since it was made.
    ///
    /// Each number only rises. They are read one after the other.
    pub struct SessionStats, named "hedgerow_session_";
    /// Sessions that were created.
    created,
    /// Sessions that were written anew.
    saved,
    /// Sessions whose end was moved, because a save changed nothing else.
    moved,
    /// Saves that changed nothing, because the session had ended since the request loaded it: it
    /// was deleted, got another id, was logged out everywhere, or belongs to another user.
    dropped,
    /// Saves of a session that another request had saved meanwhile. They overwrote it, or were
    /// refused, as the setting `conflict` says. Those under another id overwrote it.
    conflicts,
}

impl Counts {
    /// The counts of a store that keeps its sessions in `cache`.
    pub(super) fn in_cache(cache: &Cache) -> Self {
        let labels = [("namespace", cache.namespace()), ("cache", cache.name())];
        Self::of(&Meters::new(&labels, Self::METRICS, &[]))
    }
}
