//! `Saving`: what a call of `create` or `save` is to store, checked.
//!
//! Invariant: what is too large is refused here, before anything is sent. The clock of the client
//! is used only for how long the session is to live from now.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use tower_sessions_core::session::Record;
use tower_sessions_core::session_store;

use super::base::{Data, RESERVED_KEY};
use super::stored::{Stored, millis};
use super::user::UserOf;
use super::{digest, trouble};
use crate::FOREVER;

/// What a call is to store.
pub(super) struct Saving {
    /// The data, without the reserved key.
    pub(super) text: String,
    /// To whom it is to belong. A store that knows no users sets whose it was.
    pub(super) user: Option<String>,
    expires: OffsetDateTime,
}

impl Saving {
    /// # Errors
    /// `Encode` if the data has more than `max_size` bytes.
    pub(super) fn of(
        record: &Record,
        users: Option<&UserOf>,
        max_size: usize,
    ) -> session_store::Result<Self> {
        let text = text(&record.data);
        if text.len() > max_size {
            return Err(trouble::too_large(&text, max_size, largest(&record.data)));
        }
        Ok(Self {
            text,
            user: users.and_then(|users| users.user(&record.data)),
            expires: record.expiry_date,
        })
    }

    /// How long the session is to live from now. `None` if it has ended.
    pub(super) fn life(&self) -> Option<Duration> {
        let left = Duration::try_from(self.expires - OffsetDateTime::now_utc()).ok()?;
        let left = Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        (!left.is_zero()).then_some(left.min(FOREVER))
    }

    /// The session that is stored for this, written by `writer` to live for `life`. `old` is what
    /// it replaces.
    pub(super) fn stored(&self, writer: u64, life: Duration, old: Option<&Stored>) -> Stored {
        Stored {
            version: old.map_or(1, |old| old.version + 1),
            writer,
            user: self.user.clone(),
            created: old.map_or_else(|| millis(OffsetDateTime::now_utc()), |old| old.created),
            expires: self.expires_millis(),
            lives: life.as_millis() as u64,
            data: self.text.clone(),
        }
    }

    /// When the session is to end, in ms since 1970 by the clock of the client.
    pub(super) fn expires_millis(&self) -> u64 {
        millis(self.expires)
    }

    /// Tells the data from other data.
    pub(super) fn digest(&self) -> u64 {
        digest::of_data(&self.text)
    }
}

/// The data as JSON, with its keys in order.
fn text(data: &Data) -> String {
    let ordered: BTreeMap<&str, &Value> = entries(data).collect();
    serde_json::to_string(&ordered).expect("values of JSON can be written as JSON")
}

/// The key whose value is the largest, and the size of that.
fn largest(data: &Data) -> Option<(&str, usize)> {
    let sized = entries(data).map(|(key, value)| (key, value.to_string().len()));
    sized.max_by_key(|(_, size)| *size)
}

fn entries(data: &Data) -> impl Iterator<Item = (&str, &Value)> {
    let own = data.iter().filter(|(key, _)| *key != RESERVED_KEY);
    own.map(|(key, value)| (key.as_str(), value))
}
