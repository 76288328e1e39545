//! `Registry`: what one client knows of its synchronizers, and the local queue of each contended
//! name.
//!
//! Invariant: for each name, at most one call of this process asks the server for itself and the
//! others. The others wait in its [`LocalQueue`]. Beside it, calls that do not wait may ask for
//! themselves, and so may calls for what several may hold, while none of them has to wait. While a
//! local queue has waiters, a [queue task](super::queue_task) queues for them on the server. State
//! is kept only while a call asks or waits.
//!
//! First tries, tickets, queue tasks and releases use it.

use std::collections::VecDeque;
use std::collections::hash_map;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::held::Held;
use super::inbox::Inboxes;
use super::keeper::Keeper;
use super::keys::Keys;
use super::owner::Owner;
use super::request::AcquireRequest;
use crate::client::Client;
use crate::error::{Error, Fate, Result};
use crate::hash::SeededMap;
use crate::key::Key;
use crate::pulse::Pulse;
use crate::sync::fence::Fence;
use crate::time::Ttl;

/// What the synchronizers of one client share.
#[derive(Debug, Default)]
pub(in crate::sync) struct Registry {
    queues: Mutex<SeededMap<Key, LocalQueue>>,
    /// The owners that may receive a grant by push.
    inboxes: Arc<Inboxes>,
    /// Shared with guards and handles, which leave notes when they are dropped.
    keeper: Arc<Keeper>,
    /// The number of the next queue task. With it, a task that was replaced cannot end the queue of
    /// its successor.
    queue_tasks: AtomicU64,
}

/// The local queue of one name.
#[derive(Debug, Default)]
pub(in crate::sync) struct LocalQueue {
    /// The owner whose first try is in flight. Later calls wait for its answer.
    asking: Option<Owner>,
    /// The queue task for all waiters.
    queue_task: Option<RunningTask>,
    pub(in crate::sync) waiters: VecDeque<LocalWaiter>,
    /// Tells the queue task that a waiter has come or left. Made with the first waiter.
    nudge: Option<Arc<Notify>>,
    /// The holders in the server's last answer. `None` before the first.
    pub(in crate::sync) holder: Option<String>,
    /// The error of the last question, if the server did not answer it.
    trouble: Option<Error>,
    /// Since when a question is in flight.
    asked: Option<Instant>,
}

/// A queue task that runs.
#[derive(Debug)]
struct RunningTask {
    number: u64,
    /// The pulse of its task, once that is spawned.
    pulse: Option<Arc<Pulse>>,
}

/// What asks the server for the waiters of a name.
#[derive(Debug)]
pub(in crate::sync) enum QueuedBy {
    /// A queue task, with its pulse once it is spawned.
    Task(Option<Arc<Pulse>>),
    /// A caller, whose first try is in flight.
    FirstTry,
    Nobody,
}

/// A call in the local queue.
#[derive(Debug)]
pub(in crate::sync) struct LocalWaiter {
    pub(in crate::sync) request: AcquireRequest,
    /// When it was made, or joined the queue.
    pub(in crate::sync) called: Instant,
    /// When its wait is over, even if the call is not polled then.
    pub(in crate::sync) until: Instant,
    pub(in crate::sync) reply: oneshot::Sender<Result<Held>>,
}

impl Registry {
    pub(in crate::sync) fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    pub(in crate::sync) fn inboxes(&self) -> &Arc<Inboxes> {
        &self.inboxes
    }

    /// Returns a new owner for a caller that asks `now`. Later calls of this process wait for its
    /// answer. `None` if others of this process come first.
    pub(in crate::sync) fn first(&self, keys: &Keys, now: Instant) -> Option<Owner> {
        let mut queues = self.queues();
        let hash_map::Entry::Vacant(vacant) = queues.entry(keys.holders().clone()) else {
            return None;
        };
        let owner = Owner::random();
        vacant.insert(LocalQueue {
            asking: Some(owner),
            asked: Some(now),
            ..LocalQueue::default()
        });
        Some(owner)
    }

