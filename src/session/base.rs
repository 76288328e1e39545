//! `Base`: what a request knows of the session that it has loaded.
//!
//! Invariant: each load makes a base of its own, and the base travels in the data of the record.
//! So a save is compared with what its own request had read. It is never stored.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The key of a record's data in which a loaded session says what was read. It is no data of the
/// application, and it is not stored. The application must not write it.
pub const RESERVED_KEY: &str = "__hedgerow.version";

/// The data of a record.
pub(super) type Data = HashMap<String, Value>;

/// What a request knows of the session that it has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    /// The digest of the session's id.
    pub(super) session: String,
    /// How often it had been written.
    pub(super) version: u64,
    /// The writer that had written it last. After a failover, another content may have the same
    /// version.
    pub(super) written_by: u64,
    /// A random number of this load. What the request writes is signed with it, so that a request
    /// which saves twice does not meet itself.
    pub(super) writer: u64,
    /// Tells the data from other data. What the request has saved since counts as loaded.
    pub(super) data: u64,
    /// To whom the session belonged. What the request has saved since counts as loaded.
    pub(super) user: Option<String>,
    /// Whether it belonged to anybody when it was loaded.
    pub(super) had_user: bool,
}

impl Base {
    /// The base that `data` holds. `None` if the session was not loaded, or was cleared since.
    pub(super) fn of(data: &Data) -> Option<Self> {
        Self::deserialize(data.get(RESERVED_KEY)?).ok()
    }

    /// Puts the base into `data`.
    pub(super) fn note_in(self, data: &mut Data) {
        let base = serde_json::to_value(self).expect("numbers and texts can be written as JSON");
        data.insert(RESERVED_KEY.to_owned(), base);
    }
}
