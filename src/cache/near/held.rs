//! `Near`: the near cache of a handle and its clones: its table, and what may be served from it.
//!
//! Invariant: a value is served only if it was read from the primary of its key in a tracked epoch
//! that began before the read was sent and still goes on, no push about its key or any of its tags
//! has come since, and the server has shown within the bound that its pushes arrive. So a value is
//! never served after the push about its change has come, and never more than `max_staleness`
//! after the change. In an outage, where the user has given a grace, an epoch that was lost counts
//! until another begins, and the grace takes the place of `max_staleness`.
//!
//! `read` asks it before and after each read.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::options::NearCache;
use super::table::{Kept, KnownTag, Refresh, Stored, Table, Ticket};
use crate::cache::explanation::{NearInfo, NearWhy};
use crate::cache::read::early::{Draws, is_due};
use crate::client::Client;
use crate::key::Key;
use crate::meters::{Described, Level};
use crate::net::tracked::Changed;
use crate::net::tracking::Tracking;
use crate::tags::Generation;

/// The near cache of a handle.
#[derive(Debug)]
pub(in crate::cache) struct Near {
    table: Arc<Table<Origin>>,
    options: NearCache,
    /// What the tracked keys begin with.
    prefixes: [String; 2],
    /// The name of the cache, for the metrics.
    cache: Box<str>,
    bytes: Level,
    entries: Level,
}

/// Which server told of changes when something was read, and in which epoch.
#[derive(Clone)]
pub(super) struct Origin {
    tracking: Arc<Tracking>,
    epoch: u64,
}

/// What a near cache knows of a key.
pub(in crate::cache) enum NearHit<V> {
    Value(Arc<V>),
    /// There is no entry.
    Absent,
}

/// A value on its way into the table.
pub(super) struct Fill {
    pub(super) value: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) tags: Box<[Arc<KnownTag<Origin>>]>,
    /// The revision of the entry, if there is one.
    pub(super) revision: Option<u64>,
    /// How long its load took.
    pub(super) cost: Duration,
    /// How long it is fresh after `since`; `None` for ever.
    pub(super) life: Option<Duration>,
    pub(super) since: Instant,
    pub(super) bytes: usize,
}

impl Near {
    /// An empty one. `options` were checked.
    pub(super) fn new(client: &Client, cache: &str, options: NearCache) -> Self {
        let labels = [("namespace", client.namespace().as_str()), ("cache", cache)];
        Self {
            cache: cache.into(),
            bytes: Level::new(&labels, BYTES),
            entries: Level::new(&labels, ENTRIES),
            table: Table::new(options.max_bytes),
            options,
            prefixes: client.namespace().cached_prefixes(),
        }
    }

    /// An empty one with the same options.
    pub(in crate::cache) fn anew(&self, client: &Client) -> Self {
        Self::new(client, &self.cache, self.options.clone())
    }

