//! `Keeper`: sees to it that leases are renewed, and that what nobody wants any more is released.
//!
//! Invariant: every lease that this process may hold on the server is either in a live guard's name
//! here, being renewed, or on its way to be released; until the lease has run out by itself. Guards
//! and dropped calls leave notes; nothing here needs a caller to be polled. Notes outlive the
//! runtimes of the tasks that carry them out, and keep no client alive by themselves.
//!
//! Each runtime in which locks of the client are called has one such task, at its *post*. All of
//! them look at the one agenda, and each takes what is due, a little after those before it. So
//! while one runtime is driven, whatever is noted is carried out, and twice only if a task stops in
//! between, which does no harm: a lease renewed twice is a lease renewed, and an owner is never
//! used again.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::agenda::{Answered, Due, ROUND, Reclaim, Release};
use super::hold::{End, Hold};
use super::keeper_state::{IDLE, KeeperTask, LOOK, Look, OVERDUE, QUIET, State, by_slot, patience};
use super::keys::{Hearing, Keys};
use super::owner::Owner;
use super::question::Question;
use super::watch::Found;
use crate::client::Client;
use crate::key::Key;
use crate::sync::loss::LossReason;
use crate::time::Ttl;

#[derive(Debug, Default)]
pub(in crate::sync) struct Keeper {
    state: Mutex<State>,
    /// Set before anything is noted. Gone, the client is gone, and leases end by themselves.
    worker: OnceLock<Weak<dyn Worker>>,
}

/// Whether a task of the keeper carries something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Work {
    UnderWay,
    Done,
}

/// What the tasks of the keeper do. They need all that locks consist of; the keeper does not.
pub(in crate::sync) trait Worker: fmt::Debug + Send + Sync {
    /// Carries out what the keeper notes, until there is nothing to keep.
    fn keep(self: Arc<Self>, at_post: TaskGuard) -> BoxFuture<'static, ()>;
}

/// Keeps the tasks of the keeper at their posts while it lives.
#[derive(Debug)]
pub(in crate::sync) struct KeeperHandle(Arc<Keeper>);

impl Drop for KeeperHandle {
    fn drop(&mut self) {
        self.0.state().handles -= 1;
    }
}

impl Keeper {
    /// Makes sure that this runtime has a task, for a call that may have to leave a note when it
    /// is dropped.
    pub(in crate::sync) fn handle(self: &Arc<Self>, client: &Client) -> KeeperHandle {
        self.state().handles += 1;
        let shift = KeeperHandle(self.clone());
        self.man(client);
        shift
    }

    /// Spawns a keeper task on this runtime unless it has one.
    pub(in crate::sync) fn man(self: &Arc<Self>, client: &Client) {
        let state = self.state();
        drop(self.manned(state, client, Instant::now()));
    }

