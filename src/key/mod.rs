//! Redis keys. This is the only module that spells one.
//!
//! Invariant: spelling is injective, and user text cannot choose its slot. Every key holds exactly
//! one `{..}` pair, which this module writes. So all keys of one primitive share a slot, and two
//! different (namespace, kind, name) triples never share a key. The text before the first `:` is
//! the namespace, so `namespace:*` matches the keys of one namespace and of no other.
//!
//! Every primitive builds its keys through `Namespace`.

mod bucket;
mod escape;
mod slot;

use std::borrow::Cow;
#[cfg(feature = "near")]
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

pub(crate) use bucket::{Bucket, TagId};
pub(crate) use slot::SLOTS;
pub use slot::slot;

use crate::error::{Error, Result};
use crate::name::HideKeys;
use escape::{Part, checked, escape_into, escaped, globbed, unescaped};
use slot::{SLOT_GROUPS, tagged};

/// The prefix of every key that a client touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace(Arc<str>);

impl Namespace {
    /// Parses a namespace. It refuses `:`, which ends the namespace in a key: with it, `a` and
    /// `a:b` could spell the same key, and an ACL rule for the keys of `a` would admit those of
    /// `a:b`.
    pub(crate) fn new(name: &str) -> Result<Self> {
        checked("namespace", name)?;
        if name.contains(':') {
            return Err(Error::invalid(
                "the namespace contains `:`, which separates it from the rest of a key; \
                 use another character, such as `-` or `.`",
            ));
        }
        Ok(Self(escaped(name, Part::Last).into()))
    }

    /// The text that every key and channel begins with, up to the first `:`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A key, or channel, of no primitive, to test whether the ACL user may use keys of the
    /// namespace.
    pub(crate) fn trial(&self, process: &str) -> Key {
        Key::new(format!("{}:{{trial}}:{process}", self.0))
    }

    /// The key that says in which format keys of one kind are written.
    pub(crate) fn format(&self, kind: &'static str) -> Key {
        Key::new(format!("{}:f:{{{kind}}}", self.0))
    }

    /// The keys of one version of the cache named `cache`. Version 0 is the default.
    pub(crate) fn cache(&self, cache: &str, version: u32) -> Result<CacheKeys> {
        checked("cache name", cache)?;
        // Inner, because the key of the entry follows after a `:`.
        let cache = escaped(cache, Part::Inner);
        let version = version_digits(version);
        Ok(CacheKeys {
            // The brace closes after the key, so value and lease of one key share a slot, and the
            // keys of one cache are spread over all slots.
            value: format!("{}:v{version}:{{{cache}:", self.0).into(),
            lease: format!("{}:l{version}:{{{cache}:", self.0).into(),
        })
    }

    /// The keys of one version of the bare values of `cache`. None of them is a key of its entries.
    pub(crate) fn bare_cache(&self, cache: &str, version: u32) -> Result<CacheKeys> {
        checked("cache name", cache)?;
        let cache = escaped(cache, Part::Inner);
        let version = version_digits(version);
        Ok(CacheKeys {
            value: format!("{}:b{version}:{{{cache}:", self.0).into(),
            lease: format!("{}:bl{version}:{{{cache}:", self.0).into(),
        })
    }

    /// Returns which entry of `cache` the key belongs to, if it is one of `rooms`. `None` if it is
    /// of another kind, or is spelt as hedgerow never spells it.
    pub(crate) fn entry_at(&self, cache: &str, key: &str, rooms: Rooms) -> Option<EntryAt> {
        let rest = key.strip_prefix(&*self.0)?.strip_prefix(':')?;
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
        let (space, cache) = (globbed(&self.0), globbed(&escaped(cache, Part::Inner)));
        let room = rooms.spelt();
        let version = version.map_or_else(|| "*".to_owned(), version_digits);
        format!("{space}:{room}{version}:{{{cache}:{names}}}")
    }

    /// The generation of a tag, addressed by the tag's id (entries carry ids, not names).
    pub(crate) fn tag(&self, id: TagId) -> Key {
        // Invalidations must reach the entries that readers find, so a tag is placed as they are.
        Key::new(format!("{}:t:{{{:032x}}}", self.0, id.0)).of(Placement::Cached)
    }