    /// Puts `waiting` into the local queue, where `inbox` says. `trouble` counts only for a new
    /// local queue: the waiters of an existing one may have a newer answer. Returns what tells the
    /// queue task that the waiter has left, and whether no first try is in flight.
    pub(in crate::sync) fn push(
        &self,
        waiting: LocalWaiter,
        inbox: impl FnOnce(&mut VecDeque<LocalWaiter>, LocalWaiter),
        trouble: Option<Error>,
    ) -> (Arc<Notify>, bool) {
        let mut queues = self.queues();
        let queue = queues.entry(waiting.request.keys.holders().clone());
        let queue = queue.or_insert_with(|| LocalQueue {
            trouble,
            ..LocalQueue::default()
        });
        inbox(&mut queue.waiters, waiting);
        (queue.nudge(), queue.asking.is_none())
    }

    /// Notes that a queue task for `keys` begins, unless one runs already or no call waits. Returns
    /// its number, and what tells it that a waiter has come or left.
    pub(in crate::sync) fn begin_queue_task(&self, keys: &Keys) -> Option<(u64, Arc<Notify>)> {
        let mut queues = self.queues();
        let queue = queues
            .get_mut(keys.holders())
            .filter(|queue| !queue.is_queued_for() && !queue.waiters.is_empty())?;
        let number = self.queue_tasks.fetch_add(1, Ordering::Relaxed);
        // Whatever the task before this one has asked, it is not heard any more.
        queue.asked = None;
        queue.queue_task = Some(RunningTask {
            number,
            pulse: None,
        });
        Some((number, queue.nudge()))
    }

    /// Notes that the queue task with this number was spawned.
    pub(in crate::sync) fn queue_task_runs(&self, keys: &Keys, number: u64, pulse: &Arc<Pulse>) {
        if let Some(queue) = self.queues().get_mut(keys.holders())
            && let Some(running) = queue.queue_task.as_mut().filter(|it| it.number == number)
        {
            running.pulse = Some(pulse.clone());
        }
    }

    /// Returns what queues for the waiters of `keys`. `None` if there is no local queue.
    pub(in crate::sync) fn queued_by(&self, keys: &Keys) -> Option<QueuedBy> {
        let queues = self.queues();
        let queue = queues.get(keys.holders())?;
        Some(match &queue.queue_task {
            Some(running) => QueuedBy::Task(running.pulse.clone()),
            None if queue.asking.is_some() => QueuedBy::FirstTry,
            None => QueuedBy::Nobody,
        })
    }

    /// Returns the client of the first waiter of `keys`.
    pub(in crate::sync) fn client_of_front(&self, keys: &Keys) -> Option<Client> {
        let queues = self.queues();
        let front = queues.get(keys.holders())?.waiters.front()?;
        Some(front.request.client.clone())
    }

    /// Returns whether others of this process wait or have a queue task, so that a call must not go
    /// ahead of them.
    pub(in crate::sync) fn is_contended(&self, keys: &Keys) -> bool {
        let queues = self.queues();
        let queue = queues.get(keys.holders());
        queue.is_some_and(|queue| !queue.waiters.is_empty() || queue.queue_task.is_some())
    }

    /// Returns whether others of this process wait for the name, by a recent answer of the server.
    /// Returns an error if the server could not be asked for them. If the server has not answered
    /// for a while, or nobody asks it for them, returns `false`, and the caller asks for itself.
    pub(in crate::sync) fn waited_for(&self, request: &AcquireRequest) -> Result<bool> {
        let keys = &request.keys;
        let queues = self.queues();
        let Some(queue) = queues.get(keys.holders()) else {
            return Ok(false);
        };
        if !queue.is_asked_for() {
            return Ok(false);
        }
        match queue.trouble() {
            Some(trouble) => Err(trouble.with_key(&keys.name)),
            // Without a recent answer, nothing says that the name is not free.
            None => Ok(!queue.waiters.is_empty() && !queue.is_unanswered()),
        }
    }

