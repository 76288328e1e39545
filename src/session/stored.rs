//! `Stored`: a session as it is in Redis.
//!
//! Invariant: the data is JSON text, so that every codec of the cache can carry it, with the keys
//! in order, so that equal data has equal text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tower_sessions_core::session_store;

use super::base::Data;

/// A session as it is in Redis.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    /// How often it was written.
    pub(super) version: u64,
    /// Which load, or creation, the last writer had begun with.
    pub(super) writer: u64,
    /// To whom it belongs.
    pub(super) user: Option<String>,
    /// When it was created, in ms since 1970 by the clock of the client.
    pub(super) created: u64,
    /// When it was to end, as it was last written, in ms since 1970 by the clock of the client. It
    /// may live longer by now.
    pub(super) expires: u64,
    /// How long it was to live, as it was last written, in ms.
    pub(super) lives: u64,
    pub(super) data: String,
}

impl Stored {
    /// The data.
    ///
    /// # Errors
    /// `Decode` if it is no JSON object.
    pub(super) fn data(&self) -> session_store::Result<Data> {
        serde_json::from_str(&self.data).map_err(|_| {
            let message = "the stored session is no JSON object; it is left alone";
            session_store::Error::Decode(message.to_owned())
        })
    }

    /// When a request last saved it, given when it ends. If its end does not move, when it was last
    /// written.
    pub(super) fn seen_at(&self, ends_at: SystemTime) -> SystemTime {
        let ends = ends_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        UNIX_EPOCH + ends.saturating_sub(Duration::from_millis(self.lives))
    }
}

/// A moment in ms since 1970. Zero for one before that.
pub(super) fn millis(moment: OffsetDateTime) -> u64 {
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}
