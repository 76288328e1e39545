//! What a client prefixes all of its keys with, and every key that is spelt from it.
//!
//! Invariant: two different (namespace, kind, name) triples never share a key, because the kind
//! stands at a fixed place and names are escaped.

use std::sync::Arc;

use super::bucket::{Bucket, TagId};
use super::escape::{Part, checked, escaped};
use super::{Key, Placement};
use crate::error::{Error, Result};

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

    /// The generation of a tag, addressed by the tag's id (entries carry ids, not names).
    pub(crate) fn tag(&self, id: TagId) -> Key {
        // Invalidations must reach the entries that readers find, so a tag is placed as they are.
        Key::new(format!("{}:t:{{{:032x}}}", self.0, id.0)).of(Placement::Cached)
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
