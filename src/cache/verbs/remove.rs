//! `remove` and `remove_many`: remove values.
//!
//! Invariant: a load under way is ended in the script that removes the value, so it is not stored
//! afterwards. Users call this.

use futures::join;

use crate::cache::Cache;
use crate::cache::entry_keys::{Cleared, EntryKeys, clear_all};
use crate::client::Request;
use crate::error::{Error, Result};
use crate::time::Deadline;

impl Cache {
    /// Removes the value of `key`. A load of `key` that is under way is not stored.
    ///
    /// # Errors
    /// `InvalidInput` if the key is invalid, and whatever Redis refuses or does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value removed or not.
    pub fn remove<'c>(&'c self, key: &'c str) -> Request<'c, ()> {
        Request::new(self.setup.patience, move |patience| {
            self.removed(key, self.deadline_by(patience))
        })
    }

    /// Removes the values of `keys`, and returns an outcome for each, in their order. Loads of them
    /// that are under way are not stored.
    ///
    /// One command removes up to 100 values on a server. In a cluster there is one command for each
    /// slot, and up to 64 are under way at a time. Without keys, nothing is sent.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// for outcome in cache.remove_many(["city:1", "city:2"]).await? {
    ///     outcome?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The call returns `InvalidInput` if a key is invalid; nothing is removed then. The outcome of
    /// a key is whatever Redis refuses or does not answer for it. It is safe to call again with all
    /// keys.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the values removed.
    pub fn remove_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Request<'_, Vec<Result<()>>> {
        let places = keys
            .into_iter()
            .map(|key| self.place(self.client.name(key.as_ref())));
        let places: Result<Vec<EntryKeys>> = places.collect();
        Request::new(self.setup.patience, move |patience| async move {
            let outcomes = self.all_removed(&places?, self.deadline_by(patience)).await;
            Ok(outcomes
                .into_iter()
                .map(|outcome| outcome.map(drop))
                .collect())
        })
    }

    /// Removes the values at `places`.
    pub(super) async fn all_removed(
        &self,
        places: &[EntryKeys],
        deadline: Deadline,
    ) -> Vec<Result<Cleared>> {
        let client = &self.client;
        for place in places {
            // Calls that come from now on must not join a load that is about to be ended.
            self.state().flights.detach(&place.value);
        }
        let there: Vec<Option<EntryKeys>> = places
            .iter()
            .map(|place| place.on_other_ring(client))
            .collect();
        let elsewhere: Vec<EntryKeys> = there.iter().flatten().cloned().collect();
        let (here, elsewhere) = join!(
            clear_all(client, places, deadline),
            clear_all(client, &elsewhere, deadline)
        );
        let mut elsewhere = elsewhere.into_iter();
        let both = here.into_iter().zip(there).map(|(here, there)| {
            let there = there.and_then(|_| elsewhere.next());
            match (here, there) {
                (here, None) => here,
                (Ok(Cleared::Absent), Some(Ok(there))) => Ok(there),
                (here, Some(Ok(_))) => here.map_err(Error::in_part),
                // One of the two may have been executed, so the error of the other does not say
                // that nothing was.
                (here, Some(Err(error))) => Err(here.err().unwrap_or(error).in_part()),
            }
        });
        both.collect()
    }

    async fn removed(&self, key: &str, deadline: Deadline) -> Result<()> {
        let place = self.place(self.client.name(key))?;
        // Calls that come from now on must not join a load that is about to be ended.
        self.state().flights.detach(&place.value);
        let here = place.clear(&self.client, deadline);
        let Some(on_other_ring) = place.on_other_ring(&self.client) else {
            return here.await;
        };
        let (here, there) = futures::join!(here, on_other_ring.clear(&self.client, deadline));
        // One of the two may have been executed, so the error of the other does not say that
        // nothing was.
        here.and(there).map_err(Error::in_part)
    }
}
