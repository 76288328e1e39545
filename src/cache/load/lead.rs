//! The load of a flight that has the lease: the loader runs, and its value is stored and shared.
//!
//! Invariant: only commands that are sent after the flight was closed prove a value for late calls.
//! Second step of a [`Load`] that leads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join;
use serde::Serialize;
use tokio::time::Instant;

use super::failure::Failure;
use super::flight::Outcome;
use super::flights::Closed;
use super::lease::Committed;
use super::loading::{RunLoader, Said, Storing};
use super::{Ended, Load};
use crate::cache::index;
use crate::cache::load_options::checked_window;
use crate::cache::read::fetch;
use crate::cache::read::judge::Want;
use crate::cache::read::mark::Mark;
use crate::cache::read::reading::{ReadFrom, Reading};
use crate::cache::stats::Timed;
use crate::codec::{MOST_STAMPS, Shape, Stamp};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::{Key, TagId};
use crate::tags::{self, Clocks, Life, SLACK, Snapshot, Tag, TagState};
use crate::time::{Deadline, Ttl};

/// What is stored of a loaded value.
#[derive(Debug)]
enum Plan {
    Store {
        entry: Vec<u8>,
        ttl: Ttl,
    },
    /// The entry lives on.
    Extend {
        ttl: Ttl,
        head: Bytes,
    },
    /// Nothing.
    Drop(Why),
}

/// What is known of tags that the call does not declare, from before the loader began.
#[derive(Debug)]
struct Known {
    /// What those of the entry before held then.
    before: Vec<(Tag, TagState)>,
    /// When the loader began.
    begun: Instant,
}

impl Known {
    /// Returns what the tag held before the loader began, if it was read then.
    fn before(&self, id: TagId) -> Option<TagState> {
        let mut before = self.before.iter();
        before
            .find(|(tag, _)| tag.id == id)
            .map(|(_, state)| *state)
    }
}

/// Why a loaded value is not stored.
#[derive(Debug, Clone, Copy)]
enum Why {
    /// The loader says so.
    Said,
    /// A tag holds loads back.
    Held,
    /// A tag that the loader has named may have been invalidated since the load began.
    Late,
    /// It is `None`, which a bare value cannot be.
    BareNone,
}

