//! `Table`: what a near cache holds, by key. It does no I/O.
//!
//! Invariant: a value or a generation is kept only if no push about its key has come since its
//! [`Ticket`] was taken, and a push removes whatever is there. Tickets are taken before the read is
//! sent. So what is kept was read after the last push about its key was handled, or is as new as
//! the write that this push tells of. A value is [current](Stored::is_current) only while each of
//! its tags is.
//!
//! Replies and pushes come over different connections, in any order. That is enough all the same:
//! a write that the server executes after the read is pushed after the read, hence after the
//! ticket was taken. Its push finds the ticket open, and voids it, or finds what was kept, and
//! removes it. A write before the read is in what was read; its push costs at most a miss.
//!
//! Each key is `absent`, `pending` (there are tickets of one number) or held. Reads of one key at
//! the same time share a number: each of them was sent after the first ticket was taken, and no
//! push has come since.
//!
//! [`Near`](super::Near) takes tickets and keeps values, and pushes of servers call
//! [`Table::changed`].

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache as Values;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::hash::{Seeded, SeededMap};
use crate::key::Key;
use crate::tags::Generation;

/// The slots of a near cache. `O` says by which server a slot is tracked, and in which epoch.
pub(super) struct Table<O> {
    /// What is not a value, by the hash of the key. A push and a fill of one key hold its lock, so
    /// that one of them sees the other: a value is put into `values` under it. It may be taken out
    /// without, which costs a miss at the most.
    stripes: Box<[Mutex<Stripe<O>>]>,
    /// Values are evicted here, by size and use.
    values: Values<Arc<str>, Arc<Stored<O>>, Seeded>,
    /// The number of the next ticket.
    numbers: AtomicU64,
    /// How many tags one stripe remembers.
    most_tags: usize,
}

/// The slots of one stripe, by the text of the key.
type Stripe<O> = SeededMap<Arc<str>, Slots<O>>;

/// The slots of one text. Shards may each have a key of that text, so there may be several.
struct Slots<O> {
    pending: Vec<Pending<O>>,
    tags: Vec<Arc<KnownTag<O>>>,
}

/// A slot that waits for what is being read.
struct Pending<O> {
    key: Key,
    number: u64,
    origin: O,
    /// How many tickets of this number there are.
    tickets: usize,
}

/// The right to keep what a read has found. It is taken before the read is sent.
pub(super) struct Ticket<O> {
    table: Arc<Table<O>>,
    pub(super) key: Key,
    pub(super) origin: O,
    number: u64,
}

/// A value that may be served.
pub(super) struct Stored<O> {
    /// Where it was read. A hit has only the text of its key.
    pub(super) key: Key,
    /// `None` if it is known that there is none.
    pub(super) value: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) tags: Box<[Arc<KnownTag<O>>]>,
    pub(super) origin: O,
    /// The revision of its entry. `None` if there is none.
    pub(super) revision: Option<u64>,
    /// It was read before this.
    pub(super) since: Instant,
    /// The entry is fresh at least until then.
    pub(super) until: Instant,
    pub(super) refresh: Option<Refresh>,
    pub(super) bytes: usize,
}

/// By what the early refresh of a value is decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refresh {
    /// How long its load took.
    pub(super) cost: Duration,
    /// When the entry is no longer fresh. That may be after the value has left the near cache.
    pub(super) end: Instant,
}

/// The generation of a tag.
pub(super) struct KnownTag<O> {
    pub(super) key: Key,
    pub(super) generation: Generation,
    pub(super) origin: O,
    /// No push about it has come, and it was not forgotten.
    // Values point to their tags, so that a hit looks up one key. This tells them.
    current: AtomicBool,
}