    /// Returns the reason why a call that fails fast does not wait here, if there is one.
    pub(in crate::sync) fn outage(&self, request: &AcquireRequest) -> Option<Error> {
        let queues = self.queues();
        let trouble = queues
            .get(request.keys.holders())
            .and_then(LocalQueue::trouble);
        drop(queues);
        // What others met lately saves this call from finding the same out by its own question.
        let trouble = trouble.filter(|trouble| trouble.kind().is_outage());
        trouble.or_else(|| request.client.outage(request.keys.holders()))
    }

    /// Ends the first try of `owner` for `keys`. Returns whether other calls wait. If they do, a
    /// queue task must be started for them.
    pub(in crate::sync) fn attempted(&self, keys: &Keys, owner: Owner) -> bool {
        self.tidied(keys, |queue| {
            if queue.asking == Some(owner) {
                queue.asking = None;
                queue.asked = None;
            }
        })
    }

    /// Puts a waiter that was to be the next holder, and is not, back at the head of the local
    /// queue.
    pub(in crate::sync) fn back_in_line(&self, waiting: LocalWaiter) {
        let mut queues = self.queues();
        if waiting.has_left() {
            return; // Nobody would ever take it out of the queue again.
        }
        let queue = queues
            .entry(waiting.request.keys.holders().clone())
            .or_default();
        queue.waiters.push_front(waiting);
    }

    /// Handles the departure of a waiter of `keys`. The queue task or the first try removes the
    /// waiter. Without either, this does, because the waiter would keep the client alive.
    pub(in crate::sync) fn left(&self, keys: &Keys) {
        let queues = self.queues();
        let queue = queues.get(keys.holders());
        let alone = queue.is_some_and(|queue| queue.queue_task.is_none() && queue.asking.is_none());
        drop(queues);
        if alone {
            self.tidied(keys, |_| ());
        }
    }

    /// Returns the first live waiter of `keys`, for the queue task with this number. `None` ends
    /// that task: no waiter is left, or another task has replaced it. A local queue without waiters
    /// is removed, unless a first try is in flight.
    pub(in crate::sync) fn front(&self, keys: &Keys, number: u64) -> Option<AcquireRequest> {
        let mut queues = self.queues();
        let queue = queues
            .get_mut(keys.holders())
            .filter(|queue| queue.is_queue_task(number))?;
        let leavers = queue.without_leavers();
        let front = queue.waiters.front().map(|waiting| waiting.request.clone());
        // Decided under the lock that also admits waiters: a later one finds no task, and starts
        // one.
        if front.is_none() {
            queue.queue_task = None;
            if queue.asking.is_none() {
                queues.remove(keys.holders());
            }
        }
        drop(queues);
        drop(leavers);
        front
    }

    /// Notes that the queue task of `keys` was torn down. Returns whether a call waits for another
    /// task.
    pub(in crate::sync) fn torn_down(&self, keys: &Keys, number: u64) -> bool {
        self.tidied(keys, |queue| {
            if queue.is_queue_task(number) {
                (queue.queue_task, queue.asked) = (None, None);
            }
        })
    }

    /// Changes a local queue, then removes the waiters that have left, and the queue if it is not
    /// needed any more. Returns whether a call waits.
    fn tidied(&self, keys: &Keys, change: impl FnOnce(&mut LocalQueue)) -> bool {
        let mut queues = self.queues();
        let hash_map::Entry::Occupied(mut found) = queues.entry(keys.holders().clone()) else {
            return false;
        };
        let queue = found.get_mut();
        change(queue);
        let leavers = queue.without_leavers();
        let waited_for = !queue.waiters.is_empty();
        if !waited_for && queue.asking.is_none() && queue.queue_task.is_none() {
            found.remove();
        }
        drop(queues);
        drop(leavers);
        waited_for
    }

