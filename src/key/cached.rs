//! Keys of the entries of caches.
//!
//! Invariant: value and load lease of one entry share a slot, and the way back from a key to its
//! entry (`Namespace::entry_at`) exists only for keys that are spelt here.

#[cfg(feature = "near")]
use std::cell::Cell;
use std::sync::Arc;

use super::escape::{Part, checked, escape_into, escaped, globbed, unescaped};
use super::{Key, Namespace, Placement, TagId};
use crate::error::Result;

impl Namespace {
    /// The keys of one version of the cache named `cache`. Version 0 is the default.
    pub(crate) fn cache(&self, cache: &str, version: u32) -> Result<CacheKeys> {
        checked("cache name", cache)?;
        // Inner, because the key of the entry follows after a `:`.
        let cache = escaped(cache, Part::Inner);
        let version = version_digits(version);
        Ok(CacheKeys {
            // The brace closes after the key, so value and lease of one key share a slot, and the
            // keys of one cache are spread over all slots.
            value: format!("{}:v{version}:{{{cache}:", self.as_str()).into(),
            lease: format!("{}:l{version}:{{{cache}:", self.as_str()).into(),
        })
    }

    /// The keys of one version of the bare values of `cache`. None of them is a key of its entries.
    pub(crate) fn bare_cache(&self, cache: &str, version: u32) -> Result<CacheKeys> {
        checked("cache name", cache)?;
        let cache = escaped(cache, Part::Inner);
        let version = version_digits(version);
        Ok(CacheKeys {
            value: format!("{}:b{version}:{{{cache}:", self.as_str()).into(),
            lease: format!("{}:bl{version}:{{{cache}:", self.as_str()).into(),
        })
    }

    /// Returns which entry of `cache` the key belongs to, if it is one of `rooms`. `None` if it is
    /// of another kind, or is spelt as hedgerow never spells it.
    pub(crate) fn entry_at(&self, cache: &str, key: &str, rooms: Rooms) -> Option<EntryAt> {
        let rest = key.strip_prefix(self.as_str())?.strip_prefix(':')?;
        let (room, rest) = rest.split_once(":{")?;
        // `bl` is no version of `b`, because a version has digits only.
        let digits = room.strip_prefix(rooms.spelt())?;
        let version: u32 = match digits {
            "" => 0,
            digits => digits.parse().ok()?,
        };
        let rest = rest.strip_prefix(&*escaped(cache, Part::Inner))?;
        let spelt = rest.strip_prefix(':')?.strip_suffix('}')?;
        let name = unescaped(spelt);
        checked("cache key", &name).ok()?;
        let is_ours = *escaped(&name, Part::Last) == *spelt && *version_digits(version) == *digits;
        is_ours.then(|| EntryAt {
            version,
            name,
            key: Key::new(key).of(Placement::Cached),
        })
    }

    /// Returns a glob of Redis that finds all keys of entries of `cache` whose names, as they stand
    /// in a key, match the glob `names`: of one version, or of all.
    pub(crate) fn entries_like(
        &self,
        cache: &str,
        names: &str,
        rooms: Rooms,
        version: Option<u32>,
    ) -> String {
        let (space, cache) = (
            globbed(self.as_str()),
            globbed(&escaped(cache, Part::Inner)),
        );
        let room = rooms.spelt();
        let version = version.map_or_else(|| "*".to_owned(), version_digits);
        format!("{space}:{room}{version}:{{{cache}:{names}}}")
    }

    /// The index of a tag: which entries of one version of `cache`, whose name is valid, may carry
    /// it. It shares the slot of the tag.
    pub(crate) fn tag_index(&self, cache: &str, version: u32, id: TagId) -> Key {
        let (version, cache) = (version_digits(version), escaped(cache, Part::Inner));
        let key = format!("{}:x{version}:{{{:032x}}}:{cache}", self.as_str(), id.0);
        Key::new(key).of(Placement::Cached)
    }
}

/// Spells the keys of one cache. The part that all of them share is built once, because every hit
/// spells one.
#[derive(Debug, Clone)]
pub(crate) struct CacheKeys {
    value: Arc<str>,
    lease: Arc<str>,
}

impl CacheKeys {
    /// The cached value of `key`.
    pub(crate) fn value(&self, key: &str) -> Result<Key> {
        Self::entry(&self.value, key)
    }

    /// Calls `with` with the text of the key of the cached value of `key`, which is not kept. A hit
    /// of a near cache needs no more.
    #[cfg(feature = "near")]
    pub(crate) fn with_value<T>(&self, key: &str, with: impl FnOnce(&str) -> T) -> Result<T> {
        // Taken out and not borrowed: `with` may drop a value of the user's, which may read again.
        let mut text = SPELT.take();
        let spelt = Self::spell(&mut text, &self.value, key);
        let answer = spelt.map(|()| with(&text));
        SPELT.set(text);
        answer
    }

    /// The load lease of `key`. It shares the slot of the value, with another prefix.
    pub(crate) fn load_lease(&self, key: &str) -> Result<Key> {
        Self::entry(&self.lease, key)
    }

    /// As [`value`](Self::value), spelt in `buffer`, for a caller that spells many.
    pub(crate) fn value_by(&self, buffer: &mut String, key: &str) -> Result<Key> {
        Self::spell(buffer, &self.value, key)?;
        Ok(Key::new(buffer.as_str()).of(Placement::Cached))
    }

    fn entry(prefix: &str, key: &str) -> Result<Key> {
        // A little more than the key, for a few escaped characters.
        let mut text = String::with_capacity(prefix.len() + key.len() + 8);
        Self::spell(&mut text, prefix, key)?;
        Ok(Key::new(text).of(Placement::Cached))
    }

    fn spell(text: &mut String, prefix: &str, key: &str) -> Result<()> {
        checked("cache key", key)?;
        text.clear();
        text.push_str(prefix);
        escape_into(text, key, Part::Last);
        text.push('}');
        Ok(())
    }
}

#[cfg(feature = "near")]
thread_local! {
    /// The room in which keys are spelt that are not kept.
    static SPELT: Cell<String> = const { Cell::new(String::new()) };
}

/// The entry of a cache to which a key belongs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryAt {
    pub(crate) version: u32,
    pub(crate) name: String,
    /// The key itself: that of the value, or of the load lease.
    pub(crate) key: Key,
}

/// Which keys of entries are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rooms {
    Values,
    Leases,
    BareValues,
    BareLeases,
}

impl Rooms {
    /// What stands in such a key before the version.
    fn spelt(self) -> &'static str {
        match self {
            Self::Values => "v",
            Self::Leases => "l",
            Self::BareValues => "b",
            Self::BareLeases => "bl",
        }
    }
}

/// Returns a glob of Redis that matches exactly the text `name` as it stands in the last part of a
/// key.
pub(crate) fn glob_of(name: &str) -> String {
    globbed(&escaped(name, Part::Last))
}

/// How the keys of a cache spell its version.
fn version_digits(version: u32) -> String {
    match version {
        0 => String::new(),
        version => version.to_string(),
    }
}
