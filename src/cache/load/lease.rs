//! The load lease: the exclusive right, in the whole fleet, to load one key.
//!
//! Invariant: a value is committed only under the lease that was granted before its load began.
//! `set` and `remove` end the lease in the same script in which they touch the value. So a load
//! that began before them is never stored after them. The load of a flight calls this.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::random;
use tokio::time::Instant;

use super::upload;
use super::upload::Upload;
use crate::cache::config::{LONGEST_LOAD, LeaseTimes};
use crate::cache::entry_keys::EntryKeys;
use crate::client::Client;
use crate::codec::Shape;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::script::{Reply, script};
use crate::sync::lock::Fence;
use crate::time::{Backoff, Deadline, Patience, Ttl};

script!(LEASE = "lease.lua" after "../entry.lua");
script!(RENEW = "renew.lua" after "../entry.lua");
script!(COMMIT = "commit.lua" after "../entry.lua");
script!(ABANDON = "abandon.lua" after "../entry.lua");
script!(FAIL = "fail.lua" after "../entry.lua");
script!(EXTEND = "extend.lua" after "../entry.lua");

/// One flight's claim to a load. Whether the lease is granted or not, the token identifies the
/// claim.
#[derive(Debug)]
pub(in crate::cache) struct LoadLease {
    client: Client,
    place: EntryKeys,
    /// Decides by what the value at this place is recognised.
    shape: Shape,
    /// A second request with the same token is answered as the first, so a lost reply costs
    /// nothing.
    token: [u8; 16],
    /// The fence of the grant. A late copy of the request may take the lease again with the same
    /// token and a later fence; such a lease does not belong to this claim.
    fence: AtomicI64,
    /// When the lease was granted, in ms of the server's time. Zero before that.
    granted: AtomicU64,
    /// Whether the server may hold the lease for this claim.
    open: AtomicBool,
    terms: LeaseTimes,
}

/// What the server answered to a claim.
#[derive(Debug)]
pub(in crate::cache) enum Grant {
    /// The caller leads.
    Lead {
        fence: i64,
        /// The leader before was silent for the takeover.
        takes_over: bool,
    },
    /// There is an entry that the caller has not judged yet.
    Changed,
    /// A load has failed and left this record.
    Failed { fence: i64, record: Bytes },
    /// Another caller leads, and may be superseded after `takeover`. `noted` says whether a wake-up
    /// will be sent.
    Busy {
        takeover: Duration,
        noted: bool,
        fence: i64,
    },
}

/// What became of a loaded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Committed {
    /// It is in the cache.
    Stored,
    /// It was not to be stored. The lease was held until its end.
    Dropped,
    /// The lease was gone: the key was removed or set, or the load was superseded or out of time.
    Refused,
}

impl LoadLease {
    pub(in crate::cache) fn new(
        client: Client,
        (place, shape): (EntryKeys, Shape),
        terms: LeaseTimes,
    ) -> Self {
        Self {
            client,
            place,
            shape,
            token: random(),
            fence: AtomicI64::new(0),
            granted: AtomicU64::new(0),
            open: AtomicBool::new(false),
            terms,
        }
    }

