//! `Attempt`: a caller's own question to the server, before it stands in line.
//!
//! Invariant: an attempt that ends in any other way than by its reply leaves its owner to the
//! keeper, so that a lock granted to nobody is released.

use std::sync::Arc;

use tokio::time::Instant;

use super::campaign::Standing;
use super::guard::Guard;
use super::hold::Owner;
use super::keeper::{Keeper, Shift};
use super::line::{Entry, Locks, Queueing, Ticket};
use super::place::{self, Place};
use super::{Fence, Keys};
use crate::client::Client;
use crate::error::{Error, Fate};

/// The right to ask the server for one name; one at a time in a process.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) owner: Owner,
    /// Registered before the question is sent, since a grant by push may come before its answer.
    place: Option<Place>,
    client: Client,
    keys: Arc<Keys>,
    /// When a lease that was granted to this attempt has surely run out.
    until: Instant,
    open: bool,
    /// Whether others of this process leave the question to this attempt.
    in_line: bool,
    locks: Arc<Locks>,
    _shift: Shift,
}

impl Attempt {
    /// An attempt beside another one of this process, for a caller that does not wait.
    pub(super) fn aside(locks: &Arc<Locks>, entry: &Entry) -> Self {
        let mut attempt = Self::new(locks, entry);
        attempt.in_line = false;
        attempt
    }

    pub(super) fn new(locks: &Arc<Locks>, entry: &Entry) -> Self {
        let owner = Owner::random();
        let hears = place::hears(&entry.client, &entry.keys);
        Self {
            place: hears.then(|| locks.expect(owner)),
            owner,
            client: entry.client.clone(),
            keys: entry.keys.clone(),
            until: entry.client.deadline().at + entry.lease.duration(),
            open: true,
            in_line: true,
            locks: locks.clone(),
            _shift: Keeper::shift(locks, &entry.client),
        }
    }

    /// The lock was granted by a command sent at `sent`.
    pub(super) fn won(mut self, entry: Entry, fence: Fence, sent: Instant) -> Guard {
        let lease = entry.lease;
        let guard = self.locks.guard(entry, self.owner, fence, (sent, lease), 0);
        self.close();
        guard
    }

    /// A place in the queue is kept only where a grant by push would be heard: else the campaign
    /// takes one of its own.
    pub(super) fn queueing(&self) -> Queueing {
        match self.place {
            Some(_) => Queueing::Listening,
            None => Queueing::No,
        }
    }

    /// The lock is held. The caller stands in line, and at `standing` in the queue of the server.
    pub(super) fn queued(mut self, entry: Entry, standing: Option<Standing>) -> Ticket {
        self.open = false;
        let ticket = self.locks.lead(entry);
        self.locks.attempted(&self.keys.name);
        let place = self.place.take();
        if place.is_some() && standing.is_none() {
            self.abandon();
        }
        self.locks
            .campaign(&self.keys, self.client.clone(), place.zip(standing));
        ticket
    }

    /// The lock is held, and the caller does not wait.
    pub(super) fn lost(mut self) {
        self.close();
    }

    /// The server did not answer, or refused.
    pub(super) fn failed(mut self, error: &Error) {
        if error.fate() != Fate::NotExecuted {
            self.abandon();
        }
        self.close();
    }

    /// Lets others ask, and sees to those who have come meanwhile.
    fn close(&mut self) {
        self.open = false;
        if self.in_line && self.locks.attempted(&self.keys.name) {
            self.locks.campaign(&self.keys, self.client.clone(), None);
        }
    }

    fn abandon(&self) {
        self.locks
            .keeper()
            .discard_owner(&self.client, &self.keys, self.owner, self.until, true);
    }
}

impl Drop for Attempt {
    /// Dropped in mid-flight: the command may be under way.
    fn drop(&mut self) {
        if self.open {
            self.abandon();
            if self.in_line && self.locks.attempted(&self.keys.name) {
                self.locks.keeper().orphaned(self.keys.clone());
            }
        }
    }
}
