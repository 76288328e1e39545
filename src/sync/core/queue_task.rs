//! `QueueTask`: the task that queues on the server for all waiters of one name in this process.
//!
//! Invariant: a guard is delivered only while its lease is surely alive. A grant by push does not
//! say how old it is: the message may have lain in a socket while this process was stopped. But the
//! grant is younger than the last "busy" that was answered to its owner. So its claim counts from
//! before that question was sent. The message is believed only under two conditions. Its fence is
//! above the one in that answer, and it brings the secret to the seal of the client that was to
//! hand over. Otherwise the task asks the server again. The server answers an owner that already
//! holds as it did the first time. An answer without a seal, as a semaphore gives it, makes the
//! task ask again after each push.
//!
//! Pushes wake the task. A timer on the leases of the holders covers those that crash, and a
//! heartbeat covers everything else. Without pushes the task asks by timer alone, and keeps its
//! position in the queue all the same.
//!
//! Tickets, first tries, releases and the keeper start it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::agenda::Answered;
use super::answer::{AcquireReply, LastBusy, had_no_effect};
use super::hold::sure_until;
use super::inbox::GrantInbox;
use super::keeper::KeeperHandle;
use super::keys::Keys;
use super::owner::Owner;
use super::registry::{QueuedBy, Registry};
use super::request::{AcquireRequest, Queueing};
use crate::client::Client;
use crate::error::{Fate, Result};
use crate::net::pubsub::Resync;
use crate::pulse::TICK;
use crate::sync::fence::Fence;
use crate::time::{Ttl, jittered};

/// The state of one such task.
pub(in crate::sync) struct QueueTask {
    locks: Arc<Registry>,
    keys: Arc<Keys>,
    client: Client,
    number: u64,
    nudge: Arc<Notify>,
    inbox: GrantInbox,
    /// What was asked for under the owner of `inbox`. `None` if the server cannot know that owner.
    open: Option<Open>,
    /// Whether the task has ended as it should: no waiter is left, or another task has replaced it.
    /// If it is dropped before, the waiters still need a task.
    over: bool,
    /// A signal that a grant by push may have been missed. Taken before each question, so that the
    /// answer covers what was missed before.
    missed: Resync,
    /// The subscription, while it is being made. It outlives one question, since it may take
    /// longer.
    listening: Option<BoxFuture<'static, bool>>,
    _keeper: KeeperHandle,
}

/// What the keeper must know of the questions of one owner, to release what they may still be
/// granted.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// The longest lease that the owner asked for.
    lease: Ttl,
    /// Until when the last question may be sent.
    last: Instant,
    answered: Answered,
}

/// The outcome of a question.
enum Asked {
    Granted,
    Waiting(Option<LastBusy>, Option<Duration>),
    Failed,
}

impl QueueTask {
    /// Starts the queue task of a name, unless one runs or no call waits. `inbox` is a position in
    /// the server's queue that is taken already.
    pub(in crate::sync) fn ensure(
        locks: &Arc<Registry>,
        keys: &Arc<Keys>,
        client: Client,
        inbox: Option<(GrantInbox, LastBusy)>,
    ) {
        let Some((number, nudge)) = locks.begin_queue_task(keys) else {
            // No task uses this position, so it would receive a grant for no waiter.
            if let Some((inbox, last_busy)) = inbox {
                let (owner, asked) = (inbox.owner, (client.deadline().at, last_busy.asked.lease));
                let keeper = locks.keeper();
                keeper.discard_owner(&client, keys, owner, asked, Answered::Yes);
            }
            return;
        };
        let (inbox, last_busy) = inbox.unzip();
        let asked = last_busy.as_ref().map(|last_busy| last_busy.asked.lease);
        let spawner = client.spawner().clone();
        let queue_task = Self::new(
            locks.clone(),
            keys.clone(),
            client,
            number,
            nudge,
            inbox,
            asked,
        );
        let task = spawner.spawn(queue_task.run(last_busy));
        locks.queue_task_runs(keys, number, task.pulse());
    }

    /// Starts a queue task for `keys` if calls wait without one, or if theirs stands still with its
    /// runtime. Returns when to look again.
    pub(in crate::sync) fn see_to(
        locks: &Arc<Registry>,
        keys: &Arc<Keys>,
        client: &Client,
    ) -> Duration {
        match locks.queued_by(keys) {
            None | Some(QueuedBy::FirstTry | QueuedBy::Task(None)) => return LOOK,
            Some(QueuedBy::Task(Some(pulse))) => {
                if !pulse.stands_still_when_asked() {
                    // Soon, if it has not answered yet: several looks must agree that it stands.
                    return if pulse.is_knocked() { TICK } else { LOOK };
                }
                client.spawner().distrust(pulse.runtime());
            }
            Some(QueuedBy::Nobody) => {}
        }
        Self::ensure(locks, keys, client.clone(), None);
        LOOK
    }