    /// Asks for the lease. `seen` is what the entry that was judged invalid is recognised by.
    /// `dead` is the fence of the failed load whose record was judged invalid. `channel` is where
    /// this process receives wake-ups. The lease lasts long enough for a load that is stored within
    /// `storing` after its end.
    pub(in crate::cache) async fn acquire(
        &self,
        seen: &[u8],
        dead: Option<i64>,
        channel: Option<&Key>,
        deadline: Deadline,
        storing: Patience,
    ) -> Result<Grant> {
        // The load begins once this is answered, and the generations of the tags are read: first of
        // those that are declared, then of those that the entry had. Each may take the deadline.
        // Then its value is stored.
        let beside = deadline.remaining() * 3 + storing.limit();
        let life = beside.min(LONGEST_LOAD) + self.terms.max_load.duration() + GRACE;
        let call = LEASE
            .call(self.place.keys())
            .arg(&self.token)
            .arg(life.as_millis() as u64)
            .arg(self.terms.takeover.millis())
            .arg(seen)
            .arg(channel.map_or("", Key::as_str))
            .arg(dead.map_or_else(String::new, |fence| fence.to_string()))
            .arg(match self.shape {
                Shape::Enveloped => "",
                Shape::Bare => "bare",
            });
        self.open.store(true, Ordering::Relaxed);
        let reply = self.client.run(call, deadline).await;
        let is_open = match &reply {
            Ok(reply) => reply.status().is_ok_and(|status| status == "LEAD"),
            Err(error) => error.is_indeterminate(),
        };
        self.open.store(is_open, Ordering::Relaxed);
        let mut reply = reply?;
        match reply.status()? {
            "LEAD" => {
                let fence = reply.int(1)?;
                self.fence.store(fence, Ordering::Relaxed);
                self.granted.store(reply.count(2)?, Ordering::Relaxed);
                let takes_over = reply.int(3)? == 1;
                Ok(Grant::Lead { fence, takes_over })
            }
            "CHANGED" => Ok(Grant::Changed),
            "FAILED" => Ok(Grant::Failed {
                fence: reply.int(1)?,
                record: reply.take_bytes(2)?.unwrap_or_default(),
            }),
            "BUSY" => Ok(Grant::Busy {
                takeover: Duration::from_millis(reply.count(1)?),
                noted: reply.int(2)? == 1,
                fence: reply.int(3)?,
            }),
            _ => Err(self.unexpected(&reply)),
        }
    }

    /// The number of the grant, once there is one.
    pub(in crate::cache) fn fence(&self) -> Option<Fence> {
        let fence = u64::try_from(self.fence.load(Ordering::Relaxed)).ok();
        fence.filter(|fence| *fence > 0).map(Fence::of_load)
    }

