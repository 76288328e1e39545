//! `Ticket`: the handle of a call on its position in the local queue.
//!
//! Invariant: a ticket that is dropped leaves the queue, and gives up what was granted to it
//! meanwhile. `Acquirer::acquire` waits on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::held::Held;
use super::kind::Kind;
use super::queue_task::QueueTask;
use super::registry::{LocalQueue, LocalWaiter, Registry};
use super::request::AcquireRequest;
use crate::error::{Error, ErrorKind, Fate, Result};

/// A position in the local queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(in crate::sync) struct Ticket {
    answer: oneshot::Receiver<Result<Held>>,
    locks: Arc<Registry>,
    asks: AcquireRequest,
    nudge: Arc<Notify>,
}

impl Ticket {
    /// Puts the caller at the end of the local queue.
    pub(in crate::sync) fn join(
        locks: &Arc<Registry>,
        request: AcquireRequest,
        until: Instant,
    ) -> Self {
        Self::stand(locks, request, until, VecDeque::push_back, None)
    }

    /// Puts the caller behind those that called before `called`. Its own question was asked beside
    /// others, and calls that came later may have joined the local queue before its answer.
    pub(in crate::sync) fn join_called(
        locks: &Arc<Registry>,
        request: AcquireRequest,
        until: Instant,
        called: Instant,
    ) -> Self {
        let place = |queue: &mut VecDeque<LocalWaiter>, mut waiting: LocalWaiter| {
            waiting.called = called;
            let before = queue.iter().rposition(|it| it.called <= called);
            queue.insert(before.map_or(0, |before| before + 1), waiting);
        };
        let ticket = Self::stand(locks, request, until, place, None);
        // The queue task may be asking for a call that is behind this one now.
        ticket.nudge.notify_one();
        ticket
    }

    /// Puts a caller whose own question failed with `trouble` at the end of the local queue.
    pub(in crate::sync) fn join_after(
        locks: &Arc<Registry>,
        trouble: Error,
        request: AcquireRequest,
        until: Instant,
    ) -> Self {
        Self::stand(locks, request, until, VecDeque::push_back, Some(trouble))
    }

    /// Puts a caller that called at `called` at the head of the local queue: it asked the server
    /// while the others came.
    pub(in crate::sync) fn lead(
        locks: &Arc<Registry>,
        request: AcquireRequest,
        until: Instant,
        called: Instant,
    ) -> Self {
        let place = |queue: &mut VecDeque<LocalWaiter>, mut waiting: LocalWaiter| {
            waiting.called = called;
            queue.push_front(waiting);
        };
        Self::stand(locks, request, until, place, None)
    }

    fn stand(
        locks: &Arc<Registry>,
        request: AcquireRequest,
        until: Instant,
        place: impl FnOnce(&mut VecDeque<LocalWaiter>, LocalWaiter),
        trouble: Option<Error>,
    ) -> Self {
        let (reply, answer) = oneshot::channel();
        let asks = request.clone();
        let waiting = LocalWaiter {
            request,
            called: Instant::now(),
            until,
            reply,
        };
        let (nudge, idle) = locks.push(waiting, place, trouble);
        // The caller or the task that asks for this waiter may stand still, or end, with another
        // runtime. A keeper task on this runtime then takes over.
        locks.keeper().man(&asks.client);
        if idle {
            QueueTask::ensure(locks, &asks.keys, asks.client.clone(), None);
        }
        Self {
            answer,
            locks: locks.clone(),
            asks,
            nudge,
        }
    }

    /// Waits for the grant. `None` if it was taken back, because this was not polled when it came.
    pub(in crate::sync) async fn granted(&mut self) -> Result<Option<Held>> {
        match (&mut self.answer).await {
            Ok(Ok(held)) => Ok(held.take().then_some(held)),
            Ok(Err(error)) => Err(error),
            // The waiter was taken out of the queue, because this was not polled when its wait was
            // over.
            Err(_) => Err(self.expired()),
        }
    }

    /// Starts another queue task if the current one stands still, and a keeper task if this runtime
    /// has none. Returns when to look again.
    pub(in crate::sync) fn see_to_it(&self) -> Duration {
        self.locks.keeper().man(&self.asks.client);
        QueueTask::see_to(&self.locks, &self.asks.keys, &self.asks.client)
    }

    /// Returns why the wait ended without a grant.
    pub(in crate::sync) fn expired(&self) -> Error {
        let queues = self.locks.queues();
        let queue = queues.get(self.asks.keys.holders());
        if let Some(trouble) = queue.and_then(LocalQueue::trouble) {
            return trouble;
        }
        // If the server does not answer now, the cause is not that others were holders a while ago.
        let queue = queue.filter(|queue| !queue.is_silent());
        if let Some(holder) = queue.and_then(|queue| queue.holder.as_ref()) {
            return contended(self.asks.keys.kind, holder);
        }
        drop(queues);
        unanswered(&self.asks)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Closed before the queue task looks: it removes waiters by that.
        self.answer.close();
        self.nudge.notify_one();
        self.locks.left(&self.asks.keys);
    }
}

fn contended(kind: &Kind, why: &str) -> Error {
    let words = &kind.words;
    Error::new(
        ErrorKind::Contended,
        format!("{} {} not free in time; {why}", words.noun, words.was),
    )
}

