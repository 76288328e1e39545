//! `Notes`: where an entry that is about to be taken is noted.
//!
//! Invariant: a note is forgotten only if it is the one that was read while the entry was there. So
//! an entry that is stored again meanwhile stays in the index. `take` reads and forgets.

use futures::future::try_join_all;

use super::key;
use super::pages::{self, Noted};
use crate::cache::Cache;
use crate::cache::config::TagIndex;
use crate::codec::Stamp;
use crate::error::Result;
use crate::key::TagId;
use crate::name::Name;
use crate::script::Retry;
use crate::time::Deadline;
use crate::wire::command::plain;
use crate::wire::value::parsed;

/// The notes of one entry, one in the index of each of its tags.
#[derive(Debug, Default)]
pub(in crate::cache) struct Notes(Vec<(TagId, Noted)>);

impl Notes {
    /// Reads the notes of the entry called `name`, which has these stamps. There are none if the
    /// cache keeps no index.
    pub(in crate::cache) async fn of(
        cache: &Cache,
        name: &Name,
        stamps: &[Stamp],
        deadline: Deadline,
    ) -> Result<Self> {
        if cache.setup.index == TagIndex::Off {
            return Ok(Self::default());
        }
        let whole = cache.names()?.whole.id;
        let ids = stamps.iter().map(|stamp| TagId(stamp.tag));
        let notes = ids.filter(|id| *id != whole).map(|id| async move {
            let index = key(cache, id);
            let mut command = plain("ZSCORE", &index);
            command.arg(name.real());
            let score = cache
                .client
                .command(command, &index, Retry::Reads, deadline);
            let score: Option<f64> = parsed(score.await?)?;
            Result::Ok(score.map(|score| {
                let name = name.real().to_owned();
                // A whole number, as scripts spell it.
                let score = format!("{score:.0}");
                (id, Noted { name, score })
            }))
        });
        let notes = try_join_all(notes).await?;
        Ok(Self(notes.into_iter().flatten().collect()))
    }

    /// Whether there are none, so that there is nothing to forget.
    pub(in crate::cache) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the entry, which is gone, out of the indexes.
    pub(in crate::cache) async fn forget(self, cache: &Cache, deadline: Deadline) -> Result<()> {
        let forgets = self.0.into_iter().map(|(id, noted)| async move {
            pages::forget(cache, id, std::slice::from_ref(&noted), deadline).await
        });
        try_join_all(forgets).await.map(drop)
    }
}