    /// The index of a tag: which entries of one version of `cache`, whose name is valid, may carry
    /// it. It shares the slot of the tag.
    pub(crate) fn tag_index(&self, cache: &str, version: u32, id: TagId) -> Key {
        let (version, cache) = (version_digits(version), escaped(cache, Part::Inner));
        let key = format!("{}:x{version}:{{{:032x}}}:{cache}", self.0, id.0);
        Key::new(key).of(Placement::Cached)
    }

    /// What the keys of all cached values and of all tags begin with, and no load lease, lock or
    /// counter.
    #[cfg(feature = "near")]
    pub(crate) fn cached_prefixes(&self) -> [String; 2] {
        // Without the `:` after the `v`, which in other versions follows after digits.
        [format!("{}:v", self.0), format!("{}:t:", self.0)]
    }

    /// The value of the counter `name`.
    pub(crate) fn counter(&self, name: &str) -> Result<Key> {
        self.named("c", "counter name", name)
    }

    /// The record that a `once` id of a counter was applied. It shares the slot of the counter.
    pub(crate) fn counter_once(&self, name: &str, id: &str) -> Result<Key> {
        checked("once id", id)?;
        let counter = self.named("o", "counter name", name)?;
        Ok(Key::new(format!("{counter}:{}", escaped(id, Part::Last))))
    }

    /// The record, by its token, that one call with a `once` id has added. It shares the slot of
    /// the counter.
    pub(crate) fn counter_sent(&self, name: &str, token: &str) -> Result<Key> {
        let counter = self.named("a", "counter name", name)?;
        Ok(Key::new(format!("{counter}:{token}")))
    }

    /// The keys of the limiter `name`, which each have a slot of their own. `room` is that of the
    /// algorithm, since each has its own format, and of the length of a window.
    #[cfg(feature = "limit")]
    pub(crate) fn limiter(&self, name: &str, room: &str) -> Result<LimitKeys> {
        checked("limiter name", name)?;
        let name = escaped(name, Part::Inner);
        Ok(LimitKeys {
            before: format!("{}:{room}:{{{name}:", self.0).into(),
            after: "}",
        })
    }

    /// The keys of one limit of a group, which share a slot with all other limits of the group, or
    /// of that `part` of it.
    #[cfg(feature = "limit")]
    pub(crate) fn grouped_limit(
        &self,
        (group, part): (&str, Option<&str>),
        limit: &str,
        room: &str,
    ) -> Result<LimitKeys> {
        checked("group name", group)?;
        checked("limit name", limit)?;
        let (group, limit) = (escaped(group, Part::Inner), escaped(limit, Part::Inner));
        let tag = match part {
            None => group,
            Some(part) => {
                checked("part of a group", part)?;
                format!("{group}:{}", escaped(part, Part::Last))
            }
        };
        Ok(LimitKeys {
            before: format!("{}:{room}:{{{tag}}}:{limit}:", self.0).into(),
            after: "",
        })
    }

    /// A key of the kind `room`, whose hash tag is the whole name. `what` names it in errors.
    fn named(&self, room: &str, what: &str, name: &str) -> Result<Key> {
        checked(what, name)?;
        Ok(Key::new(format!(
            "{}:{room}:{{{}}}",
            self.0,
            escaped(name, Part::Last)
        )))
    }

    /// A key of the synchronizer `name`. `kind` tells the keys of one synchronizer apart. `what`
    /// names it in errors.
    pub(crate) fn synchronizer(&self, kind: &str, what: &str, name: &str) -> Result<Key> {
        checked(what, name)?;
        // The bucket is the hash tag, so all keys of a synchronizer and the fence share a slot.
        let bucket = Bucket::of(name);
        Ok(Key::new(format!(
            "{}:{{{bucket}}}:{kind}:{}",
            self.0,
            escaped(name, Part::Last)
        )))
    }

    /// The fence counter of a bucket.
    pub(crate) fn fence(&self, bucket: Bucket) -> Key {
        Key::new(format!("{}:{{{bucket}}}:fence", self.0))
    }

    /// The text that the wake channels of `bucket` begin with. A process id completes it.
    pub(crate) fn bucket_wake(&self, bucket: Bucket) -> Key {
        Key::new(format!("{}:{{{bucket}}}:wake:", self.0))
    }

