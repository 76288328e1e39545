//! Redis keys. This is the only module that spells one.
//!
//! Invariant: spelling is injective, and user text cannot choose its slot. Every key holds exactly
//! one `{..}` pair, which this module writes. So all keys of one primitive share a slot, and two
//! different (namespace, kind, name) triples never share a key. The text before the first `:` is
//! the namespace, so `namespace:*` matches the keys of one namespace and of no other.
//!
//! Every primitive builds its keys through `Namespace`.

mod bucket;
mod cached;
mod escape;
#[cfg(feature = "limit")]
mod limited;
mod namespace;
mod slot;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub(crate) use bucket::{Bucket, TagId};
pub(crate) use cached::{CacheKeys, EntryAt, Rooms, glob_of};
#[cfg(feature = "limit")]
pub(crate) use limited::LimitKeys;
pub(crate) use namespace::Namespace;
pub(crate) use slot::SLOTS;
pub use slot::slot;

use crate::name::HideKeys;
use escape::unescaped;
use slot::{SLOT_GROUPS, tagged};

/// Which shard keeps a key, also while keys move from one ring of shards to another. A key carries
/// this, because only the code that spells it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Placement {
    /// A key of a counter or a lock. It stays on the old ring until the migration ends.
    // A copy on each ring would count, or lock, separately.
    Kept,
    /// A key of a cache, on the shard that the client's own ring names.
    Cached,
    /// A key of a cache, on the shard that the other ring names.
    Elsewhere,
    /// A key that each shard has for itself: on this shard, whatever the rings say.
    On(u32),
}

/// One Redis key (or channel), valid by construction.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(Arc<str>, Placement);

impl Key {
    fn new(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        debug_assert_eq!(text.matches(['{', '}']).count(), 2, "one hash tag, ours");
        Self(text, Placement::Kept)
    }

    /// The same key of a cache, on the shard that the other ring names.
    pub(crate) fn on_other_ring(&self) -> Self {
        debug_assert_eq!(self.1, Placement::Cached, "only what is cached moves");
        self.clone().of(Placement::Elsewhere)
    }

    /// This key on one shard.
    pub(crate) fn on(&self, shard: usize) -> Self {
        self.clone().of(Placement::On(shard as u32))
    }

    /// One copy of this key for each slot group; the key must end with its hash tag. A copy is
    /// placed on the server that holds most keys of its group.
    pub(crate) fn of_slot_groups(&self) -> Vec<Self> {
        let (before, tag) = self.0.split_once('{').unwrap_or((&self.0, ""));
        let tag = tag.trim_end_matches('}');
        // The old tag becomes the end of the key, so copies of different keys stay different.
        let of = |part| Self::new(format!("{before}{{{part}}}:{tag}")).of(self.1);
        SLOT_GROUPS.into_iter().map(of).collect()
    }

    /// The slot group that this key is in.
    pub(crate) fn slot_group(&self) -> usize {
        usize::from(self.slot()) * SLOT_GROUPS.len() / usize::from(SLOTS)
    }

    pub(crate) fn placement(&self) -> Placement {
        self.1
    }

    fn of(self, realm: Placement) -> Self {
        Self(self.0, realm)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, to be kept.
    #[cfg(feature = "near")]
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.0
    }

    /// The text of this key of a cached value, with the user's name in it shown or hidden as `hide`
    /// says.
    pub(crate) fn shown(&self, hide: &HideKeys) -> Cow<'_, str> {
        if hide.is_off() {
            return self.as_str().into();
        }
        // The name of a cache is escaped as an inner part, so the first `:` ends it.
        let (cache, name) = self.0[..].rsplit_once('{').unwrap_or_default();
        let (own, name) = name.split_once(':').unwrap_or_default();
        let name = unescaped(name.trim_end_matches('}'));
        format!("{cache}{{{own}:{}}}", hide.show(&name).as_str()).into()
    }

    /// The cluster slot of this key.
    pub(crate) fn slot(&self) -> u16 {
        slot(self.0.as_bytes())
    }

    /// The part of the key that decides its slot. Keys that share it are served together.
    pub(crate) fn hash_tag(&self) -> &[u8] {
        tagged(self.0.as_bytes())
    }

    /// The key that holds a large entry, by its token, before it is stored as the value of this
    /// key. It shares the slot of the value. It is not the value of any cache, because those keys
    /// end with their hash tag.
    pub(crate) fn upload(&self, token: u64) -> Self {
        debug_assert!(self.0.ends_with('}'), "a value of a cache");
        self.ending_in(&format!(":{token:016x}")).of(self.1)
    }

    /// This key with `ending`, which is not user text, at its end.
    pub(crate) fn ending_in(&self, ending: &str) -> Self {
        Self::new(format!("{}{ending}", self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
