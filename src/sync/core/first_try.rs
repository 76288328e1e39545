//! `FirstTry`: a caller's own question to the server, before it stands in line.
//!
//! Invariant: an attempt that ends in any other way than by its reply leaves its owner to the
//! keeper, so that a lock granted to nobody is released. One whose caller does not poll it is taken
//! over by the keeper (see [`watch`](super::watch)). Its reply then counts no more, and a question
//! that was not sent by then is not sent: the keeper has asked for its owner, perhaps long before.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;

use futures::future::poll_fn;
use tokio::time::Instant;

use super::agenda::Answered;
use super::answer::{LastBusy, had_no_effect};
use super::held::Held;
use super::inbox::GrantInbox;
use super::keys::Hearing;
use super::owner::Owner;
use super::question::{Question, Stands};
use super::queue_task::QueueTask;
use super::registry::Registry;
use super::request::{AcquireRequest, Queueing};
use super::ticket::Ticket;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::pulse::Pulse;
use crate::script::{Call, Reply};
use crate::sync::fence::Fence;
use crate::time::Deadline;

/// The right to ask the server for one name; one at a time in a process.
#[derive(Debug)]
pub(in crate::sync) struct FirstTry {
    question: Arc<Question>,
    /// Registered before the question is sent, since a grant by push may come before its answer.
    place: Option<GrantInbox>,
    client: Client,
    open: bool,
    locks: Arc<Registry>,
}

impl FirstTry {
    /// Lets the caller ask the server `now`, or says that others of this process come first.
    pub(in crate::sync) fn begin(
        locks: &Arc<Registry>,
        entry: &AcquireRequest,
        deadline: Deadline,
        now: Instant,
    ) -> Option<Self> {
        let owner = locks.first(&entry.keys.name, now)?;
        Some(Self::new(
            locks,
            entry,
            owner,
            deadline,
            Stands::InLine,
            now,
        ))
    }

    /// An attempt beside another one of this process, for a caller that does not wait.
    pub(in crate::sync) fn aside(
        locks: &Arc<Registry>,
        entry: &AcquireRequest,
        deadline: Deadline,
        now: Instant,
    ) -> Self {
        Self::new(locks, entry, Owner::random(), deadline, Stands::Aside, now)
    }

    fn new(
        locks: &Arc<Registry>,
        entry: &AcquireRequest,
        owner: Owner,
        deadline: Deadline,
        stands: Stands,
        now: Instant,
    ) -> Self {
        let hears = entry.keys.hearing(&entry.client) == Hearing::Pushes;
        let question = Arc::new(Question {
            owner,
            keys: entry.keys.clone(),
            pulse: Pulse::default(),
            asked: (deadline.at, entry.lease),
            stands,
            taken_over: AtomicBool::new(false),
        });
        let attempt = Self {
            question,
            place: hears.then(|| locks.places().expect(owner)),
            client: entry.client.clone(),
            open: true,
            locks: locks.clone(),
        };
        // Outside of a runtime this panics, and the attempt is dropped.
        locks
            .keeper()
            .watch(&entry.client, attempt.question.clone(), now);
        attempt
    }

    /// Asks for the lock. `None` if the keeper has taken the attempt over before the answer came.
    ///
    /// Cancel safety: dropping the future is dropping the attempt's chance of an answer; drop the
    /// attempt, too.
    pub(in crate::sync) async fn ask(
        &self,
        call: Call,
        deadline: Deadline,
    ) -> Option<Result<Reply>> {
        // Pinned here, for it is large: each layer that takes it by value would copy it.
        let mut answer = pin!(self.client.run(call, deadline));
        let own = poll_fn(|context| match self.question.is_taken_over() {
            true => Poll::Ready(None),
            false => answer.as_mut().poll(context).map(Some),
        });
        self.question.pulse.of(own).await
    }

    pub(in crate::sync) fn owner(&self) -> Owner {
        self.question.owner
    }