    /// Starts the queue task of a name whose last one was torn down, if a call waits.
    pub(in crate::sync) fn adopt(locks: &Arc<Registry>, keys: &Arc<Keys>) {
        if let Some(client) = locks.client_of_front(keys) {
            Self::ensure(locks, keys, client, None);
        }
    }

    fn new(
        locks: Arc<Registry>,
        keys: Arc<Keys>,
        client: Client,
        number: u64,
        nudge: Arc<Notify>,
        inbox: Option<GrantInbox>,
        asked: Option<Ttl>,
    ) -> Self {
        Self {
            open: asked.map(|lease| Open {
                lease,
                last: client.deadline().at,
                answered: Answered::Yes,
            }),
            over: false,
            inbox: inbox.unwrap_or_else(|| locks.inboxes().expect(Owner::random())),
            missed: client.resync(&keys.channel),
            listening: None,
            _keeper: locks.keeper().handle(&client),
            locks,
            keys,
            client,
            number,
            nudge,
        }
    }

    /// Runs until no waiter of the name is left. Spawned by [`ensure`](Self::ensure). If it panics
    /// or its runtime ends, the keeper starts another task for the calls that still wait. If it
    /// stands still, the waiters start another.
    async fn run(mut self, last_busy: Option<LastBusy>) {
        let mut first = last_busy;
        while let Some(front) = self.locks.front(&self.keys, self.number) {
            // The position may have been taken by a caller that has left since.
            let taken = first.take().filter(|it| it.asked.same_terms(&front));
            let (asked, last_busy, remaining) = match taken {
                Some(last_busy) => {
                    let remaining = last_busy.remaining;
                    (last_busy.asked.clone(), Some(last_busy), remaining)
                }
                None => match self.ask(&front).await {
                    Asked::Waiting(last_busy, remaining) => (front, last_busy, remaining),
                    Asked::Granted | Asked::Failed => continue,
                },
            };
            self.wait(&asked, last_busy, remaining).await;
        }
        self.over = true;
    }

    /// Asks the server for a grant, or for a position in its queue.
    async fn ask(&mut self, front: &AcquireRequest) -> Asked {
        self.missed = self.client.resync(&self.keys.channel);
        let hears = self.hears(front).await;
        self.locks.asked(&self.keys, self.number);
        let deadline = self.client.deadline().keep_trying();
        // Noted before the question is sent: if this task is dropped meanwhile, the keeper knows
        // what may still be granted.
        let before = self.open;
        self.open = Some(Open {
            lease: before.map_or(front.lease, |open| open.lease.max(front.lease)),
            last: deadline.at,
            answered: match before {
                Some(_) => Answered::AllButLast,
                None => Answered::No,
            },
        });
        let queueing = match hears {
            true => Queueing::Listening,
            false => Queueing::Asking,
        };
        let call = front.acquire(self.inbox.owner, queueing);
        let reply = self.client.run(call, deadline).await;
        match reply.and_then(|reply| AcquireReply::read(&reply, self.keys.kind)) {
            Ok(AcquireReply::Granted(fence, sent)) => {
                self.answered();
                // If another waiter is first now and has other terms, the next round asks again on
                // those.
                self.deliver(front, fence, (sent, front.lease));
                Asked::Granted
            }
            Ok(AcquireReply::Busy {
                remaining,
                above,
                after,
                holder,
                sent,
            }) => {
                self.answered();
                self.heard(Ok(holder));
                // Without pushes no grant is told, so there is none to check.
                let last_busy = above.filter(|_| hears).map(|above| LastBusy {
                    sent,
                    above,
                    after,
                    remaining,
                    asked: front.clone(),
                });
                Asked::Waiting(last_busy, remaining)
            }
            Err(error) => {
                self.heard(Err(error.clone()));
                if had_no_effect(&error) {
                    self.open = before;
                } else {
                    // The question may still arrive. No waiter may then use its grant.
                    self.take_another_place();
                }
                if error.fate() == Fate::Refused {
                    self.locks.fail(&self.keys, self.number, &error);
                } else {
                    tokio::time::sleep(jittered(BREATH, SPREAD)).await;
                }
                Asked::Failed
            }
        }
    }

    /// Returns whether pushes are received. A subscription may take long when the server accepts no
    /// connections. Until it is made, the task asks by timer, and the subscription goes on between
    /// the questions.
    async fn hears(&mut self, front: &AcquireRequest) -> bool {
        let listening = self.listening.get_or_insert_with(|| {
            let (inboxes, keeper) = (self.locks.inboxes().clone(), self.locks.keeper().clone());
            let client = self.client.clone();
            let keys = front.keys.clone();
            Box::pin(async move { inboxes.listen(&keeper, &client, &keys).await })
        });
        match timeout(POLL, listening).await {
            Ok(hears) => {
                self.listening = None;
                hears
            }
            Err(_) => false,
        }
    }

