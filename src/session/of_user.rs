//! `sessions_of`, `revoke`, `log_out_everywhere`: the sessions of one user.
//!
//! Invariant: a session is ended here only on behalf of the user to whom it belongs, or did when it
//! was read.

use futures::stream::{StreamExt as _, TryStreamExt as _};
use time::OffsetDateTime;
use tower_sessions_core::session_store::Result;

use super::info::SessionInfo;
use super::store::SessionStore;
use super::stored::Stored;
use super::trouble::{no_user, of_cache};
use super::{digest, user};

impl SessionStore {
    /// Ends all sessions of `user`, in the whole fleet. When this has returned, no request finds
    /// one of them, and what requests under way save is dropped.
    ///
    /// The tag of the user is invalidated by one command, and then the memory of the sessions is
    /// freed. A login that is under way may end before or after this. So change what a login checks
    /// first, such as the password.
    ///
    /// # Errors
    /// If the store does not know [users](Self::user), and whatever Redis refuses or does not
    /// answer. Then some sessions may be left: call again. After an outage, the client also
    /// [goes on in the background](crate::Cache::invalidate_tags).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the sessions ended or not. If it was polled, the client goes on
    /// in the background.
    pub async fn log_out_everywhere(&self, user: &str) -> Result<()> {
        let tag = self.tag_of(user)?;
        let removed = self.cache.purge_tag(&tag).await.map_err(of_cache)?;
        tracing::info!(target: "hedgerow::session", removed, "logged out everywhere");
        Ok(())
    }

    /// Returns the sessions of `user`, the one that was [seen last](SessionInfo::last_seen) first.
    /// It reads each of them.
    ///
    /// # Errors
    /// If the store does not know [users](Self::user), and whatever Redis refuses or does not
    /// answer.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn sessions_of(&self, user: &str) -> Result<Vec<SessionInfo>> {
        let tag = self.tag_of(user)?;
        let keys = self.cache.keys_by_tag(&tag);
        let infos = keys.map(|key| async move { self.info(user, key?).await });
        let infos = infos.buffer_unordered(AT_ONCE);
        let infos = infos.try_filter_map(async |info| Ok(info));
        let mut infos: Vec<SessionInfo> = infos.try_collect().await.map_err(of_cache)?;
        infos.sort_by_key(|info| std::cmp::Reverse(info.last_seen));
        Ok(infos)
    }

    /// Ends the session of `user` with this [digest](SessionInfo::digest). Returns whether there
    /// was one. A session of another user is left alone, but for one that goes to another user
    /// while this is under way: it carries the tags of both.
    ///
    /// # Errors
    /// As [`log_out_everywhere`](Self::log_out_everywhere).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the session ended or not.
    pub async fn revoke(&self, user: &str, digest: &str) -> Result<bool> {
        self.tag_of(user)?;
        if !digest::is_spelt(digest) {
            return Ok(false);
        }
        let entry = self.cache.entry::<Stored>(digest).await;
        let entry = entry.map_err(of_cache)?;
        if !entry.is_some_and(|entry| self.is_of(&entry, user)) {
            return Ok(false);
        }
        let taken = self.cache.take::<Stored>(digest).await;
        Ok(taken.map_err(of_cache)?.is_some())
    }

    async fn info(&self, user: &str, digest: String) -> crate::Result<Option<SessionInfo>> {
        let Some(entry) = self.cache.entry::<Stored>(&digest).await? else {
            return Ok(None);
        };
        // It carries the tags of all users that it has belonged to.
        if !self.is_of(&entry, user) {
            return Ok(None);
        }
        let created = i128::from(entry.created) * 1_000_000;
        Ok(Some(SessionInfo {
            created: OffsetDateTime::from_unix_timestamp_nanos(created)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
            last_seen: OffsetDateTime::from(entry.seen_at(entry.ends_at())),
            expires: OffsetDateTime::from(entry.ends_at()),
            data: entry.data().unwrap_or_default(),
            digest,
        }))
    }

    /// Whether a session belongs to `user`. A store without users keeps whose it was. If the user
    /// has logged out there, or another has logged in, the session is nobody's until a store with
    /// users saves it.
    fn is_of(&self, stored: &Stored, user: &str) -> bool {
        stored.user.as_deref() == Some(user) && self.whose(stored).as_deref() == Some(user)
    }

    fn tag_of(&self, user: &str) -> Result<String> {
        match self.users {
            Some(_) => Ok(user::tag(&self.cache, user)),
            None => Err(no_user()),
        }
    }
}

/// How many sessions are read at once.
const AT_ONCE: usize = 16;