impl<O: Clone + PartialEq + Send + Sync + 'static> Table<O> {
    /// A table of at most `bytes`, of which an eighth is for tags.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let weight = |key: &Arc<str>, stored: &Arc<Stored<O>>| {
            let tags = stored.tags.len() * size_of::<usize>();
            let weight = key.len() + stored.bytes + tags + SLOT;
            u32::try_from(weight).unwrap_or(u32::MAX)
        };
        let values = Values::builder()
            .max_capacity(bytes - bytes / 8)
            .weigher(weight);
        let most_tags = bytes / 8 / (TAG * STRIPES) as u64;
        Arc::new(Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            values: values.build_with_hasher(Seeded::default()),
            numbers: AtomicU64::new(1),
            most_tags: usize::try_from(most_tags).unwrap_or(usize::MAX).max(1),
        })
    }

    /// Makes the slot of `key` pending, and returns a ticket for it.
    pub(super) fn ticket(self: &Arc<Self>, key: &Key, origin: O) -> Ticket<O> {
        let mut stripe = self.stripe(key.as_str());
        let slots = stripe.entry(key.text().clone()).or_default();
        // Another epoch: a push may have been missed since.
        slots
            .pending
            .retain(|it| it.key != *key || it.origin == origin);
        let number = match slots.pending.iter_mut().find(|it| it.key == *key) {
            Some(pending) => {
                pending.tickets += 1;
                pending.number
            }
            None => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                slots.pending.push(Pending {
                    key: key.clone(),
                    number,
                    origin: origin.clone(),
                    tickets: 1,
                });
                number
            }
        };
        Ticket {
            table: self.clone(),
            key: key.clone(),
            origin,
            number,
        }
    }

    /// Keeps a value that was read after `ticket` was taken. Returns whether it was kept.
    pub(super) fn keep(&self, ticket: &Ticket<O>, stored: Stored<O>) -> Kept {
        // Held until the value is there: a push that comes now must find the ticket or the value.
        let stripe = self.stripe(ticket.key.as_str());
        if !is_open(&stripe, ticket) {
            return Kept::Refused;
        }
        self.values
            .insert(ticket.key.text().clone(), Arc::new(stored));
        Kept::Stored
    }

    /// Keeps a generation that was read after `ticket` was taken. Returns the tag as it is known
    /// from now on, or `None` if a push has come.
    pub(super) fn keep_tag(
        &self,
        ticket: &Ticket<O>,
        generation: Generation,
    ) -> Option<Arc<KnownTag<O>>> {
        let mut stripe = self.stripe(ticket.key.as_str());
        if !is_open(&stripe, ticket) {
            return None;
        }
        let slots = stripe.entry(ticket.key.text().clone()).or_default();
        if let Some(at) = slots.tags.iter().position(|it| it.key == ticket.key) {
            let known = &slots.tags[at];
            // The same tag is kept: values point to it.
            if known.generation == generation && known.origin == ticket.origin {
                return Some(known.clone());
            }
            slots.tags.swap_remove(at).forget();
        }
        let tag = Arc::new(KnownTag {
            key: ticket.key.clone(),
            generation,
            origin: ticket.origin.clone(),
            current: AtomicBool::new(true),
        });
        slots.tags.push(tag.clone());
        if stripe.len() > self.most_tags {
            make_room(&mut stripe, ticket.key.as_str(), self.most_tags);
        }
        Some(tag)
    }

    /// The value of the key of this text, if one is held. The caller checks its origin.
    pub(super) fn value(&self, key: &str) -> Option<Arc<Stored<O>>> {
        self.values.get(key)
    }

    /// Whether a read of `key` is under way whose answer is to be kept.
    pub(super) fn is_pending(&self, key: &Key) -> bool {
        let stripe = self.stripe(key.as_str());
        let slots = stripe.get(key.as_str());
        slots.is_some_and(|slots| slots.pending.iter().any(|it| it.key == *key))
    }

    /// The generation of the tag at `key`, if it is known. The caller checks its origin.
    pub(super) fn tag(&self, key: &Key) -> Option<Arc<KnownTag<O>>> {
        let stripe = self.stripe(key.as_str());
        let tags = &stripe.get(key.as_str())?.tags;
        tags.iter().find(|it| it.key == *key).cloned()
    }

    /// How many bytes and how many values are held.
    pub(super) fn size(&self) -> (u64, u64) {
        // What was put in or removed just now is not counted before.
        self.values.run_pending_tasks();
        (self.values.weighted_size(), self.values.entry_count())
    }

    /// Forgets the value of the key of this text, because it cannot be served any more.
    pub(super) fn forget(&self, key: &str) {
        self.values.invalidate(key);
    }

    /// Forgets all about the key of this text. It was written, has expired or was evicted.
    pub(super) fn changed(&self, key: &str) {
        let mut stripe = self.stripe(key);
        if let Some(slots) = stripe.remove(key) {
            slots.tags.iter().for_each(|tag| tag.forget());
        }
        self.values.invalidate(key);
    }

    fn stripe(&self, key: &str) -> MutexGuard<'_, Stripe<O>> {
        let stripe = xxh3_64(key.as_bytes()) as usize % STRIPES;
        let stripe = self.stripes[stripe].lock();
        stripe.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a value was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Stored,
    /// A push about the key has come since the ticket was taken.
    Refused,
}

