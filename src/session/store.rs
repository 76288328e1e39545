//! `SessionStore`: the store that tower-sessions is given.
//!
//! Invariant: `create` draws the id, so no id from outside ever has a session. `save` changes only
//! what is there, and only over the entry that it has judged.

use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Result, SessionStore as Store};

use super::base::{Base, Data};
use super::departures::{Departures, Found, LONGEST_REQUEST, Leave};
use super::digest;
use super::judge::{Conflict, Verdict, judge};
use super::last_saves::{LastSave, LastSaves};
use super::saving::Saving;
use super::stats::{Counts, SessionStats};
use super::stored::Stored;
use super::trouble::{self, of_cache};
use super::user::{self, UserOf};
use crate::cache::{Entry, Explanation, TagSnapshot};
use crate::{Cache, Outage};

/// A store of tower-sessions that keeps sessions in a [`Cache`].
///
/// It is cheap to clone. Give one to the layer, and keep one for
/// [`log_out_everywhere`](Self::log_out_everywhere):
///
/// ```no_run
/// use hedgerow::session::SessionStore;
/// use tower_sessions::{Expiry, SessionManagerLayer};
///
/// # fn example(client: hedgerow::Client) {
/// let store = SessionStore::new(client.cache("sessions")).user_key("user_id");
/// let layer = SessionManagerLayer::new(store.clone())
///     .with_expiry(Expiry::OnInactivity(time::Duration::days(14)))
///     .with_always_save(true);
/// # }
/// ```
///
/// # What is promised
/// On one primary that loses no data:
///
/// - A session that was deleted, or whose user was logged out everywhere, stays so. A save of a
///   request that loaded it before changes nothing, answers `Ok`, and is
///   [counted](SessionStats::dropped).
/// - The id of a session is in no key, value, error, span or event. Redis holds a digest of it.
/// - `create` draws an id that has no session, whatever id the record has. So no id that a browser
///   made up, or had before a logout, becomes that of a session.
/// - A session ends when its record says, without jitter. Only the difference between its end and
///   the clock of this process is used.
/// - An outage is an error, never a session that is not there, and no session ends by it. A session
///   that gets another id (`cycle_id`) is stored when its request ends: if Redis fails in between,
///   the request gets an error, and the session has ended.
///
/// # Two requests at once
/// tower-sessions loads a session as a whole, and saves it as a whole when the response is there. A
/// request that changed nothing only moves the end. One that changed something finds out whether
/// another request has saved the session since it was loaded, and does as [`Conflict`] says. If
/// another request has saved the session meanwhile, a save never changes to whom the session
/// belongs. `clear` forgets what was loaded, so a session that was cleared overwrites whatever is
/// there. A session that gets another id stores what its request had loaded or changed, and that is
/// counted if another request had changed the data meanwhile.
#[derive(Debug, Clone)]
pub struct SessionStore {
    pub(super) cache: Cache,
    pub(super) users: Option<UserOf>,
    conflict: Conflict,
    max_size: usize,
    shared: Arc<Shared>,
}

/// What all clones of a store share.
#[derive(Debug)]
struct Shared {
    counts: Counts,
    departures: Departures,
    last_saves: LastSaves,
}

