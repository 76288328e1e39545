//! What the handles of one cache share: its settings, and the state of all caches of a client.
//!
//! Invariant: a setting is checked when it is made. A setting that is refused is the error of the
//! first call. `Cache` builds the settings; all parts of the cache read them.

use std::sync::Arc;
use std::time::Duration;

use super::foreign::Foreign;
use super::outage::{Bulkhead, Outage};
use super::stats::{AllCounts, Counts};
use crate::cache::load::flights::Flights;
use crate::cache::load::limit::LoadLimit;
use crate::cache::load::refreshing::Refreshing;
use crate::cache::load::solo::Solos;
use crate::cache::load::under_way::LoadsUnderWay;
use crate::cache::load::waits::Waits;
use crate::cache::load::wake::WakeListeners;
#[cfg(feature = "near")]
use crate::cache::near::held::Near;
use crate::cache::read::reading::ReadFrom;
use crate::cache::read::shared::SharedReads;
use crate::cache::retry_queue::RetryQueue;
use crate::client::Client;
use crate::codec::Stack;
use crate::error::{Error, Result};
use crate::key::CacheKeys;
use crate::tags::{RecentTags, Tag, TagTtls};
use crate::time::{Patience, Ttl};

/// What the handles of one cache share.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) name: Box<str>,
    pub(super) names: Result<Names>,
    pub(super) version: u32,
    pub(super) stack: Stack,
    /// As given. Each of the two setters checks both values again.
    pub(super) max_load: Duration,
    pub(super) takeover: Duration,
    /// Both of them, checked when they were set.
    pub(super) terms: Result<LeaseTimes>,
    /// How long the failure of a load is kept. `None` if it is not kept at all.
    pub(super) error_ttl: Result<Option<Ttl>>,
    pub(super) jitter: Jitter,
    /// How many of its loaders may run at once. `None` for any number.
    pub(super) max_loads: Option<LoadLimit>,
    /// The error of a setting that was refused. Setters return no error, so the first call returns
    /// it.
    pub(super) refused: Option<Error>,
    pub(super) read_from: ReadFrom,
    pub(super) index: TagIndex,
    #[cfg(feature = "near")]
    pub(super) near: Option<Arc<Near>>,
    pub(super) outage: Outage,
    /// The deadline and the behaviour in an outage of each call.
    pub(super) patience: Patience,
    /// Kept here, so that a call needs no lookup in the client.
    pub(super) state: Arc<CacheState>,
    pub(super) counts: Arc<Counts>,
}

/// What is spelt once per cache, and not by each call.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) keys: CacheKeys,
    /// The tag that every entry of the cache carries. `clear` invalidates it.
    pub(super) whole: Tag,
}

/// What all caches of one client share.
#[derive(Debug)]
pub(super) struct CacheState {
    pub(super) flights: Arc<Flights>,
    pub(super) loads: Arc<LoadsUnderWay>,
    pub(super) solos: Arc<Solos>,
    pub(super) refreshing: Arc<Refreshing>,
    pub(super) waits: Arc<Waits>,
    pub(super) reads: SharedReads,
    pub(super) listeners: Arc<WakeListeners>,
    pub(super) tags: RecentTags,
    pub(super) tag_ttls: TagTtls,
    pub(super) bulkhead: Bulkhead,
    pub(super) foreign: Foreign,
    pub(super) counts: AllCounts,
    pub(super) undelivered: Arc<RetryQueue>,
}

impl CacheState {
    pub(super) fn of(client: &Client) -> Self {
        Self {
            flights: Arc::default(),
            loads: Arc::default(),
            solos: Arc::default(),
            refreshing: Arc::default(),
            waits: Arc::default(),
            reads: SharedReads::default(),
            listeners: Arc::default(),
            tags: RecentTags::default(),
            tag_ttls: TagTtls::default(),
            bulkhead: Bulkhead::new(client.loads_without_redis()),
            foreign: Foreign::default(),
            counts: AllCounts::default(),
            undelivered: Arc::new(RetryQueue::by(
                client.spawner(),
                client.namespace().as_str(),
            )),
        }
    }
}

impl Config {
    /// Gives the handle an empty near cache, if it has one: what others have decoded by other
    /// settings is not for it.
    #[cfg(feature = "near")]
    pub(super) fn forget_near(&mut self, client: &Client) {
        if let Some(near) = &mut self.near {
            *near = Arc::new(near.anew(client));
        }
    }
}

/// Whether a handle keeps an index of its tags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum TagIndex {
    #[default]
    Off,
    On,
}

/// How long a lease lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseTimes {
    /// After this time the loader is dropped.
    pub(super) max_load: Ttl,
    /// After so much silence, another process may supersede the leader.
    pub(super) takeover: Ttl,
}

impl LeaseTimes {
    /// Checks what a cache was given.
    pub(super) fn new(max_load: Duration, takeover: Duration) -> Result<Self> {
        if max_load > LONGEST_LOAD {
            return Err(Error::invalid(
                "max_load is longer than a day; load ahead of time and use `set` instead",
            ));
        }
        let max_load = Ttl::new("max_load", max_load)?;
        let takeover = Ttl::new("takeover", takeover)?.min(max_load);
        Ok(Self { max_load, takeover })
    }
}

/// By which part of itself a TTL differs each time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jitter(f64);

impl Jitter {
    pub(super) fn new(part: f64) -> Result<Self> {
        match (0.0..=MOST_JITTER).contains(&part) {
            true => Ok(Self(part)),
            false => Err(Error::invalid(format!(
                "the jitter is {part}; give one from 0 to {MOST_JITTER}"
            ))),
        }
    }

    /// `ttl`, give or take this.
    pub(super) fn spread(self, ttl: Ttl) -> Ttl {
        match self.0 > 0.0 {
            true => ttl.spread(rand::random_range(1.0 - self.0..=1.0 + self.0)),
            false => ttl,
        }
    }

    /// The longest TTL that [`spread`](Self::spread) makes of `ttl`.
    pub(super) fn longest(self, ttl: Ttl) -> Ttl {
        match self.0 > 0.0 {
            true => ttl.spread(1.0 + self.0),
            false => ttl,
        }
    }
}

impl Default for Jitter {
    fn default() -> Self {
        Self(0.1)
    }
}

/// How long a loader may run by default.
pub(super) const MAX_LOAD: Duration = Duration::from_secs(30);

/// How long a leader may be silent by default.
pub(super) const TAKEOVER: Duration = Duration::from_secs(10);

/// How long a failed load is remembered by default.
pub(super) const ERROR_TTL: Duration = Duration::from_secs(1);

/// The longest `max_load`. A value that takes longer is better loaded ahead of time and stored with
/// `set`.
pub(super) const LONGEST_LOAD: Duration = Duration::from_secs(24 * 60 * 60);

/// More would be no jitter, but another TTL.
const MOST_JITTER: f64 = 0.5;
