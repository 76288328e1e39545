//! What a read of an entry comes to, and where a cache may read.
//!
//! Invariant: a miss says which entry was judged, so that the lease is asked for against that
//! entry. `fetch` makes readings; the verbs and the loads take them.

use bytes::Bytes;

use super::judge::{Age, Old, Why};
use crate::codec::Unreadable;
use crate::key::TagId;
use crate::tags::{Snapshot, TagState, TagValue};

/// What a read came to.
#[derive(Debug)]
pub(in crate::cache) enum Reading<T> {
    /// What was taken from a valid entry.
    Hit(T),
    /// An entry that is to be loaded anew, for a read that wants such, and what the load must know.
    Old(Old<T>, Miss),
    Miss(Miss),
}

/// Nothing valid was found.
#[derive(Debug, Default, Clone)]
pub(in crate::cache) struct Miss {
    pub(in crate::cache) gone: Gone,
    /// What the entry that was judged invalid is [recognised
    /// by](crate::codec::Stack::recognised_by). Empty if there was no entry.
    pub(in crate::cache) seen: Bytes,
    /// The present states of the tags that were asked for.
    pub(in crate::cache) snapshot: Snapshot,
    /// The tags of that entry which were not asked for, if it can be read. Its loader has named
    /// them, and may do so again.
    pub(in crate::cache) others: Box<[TagId]>,
}

/// Where a cache may read values.
///
/// This concerns only values that are found. For everything else the primary is asked: for missing
/// values, loads, tags, locks and counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// At the primary. Nothing that was removed or invalidated is found.
    #[default]
    Primary,
    /// At a replica that is proved to have applied all that this client has written, and all that
    /// the primary had 2 s ago. At the primary if there is no such replica. So what *other* clients
    /// remove, set or invalidate may be seen up to 2 s late.
    PreferReplica,
}

impl<T> Reading<T> {
    /// Returns what was found.
    pub(in crate::cache) fn hit(self) -> Option<T> {
        match self {
            Self::Hit(taken) => Some(taken),
            Self::Old(old, _) if old.age == Age::Due => Some(old.taken),
            Self::Old(..) | Self::Miss(_) => None,
        }
    }
}

/// What is there instead of a valid entry.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Gone {
    #[default]
    Nothing,
    /// An entry that nobody can use: it was invalidated, is no longer fresh, or is damaged.
    Dead,
    /// An entry that another build, or another type, may be able to read.
    Foreign,
}

impl Gone {
    pub(super) fn of(why: &Why) -> Self {
        match why {
            Why::Absent => Self::Nothing,
            Why::Invalidated | Why::Expired | Why::Unreadable(Unreadable::Damaged(_)) => Self::Dead,
            Why::Unreadable(Unreadable::Foreign(_)) => Self::Foreign,
        }
    }
}

impl Miss {
    /// Makes a miss from the state of the whole cache's tag, if there is such a tag, and those of
    /// the declared tags.
    pub(in crate::cache) fn of(
        (gone, seen, others): (Gone, Bytes, Box<[TagId]>),
        whole: Option<Option<TagState>>,
        mut declared: Snapshot,
    ) -> Self {
        // In the order of a store request: the tag of the whole cache comes first.
        declared.splice(0..0, whole);
        Self {
            gone,
            seen,
            snapshot: declared,
            others,
        }
    }
}

pub(in crate::cache) fn snapshot(present: &[Option<Bytes>]) -> Snapshot {
    present
        .iter()
        .map(|value| TagValue::of(value.as_ref()).map(TagValue::state))
        .collect()
}