impl SessionStore {
    /// Makes a store that keeps its sessions in `cache`. Use a cache for nothing else.
    ///
    /// The codec, the compression, the encryption, the deadline and
    /// [`on_outage`](Cache::on_outage) are those of the cache. The store sets the
    /// [jitter](Cache::jitter) to zero, and the policy for outages to [`Outage::Fail`]: an outage
    /// must not look like a logout. It reads at the primary, whatever
    /// [`read_from`](Cache::read_from) says, and never in a near cache.
    ///
    /// All processes that share sessions need the same settings.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        let shared = Arc::new(Shared {
            counts: Counts::in_cache(&cache),
            departures: Departures::default(),
            last_saves: LastSaves::default(),
        });
        Self {
            // The index is for sessions of users only, also those of which other processes know.
            cache: cache.jitter(0.0).outage(Outage::Fail).index_tags(),
            users: None,
            conflict: Conflict::default(),
            max_size: MAX_SIZE,
            shared,
        }
    }

    /// Sets how the store learns to whom a session belongs, from the data of the session. `None`
    /// stands for nobody, as before a login.
    ///
    /// [`log_out_everywhere`](Self::log_out_everywhere), [`sessions_of`](Self::sessions_of) and
    /// [`revoke`](Self::revoke) need it, and so does the promise that a logout is final also for a
    /// request that gives the session another id (`cycle_id`) after the logout.
    ///
    /// Let the user be an id that never changes. The session carries a tag of its user, and the
    /// cache [keeps an index](Cache::index_tags) of it. In Redis, the user is in the session, which
    /// [`Cache::encrypt`] encrypts, and as a digest in the tag. A reader who guesses the user
    /// recognises that digest. A session that changes from one user to another without a new id
    /// carries the tags of both.
    ///
    /// A store without this, as an older process in a deployment has it, leaves each session to
    /// the user that it had when it was loaded. It sees no login and no change of user.
    #[must_use]
    pub fn user(mut self, user: impl Fn(&Data) -> Option<String> + Send + Sync + 'static) -> Self {
        self.users = Some(UserOf::new(user));
        self
    }

    /// Sets the key of the data that says to whom a session belongs: as [`user`](Self::user). A
    /// text is the user as it is, `null` is nobody, and anything else is the user as JSON, such as
    /// `7`.
    #[must_use]
    pub fn user_key(mut self, key: &str) -> Self {
        self.users = Some(UserOf::key(key));
        self
    }

    /// Sets what a save does if another request has saved the session meanwhile:
    /// [`Conflict::LastWriteWins`] by default.
    #[must_use]
    pub fn conflict(mut self, conflict: Conflict) -> Self {
        self.conflict = conflict;
        self
    }

    /// Sets how many bytes the data of a session may have, as JSON: 256 KiB by default. A larger
    /// one is refused with [`Trouble::TooLarge`](super::Trouble::TooLarge), and nothing is changed.
    #[must_use]
    pub fn max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    /// Returns what this store and its clones have done in this process so far. With the feature
    /// `metrics`, the same goes to the `metrics` facade.
    pub fn stats(&self) -> SessionStats {
        self.shared.counts.so_far()
    }

    /// Returns the digest that stands for a session id in Redis, in errors, in events, and in
    /// [`SessionInfo::digest`](super::SessionInfo::digest).
    pub fn digest(&self, id: &Id) -> String {
        digest::of_session(id)
    }

    /// Reports why the session is found or not: see [`Cache::explain`]. It is for people.
    ///
    /// # Errors
    /// As [`Cache::explain`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn explain(&self, id: &Id) -> crate::Result<Explanation> {
        self.cache.explain(&digest::of_session(id)).await
    }

    /// Creates a session for `saving`, and returns its id and what its request knows of it. `None`
    /// if it has ended already.
    async fn created(&self, saving: &Saving) -> Result<Option<(Id, Base)>> {
        let writer = rand::random();
        for _ in 0..MOST_IDS {
            let Some(life) = saving.life() else {
                return Ok(None);
            };
            let id = Id::default();
            let session = digest::of_session(&id);
            let stored = saving.stored(writer, life, None);
            let add = self
                .cache
                .add(&session, &stored, life)
                .tags(self.tag(saving));
            if add.await.map_err(of_cache)? {
                let whose = saving.user.clone();
                return Ok(Some((id, Self::base(&session, (&stored, whose), writer))));
            }
        }
        Err(trouble::no_id())
    }

    /// Saves over what is there, if the session is there.
    async fn saved(&self, mut saving: Saving, base: Option<&Base>, session: &str) -> Result<()> {
        let counts = &self.shared.counts;
        for _ in 0..MOST_ATTEMPTS {
            let Some(life) = saving.life() else {
                // The record says that it has ended.
                return self.cache.remove(session).await.map_err(of_cache);
            };
            let entry = self.cache.entry::<Stored>(session).await;
            let Some(entry) = entry.map_err(of_cache)? else {
                self.dropped(session);
                return Ok(());
            };
            if self.users.is_none() && base.is_none() {
                // Whose it was before it was cleared.
                saving.user.clone_from(&entry.user);
            }
            let new = (&saving, life.as_millis() as u64);
            let now = (&*entry, || self.whose(&entry));
            let verdict = judge(now, new, (session, base), self.conflict);
            match verdict {
                Verdict::Slide => {
                    if self.cache.expire(session, life).await.map_err(of_cache)? {
                        counts.moved.one_more();
                        return Ok(());
                    }
                }
                Verdict::Write | Verdict::Overwrite => {
                    let writer = base.map_or_else(rand::random, |base| base.writer);
                    let stored = saving.stored(writer, life, Some(&entry));
                    let update = self.cache.update(&entry, &stored).ttl(life);
                    let update = update.tags(self.tag(&saving));
                    if update.await.map_err(of_cache)? {
                        self.shared.last_saves.note(
                            writer,
                            LastSave {
                                data: saving.digest(),
                                user: saving.user.clone(),
                            },
                        );
                        if verdict == Verdict::Overwrite {
                            self.met_another(session);
                        }
                        counts.saved.one_more();
                        return Ok(());
                    }
                }
                Verdict::Refuse => {
                    self.met_another(session);
                    return Err(trouble::conflict());
                }
                Verdict::Yield => {
                    self.met_another(session);
                    self.dropped(session);
                    return Ok(());
                }
                Verdict::Drop => {
                    self.dropped(session);
                    return Ok(());
                }
            }
            // It was changed or deleted meanwhile: the next attempt judges what is there now.
        }
        Err(trouble::contended())
    }

    /// Takes the session out, and returns what was found.
    async fn departed(&self, session: &str) -> crate::Result<Option<Found>> {
        let Some(entry) = self.cache.entry::<Stored>(session).await? else {
            // Not there, or of another format: removed in any case.
            self.cache.remove(session).await?;
            return Ok(None);
        };
        // An outage is told before anything is removed: a session that may go on under another id
        // would otherwise end by it.
        let leave = self.leave(&entry).await?;
        let whose = self.whose(&entry);
        let belongs_to_nobody = whose.is_none() && entry.user.is_none();
        let taken = match self.cache.take::<Stored>(session).await {
            // What nobody has may go on whatever was found. So it is removed for certain.
            Err(error) if belongs_to_nobody && error.is_indeterminate() => None,
            taken => taken?,
        };
        let Some(taken) = taken else {
            self.cache.remove(session).await?;
            return Ok(None);
        };
        let user = self.whose(&taken);
        Ok(Some(Found {
            leave: leave.filter(|_| user == whose),
            user,
            version: taken.version,
            writer: taken.writer,
            data: digest::of_data(&taken.data),
        }))
    }

    /// Takes a snapshot of the tags of the session: those of all users that it has belonged to.
    /// `None` if there are none, as far as the store knows.
    async fn leave(&self, entry: &Entry<Stored>) -> crate::Result<Option<TagSnapshot>> {
        if self.users.is_none() && entry.user.is_none() {
            return Ok(None);
        }
        let snapshot = self.cache.tag_snapshot_of(entry, LONGEST_REQUEST);
        snapshot.await.map(Some)
    }

    /// Whether the session that a request has loaded may go on under another id, as far as this
    /// process knows. `None` if it belonged to nobody: then there is nothing to bring back.
    fn leave_of(&self, base: Option<&Base>) -> Option<Leave> {
        let base = base.filter(|base| base.had_user)?;
        Some(self.shared.departures.leave_of(base))
    }

    /// What the request of a record knows of the session that it has loaded. What it has saved
    /// since counts as loaded.
    fn base_of(&self, record: &Record) -> Option<Base> {
        let mut base = Base::of(&record.data)?;
        if let Some(save) = self.shared.last_saves.of(base.writer) {
            (base.data, base.user) = (save.data, save.user);
        }
        Some(base)
    }

    fn saving(&self, record: &Record, base: Option<&Base>) -> Result<Saving> {
        let mut saving = Saving::of(record, self.users.as_ref(), self.max_size)?;
        if self.users.is_none() {
            // Another process may know whose it is, and must still be able to end it.
            saving.user = base.and_then(|base| base.user.clone());
        }
        Ok(saving)
    }

    /// The tag of the user to whom a session is to belong.
    fn tag(&self, saving: &Saving) -> Option<String> {
        let user = saving.user.as_deref();
        user.map(|user| user::tag(&self.cache, user))
    }

    /// To whom a session belongs: by its data, if the store knows users. Another process may have
    /// stored a login, or a logout, without noting it.
    pub(super) fn whose(&self, stored: &Stored) -> Option<String> {
        match &self.users {
            Some(users) => users.user(&stored.data().unwrap_or_default()),
            None => stored.user.clone(),
        }
    }

    /// The base of a request that has read `stored`, or has written it, and signs as `writer`.
    fn base(session: &str, (stored, whose): (&Stored, Option<String>), writer: u64) -> Base {
        Base {
            session: session.to_owned(),
            version: stored.version,
            written_by: stored.writer,
            writer,
            data: digest::of_data(&stored.data),
            had_user: whose.is_some() || stored.user.is_some(),
            user: whose,
        }
    }

    /// Gives the record of a session that has ended an id that has no session.
    fn ends(&self, record: &mut Record, base: Option<&Base>) -> Result<()> {
        record.id = Id::default();
        self.dropped(base.map_or("", |base| &base.session));
        Ok(())
    }

    fn dropped(&self, session: &str) {
        self.shared.counts.dropped.one_more();
        tracing::debug!(target: "hedgerow::session", session, "the session has ended; not saved");
    }

    fn met_another(&self, session: &str) {
        self.shared.counts.conflicts.one_more();
        tracing::debug!(target: "hedgerow::session", session, conflict = ?self.conflict, "another request has saved the session meanwhile");
    }
}