/// Returns the error for a wait in which the server did not answer.
fn unanswered(request: &AcquireRequest) -> Error {
    let silence = || {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "the server has not answered who holds {}",
                request.keys.kind.words.noun
            ),
        )
    };
    let trouble = request.client.trouble(request.keys.holders());
    let trouble = trouble.unwrap_or_else(silence);
    trouble.with_fate(Fate::NotExecuted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::pulse::{Pulse, TICK};
    use crate::sync::core::keeper_task::registry;
    use crate::sync::core::keys::Keys;
    use crate::sync::core::owner::Owner;
    use crate::sync::fence::Fence;
    use crate::sync::lock::LOCK;
    use crate::time::Ttl;

    fn request(client: &Client, millis: u64) -> AcquireRequest {
        let keys = Keys::of(client, &LOCK, &client.name("a"));
        AcquireRequest {
            client: client.clone(),
            keys: keys.expect("a good name").into(),
            lease: Ttl::new("the lease", Duration::from_millis(millis)).expect("in range"),
            max_hold: None,
            detail: "".into(),
        }
    }

    /// The next question is in flight, and not for long.
    #[tokio::test]
    async fn a_waiter_that_gives_up_is_told_what_the_last_question_has_met() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = registry(&client);
        let request = request(&client, 30_000);
        let keys = request.keys.clone();
        let ticket = Ticket::join(
            &locks,
            request.clone(),
            Instant::now() + Duration::from_secs(60),
        );
        locks.heard(&keys, Ok("fence 1".to_owned()));
        assert_eq!(ticket.expired().kind(), ErrorKind::Contended);
        locks.heard(
            &request.keys,
            Err(Error::new(ErrorKind::Busy, "told by the test")),
        );
        locks.asked(&keys, 0);
        let told = ticket.expired();
        assert_eq!(told.kind(), ErrorKind::Busy);
        assert_eq!(told.fate(), Fate::NotExecuted);
    }

    /// The answer may lie in a reply channel that nobody polls.
    #[tokio::test]
    async fn a_question_of_a_task_that_stands_still_is_no_silence_of_the_server() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = registry(&client);
        let request = request(&client, 30_000);
        let keys = request.keys.clone();
        let first = locks.first(&keys, Instant::now()).expect("nobody waits");
        let until = Instant::now() + Duration::from_secs(60);
        let other = request.clone();
        let ticket = Ticket::join(&locks, request, until);
        locks.heard(&keys, Ok("fence 1".to_owned()));
        locks.attempted(&keys, first);
        let (number, _) = locks.begin_queue_task(&keys).expect("a call waits");
        let pulse = Arc::new(Pulse::default());
        locks.queue_task_runs(&keys, number, &pulse);
        locks.asked(&keys, number);
        let silent = || locks.queues()[keys.holders()].is_unanswered();
        while !silent() {
            tokio::time::sleep(TICK).await;
        }
        assert_eq!(ticket.expired().kind(), ErrorKind::Timeout);
        while !pulse.is_late() {
            ticket.see_to_it();
            tokio::time::sleep(TICK).await;
        }
        assert_eq!(ticket.expired().kind(), ErrorKind::Contended);
        assert!(locks.torn_down(&keys, number));
        assert!(!silent(), "nobody asks any more");
        let is_waited_for = locks.waited_for(&other).expect("no trouble");
        assert!(
            !is_waited_for,
            "a caller that does not wait asks for itself"
        );
        let late = Error::new(ErrorKind::Busy, "told by the test");
        locks.heard_by_task(&keys, number, Err(late));
        assert!(!silent(), "a task that was replaced is not heard");
    }

    /// The first waiter has left between the answer to its question and the delivery.
    #[tokio::test]
    async fn a_grant_is_not_delivered_to_a_waiter_on_other_terms() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = registry(&client);
        let (asked, other) = (request(&client, 30_000), request(&client, 100));
        let until = Instant::now() + Duration::from_secs(60);
        let first = Ticket::join(&locks, asked.clone(), until);
        let mut second = Ticket::join(&locks, other.clone(), until);
        drop(first);
        let (sent, owner) = (Instant::now(), Owner::random());
        assert!(!locks.deliver(&asked, owner, Fence(1), (sent, asked.lease)));
        assert!(locks.deliver(&other, owner, Fence(1), (sent, other.lease)));
        let guard = second.granted().await.expect("granted");
        assert_eq!(guard.expect("in time").hold().fence, Fence(1));
    }

    /// The queue task of others may have had an answer since the caller's question failed.
    #[tokio::test]
    async fn what_the_server_has_said_since_is_not_overwritten_by_an_old_failure() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = registry(&client);
        let name = client.name("a");
        let request = AcquireRequest {
            client: client.clone(),
            keys: Keys::of(&client, &LOCK, &name).expect("a good name").into(),
            lease: Ttl::new("the lease", Duration::from_secs(30)).expect("in range"),
            max_hold: None,
            detail: "".into(),
        };
        let until = Instant::now() + Duration::from_secs(60);
        let failed = || Error::new(ErrorKind::Disconnected, "the server was out");
        let first = Ticket::join_after(&locks, failed(), request.clone(), until);
        let told = locks
            .waited_for(&request)
            .expect_err("nobody was heard since");
        assert_eq!(told.kind(), ErrorKind::Disconnected);
        locks.heard(&request.keys, Ok("fence 1".into()));
        let second = Ticket::join_after(&locks, failed(), request.clone(), until);
        assert!(locks.waited_for(&request).expect("the server has answered"));
        drop((first, second));
    }
}