    /// A channel on which `process` learns that loads that it waits for have ended. Each number
    /// gives a channel in another slot, because a server publishes only to channels of its own
    /// slots.
    pub(crate) fn load_wake(&self, number: u32, process: &str) -> Key {
        Key::new(format!("{}:{{wake{number}}}:{process}", self.0))
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

/// Spells the keys of one limit. The part that all of them share is built once.
#[cfg(feature = "limit")]
#[derive(Debug, Clone)]
pub(crate) struct LimitKeys {
    before: Arc<str>,
    after: &'static str,
}

#[cfg(feature = "limit")]
impl LimitKeys {
    /// Whatever the limit counts for `key`.
    pub(crate) fn of(&self, key: &str) -> Result<Key> {
        checked("limited key", key)?;
        let mut text = String::with_capacity(self.before.len() + key.len() + 8);
        text.push_str(&self.before);
        escape_into(&mut text, key, Part::Last);
        text.push_str(self.after);
        Ok(Key::new(text))
    }
}

#[cfg(feature = "near")]
thread_local! {
    /// The room in which keys are spelt that are not kept.
    static SPELT: Cell<String> = const { Cell::new(String::new()) };
}

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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn namespace() -> Namespace {
        Namespace::new("hr").expect("a good namespace")
    }

    proptest! {
        #[test]
        fn the_keys_of_an_entry_lead_back_to_it(
            cache in "[a-z:{}%*é]{1,6}",
            name in any::<String>(),
            version in 0_u32..3,
        ) {
            let space = namespace();
            let Ok(keys) = space.cache(&cache, version) else { return Ok(()) };
            let (Ok(value), Ok(lease)) = (keys.value(&name), keys.load_lease(&name)) else {
                return Ok(());
            };
            let bare = space.bare_cache(&cache, version).expect("a good name");
            let bare_value = bare.value(&name).expect("a good name");
            let bare_lease = bare.load_lease(&name).expect("a good name");
            let all = [
                (Rooms::Values, &value),
                (Rooms::Leases, &lease),
                (Rooms::BareValues, &bare_value),
                (Rooms::BareLeases, &bare_lease),
            ];
            for (rooms, key) in all {
                let expected = EntryAt {
                    version,
                    name: name.clone(),
                    key: key.clone(),
                };
                for (others, _) in all {
                    let found = space.entry_at(&cache, key.as_str(), others);
                    let is_there = others == rooms;
                    prop_assert_eq!(found, is_there.then(|| expected.clone()));
                }
            }
            let found = |cache, key: &Key| space.entry_at(cache, key.as_str(), Rooms::Values);
            prop_assert_eq!(found("another", &value), None);
            prop_assert_eq!(found(&cache, &value.upload(1)), None);
        }
    }

    #[test]
    fn a_key_that_is_never_spelt_so_belongs_to_no_entry() {
        let long = format!("hr:v:{{c:{}}}", "a".repeat(5000));
        for key in [
            "hr:v:{c:}",
            "hr:v0:{c:a}",
            "hr:v007:{c:a}",
            "hr:v+7:{c:a}",
            "hr:v:{c:%7b}",
            "hr:v:{c:%zz}",
            "hr:v:{c:a",
            "hr:x:{c:a}",
            "hr:bb:{c:a}",
            "hr:bl0:{c:a}",
            "hr2:v:{c:a}",
            &long,
        ] {
            for rooms in [Rooms::Values, Rooms::BareValues, Rooms::BareLeases] {
                assert_eq!(namespace().entry_at("c", key, rooms), None, "{key}");
            }
        }
    }

    #[test]
    fn ordinary_names_stay_readable() {
        let ns = namespace();
        let cache = ns.cache("catalogue", 0).expect("a good name");
        let spelt = |key: Result<Key>| key.expect("a good name").to_string();
        assert_eq!(spelt(cache.value("city:42")), "hr:v:{catalogue:city:42}");
        assert_eq!(
            spelt(cache.load_lease("city:42")),
            "hr:l:{catalogue:city:42}"
        );
        assert_eq!(spelt(ns.counter("views:42")), "hr:c:{views:42}");
        assert_eq!(
            spelt(ns.counter_once("views:42", "req-1")),
            "hr:o:{views:42}:req-1"
        );
        assert_eq!(
            spelt(ns.counter_sent("views:42", "0fe2")),
            "hr:a:{views:42}:0fe2"
        );
        assert_eq!(
            spelt(ns.synchronizer("lock", "lock name", "invoice:7")),
            "hr:{b12}:lock:invoice:7"
        );
        #[cfg(feature = "limit")]
        {
            let limiter = ns.limiter("api", "r").and_then(|keys| keys.of("user:42"));
            assert_eq!(spelt(limiter), "hr:r:{api:user:42}");
            let grouped = |part| {
                let keys = ns.grouped_limit(("login", part), "by-ip", "w1000");
                spelt(keys.and_then(|keys| keys.of("::1")))
            };
            assert_eq!(grouped(None), "hr:w1000:{login}:by-ip:::1");
            assert_eq!(grouped(Some("eu")), "hr:w1000:{login:eu}:by-ip:::1");
        }
        let second = ns.cache("catalogue", 2).expect("a good name");
        assert_eq!(spelt(second.value("city:42")), "hr:v2:{catalogue:city:42}");
        assert_eq!(
            spelt(second.load_lease("city:42")),
            "hr:l2:{catalogue:city:42}"
        );
        let bare = ns.bare_cache("catalogue", 0).expect("a good name");
        assert_eq!(spelt(bare.value("city:42")), "hr:b:{catalogue:city:42}");
        assert_eq!(
            spelt(bare.load_lease("city:42")),
            "hr:bl:{catalogue:city:42}"
        );
        assert_eq!(
            spelt(ns.cache("a:b", 0).and_then(|cache| cache.value("{x}%\n"))),
            "hr:v:{a%3Ab:%7Bx%7D%25%0A}"
        );
    }

    /// Frozen: a change of it would hide invalidations from running processes.
    #[test]
    fn each_sixteenth_of_the_slots_has_a_key_of_its_own_for_a_tag() {
        let ns = Namespace::new("hr").expect("a good name");
        let tag = ns.tag(TagId::whole_cache("catalogue"));
        let parts = tag.of_slot_groups();
        assert_eq!(
            parts[5].as_str(),
            "hr:t:{2}:fabebc23528ba7347a4cbbfb167b2abc"
        );
        assert_eq!(parts.len(), 16);
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(part.slot_group(), number, "{part}");
            assert_eq!(usize::from(part.slot()) / 1024, number, "{part}");
        }
    }

