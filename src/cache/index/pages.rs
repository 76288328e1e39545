//! `Pages`: a walk over the index of a tag, and what it takes out.
//!
//! Invariant: a page has a bounded number of names. A name that was in the index from the beginning
//! to the end is in at least one page. The walk needs no cursor of the server, so it goes on after
//! a failover. `keys_by_tag` and `purge_tag` walk.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoValues;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};

use crate::cache::Cache;
use crate::cache::config::TagIndex;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::index;
use crate::cache::read::fetch;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::key::{Key, TagId};
use crate::script::script;
use crate::tags::{Life, Tag};
use crate::time::Deadline;

script!(PAGE = "page.lua");
script!(FORGET = "forget.lua");
script!(STAMPS = "stamps.lua" after "stamp.lua");
script!(PURGE = "purge.lua" after "stamp.lua");

/// A walk over the index of one tag.
#[derive(Debug)]
pub(in crate::cache) struct Pages {
    cache: Cache,
    tag: Tag,
    key: Key,
    /// The name behind which the next page begins. `None` at the beginning.
    last: Option<Noted>,
    ended: Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    NotYet,
    Yes,
}

/// A name in an index.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Noted {
    pub(in crate::cache) name: String,
    /// As the server spells it. It identifies the note.
    pub(super) score: String,
}

/// What the value of a name carries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Carried {
    /// The tag, with this generation.
    Tag(Bytes),
    /// Not the tag, but it is being loaded, and may carry it soon.
    BeingLoaded,
    /// There is no value, or it does not carry the tag.
    Nothing,
}

impl Carried {
    fn of(stamp: Option<Bytes>) -> Self {
        match stamp {
            Some(stamp) if stamp.is_empty() => Self::BeingLoaded,
            Some(generation) => Self::Tag(generation),
            None => Self::Nothing,
        }
    }
}

impl Pages {
    /// A walk over the index of `tag`.
    ///
    /// # Errors
    /// `InvalidInput` if the handle keeps no index.
    pub(in crate::cache) fn new(cache: &Cache, tag: Tag) -> Result<Self> {
        cache.names()?;
        if cache.setup.index == TagIndex::Off {
            return Err(Error::invalid(
                "this handle keeps no index of tags; make it with Cache::index_tags, and all \
                 handles that write",
            ));
        }
        Ok(Self {
            key: index::key(cache, tag.id),
            cache: cache.clone(),
            tag,
            last: None,
            ended: Ended::NotYet,
        })
    }

