//! `FirstTry`: a caller's own question to the server, before it joins the local queue.
//!
//! Invariant: a first try that ends without using its reply leaves its owner to the keeper, so that
//! a grant without a caller is released. If the caller does not poll it, the keeper takes it over
//! (see [`watch`](super::watch)). Then its reply no longer counts, and a question that was not sent
//! by then is not sent. The keeper may have released that owner long before.
//!
//! `Acquirer` makes first tries.

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

/// The right to ask the server for one name. One caller of a process has it at a time, beside
/// callers on which no other depends.
#[derive(Debug)]
pub(in crate::sync) struct FirstTry {
    question: Arc<Question>,
    /// Registered before the question is sent, since a grant by push may come before its answer.
    /// `None` if this process receives no pushes of the bucket.
    inbox: Option<GrantInbox>,
    client: Client,
    began: Instant,
    /// Whether the outcome of the question is still to come.
    open: bool,
    locks: Arc<Registry>,
}

impl FirstTry {
    /// Lets the caller ask the server `now`. `None` if others of this process come first.
    pub(in crate::sync) fn begin(
        locks: &Arc<Registry>,
        request: &AcquireRequest,
        deadline: Deadline,
        now: Instant,
    ) -> Option<Self> {
        let owner = locks.first(&request.keys, now)?;
        Some(Self::new(
            locks,
            request,
            owner,
            deadline,
            Stands::InLine,
            now,
        ))
    }

    /// Makes a first try beside others of this process, on which none of them depends.
    pub(in crate::sync) fn aside(
        locks: &Arc<Registry>,
        request: &AcquireRequest,
        deadline: Deadline,
        now: Instant,
    ) -> Self {
        Self::new(
            locks,
            request,
            Owner::random(),
            deadline,
            Stands::Aside,
            now,
        )
    }

    fn new(
        locks: &Arc<Registry>,
        request: &AcquireRequest,
        owner: Owner,
        deadline: Deadline,
        stands: Stands,
        now: Instant,
    ) -> Self {
        let hears = request.keys.hearing(&request.client) == Hearing::Pushes;
        let question = Arc::new(Question {
            owner,
            keys: request.keys.clone(),
            pulse: Pulse::default(),
            asked: (deadline.at, request.lease),
            stands,
            taken_over: AtomicBool::new(false),
        });
        let attempt = Self {
            question,
            inbox: hears.then(|| locks.inboxes().expect(owner)),
            client: request.client.clone(),
            began: now,
            open: true,
            locks: locks.clone(),
        };
        // Outside of a runtime this panics. The first try exists by then, so its drop cleans up.
        locks
            .keeper()
            .watch(&request.client, attempt.question.clone(), now);
        attempt
    }

    /// Asks the server. `None` if the keeper has taken the first try over before the answer came.
    ///
    /// Cancel safety: a dropped future never gets its answer. Drop the first try, too.
    pub(in crate::sync) async fn ask(
        &self,
        call: Call,
        deadline: Deadline,
    ) -> Option<Result<Reply>> {
        // Pinned here, because it is large: each layer that takes it by value would copy it.
        let mut answer = pin!(self.client.run(call, deadline));
        // Checked at each poll, ahead of the call: a call that is taken over must not send its
        // question.
        let own = poll_fn(|context| match self.question.is_taken_over() {
            true => Poll::Ready(None),
            false => answer.as_mut().poll(context).map(Some),
        });
        self.question.pulse.of(own).await
    }

    pub(in crate::sync) fn owner(&self) -> Owner {
        self.question.owner
    }