    #[test]
    fn a_namespace_does_not_contain_what_separates_it() {
        for bad in ["hr:o", ":", "hr:"] {
            let error = Namespace::new(bad).expect_err("a colon");
            assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("`:`"), "{error}");
        }
        assert!(Namespace::new("shop.eu-1").is_ok());
    }

    #[test]
    fn empty_and_oversized_names_are_refused() {
        assert!(namespace().counter("").is_err());
        assert!(namespace().counter(&"x".repeat(1024)).is_ok());
        let error = namespace()
            .counter(&"x".repeat(1025))
            .expect_err("too long");
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
    }

    /// Text that is rich in what escaping must handle.
    fn name() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![
                Just("{".to_owned()),
                Just("}".to_owned()),
                Just(":".to_owned()),
                Just("%".to_owned()),
                Just("%7B".to_owned()),
                Just("\0".to_owned()),
                Just("v:".to_owned()),
                "[a-c]",
                any::<char>().prop_map(String::from),
            ],
            1..6,
        )
        .prop_map(|parts| parts.concat())
    }

    /// A namespace has the same text, without what it must not contain.
    fn space() -> impl Strategy<Value = String> {
        name().prop_map(|text| text.replace(':', "."))
    }

    /// Every key and channel that the crate can spell from a namespace and two names, each with its
    /// meaning.
    fn all(ns: &str, a: &str, b: &str) -> Vec<(String, Key)> {
        let space = Namespace::new(ns).expect("a good namespace");
        let ok = |key: Result<Key>| key.expect("not empty");
        let bucket = Bucket::of(a);
        let mut all = vec![
            (format!("counter/{a:?}"), ok(space.counter(a))),
            (format!("once/{a:?}/{b:?}"), ok(space.counter_once(a, b))),
            (format!("sent/{a:?}"), ok(space.counter_sent(a, "7e"))),
            (format!("fence/{bucket}"), space.fence(bucket)),
            (format!("wakes/{bucket}"), space.bucket_wake(bucket)),
        ];
        for version in [0, 1, 11] {
            let cache = space.cache(a, version).expect("not empty");
            all.push((format!("value/{version}/{a:?}/{b:?}"), ok(cache.value(b))));
            all.push((
                format!("lease/{version}/{a:?}/{b:?}"),
                ok(cache.load_lease(b)),
            ));
            let bare = space.bare_cache(a, version).expect("not empty");
            all.push((format!("bare/{version}/{a:?}/{b:?}"), ok(bare.value(b))));
            all.push((
                format!("bare lease/{version}/{a:?}/{b:?}"),
                ok(bare.load_lease(b)),
            ));
        }
        #[cfg(feature = "limit")]
        for room in ["r", "w"] {
            let single = space.limiter(a, room).and_then(|keys| keys.of(b));
            all.push((format!("limit/{room}/{a:?}/{b:?}"), ok(single)));
            for part in [None, Some("p"), Some(b)] {
                let keys = space.grouped_limit((a, part), b, room);
                let key = ok(keys.and_then(|keys| keys.of(a)));
                all.push((format!("grouped/{room}/{a:?}/{part:?}/{b:?}"), key));
            }
        }
        for kind in ["lock", "queue", "waiters", "fence", "wake"] {
            all.push((
                format!("{kind}/{a:?}"),
                ok(space.synchronizer(kind, "lock name", a)),
            ));
        }
        for (kind, id) in [
            ("named", TagId::named(a).expect("not empty")),
            ("whole", TagId::whole_cache(a)),
        ] {
            let tag = space.tag(id);
            for (part, key) in tag.of_slot_groups().into_iter().enumerate() {
                all.push((format!("tag/{kind}/{a:?}/{part}"), key));
            }
            all.push((format!("tag/{kind}/{a:?}"), tag));
        }
        for kind in ["lock", "counter"] {
            let format = space.format(kind);
            for (part, key) in format.of_slot_groups().into_iter().enumerate() {
                all.push((format!("format/{kind}/{part}"), key));
            }
            all.push((format!("format/{kind}"), format));
        }
        let process = "3f0c9c4e";
        all.push(("trial".to_owned(), space.trial(process)));
        for number in [0, 1] {
            let channel = space.load_wake(number, process);
            all.push((format!("load wake/{number}"), channel));
        }
        let wake = space.bucket_wake(bucket).ending_in(process);
        all.push((format!("bucket wake/{bucket}"), wake));
        let named = |(what, key): (String, Key)| (format!("{ns:?}/{what}"), key);
        all.into_iter().map(named).collect()
    }

    proptest! {
        #[test]
        fn a_hidden_name_is_hidden_in_its_key_too(name in name()) {
            let cache = namespace().cache("a:b", 3).expect("not empty");
            let (hide, key) = (HideKeys::digest(), cache.value(&name).expect("not empty"));
            let digits = hide.show(&name);
            prop_assert_eq!(key.shown(&hide), format!("hr:v3:{{a%3Ab:{}}}", digits.as_str()));
            prop_assert_eq!(key.shown(&HideKeys::off()), key.as_str());
        }

        #[test]
        fn different_names_never_share_a_key(
            one in (space(), name(), name()), two in (space(), name(), name())
        ) {
            let mut seen: HashMap<String, String> = HashMap::new();
            for (names, key) in all(&one.0, &one.1, &one.2).into_iter().chain(all(&two.0, &two.1, &two.2)) {
                let earlier = seen.insert(key.to_string(), names.clone());
                prop_assert!(earlier.as_ref().is_none_or(|it| *it == names), "{key}: {earlier:?} and {names}");
            }
        }

        #[test]
        fn a_pattern_of_one_namespace_matches_its_keys_and_no_others(
            one in space(), two in space(), a in name(), b in name(),
        ) {
            let covers = |key: &Key| {
                let prefix = Namespace::new(&one).expect("good").as_str().to_owned() + ":";
                key.as_str().starts_with(&prefix)
            };
            prop_assert!(all(&one, &a, &b).iter().all(|(_, key)| covers(key)));
            if one != two {
                prop_assert!(!all(&two, &a, &b).iter().any(|(_, key)| covers(key)));
            }
        }

        #[test]
        fn user_text_never_chooses_the_slot(ns in space(), a in name(), b in name()) {
            for (names, key) in all(&ns, &a, &b) {
                let text = key.as_str();
                prop_assert_eq!(text.matches('{').count(), 1, "{}", names);
                prop_assert_eq!(text.matches('}').count(), 1, "{}", names);
                prop_assert!(!text.contains("{}"), "an empty hash tag does not count");
                prop_assert!(text.bytes().all(|byte| byte >= 0x20 && byte != 0x7f));
            }
            let space = Namespace::new(&ns).expect("not empty");
            let cache = space.cache(&a, 0).expect("not empty");
            let value = cache.value(&b).expect("not empty");
            let lease = cache.load_lease(&b).expect("not empty");
            prop_assert_eq!(slot(value.as_str().as_bytes()), slot(lease.as_str().as_bytes()));
        }
    }
}