    /// Returns what is known of the entry whose key has this text, as a `V`.
    pub(in crate::cache) fn hit<V: Send + Sync + 'static>(
        &self,
        client: &Client,
        key: &str,
    ) -> Option<NearHit<V>> {
        let stored = self.served(client, key, Instant::now())?;
        taken(&stored)
    }

    /// As [`hit`](Self::hit), for a call that loads values anew before their end, by these
    /// `draws`. Nothing is returned if that is due, unless the load `is_under_way`.
    pub(in crate::cache) fn hit_early<V: Send + Sync + 'static>(
        &self,
        client: &Client,
        key: &str,
        draws: Draws,
        is_under_way: impl FnOnce() -> bool,
    ) -> Option<NearHit<V>> {
        let now = Instant::now();
        let stored = self.served(client, key, now)?;
        let is_due = stored.refresh.is_some_and(|Refresh { cost, end }| {
            is_due(cost, draws.of(key), end.saturating_duration_since(now))
        });
        if is_due && !is_under_way() {
            return None;
        }
        taken(&stored)
    }

    /// Returns what is held of the key of this text, if it may be served.
    fn served(&self, client: &Client, key: &str, now: Instant) -> Option<Arc<Stored<Origin>>> {
        let stored = self.table.value(key)?;
        match self.why_not(client, &stored, now) {
            None => Some(stored),
            Some(why) => {
                // It may be of use yet, until another epoch begins.
                if why != NearWhy::Unverified || !self.was_valid(client, &stored, now) {
                    self.table.forget(key);
                }
                None
            }
        }
    }

    /// Returns what was known of `key` when its server was lost, as a `V`, if there is a grace and
    /// it is not over. The caller has asked the server in vain.
    pub(in crate::cache) fn in_grace<V: Send + Sync + 'static>(
        &self,
        client: &Client,
        key: &Key,
    ) -> Option<NearHit<V>> {
        let stored = self.table.value(key.as_str())?;
        let was_valid = self.was_valid(client, &stored, Instant::now());
        was_valid.then(|| taken(&stored))?
    }

    /// Forgets what is held of `key`, because its server has answered a read of it that is not to
    /// be kept. What it said is newer: without this, a grace could bring the older value back.
    pub(in crate::cache) fn forget(&self, key: &Key) {
        self.table.forget(key.as_str());
    }

    /// As [`forget`](Self::forget), unless it is what the server has answered: the entry of this
    /// revision, or none. So reads of one entry leave it alone, however many there are.
    pub(in crate::cache) fn forget_older(&self, key: &Key, revision: Option<u64>) {
        let held = self.table.value(key.as_str());
        if held.is_some_and(|held| held.revision != revision) {
            self.forget(key);
        }
    }

    /// Describes what is held of `key`.
    pub(in crate::cache) fn info(&self, client: &Client, key: &Key) -> NearInfo {
        let Some(stored) = self.table.value(key.as_str()) else {
            return match self.table.is_pending(key) {
                true => NearInfo::Pending,
                false => NearInfo::Absent,
            };
        };
        let now = Instant::now();
        let since = now.saturating_duration_since(stored.since);
        match self.why_not(client, &stored, now) {
            None => NearInfo::Held {
                since,
                left: stored.until.saturating_duration_since(now),
            },
            Some(why) => NearInfo::Unserved { since, why },
        }
    }

    /// Returns a ticket for what is about to be read at `key`. `None` if its server does not track
    /// it yet.
    pub(super) fn ticket(&self, client: &Client, key: &Key) -> Option<Ticket<Origin>> {
        let origin = client.tracking(key, |tracking| {
            let changed = Arc::downgrade(&self.table);
            let epoch = tracking.epoch(&changed, &self.prefixes, self.options.max_staleness)?;
            Some(Origin {
                tracking: tracking.clone(),
                epoch,
            })
        });
        Some(self.table.ticket(key, origin.flatten()?))
    }

    /// Returns the generation of the tag at `key`, if it is known and may be relied on.
    pub(super) fn tag(&self, client: &Client, key: &Key) -> Option<Arc<KnownTag<Origin>>> {
        let tag = self.table.tag(key)?;
        let is_live = self.is_live(client, key, &tag.origin, Instant::now());
        is_live.then_some(tag)
    }

    /// Keeps the generation of a tag that was read after `ticket` was taken. `None` if it may have
    /// changed since.
    pub(super) fn keep_tag(
        &self,
        client: &Client,
        ticket: &Ticket<Origin>,
        generation: Generation,
    ) -> Option<Arc<KnownTag<Origin>>> {
        let is_live = self.is_live(client, &ticket.key, &ticket.origin, Instant::now());
        is_live.then(|| self.table.keep_tag(ticket, generation))?
    }

    /// Keeps what was read after `ticket` was taken, unless it may have changed since.
    pub(super) fn keep(&self, client: &Client, ticket: &Ticket<Origin>, fill: Fill) -> Kept {
        // Also checks that the same server serves the key, so that the read came from there.
        if !self.is_live(client, &ticket.key, &ticket.origin, Instant::now()) {
            // No push has taken away what is held.
            self.forget_older(&ticket.key, fill.revision);
            return Kept::Refused;
        }
        let life = fill.life.unwrap_or(self.options.max_ttl);
        let end = fill.life.and_then(|life| fill.since.checked_add(life));
        let cost = fill.cost;
        let stored = Stored {
            key: ticket.key.clone(),
            value: fill.value,
            tags: fill.tags,
            origin: ticket.origin.clone(),
            revision: fill.revision,
            since: fill.since,
            until: fill.since + life.min(self.options.max_ttl),
            refresh: end.map(|end| Refresh { cost, end }),
            bytes: fill.bytes,
        };
        let kept = self.table.keep(ticket, stored);
        if cfg!(feature = "metrics") {
            let (bytes, entries) = self.table.size();
            self.bytes.set(bytes);
            self.entries.set(entries);
        }
        kept
    }

    /// Whether a value of so many bytes is held.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        bytes <= self.options.max_value
    }

    /// Returns why what is held of `key` is not served, if it is not.
    fn why_not(&self, client: &Client, stored: &Stored<Origin>, now: Instant) -> Option<NearWhy> {
        if now >= stored.until {
            return Some(NearWhy::Expired);
        }
        let is_live = |key: &Key, origin: &Origin| self.is_live(client, key, origin, now);
        // The tags are looked at after the server of the key: a push that has come by then counts.
        match is_live(&stored.key, &stored.origin) {
            true if !stored.is_current() => Some(NearWhy::Tag),
            true if stored.tags.iter().all(|it| is_live(&it.key, &it.origin)) => None,
            _ => Some(NearWhy::Unverified),
        }
    }

    /// Whether what is held of `key` was valid when its servers were last looked at, and may be
    /// served for that reason.
    fn was_valid(&self, client: &Client, stored: &Stored<Origin>, now: Instant) -> bool {
        let grace = self.options.outage_grace;
        if grace.is_zero() || now >= stored.until {
            return false;
        }
        let was_live = |key: &Key, origin: &Origin| {
            let was_live = client.tracking(key, |tracking| {
                Arc::ptr_eq(tracking, &origin.tracking)
                    && tracking.was_live(origin.epoch, now, grace)
            });
            was_live.unwrap_or(false)
        };
        was_live(&stored.key, &stored.origin)
            && stored.tags.iter().all(|it| was_live(&it.key, &it.origin))
            && stored.is_current()
    }

    fn is_live(&self, client: &Client, key: &Key, origin: &Origin, now: Instant) -> bool {
        // By the server that serves the key now: a slot that has moved has left its values behind.
        let is_live = client.tracking(key, |tracking| {
            Arc::ptr_eq(tracking, &origin.tracking)
                && tracking.is_live(origin.epoch, now, self.options.max_staleness)
        });
        is_live.unwrap_or(false)
    }
}

impl Changed for Table<Origin> {
    fn changed(&self, key: &str) {
        Table::changed(self, key);
    }
}

/// What was stored, as a `V`. A call for another type reads the entry, which may suit it.
fn taken<V: Send + Sync + 'static>(stored: &Stored<Origin>) -> Option<NearHit<V>> {
    match &stored.value {
        None => Some(NearHit::Absent),
        Some(value) => value.clone().downcast().ok().map(NearHit::Value),
    }
}

const BYTES: Described = Described {
    name: "hedgerow_near_bytes",
    what: "The bytes of the values in near caches, when the last of them was kept.",
};

const ENTRIES: Described = Described {
    name: "hedgerow_near_entries",
    what: "The values in near caches, when the last of them was kept.",
};

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.epoch == other.epoch && Arc::ptr_eq(&self.tracking, &other.tracking)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
