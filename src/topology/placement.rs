//! `Copies`: where a cached key lives while keys move from one ring of shards to another.
//!
//! Invariant: this is the only answer to that question. Whatever removes or invalidates a key does
//! so at each of its places; whatever reads one looks at the other place only if it says so.

use crate::key::Key;

/// The places of a cached key beside the one that the client's own ring says.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    /// The key as the other ring places it, if that is another server.
    pub(crate) other: Option<Key>,
    pub(crate) read: ReadOther,
}

/// Whether a value that is missing may be at the other place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOther {
    /// The other ring is the one that keys move to: nothing is stored there yet.
    Never,
    /// The other ring is the one that keys come from.
    WhenMissing,
}

impl Copies {
    /// One place only.
    pub(crate) fn none() -> Self {
        Self {
            other: None,
            read: ReadOther::Never,
        }
    }
}