#[async_trait]
impl Store for SessionStore {
    /// Creates a session with the data of `record`, under an id that the store draws.
    async fn create(&self, record: &mut Record) -> Result<()> {
        let base = self.base_of(record);
        let saving = self.saving(record, base.as_ref())?;
        // Whose session it is may be known from the session that was loaded. So that must not have
        // ended otherwise than by the `delete` of this request.
        let leave = match self.leave_of(base.as_ref()) {
            None => None,
            Some(Leave::Given(leave)) => Some(leave),
            Some(Leave::Unknown) => return Err(trouble::not_deleted()),
            Some(Leave::Refused) => return self.ends(record, base.as_ref()),
        };
        let Some((id, new)) = self.created(&saving).await? else {
            // It has ended already, so nobody will find it.
            record.id = Id::default();
            return Ok(());
        };
        if let Some(leave) = leave {
            // What was invalidated since has ended this session, too. No one else knows its id yet.
            let is_current = self.cache.is_current(&leave).await;
            let still = self.leave_of(base.as_ref());
            if !matches!((&is_current, still), (Ok(true), Some(Leave::Given(_)))) {
                let removed = self.cache.remove(&new.session).await;
                // The record is as it was: the next call may succeed.
                is_current.map_err(of_cache)?;
                removed.map_err(of_cache)?;
                return self.ends(record, base.as_ref());
            }
        }
        record.id = id;
        new.note_in(&mut record.data);
        self.shared.counts.created.one_more();
        if let Some(base) = base
            && let Some(found) = self.shared.departures.found(&base.session)
            && found.was_changed_since(&base)
        {
            self.met_another(&base.session);
        }
        Ok(())
    }

