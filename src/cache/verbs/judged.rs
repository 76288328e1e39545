//! The read of a verb that judges an entry before it changes it.
//!
//! Invariant: a key of another Redis type is an error, and never a missing entry. A read cannot
//! tell the two apart (`MGET` answers nil for both), so one command more asks for the type where
//! there seems to be nothing. The verbs that change entries read here.

use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::cache::read::mark::Marked;
use crate::cache::read::reading::{Gone, Reading};
use crate::error::Result;
use crate::key::Key;
use crate::script::Retry;
use crate::time::Deadline;
use crate::wire::command::plain;
use crate::wire::fault::another_type;
use crate::wire::value::parsed;

impl Cache {
    /// Reads the entry at `key` where the client's own ring places it.
    ///
    /// # Errors
    /// `WrongType` if the key holds another Redis type.
    pub(super) async fn judged<T: Marked>(
        &self,
        key: &Key,
        deadline: Deadline,
    ) -> Result<Reading<T>> {
        let reading = fetch::read_here(self, key, deadline).await?;
        self.seen(key, &reading);
        if let Reading::Miss(miss) = &reading
            && miss.gone == Gone::Nothing
        {
            let of = self
                .client
                .command(plain("TYPE", key), key, Retry::Reads, deadline);
            match parsed::<String>(of.await?)?.as_str() {
                // It may have been stored just now.
                "none" | "string" => {}
                _ => return Err(another_type("TYPE")),
            }
        }
        Ok(reading)
    }

    /// Notes what the server has said of `key`. The near cache serves nothing older from now on.
    #[cfg(feature = "near")]
    pub(super) fn seen<T: Marked>(&self, key: &Key, reading: &Reading<T>) {
        let Some(near) = &self.setup.near else { return };
        match reading {
            Reading::Hit(found) => near.forget_older(key, Some(found.mark().revision)),
            Reading::Old(..) => near.forget(key),
            Reading::Miss(_) => near.forget_older(key, None),
        }
    }

    #[cfg(not(feature = "near"))]
    #[expect(clippy::unused_self)]
    pub(super) fn seen<T: Marked>(&self, _: &Key, _: &Reading<T>) {}
}