    /// The lock was granted by a command sent at `sent`. `None` if the keeper has taken the attempt
    /// over meanwhile, and gives the lock back.
    pub(in crate::sync) fn won(
        mut self,
        entry: &AcquireRequest,
        fence: Fence,
        sent: Instant,
    ) -> Option<Held> {
        let (owner, granted) = (self.question.owner, (sent, entry.lease));
        let hold = entry.hold(owner, fence, granted, 0);
        // If nothing was heard when the question was asked, it is not looked up again: should the
        // process have subscribed since, the keeper finds that out.
        let hearing = match self.place {
            Some(_) => self.question.keys.hearing(&self.client),
            None => Hearing::Nothing,
        };
        let keeper = self.locks.keeper();
        let kept = keeper.keep_asked(&self.client, &hold, granted, hearing);
        let held = kept.then(|| Held::new(hold, keeper.clone(), self.client.clone()));
        self.open = false;
        match held {
            Some(_) => self.leave_line(),
            None => self.abandon(Answered::Yes),
        }
        held
    }

    /// A place in the queue is kept only where a grant by push would be heard: else the campaign
    /// takes one of its own.
    pub(in crate::sync) fn queueing(&self) -> Queueing {
        match self.place {
            Some(_) => Queueing::Listening,
            None => Queueing::No,
        }
    }

    /// The lock is held. The caller stands in line, and at `standing` in the queue of the server.
    pub(in crate::sync) fn queued(
        mut self,
        entry: AcquireRequest,
        standing: Option<LastBusy>,
        until: Instant,
        holder: String,
    ) -> Ticket {
        let name = self.question.keys.name.clone();
        if !self.close() {
            self.abandon(Answered::Yes);
            return Ticket::join(&self.locks, entry, until);
        }
        let ticket = Ticket::lead(&self.locks, entry, until);
        self.locks.heard(&name, Ok(holder));
        self.locks.attempted(&name, self.question.owner);
        let place = self.place.take();
        if place.is_some() && standing.is_none() {
            self.abandon(Answered::Yes);
        }
        let (keys, client) = (&self.question.keys, self.client.clone());
        QueueTask::ensure(&self.locks, keys, client, place.zip(standing));
        ticket
    }

    /// The lock is held, and the caller does not wait.
    pub(in crate::sync) fn lost(mut self) {
        match self.close() {
            true => self.leave_line(),
            false => self.abandon(Answered::Yes),
        }
    }

    /// The server did not answer, or refused.
    pub(in crate::sync) fn failed(mut self, error: &Error) {
        let own = self.close();
        match had_no_effect(error) {
            // What the keeper has noted when it took this over waits for a grant that cannot come.
            true if !own => self.abandon(Answered::Yes),
            true => {}
            false => self.abandon(Answered::No),
        }
        if !own {
            return;
        }
        if self.question.stands == Stands::InLine {
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
        leave_line(&self.locks, &self.client, &self.question);
    }

    /// Leaves whatever the owner has, or may come to have, to the keeper: also where that has taken
    /// the attempt over, for it may have asked before the question arrived.
    fn abandon(&self, answered: Answered) {
        abandon(&self.locks, &self.client, &self.question, answered);
    }
}

impl Drop for FirstTry {
    /// Dropped in mid-flight: the command may be under way.
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let own = self.close();
        self.abandon(Answered::No);
        if own {
            let question = &self.question;
            if question.stands == Stands::InLine
                && self.locks.attempted(&question.keys.name, question.owner)
            {
                self.locks.keeper().unattended(question.keys.clone());
            }
        }
    }
}

/// Takes a question over whose caller does not poll it.
pub(in crate::sync) fn take_over(locks: &Arc<Registry>, client: &Client, question: &Question) {
    tracing::debug!(target: "hedgerow::lock", lock = question.keys.name.shown().as_str(), "acquire is not polled; its question is given up");
    abandon(locks, client, question, Answered::No);
    leave_line(locks, client, question);
}

/// Nobody waits for this question any more: those who have come meanwhile queue for themselves.
fn leave_line(locks: &Arc<Registry>, client: &Client, question: &Question) {
    if question.stands == Stands::InLine && locks.attempted(&question.keys.name, question.owner) {
        QueueTask::ensure(locks, &question.keys, client.clone(), None);
    }
}

/// Leaves whatever the owner of `question` has, or may come to have, to the keeper.
fn abandon(locks: &Registry, client: &Client, question: &Question, answered: Answered) {
    let Question {
        owner, keys, asked, ..
    } = question;
    let keeper = locks.keeper();
    keeper.discard_owner(client, keys, *owner, *asked, answered);
}