    /// Saves the data and the end of a session that is there. If it is not, nothing is saved, and
    /// the answer is `Ok`: the session has ended while the request was under way.
    async fn save(&self, record: &Record) -> Result<()> {
        let (base, session) = (self.base_of(record), digest::of_session(&record.id));
        let saving = self.saving(record, base.as_ref())?;
        self.saved(saving, base.as_ref(), &session).await
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let session = digest::of_session(id);
        let entry = self.cache.entry::<Stored>(&session).await;
        let Some(entry) = entry.map_err(of_cache)? else {
            return Ok(None);
        };
        let mut data = entry.data()?;
        let whose = match &self.users {
            Some(users) => users.user(&data),
            None => entry.user.clone(),
        };
        Self::base(&session, (&entry, whose), rand::random()).note_in(&mut data);
        Ok(Some(Record {
            id: *id,
            data,
            expiry_date: OffsetDateTime::from(entry.ends_at()),
        }))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let session = digest::of_session(id);
        match self.departed(&session).await {
            Ok(found) => self.shared.departures.note(&session, found),
            Err(error) => {
                self.shared.departures.note_failed(&session);
                return Err(of_cache(error));
            }
        }
        Ok(())
    }
}

/// How many ids are drawn. That one of them has a session already is as likely as guessing an id.
const MOST_IDS: usize = 4;

/// How often a save judges anew what others have changed meanwhile.
const MOST_ATTEMPTS: usize = 32;

/// How many bytes the data of a session may have by default.
const MAX_SIZE: usize = 256 * 1024;
