//! `contains`, `ttl`, `expire`, `expire_at`, `persist`, `touch`: whether an entry is there, and how
//! long it lives.
//!
//! Invariant: only a valid entry gets another TTL, and its tags are made to live at least as long
//! first. So an entry never outlives the generations that could invalidate it. Users call this.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::conditional::Attempts;
use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::index;
use crate::cache::outage::Did;
use crate::cache::read::fetch;
use crate::cache::read::mark::Mark;
use crate::cache::read::reading::{Gone, Reading};
use crate::client::Request;
use crate::codec::Stamp;
use crate::error::{Error, Result};
use crate::key::{Key, TagId};
use crate::script::{Retry, script};
use crate::tags::{self, Generation, Life, SLACK};
use crate::time::{Deadline, FOREVER, Ttl};
use crate::wire::command::plain;
use crate::wire::value::integer;

script!(EXPIRE = "expire.lua" after "../entry.lua");

/// The end that an entry gets.
#[derive(Debug, Clone, Copy)]
enum End {
    /// So long from now.
    After(Ttl),
    /// The same, unless it lives longer already.
    NotBefore(Ttl),
    /// At this moment of the server's clock, in ms since 1970.
    At(u64),
}

impl Cache {
    /// Returns whether `key` has an entry. It reads the entry, and does not decode its value.
    ///
    /// An entry of a format that this build does not know counts as there, as it does for
    /// [`add`](Self::add): another build can read it. A key of another Redis type has none: see
    /// [`get`](Self::get).
    ///
    /// # Errors
    /// As [`get`](Self::get). Under [`Outage::Bypass`](crate::Outage::Bypass) an outage is `false`.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn contains<'c>(&'c self, key: &'c str) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            let name = self.client.name(key);
            let value = self.value(&name)?;
            let (from, deadline) = (self.setup.read_from, self.deadline_by(patience));
            let reading = fetch::read::<Mark>(self, &value, &[], from, deadline).await;
            let reading = reading.inspect(|reading| self.seen(&value, reading));
            let is_there = reading.map(|reading| match reading {
                Reading::Hit(_) => true,
                Reading::Old(_, miss) | Reading::Miss(miss) => miss.gone == Gone::Foreign,
            });
            self.read_or("contains", is_there.map_err(|e| e.about(&name)), false)
        })
    }

    /// Returns how long the entry of `key` still lives. `None` without a valid entry. A key of
    /// another Redis type has none: see [`get`](Self::get).
    ///
    /// # Errors
    /// As [`get`](Self::get). Under [`Outage::Bypass`](crate::Outage::Bypass) an outage is `None`.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn ttl<'c>(&'c self, key: &'c str) -> Request<'c, Option<Duration>> {
        Request::new(self.setup.patience, move |patience| async move {
            let place = self.place(self.client.name(key))?;
            let deadline = self.deadline_by(patience);
            let reading = fetch::read_here::<Mark>(self, &place.value, deadline).await;
            let left = match reading.inspect(|reading| self.seen(&place.value, reading)) {
                Ok(Reading::Hit(mark)) => {
                    let left = self.left(&place, deadline).await;
                    // The entry stays for its stale window, in which no verb finds it.
                    left.map(|left| left.map(|left| left.saturating_sub(mark.window())))
                }
                Ok(Reading::Old(..) | Reading::Miss(_)) => Ok(None),
                Err(error) => Err(error),
            };
            self.read_or("ttl", left.map_err(|e| e.about(&place.name)), None)
        })
    }

    /// Makes the entry of `key` live for `ttl` from now, without [jitter](Self::jitter). Returns
    /// whether there was a valid entry.
    ///
    /// # Errors
    /// `InvalidInput` if the key or the duration is invalid, `WrongType` if the key holds another
    /// Redis type, and whatever Redis refuses or does not answer, also under
    /// [`Outage::Bypass`](crate::Outage::Bypass). After an error that [is
    /// indeterminate](crate::Error::is_indeterminate), the TTL is the new one or the old one. It is
    /// safe to call again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the old TTL or the new one.
    pub fn expire<'c>(&'c self, key: &'c str, ttl: Duration) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            let end = End::After(Ttl::new("ttl", ttl)?);
            self.given_end(key, end, self.deadline_by(patience)).await
        })
    }

    /// Makes the entry of `key` live until `moment`, by the clock of the server. A moment in the
    /// past removes it. Returns whether there was a valid entry.
    ///
    /// # Errors
    /// As [`expire`](Self::expire). `InvalidInput` if the moment is before 1970 or after 2199.
    ///
    /// # Cancel safety
    /// As [`expire`](Self::expire).
    pub fn expire_at<'c>(&'c self, key: &'c str, moment: SystemTime) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            let since = moment.duration_since(UNIX_EPOCH).ok();
            let millis = since.and_then(|since| u64::try_from(since.as_millis()).ok());
            let millis = millis.filter(|millis| *millis < LATEST).ok_or_else(|| {
                Error::invalid("the moment at which the entry ends is before 1970 or after 2199")
            })?;
            self.given_end(key, End::At(millis), self.deadline_by(patience))
                .await
        })
    }

    /// Makes the entry of `key` live until it is removed or invalidated: the same as
    /// [`expire`](Self::expire) with [`FOREVER`].
    ///
    /// # Errors
    /// As [`expire`](Self::expire).
    ///
    /// # Cancel safety
    /// As [`expire`](Self::expire).
    pub fn persist<'c>(&'c self, key: &'c str) -> Request<'c, bool> {
        self.expire(key, FOREVER)
    }

    /// Makes the entry of `key` live for at least `ttl` from now. An entry that lives longer keeps
    /// its TTL. Returns whether there was a valid entry.
    ///
    /// # Errors
    /// As [`expire`](Self::expire).
    ///
    /// # Cancel safety
    /// As [`expire`](Self::expire).
    pub fn touch<'c>(&'c self, key: &'c str, ttl: Duration) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            let end = End::NotBefore(Ttl::new("ttl", ttl)?);
            self.given_end(key, end, self.deadline_by(patience)).await
        })
    }

    /// Gives the valid entry of `key` another end. Returns whether there was one.
    async fn given_end(&self, key: &str, end: End, deadline: Deadline) -> Result<bool> {
        let place = self.place(self.client.name(key))?;
        let given = self.given_end_at(&place, end, deadline).await;
        given.map_err(|error| error.about(&place.name))
    }

    async fn given_end_at(&self, place: &EntryKeys, end: End, deadline: Deadline) -> Result<bool> {
        let mut attempt = Attempts::until(deadline);
        loop {
            attempt.begins().await?;
            let reading = self.judged(&place.value, deadline).await?;
            let Some::<Mark>(mark) = reading.hit() else {
                return Ok(false);
            };
            // The entry keeps its stale window behind the new end.
            let beside = mark.window() + SLACK + deadline.remaining();
            let (life, millis, how) = match end {
                End::After(ttl) => (Life::For(ttl.duration() + beside), ttl.millis(), "for"),
                End::NotBefore(ttl) => (Life::For(ttl.duration() + beside), ttl.millis(), "longer"),
                End::At(at) => (Life::Until(at + beside.as_millis() as u64), at, "until"),
            };
            let outlived = self.outlive(place, &mark.stamps, life, deadline).await;
            outlived.map_err(Error::of_own_question)?;
            let call = EXPIRE
                .call(place.keys())
                .arg(&mark.head[..])
                .arg(millis)
                .arg(how);
            let reply = self.client.change(call, deadline).await?;
            match reply.status()? {
                "OK" => return Ok(true),
                // A removal in the words of a TTL. It ends loads, too.
                "PAST" => {
                    if self.taken_out(place, &mark, deadline).await? {
                        return Ok(true);
                    }
                }
                // Another entry is there now, or none. The next attempt judges it.
                "CHANGED" => {}
                _ => return Err(reply.unexpected()),
            }
        }
    }

    /// Makes the tags of an entry live for so long, and notes it in the index of tags.
    pub(super) async fn outlive(
        &self,
        place: &EntryKeys,
        stamps: &[Stamp],
        life: Life,
        deadline: Deadline,
    ) -> Result<()> {
        let ids = stamps.iter().map(|stamp| TagId(stamp.tag));
        index::note(self, ids, &[&place.name], life, deadline).await?;
        self.prolong_tags(place, stamps, life, deadline).await
    }

    /// Makes the tags of an entry live for so long, where this client does not know that they do.
    pub(super) async fn prolong_tags(
        &self,
        place: &EntryKeys,
        stamps: &[Stamp],
        life: Life,
        deadline: Deadline,
    ) -> Result<()> {
        let (client, whole) = (&self.client, &self.names()?.whole);
        let tags = stamps.iter().map(|stamp| {
            let key = match TagId(stamp.tag) {
                tag if tag == whole.id => whole.colocated_key(client, &place.value),
                tag => client.namespace().tag(tag),
            };
            (key, Generation::from_stamp(stamp.generation))
        });
        let ttls = &self.state().tag_ttls;
        let short = tags.filter(|(key, generation)| match life {
            Life::For(life) => !ttls.reaches(key, *generation, life),
            // A moment of the server's clock, which this client does not know.
            Life::Until(_) => true,
        });
        let keys: Vec<Key> = short.map(|(key, _)| key).collect();
        tags::outlive(client, &keys, life, deadline).await
    }

    /// Returns how long the entry at `place` still lives, whatever it is.
    pub(super) async fn left(
        &self,
        place: &EntryKeys,
        deadline: Deadline,
    ) -> Result<Option<Duration>> {
        let command = plain("PTTL", &place.value);
        let reply = self
            .client
            .command(command, &place.value, Retry::Reads, deadline);
        Ok(match integer(reply.await?)?.unwrap_or(GONE) {
            GONE => None,
            // Something else has taken its TTL away.
            FOR_EVER => Some(FOREVER),
            left => Some(Duration::from_millis(
                u64::try_from(left).unwrap_or_default(),
            )),
        })
    }

    /// Returns `instead` for an `operation` that is bypassed.
    fn read_or<T>(&self, operation: &'static str, outcome: Result<T>, instead: T) -> Result<T> {
        match outcome {
            Err(error) if self.setup.outage.bypasses(&error) => {
                self.does_without(Did::FindNothing, operation, &error);
                Ok(instead)
            }
            outcome => outcome,
        }
    }
}

/// The end of the year 2199, in ms since 1970.
const LATEST: u64 = 7_258_118_400_000;

/// What `PTTL` answers where there is no key, and for a key without a TTL.
const GONE: i64 = -2;
const FOR_EVER: i64 = -1;
