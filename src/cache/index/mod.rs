//! The index of a tag: which keys of a cache may carry it.
//!
//! Invariant: an entry is noted before it is stored, with an end that is not before its own. So a
//! key that is in no index carries no tag, unless the index was lost: then its entries are not
//! found by tag, and cost memory until they end. That is all: whether an entry is valid never
//! depends on an index. A note may be of an entry that never came, or is gone. There is one more
//! exception: `take`, `keys_by_tag` and `purge_tag` forget names whose values are gone, and look
//! once more afterwards. A store that has noted its entry before they read, and stores it after
//! they have looked, is in no index. It would have to stall for about three round trips.
//!
//! What stores entries notes them here, if the handle is told to. `keys_by_tag` and `purge_tag`
//! read. `take` forgets what it has removed.

pub(super) mod notes;
pub(super) mod pages;

use futures::future::join_all;

use super::Cache;
use super::config::TagIndex;
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::name::Name;
use crate::script::script;
use crate::tags::Life;
use crate::time::Deadline;

script!(NOTE = "note.lua");

/// Notes that the entries called `names` may carry the tags `ids` for so long, if the cache keeps
/// an index.
pub(super) async fn note(
    cache: &Cache,
    ids: impl Iterator<Item = TagId>,
    names: &[&Name],
    life: Life,
    deadline: Deadline,
) -> Result<()> {
    if cache.setup.index == TagIndex::Off {
        return Ok(());
    }
    let whole = cache.names()?.whole.id;
    // The tag of the whole cache needs none: a walk finds all entries.
    let keys: Vec<Key> = ids
        .filter(|id| *id != whole)
        .map(|id| key(cache, id))
        .collect();
    let mut notes = Vec::new();
    for key in &keys {
        for some in names.chunks(MOST_AT_ONCE) {
            notes.push(noted(cache, key, some, life, deadline));
        }
    }
    join_all(notes).await.into_iter().collect()
}

async fn noted(
    cache: &Cache,
    key: &Key,
    names: &[&Name],
    life: Life,
    deadline: Deadline,
) -> Result<()> {
    let (millis, from) = match life {
        Life::For(life) => (life.as_millis() as u64, "for"),
        Life::Until(moment) => (moment, "until"),
    };
    let mut call = NOTE.call([key]).arg(millis).arg(from);
    for name in names {
        call = call.arg(name.real());
    }
    let reply = cache.client.run(call, deadline).await?;
    match reply.status()? {
        "OK" => Ok(()),
        _ => Err(reply.unexpected()),
    }
}

/// The key of the index of a tag, for this version of the cache.
fn key(cache: &Cache, id: TagId) -> Key {
    let setup = &cache.setup;
    cache
        .client
        .namespace()
        .tag_index(&setup.name, setup.version, id)
}

/// How many names one script notes at most, so that other calls do not wait long behind it.
const MOST_AT_ONCE: usize = 100;