    /// Ends a first try that was granted by a command sent at `sent`. `None` if the keeper has
    /// taken the first try over meanwhile. The keeper then gives the grant back.
    pub(in crate::sync) fn won(
        mut self,
        request: &AcquireRequest,
        fence: Fence,
        sent: Instant,
    ) -> Option<Held> {
        let (owner, granted) = (self.question.owner, (sent, request.lease));
        let hold = request.hold(owner, fence, granted, 0);
        // If no pushes were received when the question was asked, this is not looked up again.
        // Should the process have subscribed since, the keeper finds out.
        let hearing = match self.inbox {
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

    /// Returns how the question queues. It takes a position only if others of this process depend
    /// on it and a grant by push would be received. Otherwise the queue task takes a position of
    /// its own: a process has one for each name.
    pub(in crate::sync) fn queueing(&self) -> Queueing {
        match (self.question.stands, &self.inbox) {
            (Stands::InLine, Some(_)) => Queueing::Listening,
            _ => Queueing::No,
        }
    }

    /// Ends a first try that was answered "busy". The caller joins the local queue. `last_busy` is
    /// its position in the server's queue.
    pub(in crate::sync) fn queued(
        mut self,
        request: AcquireRequest,
        last_busy: Option<LastBusy>,
        until: Instant,
        holder: String,
    ) -> Ticket {
        let keys = self.question.keys.clone();
        if !self.close() {
            self.abandon(Answered::Yes);
            return Ticket::join(&self.locks, request, until);
        }
        let aside = self.question.stands == Stands::Aside;
        let ticket = match aside {
            true => Ticket::join_called(&self.locks, request, until, self.began),
            false => Ticket::lead(&self.locks, request, until, self.began),
        };
        self.locks.heard(&keys, Ok(holder));
        // It has taken no position, and nobody waits for its answer.
        if aside {
            return ticket;
        }
        // The ticket joins the queue before the first try ends, or the local queue would be removed
        // in between.
        self.locks.attempted(&keys, self.question.owner);
        let inbox = self.inbox.take();
        // The server took a position for the owner, and its answer does not say enough to use it.
        if inbox.is_some() && last_busy.is_none() {
            self.abandon(Answered::Yes);
        }
        let client = self.client.clone();
        QueueTask::ensure(&self.locks, &keys, client, inbox.zip(last_busy));
        ticket
    }

    /// Ends a first try that was answered "busy", for a caller that does not wait.
    pub(in crate::sync) fn lost(mut self) {
        match self.close() {
            true => self.leave_line(),
            false => self.abandon(Answered::Yes),
        }
    }

    /// Ends a first try that the server did not answer, or refused.
    pub(in crate::sync) fn failed(mut self, error: &Error) {
        let own = self.close();
        match had_no_effect(error) {
            // The release that the keeper noted at the take-over waits for a grant that cannot come
            // any more. This one does not wait.
            true if !own => self.abandon(Answered::Yes),
            true => {}
            false => self.abandon(Answered::No),
        }
        if !own {
            return;
        }
        if self.question.stands == Stands::InLine {
            let keys = &self.question.keys;
            self.locks.heard(keys, Err(error.clone()));
        }
        self.leave_line();
    }

    /// Closes the first try, because the caller has its answer or has left. Returns whether it was
    /// still the caller's own.
    fn close(&mut self) -> bool {
        self.open = false;
        self.locks.keeper().answered(self.question.owner)
    }

    /// Lets others ask, and starts a queue task for calls that have come meanwhile.
    fn leave_line(&self) {
        leave_line(&self.locks, &self.client, &self.question);
    }

    /// Leaves whatever the owner has, or may come to have, to the keeper. This is also needed where
    /// the keeper has taken the first try over: its release may have reached the server before the
    /// question did.
    fn abandon(&self, answered: Answered) {
        abandon(&self.locks, &self.client, &self.question, answered);
    }
}

impl Drop for FirstTry {
    /// Runs when the caller drops the first try before its outcome. The command may be in flight.
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let own = self.close();
        self.abandon(Answered::No);
        if own {
            let question = &self.question;
            if question.stands == Stands::InLine
                && self.locks.attempted(&question.keys, question.owner)
            {
                // A drop must not spawn: there may be no runtime.
                self.locks.keeper().unattended(question.keys.clone());
            }
        }
    }
}

/// Takes over a question whose caller does not poll it. The keeper calls this.
pub(in crate::sync) fn take_over(locks: &Arc<Registry>, client: &Client, question: &Question) {
    tracing::debug!(target: "hedgerow::sync", kind = question.keys.kind.name, name = question.keys.name.shown().as_str(), "acquire is not polled; its question is given up");
    abandon(locks, client, question, Answered::No);
    leave_line(locks, client, question);
}

/// Ends the wait of others for this question. If calls have come meanwhile, a queue task queues for
/// them.
fn leave_line(locks: &Arc<Registry>, client: &Client, question: &Question) {
    if question.stands == Stands::InLine && locks.attempted(&question.keys, question.owner) {
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