impl<V> Load<V>
where
    V: Serialize + Send + Sync + 'static,
{
    /// Loads, stores and shares the value. The lease is held.
    pub(super) async fn lead(
        &mut self,
        loader: RunLoader<V>,
        mut states: Vec<TagState>,
    ) -> Result<Arc<V>> {
        let prepared = async {
            self.leader.begin_load();
            let before = self.look_before().await;
            let begun = Instant::now();
            let until = begun + self.request.terms.max_load.duration();
            let loaded = self.loaded(loader, until).await;
            // The loader has ended. What follows may take as long as the server does.
            self.permit = None;
            let (value, said) = loaded?;
            let cost = begun.elapsed();
            let known = Known { before, begun };
            let plan = self.plan((&value, cost), said, &mut states, known).await?;
            Ok((value, plan))
        };
        // The value's own code runs in there, too. If it panics, it must not leave the lease
        // behind.
        let prepared = AssertUnwindSafe(prepared).catch_unwind().await;
        let prepared = prepared.unwrap_or_else(|_panic| {
            Err(self.request.named(Error::new(
                ErrorKind::LoaderPanicked,
                "encoding the value panicked; the panic hook has reported where",
            )))
        });
        let (value, plan) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                // Tags that the loader has named are no part of a failure.
                self.request.tags.truncate(states.len());
                self.fail(&error, &states).await;
                return Err(error);
            }
        };
        if !matches!(plan, Plan::Drop(_)) {
            self.ended = Ended::Committed;
        }
        let closed = self.leader.close();
        let question = self.stores(Outcome::Value {
            value: value.clone(),
            proved: false,
        });
        let proved = self.commit(closed, &plan, &states, question.deadline).await;
        closed.settle(Outcome::Value {
            value: value.clone(),
            proved,
        });
        Ok(value)
    }

    /// Decides what is stored of `value`. Adds the tags that the loader has named.
    async fn plan(
        &mut self,
        (value, cost): (&Arc<V>, Duration),
        said: Said,
        states: &mut Vec<TagState>,
        known: Known,
    ) -> Result<Plan> {
        let ttl = match said.ttl {
            Some(ttl) => Ttl::new("ttl", ttl).map_err(|error| self.request.named(error))?,
            None => self.request.ttl_of(&**value),
        };
        let planned = self.request.life(self.request.kept.longest());
        if let Some(window) = said.keep_stale {
            let window = checked_window("keep_stale", window);
            self.request.kept.window = window.map_err(|error| self.request.named(error))?;
        }
        let labelled = self.labelled(&said.tags, states, (ttl, planned), &known);
        let labelled = labelled.await?;
        // First: such a value is proved for nobody, whatever else is said of it.
        if !labelled {
            return Ok(Plan::Drop(Why::Late));
        }
        if said.storing == Storing::NotStored {
            return Ok(Plan::Drop(Why::Said));
        }
        let stack = &self.request.cache.setup.stack;
        if stack.shape == Shape::Bare && stack.is_none(&**value) {
            return Ok(Plan::Drop(Why::BareNone));
        }
        let named = states.len();
        if said.storing == Storing::NotModified
            && let Some(old) = &self.old
        {
            // Its tags stay: a loader that finds a value unchanged cannot say again which tags
            // follow from it. They count as declared, so a late call is given nothing that was
            // found unchanged before one of them was invalidated.
            for stamp in &old.stamps {
                let tag = known.before.iter().find(|(tag, _)| tag.id.0 == stamp.tag);
                if let Some((tag, state)) = tag
                    && !self.request.tags.iter().any(|it| it.id == tag.id)
                {
                    self.request.tags.push(tag.clone());
                    states.push(*state);
                }
            }
        }
        if self.is_held(states) {
            return Ok(Plan::Drop(Why::Held));
        }
        let fresh_for = self.request.jittered(ttl);
        let stamps = self.request.stamps(states);
        if said.storing == Storing::NotModified
            && let Some(old) = &self.old
        {
            // Of any other tag nothing is known: it has no generation, or could not be read. So the
            // old entry is invalid or in doubt, and the value must not be proved for late calls.
            let is_known = |stamp: &Stamp| stamps.iter().any(|it| it.tag == stamp.tag);
            if !old.stamps.iter().all(is_known) {
                return Ok(Plan::Drop(Why::Late));
            }
            if !self.outlive(&stamps[named..], ttl).await {
                return Ok(Plan::Drop(Why::Late));
            }
            if old.stamps.len() == stamps.len() && old.stamps.iter().all(|it| stamps.contains(it)) {
                let head = old.head.clone();
                return Ok(Plan::Extend {
                    ttl: fresh_for,
                    head,
                });
            }
        }
        let entry = self.request.encode_stamped(&**value, &stamps, cost)?;
        Ok(Plan::Store {
            entry,
            ttl: fresh_for,
        })
    }

    /// Whether a tag holds loads back, and this load began too early for it.
    fn is_held(&self, states: &[TagState]) -> bool {
        let (client, began) = (&self.request.cache.client, self.lease.granted());
        // Nearly always nothing is held back, and then the servers do not matter.
        let lets = |state: &TagState, clocks| state.lets_store(began, clocks);
        if states.iter().all(|state| lets(state, Clocks::Different)) {
            return false;
        }
        let own = client.server_number(&self.request.place.value);
        let mut tags = self.request.tags.iter().zip(states);
        !tags.all(|(tag, state)| {
            // A server that is not known at present may be any.
            let same = own.is_some() && client.server_number(&tag.key) == own;
            lets(
                state,
                if same {
                    Clocks::Same
                } else {
                    Clocks::Different
                },
            )
        })
    }

    /// Makes the tags of `stamps` live as long as an entry that is fresh for `ttl`, and the notes
    /// of the entry in their indexes, too. Returns whether they do.
    async fn outlive(&self, stamps: &[Stamp], ttl: Ttl) -> bool {
        if stamps.is_empty() {
            return true;
        }
        let namespace = self.request.cache.client.namespace();
        let keys: Vec<Key> = stamps
            .iter()
            .map(|it| namespace.tag(TagId(it.tag)))
            .collect();
        let question = self.ask();
        let life = Life::For(self.request.life(ttl) + SLACK);
        let (cache, names) = (&self.request.cache, [&self.request.place.name]);
        let outlived = async {
            let ids = stamps.iter().map(|it| TagId(it.tag));
            index::note(cache, ids, &names, life, question.deadline).await?;
            tags::outlive(&cache.client, &keys, life, question.deadline).await
        };
        // In a box, so that the future of other loads stays small.
        match Box::pin(outlived).await {
            Ok(()) => true,
            Err(error) => self.not_stored(&error),
        }
    }

    /// Looks at the entry before, if there is one. Returns what its tags hold that the call does
    /// not declare: the loader has not begun, so if it names them again, they were read before the
    /// load. Forgets the old value, unless its entry is still there and may still be served.
    ///
    /// The load has begun for other calls, so a call that joins from now on gets nothing that is
    /// not proved.
    async fn look_before(&mut self) -> Vec<(Tag, TagState)> {
        if self.old.is_none() && self.others.is_empty() {
            return Vec::new();
        }
        let question = self.ask();
        let deadline = question.deadline;
        // In a box, so that the future of other loads stays small.
        let looks = Box::pin(join(
            self.old_is_there(deadline),
            self.states_before(deadline),
        ));
        let (is_still_there, before) = looks.await;
        drop(question);
        if !is_still_there {
            self.old = None;
        }
        before
    }

    /// Whether the entry of the old value is still there, and may still be served.
    async fn old_is_there(&self, deadline: Deadline) -> bool {
        let Some(old) = &self.old else { return false };
        let (cache, value) = (&self.request.cache, &self.request.place.value);
        let how = (ReadFrom::Primary, Want::STALE);
        match fetch::read_old::<Mark>(cache, value, &[], how, deadline).await {
            Ok(Reading::Hit(mark)) => mark.head == old.head[..],
            Ok(Reading::Old(found, _)) => found.taken.head == old.head[..],
            Ok(Reading::Miss(_)) | Err(_) => false,
        }
    }

    /// Reads what the tags of the entry before hold that the call does not declare. A tag that has
    /// no generation is left out: if the loader names it, it is a new one.
    async fn states_before(&self, deadline: Deadline) -> Vec<(Tag, TagState)> {
        let client = &self.request.cache.client;
        let is_declared = |id: &TagId| self.request.tags.iter().any(|tag| tag.id == *id);
        let others = self.others.iter().filter(|id| !is_declared(id));
        let others: Vec<Tag> = others.map(|id| Tag::with_id(client, *id)).collect();
        match fetch::generations(client, &others, deadline).await {
            Ok(states) => {
                let states = others.into_iter().zip(states);
                states
                    .filter_map(|(tag, state)| Some((tag, state?)))
                    .collect()
            }
            // The load does not need them.
            Err(error) => {
                let key = self.request.place.name.shown();
                tracing::debug!(target: "hedgerow::cache", key = key.as_str(), %error, "tags of the entry before not read");
                Vec::new()
            }
        }
    }

    /// Adds the tags that the loader has `named`, and makes all tags outlive an entry that is fresh
    /// for `ttl`: also those that were declared, if the entry lives for longer than was `planned`.
    /// Returns whether the value may be stored with them: whether none of them can have been
    /// invalidated since the loader began, except where the stamp shows it. That is so of a tag
    ///
    /// - that was read before the loader began: its generation from then is stamped;
    /// - whose generation this client has met before that, and which has the same one now;
    /// - whose generation is older than the load, with room for clocks that differ.
    ///
    /// Of another tag it is not known. It may have had no key when it was invalidated, and then
    /// nothing shows that.
    async fn labelled(
        &mut self,
        named: &[String],
        states: &mut Vec<TagState>,
        (ttl, planned): (Ttl, Duration),
        known: &Known,
    ) -> Result<bool> {
        let cache = &self.request.cache;
        let mut late = cache.labels(named).map_err(|e| self.request.named(e))?;
        late.retain(|tag| !self.request.tags.iter().any(|known| known.id == tag.id));
        let is_long = self.request.life(ttl) > planned;
        if late.is_empty() && !is_long {
            return Ok(true);
        }
        if self.request.tags.len() + late.len() > MOST_STAMPS {
            return Err(self.request.named(too_many_tags()));
        }
        let question = self.ask();
        let deadline = question.deadline;
        if is_long {
            // Only their lives are extended. What the value is stamped with was read before the
            // load.
            let (tags, none) = (&self.request.tags, vec![None; self.request.tags.len()]);
            if let Err(error) = self.request.settled_for(ttl, tags, &none, deadline).await {
                return Ok(self.not_stored(&error));
            }
        }
        let before = late.iter().map(|tag| known.before(tag.id));
        let before: Snapshot = before.collect();
        match self
            .request
            .settled_for(ttl, &late, &before, deadline)
            .await
        {
            Ok(now) => {
                drop(question);
                let (began, ttls) = (self.lease.granted(), &self.request.state.tag_ttls);
                let mut certain = true;
                for ((tag, before), now) in late.iter().zip(before).zip(now) {
                    certain &= before.is_some()
                        || ttls.had(&tag.key, now.generation, known.begun)
                        || now.is_older_than(began);
                    states.push(before.unwrap_or(now));
                }
                self.request.tags.extend(late);
                Ok(certain)
            }
            Err(error) => Ok(self.not_stored(&error)),
        }
    }

    /// Reports that the value cannot be stored: its tags are out of reach. It was loaded, so that
    /// is no failure of the load. Returns `false`.
    fn not_stored(&self, error: &Error) -> bool {
        let key = self.request.place.name.shown();
        tracing::warn!(target: "hedgerow::cache", key = key.as_str(), %error, "not stored");
        false
    }

    /// Runs the loader. Meanwhile, shows the server that the leader is alive.
    async fn loaded(&self, loader: RunLoader<V>, until: Instant) -> Result<(Arc<V>, Said)> {
        let finished = async {
            let _permit = self.late_permit(until).await?;
            self.finished(loader, until).await
        };
        tokio::select! {
            // A load that has ended needs no renewal.
            biased;
            outcome = finished => outcome,
            never = self.renewals() => match never {},
        }
    }

    /// Shows the server, for as long as this is polled, that the leader is alive. A lease that is
    /// lost is not renewed. The load then goes on for the calls that wait for it, but no further
    /// call may join: its commit will be refused, so nothing can be proved for late calls.
    async fn renewals(&self) -> std::convert::Infallible {
        self.lease.renewed_until_lost().await;
        tracing::debug!(target: "hedgerow::cache", key = self.request.place.name.shown().as_str(), "lease lost");
        self.leader.close();
        std::future::pending().await
    }

    /// Stores what is planned. Returns whether the value is proved fresh for all calls that joined,
    /// however late.
    async fn commit(
        &self,
        closed: Closed<'_>,
        plan: &Plan,
        states: &[TagState],
        deadline: Deadline,
    ) -> bool {
        let place = &self.request.place;
        let window = self.request.window();
        let counts = &self.request.cache.setup.counts;
        let committed = async {
            let _timer = match plan {
                Plan::Store { .. } | Plan::Extend { .. } => Some(counts.time(Timed::Store)),
                Plan::Drop(_) => None,
            };
            match plan {
                Plan::Store { entry, ttl } => {
                    let lives = (*ttl, &*window);
                    self.lease.commit(entry, lives, deadline).await.map(Some)
                }
                Plan::Extend { ttl, head } => {
                    self.lease.extend(head, (*ttl, &window), deadline).await
                }
                Plan::Drop(why) => {
                    tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), ?why, "not to be stored");
                    Ok(None)
                }
            }
        };
        // Nothing was stored, and the lease is still held: that proves as much as a commit does, if
        // the tags were read before the load.
        let committed = async {
            match committed.await {
                Ok(None) => Ok(match self.lease.abandon(deadline).await {
                    true => Committed::Dropped,
                    false => Committed::Refused,
                }),
                Ok(Some(committed)) => Ok(committed),
                Err(error) => Err(error),
            }
        };
        let verified = self.verified(closed, states, deadline);
        // Both are sent after the flight was closed, so neither has to wait for the other.
        let (committed, verified) = futures::join!(committed, verified);
        match committed {
            Ok(Committed::Stored) => {
                counts.stores.one_more();
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), verified, "stored");
                verified
            }
            Ok(Committed::Dropped) => {
                counts.not_stored.one_more();
                verified && !matches!(plan, Plan::Drop(Why::Late))
            }
            Ok(Committed::Refused) => {
                counts.refused_commits.one_more();
                tracing::debug!(target: "hedgerow::cache", key = place.name.shown().as_str(), "commit refused");
                false
            }
            Err(error) => {
                tracing::warn!(target: "hedgerow::cache", key = place.name.shown().as_str(), %error, "not stored");
                counts.not_stored.one_more();
                // A server that answers learns that the lease is free before the caller goes on.
                // Other failures are left to the end of the task.
                if error.fate() == Fate::Refused {
                    self.lease.abandon(deadline).await;
                }
                false
            }
        }
    }

    /// Whether the generations of `states` are still the present ones. This is read only if a late
    /// call has joined, and after the flight was closed, so that it holds for all calls that
    /// joined.
    async fn verified(&self, closed: Closed<'_>, states: &[TagState], deadline: Deadline) -> bool {
        if !closed.has_late() {
            return true;
        }
        let client = &self.request.cache.client;
        let present = fetch::generations(client, &self.request.tags, deadline).await;
        present.is_ok_and(|present| {
            let mut all = present.iter().zip(states);
            all.all(|(present, stamped)| {
                present.is_some_and(|present| present.generation == stamped.generation)
            })
        })
    }

    /// Ends a load that has failed: reports it to the calls that wait, here and elsewhere. The
    /// lease is held.
    async fn fail(&self, error: &Error, states: &[TagState]) {
        let closed = self.leader.close();
        let record = match Failure::of(error) {
            Some(failure) => self.request.record(error, &failure, states),
            None => {
                // Such an error concerns the caller, not the key, so each follower must ask again.
                // The call that opened the flight waits for this. If the lease is not given up in
                // the time of that call, it is given up afterwards.
                let question = self.leader.flight().ask(self.request.cache.setup.patience);
                self.lease.abandon(question.deadline).await;
                return closed.settle(Outcome::Again);
            }
        };
        let question = self.stores(Outcome::Failed {
            error: error.clone(),
            proved: false,
        });
        let deadline = question.deadline;
        let ended = async {
            let Some((record, ttl)) = record else {
                return self.lease.abandon(deadline).await;
            };
            match self.lease.fail(&record, ttl, deadline).await {
                Ok(ours) => ours,
                // A full server takes no record.
                Err(error) if error.fate() == Fate::Refused => self.lease.abandon(deadline).await,
                Err(_) => false,
            }
        };
        let (ours, verified) = futures::join!(ended, self.verified(closed, states, deadline));
        closed.settle(Outcome::Failed {
            error: error.clone(),
            proved: ours && verified,
        });
    }
}

fn too_many_tags() -> Error {
    Error::invalid(format!(
        "the loader has named more tags than a value can have; use at most {} in all",
        MOST_STAMPS - 1
    ))
}
