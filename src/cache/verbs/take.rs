//! `take`: reads a value and removes it, in one step.
//!
//! Invariant: of several callers, one at most gets a value. Users call this.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::conditional::Attempts;
use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::index::notes::Notes;
use crate::cache::read::mark::Mark;
use crate::client::Request;
use crate::error::{Error, Result};
use crate::script::script;
use crate::time::Deadline;

script!(TAKE = "take.lua" after "../entry.lua");

impl Cache {
    /// Returns the value of `key` and removes it. `None` without a valid value. Of several callers,
    /// one at most gets the value. A load of `key` that is under way is not stored. If this handle
    /// [keeps an index](Self::index_tags) of its tags, the key is taken out of it soon afterwards,
    /// in the background.
    ///
    /// # Errors
    /// As [`remove`](Self::remove). After an error that
    /// [is indeterminate](crate::Error::is_indeterminate), the value may be gone although no caller
    /// has it.
    ///
    /// # Cancel safety
    /// Dropping the future may lose the value.
    pub fn take<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Arc<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'c,
    {
        Request::new(self.setup.patience, move |patience| async move {
            let place = self.place(self.client.name(key))?;
            let taken = self.taken(&place, self.deadline_by(patience)).await;
            taken.map_err(|error| error.about(&place.name))
        })
    }

    async fn taken<V: DeserializeOwned>(
        &self,
        place: &EntryKeys,
        deadline: Deadline,
    ) -> Result<Option<Arc<V>>> {
        let deadline = deadline.keep_trying();
        let mut attempt = Attempts::until(deadline);
        loop {
            attempt.begins().await?;
            let reading = self.judged(&place.value, deadline).await?;
            let Some::<(Arc<V>, Mark)>((value, mark)) = reading.hit() else {
                return Ok(None);
            };
            let notes = Notes::of(self, &place.name, &mark.stamps, deadline).await;
            if self.taken_out(place, &mark, deadline).await? {
                // Nothing is awaited any more: if the caller gave up here, it would lose the value.
                if notes.as_ref().map_or(true, |notes| !notes.is_empty()) {
                    let tidied = tidied(self.clone(), notes, deadline);
                    self.client.spawner().spawn(tidied);
                }
                return Ok(Some(value));
            }
        }
    }

    /// Removes the entry that was read. Returns whether it was still there.
    pub(super) async fn taken_out(
        &self,
        place: &EntryKeys,
        mark: &Mark,
        deadline: Deadline,
    ) -> Result<bool> {
        // Calls that come from now on must not join a load that is about to be ended.
        self.state().flights.detach(&place.value);
        let call = TAKE.call(place.keys()).arg(&mark.head[..]);
        let deadline = deadline.keep_trying().reserved();
        let reply = self.client.change(call, deadline).await?;
        match reply.status()? {
            "OK" => {}
            "CHANGED" => return Ok(false),
            _ => return Err(reply.unexpected()),
        }
        if let Some(on_other_ring) = place.on_other_ring(&self.client) {
            let cleared = on_other_ring.clear(&self.client, deadline).await;
            cleared.map_err(Error::after_a_part)?;
        }
        Ok(true)
    }
}

/// Takes an entry that is gone out of the indexes. `take` spawns this task. It ends by the deadline
/// of the call, and if it fails or panics, the index has one name too many.
async fn tidied(cache: Cache, notes: Result<Notes>, deadline: Deadline) {
    let forgotten = match notes {
        Ok(notes) => notes.forget(&cache, deadline).await,
        Err(error) => Err(error),
    };
    if let Err(error) = forgotten {
        // An index decides nothing.
        tracing::debug!(target: "hedgerow::cache", %error, "index not tidied");
    }
}