/// Whether no push has come since `ticket` was taken.
fn is_open<O>(stripe: &Stripe<O>, ticket: &Ticket<O>) -> bool {
    let slots = stripe.get(ticket.key.as_str());
    slots.is_some_and(|slots| slots.pending.iter().any(|it| it.number == ticket.number))
}

/// Forgets tags until seven eighths of `most` texts are left, those first that no value points to.
/// The tag `kept` stays.
fn make_room<O>(stripe: &mut Stripe<O>, kept: &str, most: usize) {
    for needless in [true, false] {
        // More than one at a time, since each call looks at all.
        let mut excess = stripe.len().saturating_sub(most - most / 8);
        stripe.retain(|text, slots| {
            let in_use = slots.tags.iter().any(|tag| Arc::strong_count(tag) > 1);
            let stays =
                excess == 0 || **text == *kept || !slots.pending.is_empty() || needless && in_use;
            if !stays {
                excess -= 1;
                slots.tags.iter().for_each(|tag| tag.forget());
            }
            stays
        });
    }
}

impl<O> Ticket<O> {
    fn leave(&self, stripe: &mut Stripe<O>) {
        let Some(slots) = stripe.get_mut(self.key.as_str()) else {
            return;
        };
        let own = |it: &Pending<O>| it.number == self.number;
        if let Some(at) = slots.pending.iter().position(own) {
            slots.pending[at].tickets -= 1;
            if slots.pending[at].tickets == 0 {
                slots.pending.swap_remove(at);
            }
        }
        if slots.pending.is_empty() && slots.tags.is_empty() {
            stripe.remove(self.key.as_str());
        }
    }
}

impl<O> Drop for Ticket<O> {
    /// A read that is over, or was dropped, leaves nothing behind.
    fn drop(&mut self) {
        let stripe = xxh3_64(self.key.as_str().as_bytes()) as usize % STRIPES;
        let stripe = self.table.stripes[stripe].lock();
        self.leave(&mut stripe.unwrap_or_else(PoisonError::into_inner));
    }
}

impl<O> Stored<O> {
    /// Whether no push about any of its tags has come.
    pub(super) fn is_current(&self) -> bool {
        self.tags.iter().all(|tag| tag.is_current())
    }
}

impl<O> KnownTag<O> {
    /// Whether no push about it has come.
    pub(super) fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    fn forget(&self) {
        self.current.store(false, Ordering::Release);
    }
}

impl<O> Default for Slots<O> {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            tags: Vec::new(),
        }
    }
}

impl<O> fmt::Debug for Table<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("values", &self.values.entry_count())
            .finish_non_exhaustive()
    }
}

/// The number of locks over which the keys are spread.
const STRIPES: usize = 64;

/// About how many bytes a slot takes beside its key and its value, and a tag in all.
const SLOT: usize = 200;
const TAG: usize = 320;

#[cfg(test)]
mod tests;