    /// The same for a caller that has just noted something, and looked at the clock at `now`.
    fn manned<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        client: &Client,
        now: Instant,
    ) -> MutexGuard<'s, State> {
        let spawner = client.spawner();
        let mut runtime = spawner.runtime();
        if let Some(post) = state.posts.iter().find(|post| post.runtime == runtime) {
            if now.saturating_duration_since(post.wakes_at) < OVERDUE {
                return state;
            }
            // It stands still, and is not the caller's own, or it would not be late for long.
            spawner.distrust(Some(runtime));
            runtime = spawner.runtime();
            if state.posts.iter().any(|post| post.runtime == runtime) {
                return state;
            }
        }
        state.numbers += 1;
        let at_post = TaskGuard {
            keeper: self.clone(),
            number: state.numbers,
            nudge: Arc::default(),
        };
        state.posts.push(KeeperTask {
            number: at_post.number,
            runtime,
            wakes_at: Instant::now(),
            quiet_since: None,
            nudge: at_post.nudge.clone(),
        });
        if !state.is_idle() && state.client.is_none() {
            state.client = Some(client.clone());
        }
        // A runtime that is shutting down drops the task at once, and that takes the lock.
        drop(state);
        if let Some(worker) = self.worker.get().and_then(Weak::upgrade) {
            spawner.spawn(worker.keep(at_post));
        }
        self.state()
    }

    /// Looks after a question that a caller is about to ask, as of `now`, so that it blocks nobody
    /// when the caller is not polled any more.
    pub(in crate::sync) fn watch(
        self: &Arc<Self>,
        client: &Client,
        question: Arc<Question>,
        now: Instant,
    ) {
        let mut state = self.state();
        // Noted first: a task that finds nothing to do leaves its post.
        state.watch.ask(question);
        let look_at = state.look_at();
        let state = self.manned(state, client, now);
        Self::noted(state, client, look_at);
    }

    /// The caller has its answer, or has left. Says whether the question was still its own.
    pub(in crate::sync) fn answered(&self, owner: Owner) -> bool {
        let mut state = self.state();
        let question = state.watch.answered(owner);
        let client = state.rest();
        drop(state);
        drop(client);
        question.is_some()
    }

    /// Renews `hold` from now on, which answers the question of its owner. Says whether that is
    /// still the caller's: nothing is kept if not.
    pub(in crate::sync) fn keep_asked(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        granted: (Instant, Ttl),
        hearing: Hearing,
    ) -> bool {
        let mut state = self.state();
        let question = state.watch.answered(hold.owner);
        if question.is_some() {
            Self::keep(state, client, hold, granted, hearing);
        }
        question.is_some()
    }

    /// Renews `hold` from now on, which is handed to a waiter; takes it back if the waiter does not
    /// take it.
    pub(in crate::sync) fn keep_offered(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        granted: (Instant, Ttl),
    ) {
        hold.offer();
        let mut state = self.state();
        state.watch.offer(hold.clone());
        let look_at = state.look_at();
        let nudges = state.late_for(look_at);
        Self::keep(state, client, hold, granted, hold.keys.hearing(client));
        nudged(nudges);
    }

    /// The same for what is passed on inside the process, unless the keeper has given it up
    /// meanwhile. Says whether it is kept.
    pub(in crate::sync) fn keep_passed(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        granted: (Instant, Ttl),
    ) -> bool {
        hold.offer();
        let mut state = self.state();
        if !state.agenda.is_untouched(hold.owner) {
            return false;
        }
        state.watch.offer(hold.clone());
        let look_at = state.look_at();
        let nudges = state.late_for(look_at);
        Self::keep(state, client, hold, granted, hold.keys.hearing(client));
        nudged(nudges);
        true
    }

    /// Renews `hold`, whose lease of `granted` was set by a command sent at `sent`.
    fn keep(
        mut state: MutexGuard<'_, State>,
        client: &Client,
        hold: &Arc<Hold>,
        (sent, granted): (Instant, Ttl),
        hearing: Hearing,
    ) {
        // One that has only a claim needs the rest of its lease at once.
        let at = match granted < hold.lease {
            true => Instant::now(),
            false => sent + hold.lease.duration() / ROUND,
        };
        // A hold that lasts wants to hear of `break_lock`.
        let listen = (hearing == Hearing::Nothing).then(|| sent + LASTING);
        let group = state.group(client, &hold.keys);
        state.agenda.renew(hold.clone(), group, at, listen);
        // Listening wakes no task; the next look carries it out.
        let first = listen.map_or(at, |listen| at.min(listen + LOOK));
        Self::noted(state, client, first);
    }

    /// Stops renewing, because the holder is releasing or has lost the lock. A release in the
    /// background stays: the guard may have been dropped while its renewal was under way.
    pub(in crate::sync) fn forget(&self, owner: Owner) {
        let mut state = self.state();
        let renewed = state.agenda.hold(owner).is_some();
        let client = renewed.then(|| state.remove(owner));
        drop(state);
        drop(client);
    }

    /// The server has renewed the lease of `owner`, by a question sent at `sent`.
    pub(in crate::sync) fn renewed(&self, owner: Owner, sent: Instant) {
        self.state().agenda.renewed(owner, sent);
    }

    /// What was pushed to these holders until now was not heard. A renewal tells whether their
    /// locks were broken; those of others that have come to be heard go along.
    pub(in crate::sync) fn heard_from_now_on(&self, client: &Client, holds: &[Arc<Hold>]) {
        let at = Instant::now() + GATHERING;
        let mut state = self.state();
        for hold in holds {
            state.agenda.listens(hold.owner);
            state.agenda.renew_soon(hold.owner, at);
        }
        Self::noted(state, client, at);
    }

    /// These holders could not be subscribed. They are tried again; until then their renewals tell
    /// whether their locks were broken.
    pub(in crate::sync) fn listen_later(&self, holds: &[Arc<Hold>]) {
        let now = Instant::now();
        let mut state = self.state();
        for hold in holds {
            state.agenda.listen_later(hold.owner, now);
        }
        // Wakes no task: one was busy with this, and looks at the agenda next.
    }

    /// Messages on `channel` may have been missed: its holders are told anew, at whichever server
    /// sends them now, and then ask whether their locks were broken.
    pub(in crate::sync) fn listen_again(&self, channel: &Key) {
        let at = Instant::now() + BREATH;
        let mut state = self.state();
        state.agenda.listen_again(channel, at);
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// A hold has ended otherwise than by the server's word. Its lease may live on there: one that
    /// lasted too long still has it, and a renewal may have arrived whose answer did not. Nobody
    /// else gives it up.
    pub(in crate::sync) fn retire(&self, client: &Client, hold: &Arc<Hold>) {
        match hold.status() {
            Err(End::Lost(LossReason::MaxHold | LossReason::Expired)) => self.discard(client, hold),
            _ => self.forget(hold.owner),
        }
    }

    /// The holder of `hold` is about to release it, `now`; the keeper does so if nothing is heard
    /// of that.
    pub(in crate::sync) fn release_unless_done(
        self: &Arc<Self>,
        client: &Client,
        hold: &Arc<Hold>,
        now: Instant,
    ) {
        let at = now + 3 * LOOK;
        let mut state = self.state();
        // Noted first: a task that finds nothing to do leaves its post.
        state.agenda.release(Release::of(hold, now), at);
        let state = self.manned(state, client, now);
        // Wakes no task; the next look carries it out.
        let first = at + LOOK;
        Self::noted(state, client, first);
    }

    /// The lock of `hold` is about to be passed on to `successor`. If nothing is heard of that, the
    /// keeper releases what both have, and puts the successor back in line.
    pub(in crate::sync) fn release_unless_passed(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        asked: (Owner, Ttl),
        successor: Arc<dyn Reclaim>,
        now: Instant,
    ) {
        let at = now + PASSED;
        let mut state = self.state();
        state.agenda.release(Release::of(hold, now), at);
        state.agenda.release(
            Release::of_successor(hold, asked, successor, Answered::No, now),
            at,
        );
        let first = at + LOOK;
        Self::noted(state, client, first);
    }

    /// A release has come to its end.
    pub(in crate::sync) fn settled(&self, owner: Owner) {
        let client = self.state().remove(owner);
        drop(client);
    }

    /// A release in the background has not come to its end.
    pub(in crate::sync) fn unsettled(&self, owner: Owner, longest: Duration) {
        let mut state = self.state();
        state.agenda.release_again(owner, Instant::now(), longest);
    }

    /// Releases `hold` in the background.
    pub(in crate::sync) fn discard(&self, client: &Client, hold: &Arc<Hold>) {
        let now = Instant::now();
        self.release(client, Release::of(hold, now), now);
    }

    /// Releases whatever `owner` has that asked for `lease` at most, by questions of which none is
    /// sent after `last`; or may come to have, if not all of them were answered.
    pub(in crate::sync) fn discard_owner(
        &self,
        client: &Client,
        keys: &Arc<Keys>,
        owner: Owner,
        asked: (Instant, Ttl),
        answered: Answered,
    ) {
        let release = Release::of_question(owner, keys, asked, answered);
        self.release(client, release, Instant::now());
    }

    /// Releases whatever a waiter has, or may come to have, to whom the lock of `hold` was to be
    /// passed.
    pub(in crate::sync) fn discard_successor(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        asked: (Owner, Ttl),
        successor: Arc<dyn Reclaim>,
        answered: Answered,
    ) {
        let now = Instant::now();
        self.release(
            client,
            Release::of_successor(hold, asked, successor, answered, now),
            now,
        );
    }

    fn release(&self, client: &Client, release: Release, now: Instant) {
        let mut state = self.state();
        state.agenda.release(release, now);
        Self::noted(state, client, now);
    }

    /// A push says that `break_lock` took the lock of `owner` away. Anybody who may publish can say
    /// so: the server is asked at once, and its answer counts.
    pub(in crate::sync) fn said_to_be_broken(&self, owner: Owner) {
        let mut state = self.state();
        let Some(hold) = state.agenda.hold(owner) else {
            return;
        };
        hold.doubt();
        let at = state.agenda.renew_now(owner, Instant::now());
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// The waiters of a name need somebody to queue for them, and the caller cannot spawn.
    pub(in crate::sync) fn unattended(&self, keys: Arc<Keys>) {
        let mut state = self.state();
        state.unattended.push(keys);
        let nudges = state.late_for(Instant::now());
        drop(state);
        nudged(nudges);
    }

    /// Leases of several slots cannot be renewed by one script here.
    pub(in crate::sync) fn slot_by_slot(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.slot_by_slot, true) {
            state.agenda.regroup(by_slot);
        }
    }

    /// Whether the server of `keys` knows the script that renews.
    pub(in crate::sync) fn script_is_known_at(&self, client: &Client, keys: &Keys) -> bool {
        let place = client.script_group(keys.lock());
        self.state().script_is_known_at.contains(&place)
    }

    /// The server of `keys` has renewed leases.
    pub(in crate::sync) fn script_is_known_now(&self, client: &Client, keys: &Keys) {
        let place = client.script_group(keys.lock());
        self.state().script_is_known_at.insert(place);
    }

    /// A server has not answered: it may be another that does, or have forgotten what it knew.
    pub(in crate::sync) fn script_may_be_unknown(&self) {
        self.state().script_is_known_at.clear();
    }

    /// Something was noted that is due at `at`.
    fn noted(mut state: MutexGuard<'_, State>, client: &Client, at: Instant) {
        if !state.posts.is_empty() && state.client.is_none() {
            state.client = Some(client.clone());
        }
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// Whether there is nothing to do, now or later.
    #[cfg(test)]
    pub(in crate::sync) fn is_idle(&self) -> bool {
        self.state().is_idle()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Has `worker` do what is noted here.
    pub(in crate::sync) fn employ(&self, worker: impl FnOnce() -> Weak<dyn Worker>) {
        self.worker.get_or_init(worker);
    }

    /// Questions and offers whose callers no longer poll, and those to be woken.
    pub(in crate::sync) fn unpolled(&self) -> Found {
        let mut state = self.state();
        let found = state.watch.look();
        if state.watch.is_empty() {
            state.look_at = None;
        }
        found
    }

    /// Lets the client go if there is nothing to do.
    pub(in crate::sync) fn settle_idle(&self) {
        let client = self.state().rest();
        drop(client);
    }

    /// What the task at this post is to do now; `None` when it is not needed any more.
    pub(in crate::sync) fn look(&self, number: u64, work: Work) -> Option<Look> {
        let now = Instant::now();
        let mut state = self.state();
        let place = state.posts.iter().position(|post| post.number == number)?;
        let patience = patience(state.ahead_of(place));
        let since = now.checked_sub(patience).unwrap_or(now);
        let look = state.look_at.is_some_and(|at| at <= since);
        let due = match state.client {
            Some(_) => state.agenda.take(since, now),
            None => Due::default(),
        };
        let unattended = std::mem::take(&mut state.unattended);
        if work == Work::Done && state.is_idle() && state.handles == 0 && unattended.is_empty() {
            let since = *state.posts[place].quiet_since.get_or_insert(now);
            if now.duration_since(since) >= QUIET {
                // What is noted from here on starts another task. There is no client to let go.
                state.posts.remove(place);
                return None;
            }
        } else {
            state.posts[place].quiet_since = None;
        }
        let rest = now + IDLE;
        if look {
            // The next look, until which those who are woken now have time.
            state.look_at = Some(now + LOOK);
        }
        let first = state.agenda.first().into_iter().chain(state.look_at).min();
        let next = first.map_or(rest, |at| rest.min(at + patience));
        state.posts[place].wakes_at = next;
        Some(Look {
            due,
            look,
            unattended,
            client: state.client.clone(),
            next,
        })
    }
}

/// A task at its post, also before it is polled for the first time. Torn down, it leaves the post,
/// and lets the client go if it was the last.
pub(in crate::sync) struct TaskGuard {
    pub(in crate::sync) keeper: Arc<Keeper>,
    pub(in crate::sync) number: u64,
    pub(in crate::sync) nudge: Arc<Notify>,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let mut state = self.keeper.state();
        state.posts.retain(|post| post.number != self.number);
        let client = match state.posts.is_empty() {
            true => state.client.take(),
            false => None,
        };
        drop(state);
        drop(client);
    }
}

fn nudged(nudges: Vec<Arc<Notify>>) {
    for nudge in nudges {
        nudge.notify_one();
    }
}

/// After how long a hold is worth a subscription.
const LASTING: Duration = Duration::from_millis(50);

/// How long those who have come to be heard wait for each other.
const GATHERING: Duration = Duration::from_millis(10);

/// How long after messages may have been missed their holders listen again: while a slot moves, the
/// server to listen at may be named wrongly for a while, and is asked no more often than this.
const BREATH: Duration = Duration::from_millis(100);

/// After this the keeper releases a hand-over that has not reported back.
const PASSED: Duration = Duration::from_secs(1);
