//! Tags: labels on entries, each with a random generation that an invalidation replaces.
//!
//! Invariant: a generation is never used twice, and a tag that is missing has none. So an entry
//! whose stamps all equal the present generations was loaded after the last invalidation of each
//! tag. That holds whatever was evicted, expired or restarted in between, and whatever any clock
//! says. The cache takes a snapshot of the generations before a load, stamps the entry with it, and
//! compares.

mod invalidation;
mod recent;
mod value;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
pub(crate) use invalidation::{
    Invalidation, Mode, NotInvalidated, invalidate, invalidate_late, may_pass, needs_someone,
};
pub(crate) use recent::RecentTags;
use tokio::time::Instant;
pub(crate) use value::{Clocks, Generation, TagState, TagValue};

use crate::client::Client;
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::name::{HideKeys, Name};
use crate::script::script;
use crate::time::Deadline;

script!(ENSURE = "ensure.lua" after "generation.lua");
script!(OUTLIVE = "outlive.lua" after "generation.lua");

/// A tag, ready to be read, stamped or invalidated.
#[derive(Clone)]
pub(crate) struct Tag {
    pub(crate) id: TagId,
    pub(crate) key: Key,
    name: Name,
    /// The tag of a whole cache has one key per slot group. So a server that is down affects only
    /// its own entries, and a read of an entry asks one server.
    parts: Option<Arc<[Key]>>,
}

/// One state per tag, in the order of the tags; `None` for a tag without a generation.
pub(crate) type Snapshot = Vec<Option<TagState>>;

impl fmt::Debug for Tag {
    /// Shows only the name: the rest follows from it, and looks like a token to a reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tag").field(&self.name).finish()
    }
}

impl Tag {
    /// Makes the tag that a user calls `name`. [`RecentTags`] keeps those of recent calls.
    fn named(client: &Client, name: &str) -> Result<Self> {
        let id = TagId::named(name).map_err(|error| error.with_key(client.shown(name)))?;
        Ok(Self {
            id,
            key: client.namespace().tag(id),
            name: client.name(name),
            parts: None,
        })
    }

    /// Makes a tag of which only the id is known, for reading. It is shown by its id.
    pub(crate) fn with_id(client: &Client, id: TagId) -> Self {
        Self {
            id,
            key: client.namespace().tag(id),
            name: Name::new(&format!("{:032x}", id.0), &HideKeys::off()),
            parts: None,
        }
    }

    /// Makes the tag that every entry of a cache carries.
    pub(crate) fn whole_cache(client: &Client, cache: &str) -> Self {
        let id = TagId::whole_cache(cache);
        let key = client.namespace().tag(id);
        Self {
            id,
            parts: Some(client.for_slot_groups(&key).into()),
            key,
            // Never hidden: the names of caches are shown in any case.
            name: Name::new(&format!("(all of {cache})"), &HideKeys::off()),
        }
    }

    /// Returns this tag as the entry at `value` carries it.
    pub(crate) fn colocated(&self, client: &Client, value: &Key) -> Self {
        Self {
            key: self.colocated_key(client, value),
            ..self.clone()
        }
    }

    /// Returns this tag at one of its places.
    pub(crate) fn one_copy(&self) -> Self {
        let first = self.parts.as_ref().and_then(|parts| parts.first());
        Self {
            key: first.unwrap_or(&self.key).clone(),
            ..self.clone()
        }
    }

    /// Returns its key for the entry at `value`, as in [`colocated`](Self::colocated).
    pub(crate) fn colocated_key(&self, client: &Client, value: &Key) -> Key {
        match &self.parts {
            Some(parts) => parts[client.slot_group(value)].clone(),
            None => self.key.clone(),
        }
    }

    /// Returns this tag at each key where it has a generation. During a migration between two
    /// rings of shards, a tag may be on two servers. The tag of a whole cache has one key for each
    /// slot group.
    pub(crate) fn copies(&self, client: &Client) -> Vec<Self> {
        let keys = match &self.parts {
            Some(parts) => parts.to_vec(),
            None => {
                let on_other_ring = client.copies(&self.key).other;
                std::iter::once(self.key.clone())
                    .chain(on_other_ring)
                    .collect()
            }
        };
        let copy = |key| Self {
            key,
            parts: None,
            ..self.clone()
        };
        keys.into_iter().map(copy).collect()
    }

    /// Returns the name for human readers that a tag's value holds, as it may be shown.
    fn readable(&self) -> Vec<u8> {
        let shown = self.name.shown();
        let name = shown.as_str();
        let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
        // Cut at the end of a character.
        let end = ends.take_while(|end| *end <= SHOWN).last().unwrap_or(0);
        name.as_bytes()[..end].to_vec()
    }
}

/// The TTLs of tags, as far as this client knows them. All caches of the client share it.
#[derive(Debug, Default)]
pub(crate) struct TagTtls(Mutex<HashMap<Key, Lives>>);