    /// When the lease was granted, in ms of the server's time.
    pub(in crate::cache) fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    /// Moves the takeover deadline again and again. Returns when the lease is lost. A renewal that
    /// is not answered is given up in time for the next one, however long calls may take.
    pub(in crate::cache) async fn renewed_until_lost(&self) {
        // A third, so that one renewal may fail and no other process takes over.
        let pause = self.terms.takeover.duration() / 3;
        let mut asked = Instant::now();
        loop {
            tokio::time::sleep_until(asked + pause).await;
            asked = Instant::now();
            let call = RENEW
                .call(self.place.keys())
                .arg(&self.token)
                .arg(self.terms.takeover.millis())
                .arg(self.fence.load(Ordering::Relaxed));
            // A renewal must not be refused because the queue is full: a second load would follow.
            let deadline = self.client.cache_deadline().reserved();
            let deadline = deadline.at_most(asked + pause);
            match self.client.run(call, deadline).await {
                Ok(reply) if reply.status().is_ok_and(|status| status == "OK") => {}
                // The lease is gone, and does not come back.
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(target: "hedgerow::cache", key = self.place.name.shown().as_str(), %error, "lease not renewed");
                }
            }
        }
    }

    /// Stores `entry` if the lease is still this claim's. `window` is that of the store request.
    pub(in crate::cache) async fn commit(
        &self,
        entry: &[u8],
        (ttl, window): (Ttl, &str),
        deadline: Deadline,
    ) -> Result<Committed> {
        let fence = self.fence.load(Ordering::Relaxed);
        let upload = Upload::of(&self.client, &self.place, entry, deadline).await?;
        let call = match &upload {
            Some(upload) => {
                let lease = Some((&self.token, fence));
                upload.adopt(&self.place, entry, (ttl, window), lease)
            }
            None => COMMIT
                .call(self.place.keys())
                .arg(&self.token)
                .arg(entry)
                .arg(ttl.millis())
                .arg(fence)
                .arg(window),
        };
        let reply = self.client.change(call, deadline).await?;
        let committed = match reply.status()? {
            "STORED" => Committed::Stored,
            "REFUSED" => Committed::Refused,
            "GONE" => return Err(upload::gone()),
            _ => return Err(self.unexpected(&reply)),
        };
        self.open.store(false, Ordering::Relaxed);
        Ok(committed)
    }

    /// Makes the entry that begins with `head` live on, if the lease is still this claim's. `None`
    /// if the entry is gone; the lease is still held then.
    pub(in crate::cache) async fn extend(
        &self,
        head: &[u8],
        (ttl, window): (Ttl, &str),
        deadline: Deadline,
    ) -> Result<Option<Committed>> {
        let call = EXTEND
            .call(self.place.keys())
            .arg(&self.token)
            .arg(self.fence.load(Ordering::Relaxed))
            .arg(head)
            .arg(ttl.millis())
            .arg(window);
        let reply = self.client.change(call, deadline).await?;
        let committed = match reply.status()? {
            "STORED" => Committed::Stored,
            "REFUSED" => Committed::Refused,
            "GONE" => return Ok(None),
            _ => return Err(self.unexpected(&reply)),
        };
        self.open.store(false, Ordering::Relaxed);
        Ok(Some(committed))
    }

    /// Ends the lease of a load that has failed, and leaves `record` in its place for `ttl`.
    /// Returns whether the lease was still this claim's. If not, the load was superseded or
    /// invalidated, and nothing of it is left.
    pub(in crate::cache) async fn fail(
        &self,
        record: &[u8],
        ttl: Ttl,
        deadline: Deadline,
    ) -> Result<bool> {
        let call = FAIL
            .call(self.place.keys())
            .arg(&self.token)
            .arg(self.fence.load(Ordering::Relaxed))
            .arg(record)
            .arg(ttl.millis());
        // Not a `change`: the value stays as it is, and the record is never read from a replica.
        let reply = self.client.run(call, deadline).await?;
        let ours = match reply.status()? {
            "OK" => true,
            "LOST" => false,
            _ => return Err(self.unexpected(&reply)),
        };
        self.open.store(false, Ordering::Relaxed);
        Ok(ours)
    }

    /// Gives the lease up, if it is this claim's, and returns whether it was. A lease that is not
    /// given up by `deadline` is left to [`end`](Self::end).
    pub(in crate::cache) async fn abandon(&self, deadline: Deadline) -> bool {
        let call = ABANDON
            .call(self.place.keys())
            .arg(&self.token)
            .arg(self.fence.load(Ordering::Relaxed));
        // May use the reserve of the queue: as long as the lease stays, other callers wait for a
        // load that is over.
        match self.client.run(call, deadline.reserved()).await {
            Ok(reply) => {
                self.open.store(false, Ordering::Relaxed);
                reply.status().is_ok_and(|status| status == "OK")
            }
            Err(error) => {
                tracing::debug!(target: "hedgerow::cache", key = self.place.name.shown().as_str(), %error, "lease not given up");
                false
            }
        }
    }

    /// Gives up what is left of the lease once nothing loads under it any more, so that no caller
    /// waits for a load that is over. While the server is out this is tried again, until the lease
    /// may be taken over anyway.
    pub(in crate::cache) async fn end(&self) {
        let until = Instant::now() + self.terms.takeover.duration();
        let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE, 0.5..1.0);
        while self.open.load(Ordering::Relaxed) {
            // No caller waits for this, so each try takes the client's own deadline.
            self.abandon(self.client.cache_deadline()).await;
            if Instant::now() >= until {
                break;
            }
            if self.open.load(Ordering::Relaxed) {
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        reply.unexpected().with_key(&self.place.name)
    }
}

/// Added to the life of a lease. A loader that is dropped at `max_load` still has the lease then,
/// and the failure can be recorded in its place.
const GRACE: Duration = Duration::from_secs(1);

/// The pauses between two tries to give a lease up.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
