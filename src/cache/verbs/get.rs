//! `get`: a value that is there.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::cache::read::reading::Reading;
use crate::client::Request;
use crate::error::Result;
use crate::time::Deadline;

impl Cache {
    /// The value of `key`, if there is a valid one.
    ///
    /// # Errors
    /// `InvalidInput` for a bad key, and what Redis refuses or does not answer; under
    /// [`Outage::Bypass`] that is `None`.
    ///
    /// What cannot be read is `None` too. A damaged entry is removed. An entry that is whole but
    /// does not hold a `V`, or was written in a way that this build does not know, is left alone:
    /// another version of the service may read it (see [`version`](Self::version)). If the key
    /// holds another type of Redis, only the calls that write report that as `WrongType`
    /// ([`memoize`](Self::memoize) of a missing key, [`set`](Self::set),
    /// [`remove`](Self::remove)).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn get<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Arc<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'c,
    {
        Request::new(self.setup.patience, move |patience| {
            self.found(key, patience.deadline())
        })
    }

    async fn found<V: DeserializeOwned>(
        &self,
        key: &str,
        deadline: Deadline,
    ) -> Result<Option<Arc<V>>> {
        let key = &self.client.name(key);
        let value = self.value(key)?;
        let from = self.setup.read_from;
        match fetch::read(self, &value, &[], from, deadline).await {
            Ok(Reading::Hit(value)) => Ok(Some(value)),
            Ok(Reading::Miss(_)) => Ok(None),
            Err(error) if self.setup.outage.bypasses(&error) => {
                self.state().bulkhead.read(&self.setup.name, &error);
                Ok(None)
            }
            Err(error) => Err(error.with_key(key)),
        }
    }
}