/// Until when a tag lives at least, while it has this generation. With another one it may be
/// another tag by now: a server that lost it, or was replaced, may have made it again with a
/// shorter TTL.
#[derive(Debug, Clone, Copy)]
struct Lives {
    until: Instant,
    generation: Generation,
    /// When it was first known to have this generation.
    seen: Instant,
}

impl TagTtls {
    /// Completes a snapshot, so that each tag has a generation and outlives an entry that lives for
    /// `need`. In the steady state this sends nothing. The TTL of a tag is extended to twice the
    /// need, hence at most once per need.
    ///
    /// Each generation is read before this returns, so a load that starts afterwards is newer.
    pub(crate) async fn settle(
        &self,
        client: &Client,
        tags: &[Tag],
        snapshot: &[Option<TagState>],
        need: Duration,
        deadline: Deadline,
    ) -> Result<Vec<TagState>> {
        debug_assert_eq!(tags.len(), snapshot.len(), "a state for each tag");
        let mut settled = Vec::with_capacity(tags.len());
        for (tag, state) in tags.iter().zip(snapshot) {
            let known = state.filter(|state| self.reaches(&tag.key, state.generation, need));
            settled.push(async move {
                match known {
                    Some(state) => Ok(state),
                    None => self.ensure(client, tag, need, deadline).await,
                }
            });
        }
        // In parallel, since the tags may be on several servers.
        join_all(settled).await.into_iter().collect()
    }

    async fn ensure(
        &self,
        client: &Client,
        tag: &Tag,
        need: Duration,
        deadline: Deadline,
    ) -> Result<TagState> {
        let life = need * 2;
        // Taken before the call: the TTL on the server counts from later, so the tag lives at least
        // as long from here.
        let asked = Instant::now();
        let call = ENSURE
            .call([&tag.key])
            .arg(&seed())
            .arg(tag.readable())
            .arg(life.as_millis() as u64);
        // `change`, so that a replica is not read before it has this generation.
        let mut reply = client.change(call, deadline).await?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected().with_key(&tag.name));
        }
        let value = reply.take_bytes(1)?;
        let until = asked + Duration::from_millis(reply.count(2)?);
        let state = TagValue::of(value.as_ref()).map(TagValue::state);
        let state = state.ok_or_else(|| reply.unexpected().with_key(&tag.name))?;
        let generation = state.generation;
        let lives = Lives {
            until,
            generation,
            // Taken after the call: the server had the generation by then.
            seen: Instant::now(),
        };
        self.learn(&tag.key, lives);
        Ok(state)
    }

    /// Whether the tag is known to have had this generation by `moment`. A generation is never used
    /// twice. So if the tag has it now, it was not invalidated since that moment, whatever clocks
    /// say.
    pub(crate) fn had(&self, tag: &Key, generation: Generation, moment: Instant) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(tag)
            .is_some_and(|it| it.generation == generation && it.seen <= moment)
    }

    /// Whether the tag is known to live for `need` at least, if it has this generation.
    pub(crate) fn reaches(&self, tag: &Key, generation: Generation, need: Duration) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(tag)
            .is_some_and(|it| it.generation == generation && it.until >= Instant::now() + need)
    }

    fn learn(&self, tag: &Key, mut lives: Lives) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = known.get(tag)
            && before.generation == lives.generation
        {
            lives.seen = before.seen.min(lives.seen);
        }
        if known.len() >= MOST_KNOWN && !known.contains_key(tag) {
            let now = Instant::now();
            known.retain(|_, it| it.until > now);
            if known.len() >= MOST_KNOWN {
                // To forget a tag costs one command.
                known.clear();
            }
        }
        known.insert(tag.clone(), lives);
    }
}

/// Until when a tag lives at least.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Life {
    For(Duration),
    /// Until this moment of the server's clock, in ms since 1970.
    Until(u64),
}

/// Makes the tags at `keys` live for so long, in parallel. A tag that lives longer, or is not
/// there, stays as it is.
pub(crate) async fn outlive(
    client: &Client,
    keys: &[Key],
    life: Life,
    deadline: Deadline,
) -> Result<()> {
    let (need, how) = match life {
        Life::For(life) => (life.as_millis() as u64, "for"),
        Life::Until(moment) => (moment, "until"),
    };
    let calls = keys.iter().map(|key| {
        let call = OUTLIVE.call([key]).arg(need).arg(how);
        client.run(call, deadline)
    });
    for outcome in join_all(calls).await {
        let reply = outcome?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected());
        }
    }
    Ok(())
}

/// Random bytes from which the server makes a generation.
fn seed() -> [u8; 16] {
    rand::random()
}

/// The most bytes of the name in a tag's value.
const SHOWN: usize = 200;

/// How many tags a client remembers at most.
const MOST_KNOWN: usize = 1 << 16;

/// How much longer than its need a tag lives at most, in addition to the load itself.
pub(crate) const SLACK: Duration = Duration::from_secs(60);