    /// Waits for a grant by push, or for a reason to ask again.
    async fn wait(
        &mut self,
        asked: &AcquireRequest,
        last_busy: Option<LastBusy>,
        remaining: Option<Duration>,
    ) {
        let longest = if last_busy.is_some() {
            jittered(HEARTBEAT, SPREAD)
        } else {
            jittered(POLL, SPREAD)
        };
        let until =
            Instant::now() + remaining.map_or(longest, |lease| longest.min(lease + JUST_AFTER));
        loop {
            tokio::select! {
                grant = self.inbox.grant() => {
                    let Some(last_busy) = &last_busy else { return };
                    if grant.fence <= last_busy.above {
                        continue; // An old message: that grant has run out since.
                    }
                    if Some(grant.seal) != last_busy.after {
                        return; // Perhaps forged, or from another than was to be expected.
                    }
                    let claim = last_busy.asked.claim();
                    // The message may be so old that its claim has run out. Then only the server
                    // knows.
                    if Instant::now() < sure_until(last_busy.sent, claim) {
                        self.deliver(&last_busy.asked, grant.fence, (last_busy.sent, claim));
                    }
                    return;
                }
                // Messages may have been lost: only the server knows.
                () = self.missed.needed() => return,
                () = self.nudge.notified() => {
                    if !self.locks.still_first(&self.keys, asked) {
                        return;
                    }
                }
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn heard(&self, heard: Result<String>) {
        self.locks.heard_by_task(&self.keys, self.number, heard);
    }

    fn answered(&mut self) {
        if let Some(open) = &mut self.open {
            open.answered = Answered::Yes;
        }
    }

    /// Hands a grant on the terms of `asked` to the first waiter, unless that waiter has other
    /// terms.
    fn deliver(&mut self, asked: &AcquireRequest, fence: Fence, granted: (Instant, Ttl)) {
        let owner = self.inbox.owner;
        if self.locks.deliver(asked, owner, fence, granted) {
            // The owner is the guard's from now on, and is never used again.
            self.inbox = self.locks.inboxes().expect(Owner::random());
            self.open = None;
        }
    }

    /// Leaves the owner of a question that was not answered to the keeper, and takes another.
    fn take_another_place(&mut self) {
        self.give_up();
        self.inbox = self.locks.inboxes().expect(Owner::random());
    }

    /// Leaves what the owner has, or may come to have, to the keeper.
    fn give_up(&mut self) {
        if let Some(open) = self.open.take() {
            let (keys, asked) = (&self.keys, (open.last, open.lease));
            let keeper = self.locks.keeper();
            keeper.discard_owner(&self.client, keys, self.inbox.owner, asked, open.answered);
        }
    }
}

impl Drop for QueueTask {
    /// Runs when no call waits any more, or the task was torn down. Gives up the position in the
    /// queue, and a grant of which the task does not know. Waiters that are left get another task.
    fn drop(&mut self) {
        self.give_up();
        if !self.over && self.locks.torn_down(&self.keys, self.number) {
            self.locks.keeper().unattended(self.keys.clone());
        }
    }
}

/// How often a waiter looks at the task that queues for it.
pub(in crate::sync) const LOOK: Duration = Duration::from_secs(1);

/// How often the position in the queue is kept alive while pushes are received. It would lapse
/// after 3 s.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often the server is asked when no pushes are received.
const POLL: Duration = Duration::from_millis(50);

/// How long after the end of a lease the server is asked. The server counts whole milliseconds.
const JUST_AFTER: Duration = Duration::from_millis(1);

/// The pause after a question that the server did not answer.
const BREATH: Duration = Duration::from_millis(50);

/// The random factor of a pause, so that processes do not ask in step.
const SPREAD: std::ops::Range<f64> = 0.8..1.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::core::keeper_task::registry;
    use crate::sync::core::ticket::Ticket;
    use crate::sync::lock::LOCK;

    #[tokio::test]
    async fn a_question_that_was_not_sent_leaves_nothing_to_release() {
        let client = Client::builder().url("redis://127.0.0.1:1");
        let client = client.deadline(Duration::from_millis(100)).open();
        let client = client.expect("a good URL");
        let locks = registry(&client);
        let keys = Keys::of(&client, &LOCK, &client.name("a")).expect("a good name");
        let request = AcquireRequest {
            client: client.clone(),
            keys: keys.into(),
            lease: Ttl::new("the lease", Duration::from_secs(30)).expect("in range"),
            max_hold: None,
            detail: "".into(),
        };
        let mut ticket = Ticket::join(
            &locks,
            request.clone(),
            Instant::now() + Duration::from_secs(60),
        );
        // Until the server could not be asked.
        while locks.waited_for(&request).is_ok() {
            let _ = timeout(Duration::from_millis(1), ticket.granted()).await;
        }
        drop(ticket);
        while !locks.queues().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(locks.keeper().is_idle());
    }
}
