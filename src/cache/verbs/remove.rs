//! `remove`: removes a value.
//!
//! Invariant: a load under way is ended in the script that removes the value, so it is not stored
//! afterwards. Users call this.

use crate::cache::Cache;
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
            self.removed(key, patience.deadline())
        })
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