    /// Returns whether the first live waiter of `keys` has the terms of `front`.
    pub(in crate::sync) fn still_first(&self, keys: &Keys, front: &AcquireRequest) -> bool {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(keys.holders()) else {
            return false;
        };
        let leavers = queue.without_leavers();
        let is_first = queue.is_first(front);
        drop(queues);
        drop(leavers);
        is_first
    }

    /// Hands a grant on the terms of `asked` to the first waiter of the name. Returns whether there
    /// is a first waiter with those terms.
    pub(in crate::sync) fn deliver(
        &self,
        asked: &AcquireRequest,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
    ) -> bool {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(asked.keys.holders()) else {
            return false;
        };
        // A grant is an answer: the server is there.
        (queue.trouble, queue.asked) = (None, None);
        let leavers = queue.without_leavers();
        // Checked under the same lock under which the waiter is taken: the one before it may leave
        // at any time.
        let is_first = queue.is_first(asked);
        let waiting = is_first.then(|| queue.waiters.pop_front()).flatten();
        drop(queues);
        drop(leavers);
        let Some(waiting) = waiting else {
            return false;
        };
        self.hand_to(waiting, owner, fence, granted);
        true
    }

    /// Hands a grant to its waiter. If the waiter has left, the grant is dropped, which releases
    /// it.
    pub(in crate::sync) fn hand_to(
        &self,
        waiting: LocalWaiter,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
    ) {
        let hold = waiting.request.hold(owner, fence, granted, 0);
        let client = waiting.request.client;
        self.keeper.man(&client);
        // Watched before it is sent: the keeper takes it back from a waiter that does not take it.
        self.keeper.keep_offered(&client, &hold, granted);
        let held = Held::new(hold, self.keeper.clone(), client);
        let _ = waiting.reply.send(Ok(held));
    }

    /// Does the same for a grant that is passed on inside the process. Returns the waiter if the
    /// keeper has given up the hand-over meanwhile.
    pub(in crate::sync) fn pass_to(
        &self,
        waiting: LocalWaiter,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        local_handovers: u32,
    ) -> Option<LocalWaiter> {
        let hold = waiting.request.hold(owner, fence, granted, local_handovers);
        let client = &waiting.request.client;
        self.keeper.man(client);
        // If the keeper has tried to release the successor, the grant may be gone at the server.
        if !self.keeper.keep_passed(client, &hold, granted) {
            return Some(waiting);
        }
        let held = Held::new(hold, self.keeper.clone(), waiting.request.client);
        let _ = waiting.reply.send(Ok(held));
        None
    }

