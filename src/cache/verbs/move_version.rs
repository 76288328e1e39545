//! `move_version`: moves an entry to another version of its cache.
//!
//! Invariant: what is moved is the valid entry that was judged, as it is: its bytes, its end, and
//! the generations of its tags. So an entry that was invalidated meanwhile is invalid there, too.
//! It is noted in the indexes there before it is moved. Users call this.

use super::conditional::Attempts;
use crate::cache::Cache;
use crate::cache::config::TagIndex;
use crate::cache::entry_keys::{EntryKeys, clear_all};
use crate::cache::index;
use crate::cache::read::mark::Mark;
use crate::client::Request;
use crate::error::{Error, Result};
use crate::key::TagId;
use crate::script::script;
use crate::tags::{Life, SLACK};
use crate::time::Deadline;

script!(MOVE_VERSION = "move_version.lua" after "../entry.lua");

impl Cache {
    /// Moves the entry of `key` from the [version](Self::version) of this handle to the version
    /// `to`, and returns whether it was moved. Without a valid entry, nothing is moved, and the
    /// other version keeps what it has.
    ///
    /// The value is not decoded, and replaces what the other version has. It keeps its tags and
    /// its end. All versions are [cleared](Self::clear) together, so it is valid there for as long
    /// as it would have been here. Loads of either key that are under way are not stored. Use it
    /// where the new build reads the old values, but does not share them.
    ///
    /// If this handle [keeps an index](Self::index_tags) of its tags, the other version finds the
    /// entry by tag. If it keeps none, that version does not.
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
    /// let cities = client.cache("cities").version(1);
    /// let is_moved = cities.move_version("city:42", 2).await?;
    /// let city = cities.clone().version(2).get::<String>("city:42").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A move carries an older value over a newer one, and past a removal from the other version
    /// only. So while entries are moved, remove a key from the old version first and then from the
    /// new one, or invalidate by tag. A walk ([`remove_matching`](Self::remove_matching),
    /// [`purge`](Self::purge)) may miss an entry that is moved meanwhile; [`clear`](Self::clear)
    /// reaches it.
    ///
    /// # Errors
    /// `InvalidInput` if the key is invalid, if `to` is the version of this handle, or if the
    /// handle is encrypted: what is encrypted is bound to its version, so read the
    /// value and [`set`](Self::set) it there. Whatever Redis refuses or does not answer, also under
    /// [`Outage::Bypass`](crate::Outage::Bypass). After an error that
    /// [is indeterminate](crate::Error::is_indeterminate), the entry is in one of the two versions.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the entry moved or not.
    pub fn move_version<'c>(&'c self, key: &'c str, to: u32) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            self.movable(to)?;
            let place = self.place(self.client.name(key))?;
            let target = self.clone().version(to).place(self.client.name(key))?;
            let deadline = self.deadline_by(patience);
            let moved = self.moved([&place, &target], to, deadline).await;
            moved.map_err(|error| error.about(&place.name))
        })
    }

    /// Refuses what cannot be moved, whatever is there.
    fn movable(&self, to: u32) -> Result<()> {
        if to == self.setup.version {
            return Err(Error::invalid(format!(
                "move_version to version {to}, which is that of the handle; give another version"
            )));
        }
        #[cfg(feature = "encrypt")]
        if self.setup.stack.keyring.is_some() {
            return Err(Error::invalid(
                "move_version of an encrypted cache: its entries are bound to their version; read \
                 the value and set it in the other version",
            ));
        }
        Ok(())
    }

    async fn moved(
        &self,
        [place, target]: [&EntryKeys; 2],
        to: u32,
        deadline: Deadline,
    ) -> Result<bool> {
        let mut attempt = Attempts::until(deadline);
        loop {
            attempt.begins().await?;
            let reading = self.judged::<Mark>(&place.value, deadline).await?;
            let Some(mark) = reading.hit() else {
                return Ok(false);
            };
            let there = self.clone().version(to);
            let noted = self.noted_there([place, target], &there, &mark, deadline);
            noted.await.map_err(Error::of_own_question)?;
            if self.renamed([place, target], &mark, deadline).await? {
                return Ok(true);
            }
        }
    }

    /// Notes the entry that was read in the indexes of the version that it is moved to, `there`.
    async fn noted_there(
        &self,
        [place, target]: [&EntryKeys; 2],
        there: &Self,
        mark: &Mark,
        deadline: Deadline,
    ) -> Result<()> {
        if self.setup.index == TagIndex::Off {
            return Ok(());
        }
        // Its stale window included. An entry that has gone meanwhile is not moved.
        let Some(left) = self.left(place, deadline).await? else {
            return Ok(());
        };
        let ids = mark.stamps.iter().map(|stamp| TagId(stamp.tag));
        let life = Life::For(left + SLACK);
        index::note(there, ids, &[&target.name], life, deadline).await
    }

    /// Moves the entry that was read. Returns whether it was still there.
    async fn renamed(
        &self,
        [place, target]: [&EntryKeys; 2],
        mark: &Mark,
        deadline: Deadline,
    ) -> Result<bool> {
        let client = &self.client;
        // Calls that come from now on must not join a load that is about to be ended.
        for place in [place, target] {
            self.state().flights.detach(&place.value);
        }
        let keys = [&place.value, &place.lease, &target.value, &target.lease];
        let call = MOVE_VERSION.call(keys).arg(&mark.head[..]);
        let changed = [&place.value, &target.value].into_iter();
        let reply = client.change_all(call, changed, deadline).await?;
        match reply.status()? {
            "OK" => {}
            "CHANGED" => return Ok(false),
            _ => return Err(reply.unexpected()),
        }
        let there = [place, target].map(|place| place.on_other_ring(client));
        let there: Vec<EntryKeys> = there.into_iter().flatten().collect();
        for cleared in clear_all(client, &there, deadline).await {
            cleared.map_err(Error::after_a_part)?;
        }
        Ok(true)
    }
}
