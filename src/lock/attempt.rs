//! `Attempt`: a caller's own question to the server, before it stands in line.
//!
//! Invariant: an attempt that ends in any other way than by its reply leaves its owner to the
//! keeper, so that a lock granted to nobody is released. One whose caller does not poll it is taken
//! over by the keeper (see [`watch`](super::watch)); its reply then counts no more.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::agenda::Answered;
use super::campaign::Standing;
use super::guard::Guard;
use super::hold::Owner;
use super::keeper::Keeper;
use super::line::{Entry, Locks, Queueing, Ticket};
use super::place::{self, Hearing, Place};
use super::{Fence, Keys};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::pulse::Pulse;
use crate::script::{Call, Reply};
use crate::time::{Deadline, Ttl};

/// The right to ask the server for one name; one at a time in a process.
#[derive(Debug)]
pub(super) struct Attempt {
    question: Arc<Question>,
    /// Registered before the question is sent, since a grant by push may come before its answer.
    place: Option<Place>,
    client: Client,
    open: bool,
    locks: Arc<Locks>,
}

/// What a caller asks, as the keeper knows it.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) owner: Owner,
    pub(super) keys: Arc<Keys>,
    pub(super) pulse: Pulse,
    /// When the question is sent at the latest, and the lease that it asks for.
    pub(super) asked: (Instant, Ttl),
    /// Whether others of this process leave the question to this one.
    pub(super) in_line: bool,
}

impl Attempt {
    /// An attempt beside another one of this process, for a caller that does not wait.
    pub(super) fn aside(
        locks: &Arc<Locks>,
        entry: &Entry,
        deadline: Deadline,
        now: Instant,
    ) -> Self {
        Self::new(locks, entry, Owner::random(), deadline, false, now)
    }

    /// The attempt that others of this process wait for.
    pub(super) fn in_line(
        locks: &Arc<Locks>,
        entry: &Entry,
        owner: Owner,
        deadline: Deadline,
        now: Instant,
    ) -> Self {
        Self::new(locks, entry, owner, deadline, true, now)
    }

    fn new(
        locks: &Arc<Locks>,
        entry: &Entry,
        owner: Owner,
        deadline: Deadline,
        in_line: bool,
        now: Instant,
    ) -> Self {
        let hears = place::hears(&entry.client, &entry.keys) == Hearing::Pushes;
        let question = Arc::new(Question {
            owner,
            keys: entry.keys.clone(),
            pulse: Pulse::default(),
            asked: (deadline.at, entry.lease),
            in_line,
        });
        let attempt = Self {
            question,
            place: hears.then(|| locks.expect(owner)),
            client: entry.client.clone(),
            open: true,
            locks: locks.clone(),
        };
        // Outside of a runtime this panics, and the attempt is dropped.
        Keeper::watch(locks, &entry.client, attempt.question.clone(), now);
        attempt
    }

    /// Asks for the lock.
    ///
    /// Cancel safety: dropping the future is dropping the attempt's chance of an answer; drop the
    /// attempt, too.
    pub(super) async fn ask(&self, call: Call, deadline: Deadline) -> Result<Reply> {
        // Pinned here, for it is large: each layer that takes it by value would copy it.
        let answer = pin!(self.client.run(call, deadline));
        self.question.pulse.of(answer).await
    }

    pub(super) fn owner(&self) -> Owner {
        self.question.owner
    }

    /// The lock was granted by a command sent at `sent`. `None` if the keeper has taken the attempt
    /// over meanwhile, and gives the lock back.
    pub(super) fn won(mut self, entry: &Entry, fence: Fence, sent: Instant) -> Option<Guard> {
        let (owner, granted) = (self.question.owner, (sent, entry.lease));
        let hold = entry.hold(owner, fence, granted, 0);
        // If nothing was heard when the question was asked, it is not looked up again: should the
        // process have subscribed since, the keeper finds that out.
        let hearing = match self.place {
            Some(_) => place::hears(&self.client, &self.question.keys),
            None => Hearing::Nothing,
        };
        let keeper = self.locks.keeper();
        let kept = keeper.keep_asked(&self.client, &hold, granted, hearing);
        let guard = kept.then(|| Guard::new(hold, self.locks.clone(), self.client.clone()));
        self.open = false;
        if guard.is_some() {
            self.leave_line();
        }
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
    pub(super) fn queued(
        mut self,
        entry: Entry,
        standing: Option<Standing>,
        until: Instant,
        holder: String,
    ) -> Ticket {
        let name = self.question.keys.name.clone();
        if !self.close() {
            return self.locks.join(entry, until);
        }
        let ticket = self.locks.lead(entry, until);
        self.locks.heard(&name, Ok(holder));
        self.locks.attempted(&name, self.question.owner);
        let place = self.place.take();
        if place.is_some() && standing.is_none() {
            self.abandon(Answered::Yes);
        }
        self.locks.campaign(
            &self.question.keys,
            self.client.clone(),
            place.zip(standing),
        );
        ticket
    }

    /// The lock is held, and the caller does not wait.
    pub(super) fn lost(mut self) {
        if self.close() {
            self.leave_line();
        }
    }

    /// The server did not answer, or refused.
    pub(super) fn failed(mut self, error: &Error) {
        if !self.close() {
            return;
        }
        match error.fate() {
            Fate::NotExecuted => {}
            // Said by the server itself; what else it may have said was perhaps a grant.
            Fate::Refused if error.kind() != ErrorKind::Server => {}
            _ => self.abandon(Answered::No),
        }
        if self.question.in_line {
            let name = &self.question.keys.name;
            self.locks.heard(name, Err(error.clone()));
        }
        self.leave_line();
    }

    /// The caller has its answer. Says whether the attempt was still its own.
    fn close(&mut self) -> bool {
        self.open = false;
        self.locks.keeper().answered(self.question.owner)
    }

    /// Lets others ask, and sees to those who have come meanwhile.
    fn leave_line(&self) {
        self.locks.leave_line(&self.client, &self.question);
    }

    fn abandon(&self, answered: Answered) {
        self.question.abandon(&self.locks, &self.client, answered);
    }
}

impl Question {
    /// Leaves whatever the owner has, or may come to have, to the keeper.
    fn abandon(&self, locks: &Locks, client: &Client, answered: Answered) {
        let keeper = locks.keeper();
        keeper.discard_owner(client, &self.keys, self.owner, self.asked, answered);
    }
}

impl Locks {
    /// Takes a question over whose caller does not poll it.
    pub(super) fn take_over(self: &Arc<Self>, client: &Client, question: &Question) {
        tracing::debug!(target: "hedgerow::lock", lock = question.keys.name.shown().as_str(), "acquire is not polled; its question is given up");
        question.abandon(self, client, Answered::No);
        self.leave_line(client, question);
    }

    /// Nobody waits for this question any more: those who have come meanwhile queue for themselves.
    fn leave_line(self: &Arc<Self>, client: &Client, question: &Question) {
        if question.in_line && self.attempted(&question.keys.name, question.owner) {
            self.campaign(&question.keys, client.clone(), None);
        }
    }
}

impl Drop for Attempt {
    /// Dropped in mid-flight: the command may be under way.
    fn drop(&mut self) {
        if self.open && self.close() {
            self.abandon(Answered::No);
            let question = &self.question;
            if question.in_line && self.locks.attempted(&question.keys.name, question.owner) {
                self.locks.keeper().orphaned(question.keys.clone());
            }
        }
    }
}