    pub(in crate::cache) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(in crate::cache) fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Returns the next names. `None` at the end. A name may be returned several times.
    ///
    /// Cancel safety: the next call repeats a step that was dropped.
    pub(in crate::cache) async fn next(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Vec<Noted>>> {
        if self.ended == Ended::Yes {
            return Ok(None);
        }
        let (score, name) = match &self.last {
            Some(last) => (&*last.score, &*last.name),
            None => ("", ""),
        };
        let call = PAGE
            .call([&self.key])
            .arg(score)
            .arg(name)
            .arg(MOST_AT_ONCE);
        let reply = self.cache.client.run(call, deadline).await?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected());
        }
        let mut page = Vec::with_capacity(reply.len() / 2);
        for at in (1..reply.len()).step_by(2) {
            page.push(Noted {
                name: reply.text(at)?.to_owned(),
                score: reply.text(at + 1)?.to_owned(),
            });
        }
        if page.len() < MOST_AT_ONCE {
            self.ended = Ended::Yes;
        }
        self.last = page.last().cloned().or(self.last.take());
        Ok(Some(page))
    }

    /// The name behind which the next page begins.
    pub(in crate::cache) fn position(&self) -> Option<Noted> {
        self.last.clone()
    }

    /// Removes the values of the next page that carry the tag and are invalid, and takes their
    /// names out of the index, and those of values that are missing or do not carry the tag.
    /// Returns how many values were removed. `None` at the end.
    ///
    /// Cancel safety: some of the values of a step that was dropped are removed.
    pub(in crate::cache) async fn purge_next(&mut self, deadline: Deadline) -> Result<Option<u64>> {
        let before = self.last.clone();
        let Some(page) = self.next(deadline).await? else {
            return Ok(None);
        };
        let places = self.places(&page)?;
        let carried = carried(&self.cache, self.tag.id, &places, deadline).await?;
        let mut gone: Vec<bool> = carried.iter().map(|it| *it == Carried::Nothing).collect();
        let removed = self.purged(&places, carried, deadline).await?;
        for (gone, removed) in gone.iter_mut().zip(&removed) {
            *gone |= removed;
        }
        let forgotten = self.forget((&page, before), &gone, deadline).await;
        forgotten.map_err(Error::after_a_part)?;
        Ok(Some(removed.into_iter().filter(|it| *it).count() as u64))
    }

    /// Takes those of the `candidates` out of the index whose values are missing or do not carry
    /// the tag. They are of `page`, before which the walk stood at `before`.
    pub(in crate::cache) async fn tidy(
        &mut self,
        (page, before): (&[Noted], Option<Noted>),
        candidates: &[bool],
        deadline: Deadline,
    ) -> Result<()> {
        let some = page.iter().zip(candidates);
        let some: Vec<Noted> = some.filter(|it| *it.1).map(|it| it.0.clone()).collect();
        if some.is_empty() {
            return Ok(());
        }
        let places = self.places(&some)?;
        let carried = carried(&self.cache, self.tag.id, &places, deadline).await?;
        let mut carried = carried.iter();
        let gone = candidates.iter().map(|candidate| {
            *candidate && carried.next().is_some_and(|it| *it == Carried::Nothing)
        });
        let gone: Vec<bool> = gone.collect();
        self.forget((page, before), &gone, deadline).await
    }

    /// Takes the names of `page` that are `gone` out of the index, unless they were noted again.
    async fn forget(
        &mut self,
        (page, before): (&[Noted], Option<Noted>),
        gone: &[bool],
        deadline: Deadline,
    ) -> Result<()> {
        let forgets = page.iter().zip(gone).filter(|it| *it.1);
        let forgets: Vec<Noted> = forgets.map(|it| it.0.clone()).collect();
        if forgets.is_empty() {
            return Ok(());
        }
        forget(&self.cache, self.tag.id, &forgets, deadline).await?;
        // The next page begins behind a name that stays.
        let left = page.iter().zip(gone).rev();
        let mut left = left.filter(|it| !*it.1).map(|it| it.0);
        self.last = left.next().cloned().or(before);
        Ok(())
    }

    fn places(&self, page: &[Noted]) -> Result<Vec<EntryKeys>> {
        places(&self.cache, page)
    }

    /// Removes those of these values that are invalid by the tag. Returns which were.
    async fn purged(
        &self,
        places: &[EntryKeys],
        carried: Vec<Carried>,
        deadline: Deadline,
    ) -> Result<Vec<bool>> {
        let client = &self.cache.client;
        let keys: Vec<Key> = places.iter().map(|place| place.value.clone()).collect();
        let dead = self.dead(carried, deadline).await?;
        let calls = groups(client, dead.iter().map(|(at, _)| &keys[*at])).map(|group| {
            let group = group.into_iter().map(|place| &dead[place]);
            let group: Vec<&(usize, Bytes)> = group.collect();
            let keys = &keys;
            async move {
                let named = group.iter().map(|(at, _)| &keys[*at]);
                let call = PURGE.call_together(named.clone());
                let mut call = call.arg(&self.tag.id.0.to_be_bytes()[..]);
                for (_, generation) in &group {
                    call = call.arg(&generation[..]);
                }
                let reply = client.change_all(call, named, deadline).await?;
                if reply.status()? != "OK" {
                    return Err(reply.unexpected());
                }
                let outcomes = group.iter().zip(1..);
                let outcomes = outcomes.map(|((at, _), answer)| Ok((*at, reply.int(answer)? == 1)));
                outcomes.collect::<Result<Vec<(usize, bool)>>>()
            }
        });
        let mut removed = vec![false; places.len()];
        let mut failed = None;
        for outcome in join_all(calls).await {
            match outcome {
                Ok(outcomes) => {
                    for (at, is_removed) in outcomes {
                        removed[at] = is_removed;
                    }
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(removed), |error| Err(error.after_a_part()))
    }

    /// Returns which of these values are invalid by the tag, each with the generation that it has.
    ///
    /// The present generation is read after the values. No generation comes back, so a value that
    /// has another one is invalid for good. Were it read first, a value could have been stored with
    /// a newer one in between.
    async fn dead(&self, carried: Vec<Carried>, deadline: Deadline) -> Result<Vec<(usize, Bytes)>> {
        let client = &self.cache.client;
        let stamped = carried.into_iter().enumerate();
        let stamped = stamped.filter_map(|(at, carried)| match carried {
            Carried::Tag(generation) => Some((at, generation)),
            Carried::BeingLoaded | Carried::Nothing => None,
        });
        let mut dead: Vec<(usize, Bytes)> = stamped.collect();
        if dead.is_empty() {
            return Ok(dead);
        }
        // While keys move between rings, a value here may have the generation from there.
        let places = self.tag.copies(client);
        let present = fetch::generations(client, &places, deadline).await?;
        let is_present = |stamp: &[u8]| {
            let mut states = present.iter().flatten();
            states.any(|state| state.generation.stamp().to_be_bytes() == stamp)
        };
        dead.retain(|(_, generation)| !is_present(generation));
        Ok(dead)
    }
}

/// Takes names whose values are gone out of the index of the tag `id`, unless they were noted
/// again.
///
/// An entry is noted before it is stored. So one may have been noted before the note was read, and
/// stored after its value was found missing. A load is seen by its lease. Another store is found by
/// a second look once the name is forgotten, and noted again.
pub(super) async fn forget(
    cache: &Cache,
    id: TagId,
    gone: &[Noted],
    deadline: Deadline,
) -> Result<()> {
    let mut call = FORGET.call([&index::key(cache, id)]);
    for noted in gone {
        call = call.arg(&*noted.name).arg(&*noted.score);
    }
    let reply = cache.client.run(call, deadline).await?;
    if reply.status()? != "OK" {
        return Err(reply.unexpected());
    }
    let places = places(cache, gone)?;
    let carried = carried(cache, id, &places, deadline).await?;
    for ((noted, place), carried) in gone.iter().zip(&places).zip(carried) {
        if carried == Carried::Nothing {
            continue;
        }
        let ends = noted.score.parse::<f64>().unwrap_or_default();
        let life = Life::Until(ends as u64);
        index::note(cache, std::iter::once(id), &[&place.name], life, deadline).await?;
    }
    Ok(())
}

fn places(cache: &Cache, page: &[Noted]) -> Result<Vec<EntryKeys>> {
    let names = page.iter().map(|noted| cache.client.name(&noted.name));
    names.map(|name| cache.place(name)).collect()
}

/// Returns what each of these values carries of the tag `id`.
async fn carried(
    cache: &Cache,
    id: TagId,
    places: &[EntryKeys],
    deadline: Deadline,
) -> Result<Vec<Carried>> {
    let client = &cache.client;
    let calls = groups(client, places.iter().map(|place| &place.value));
    let calls = calls.map(|group| async move {
        let keys: Vec<&Key> = group.iter().flat_map(|at| places[*at].keys()).collect();
        let call = STAMPS.call_together(keys);
        let call = call.arg(&id.0.to_be_bytes()[..]);
        let mut reply = client.run(call, deadline).await?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected());
        }
        let mut carried = Vec::with_capacity(group.len());
        for (at, answer) in group.into_iter().zip(1..) {
            let stamp = reply.take_bytes(answer)?;
            carried.push((at, Carried::of(stamp)));
        }
        Ok(carried)
    });
    let mut all = try_join_all(calls).await?.concat();
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, carried)| carried).collect())
}

/// Returns the positions of those keys that one script may have together.
fn groups<'k>(
    client: &Client,
    keys: impl IntoIterator<Item = &'k Key>,
) -> IntoValues<usize, Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, key) in keys.into_iter().enumerate() {
        groups.entry(client.script_group(key)).or_default().push(at);
    }
    groups.into_values()
}

/// How many names a page has at most, so that other calls do not wait long behind a step.
const MOST_AT_ONCE: usize = 100;
