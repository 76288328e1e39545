//! `SessionInfo`: a session as its user may be shown it.
//!
//! Invariant: it does not contain the id of the session, which nobody but the browser has.

use std::fmt;

use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::base::Data;

/// A session of a user, for a page that lists them: see
/// [`SessionStore::sessions_of`](super::SessionStore::sessions_of).
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Names the session for [`revoke`](super::SessionStore::revoke): a digest of its id, with
    /// which the session cannot be used.
    pub digest: String,
    /// When it was created, by the clock of the process that did.
    pub created: OffsetDateTime,
    /// When a request last saved it, by the clock of the server. Without `with_always_save`, only
    /// requests that change data save. With an end that does not move (`Expiry::AtDateTime`), this
    /// is when its data last changed.
    pub last_seen: OffsetDateTime,
    /// When it ends, by the clock of the server.
    pub expires: OffsetDateTime,
    pub(super) data: Data,
}

impl SessionInfo {
    /// Returns what the session holds under `key`, such as the browser that was noted at login.
    /// `None` if it holds nothing there, or something else than a `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        T::deserialize(self.data.get(key)?).ok()
    }
}

impl fmt::Debug for SessionInfo {
    /// Leaves out the data, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("digest", &self.digest)
            .field("created", &self.created)
            .field("last_seen", &self.last_seen)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