    /// Fails all waiters of `keys`, because the server refuses what the queue task with this number
    /// has asked.
    pub(in crate::sync) fn fail(&self, keys: &Keys, number: u64, error: &Error) {
        let waiters = {
            let mut queues = self.queues();
            queues
                .get_mut(keys.holders())
                .filter(|queue| queue.is_queue_task(number))
                .map(|queue| std::mem::take(&mut queue.waiters))
        };
        // Answered after unlocking: a reply wakes its caller, and a waker may run anything.
        for waiting in waiters.into_iter().flatten() {
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    /// Notes that the queue task with this number asks the server.
    pub(in crate::sync) fn asked(&self, keys: &Keys, number: u64) {
        if let Some(queue) = self.queues().get_mut(keys.holders())
            && queue.is_queue_task(number)
        {
            queue.asked = Some(Instant::now());
        }
    }

    /// Stores the answer to a question of the queue task with this number. If that was replaced
    /// meanwhile, the answer may be older than what the present task has heard.
    pub(in crate::sync) fn heard_by_task(
        &self,
        keys: &Keys,
        number: u64,
        heard: Result<String, Error>,
    ) {
        if let Some(queue) = self.queues().get_mut(keys.holders())
            && queue.is_queue_task(number)
        {
            queue.hears(heard);
        }
    }

    /// Stores the last answer of the server, for the error of waiters that give up.
    pub(in crate::sync) fn heard(&self, keys: &Keys, heard: Result<String, Error>) {
        if let Some(queue) = self.queues().get_mut(keys.holders()) {
            queue.hears(heard);
        }
    }

    pub(in crate::sync) fn queues(&self) -> MutexGuard<'_, SeededMap<Key, LocalQueue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalQueue {
    /// Returns what tells the queue task that a waiter has come or left.
    pub(in crate::sync) fn nudge(&mut self) -> Arc<Notify> {
        self.nudge.get_or_insert_default().clone()
    }

    fn hears(&mut self, heard: Result<String, Error>) {
        self.asked = None;
        match heard {
            Ok(holder) => (self.holder, self.trouble) = (Some(holder), None),
            // The last known holder stays, but is not the reason of a failure while this is set.
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Returns whether a queue task runs, and does not stand still.
    fn is_queued_for(&self) -> bool {
        // A task that is not spawned yet counts: its caller is about to spawn it.
        let pulse = self.queue_task.as_ref().map(|it| it.pulse.as_ref());
        pulse.is_some_and(|pulse| !pulse.is_some_and(|pulse| pulse.stands_still()))
    }

    fn is_queue_task(&self, number: u64) -> bool {
        self.queue_task
            .as_ref()
            .is_some_and(|it| it.number == number)
    }

    /// Takes out waiters whose calls were dropped, or whose wait is over. The caller drops them
    /// after it has unlocked the queues, because that may wake a task, and a waker may run
    /// anything.
    #[must_use = "drop it when the lines are unlocked"]
    pub(in crate::sync) fn without_leavers(&mut self) -> VecDeque<LocalWaiter> {
        if !self.waiters.iter().any(LocalWaiter::has_left) {
            return VecDeque::new();
        }
        let (left, stay) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(LocalWaiter::has_left);
        self.waiters = stay;
        left
    }

    /// Returns whether the first waiter has the terms of `asked`.
    fn is_first(&self, asked: &AcquireRequest) -> bool {
        let first = self.waiters.front();
        first.is_some_and(|first| first.request.same_terms(asked))
    }

    /// Returns whether the server was asked for these waiters and has not answered, or could not be
    /// asked.
    pub(in crate::sync) fn is_unanswered(&self) -> bool {
        let silent = self.asked.is_some_and(|asked| asked.elapsed() >= SILENCE);
        silent || self.trouble.is_some()
    }

    /// Returns whether the server is to blame for a wait without a recent answer. It is not if the
    /// task that asks does not run: then its answer may have come, and nobody has read it.
    pub(in crate::sync) fn is_silent(&self) -> bool {
        self.is_unanswered() && (self.queue_task.is_none() || self.is_asked_for())
    }

    /// Returns whether somebody asks the server for these waiters, and is known to run.
    fn is_asked_for(&self) -> bool {
        // A task that is not spawned yet counts. The keeper watches a first try.
        let runs = |task: &RunningTask| !task.pulse.as_ref().is_some_and(|pulse| pulse.is_late());
        self.asking.is_some() || self.queue_task.as_ref().is_some_and(runs)
    }

    /// Returns why the server did not answer the question of another call. Its fate is "not
    /// executed": nothing of this caller was sent.
    pub(in crate::sync) fn trouble(&self) -> Option<Error> {
        let trouble = self.trouble.clone();
        trouble.map(|trouble| trouble.with_fate(Fate::NotExecuted))
    }
}

impl LocalWaiter {
    fn has_left(&self) -> bool {
        self.reply.is_closed() || Instant::now() >= self.until + LATE
    }
}

/// How long a question may be in flight before it counts as unanswered. A waiter that gives up then
/// reports that the server does not answer.
const SILENCE: Duration = Duration::from_millis(500);

/// How late a waiter may be polled at the end of its wait, before it counts as gone.
const LATE: Duration = Duration::from_secs(1);
