//! Keys of limits.
//!
//! Invariant: the keys of one group of limits, or of one part of it, share a slot. Each key of a
//! limiter that is in no group has a slot of its own.

use std::sync::Arc;

use super::escape::{Part, checked, escape_into, escaped};
use super::{Key, Namespace};
use crate::error::Result;

impl Namespace {
    /// The keys of the limiter `name`, which each have a slot of their own. `room` is that of the
    /// algorithm, since each has its own format, and of the length of a window.
    pub(crate) fn limiter(&self, name: &str, room: &str) -> Result<LimitKeys> {
        checked("limiter name", name)?;
        let name = escaped(name, Part::Inner);
        Ok(LimitKeys {
            before: format!("{}:{room}:{{{name}:", self.as_str()).into(),
            after: "}",
        })
    }

    /// The keys of one limit of a group, which share a slot with all other limits of the group, or
    /// of that `part` of it.
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
            before: format!("{}:{room}:{{{tag}}}:{limit}:", self.as_str()).into(),
            after: "",
        })
    }
}

/// Spells the keys of one limit. The part that all of them share is built once.
#[derive(Debug, Clone)]
pub(crate) struct LimitKeys {
    before: Arc<str>,
    after: &'static str,
}

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
