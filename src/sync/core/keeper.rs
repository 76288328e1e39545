//! `Keeper`: the part of a client that renews leases, releases in the background, and takes over
//! futures that nobody polls.
//!
//! Invariant: every lease that this process may hold on the server is in one of two states, until
//! the lease has run out by itself. Either a live guard has it, and it is noted here for renewal,
//! or it is on its way to be released. Guards and dropped calls leave notes. Nothing here needs a
//! caller to be polled. Notes outlive the runtimes of the tasks that carry them out, and keep no
//! client alive by themselves.
//!
//! Each runtime in which synchronizers of the client are called has one keeper task. All of them
//! look at one agenda, and each takes what is due a little later than the tasks before it. So while
//! one runtime is driven, every note is carried out. Work is done twice only if a task stops in
//! between. That does no harm: a second renewal renews the same lease, and an owner is never used
//! again.
//!
//! The calls in `first_try`, `registry`, `queue_task`, `release` and `held` leave the notes. The
//! tasks in `keeper_task` carry them out.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::agenda::{Answered, ROUND, Reclaim, Release};
use super::hold::{End, Hold};
use super::keeper_state::{KeeperTask, LOOK, Look, OVERDUE, State, Work, by_slot};
use super::keys::{Hearing, Keys};
use super::kind::Breaking;
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
    /// Set before anything is noted. If it is gone, the client is gone, and leases end by
    /// themselves.
    worker: OnceLock<Weak<dyn Worker>>,
}

/// What the tasks of the keeper do. The tasks need every part of the mechanism. The keeper needs
/// none of them, so it knows its tasks only by this trait.
pub(in crate::sync) trait Worker: fmt::Debug + Send + Sync {
    /// Carries out what is noted at the keeper, until there is nothing to keep.
    fn keep(self: Arc<Self>, guard: TaskGuard) -> BoxFuture<'static, ()>;
}

/// Keeps the tasks of the keeper running while it lives.
#[derive(Debug)]
pub(in crate::sync) struct KeeperHandle(Arc<Keeper>);

impl Drop for KeeperHandle {
    fn drop(&mut self) {
        self.0.state().handles -= 1;
    }
}

impl Keeper {
    /// Makes sure that this runtime has a keeper task, for a call that may leave a note when it is
    /// dropped.
    pub(in crate::sync) fn handle(self: &Arc<Self>, client: &Client) -> KeeperHandle {
        self.state().handles += 1;
        let shift = KeeperHandle(self.clone());
        self.man(client);
        shift
    }

    /// How many leases are held, asked for, or on their way to be released.
    pub(in crate::sync) fn notes(&self) -> usize {
        self.state().notes()
    }

    /// Spawns a keeper task on this runtime unless it has one.
    pub(in crate::sync) fn man(self: &Arc<Self>, client: &Client) {
        let state = self.state();
        drop(self.manned(state, client, Instant::now()));
    }

    /// Does the same for a caller that read the clock at `now`, and may have just noted something.
    fn manned<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        client: &Client,
        now: Instant,
    ) -> MutexGuard<'s, State> {
        let spawner = client.spawner();
        let mut runtime = spawner.runtime();
        if let Some(task) = state.tasks.iter().find(|task| task.runtime == runtime) {
            if now.saturating_duration_since(task.wakes_at) < OVERDUE {
                return state;
            }
            // The task there stands still. That is not the caller's own runtime, or the task would
            // not be late for long. So the task belongs on another one.
            spawner.distrust(Some(runtime));
            runtime = spawner.runtime();
            if state.tasks.iter().any(|task| task.runtime == runtime) {
                return state;
            }
        }
        state.numbers += 1;
        let guard = TaskGuard {
            keeper: self.clone(),
            number: state.numbers,
            nudge: Arc::default(),
        };
        state.tasks.push(KeeperTask {
            number: guard.number,
            runtime,
            wakes_at: Instant::now(),
            quiet_since: None,
            nudge: guard.nudge.clone(),
        });
        // Notes may have waited without a task. From now on a task carries them out, and needs the
        // client.
        if !state.is_idle() && state.client.is_none() {
            state.client = Some(client.clone());
        }
        // Unlocked first: a runtime that is shutting down drops the task at once, and that drop
        // takes the lock.
        drop(state);
        match self.worker.get().and_then(Weak::upgrade) {
            Some(worker) => drop(spawner.spawn(worker.keep(guard))),
            // Nobody is left to keep anything. The drop takes the lock, too.
            None => drop(guard),
        }
        self.state()
    }

    /// Watches a question that a caller is about to ask, as of `now`, so that the question blocks
    /// nobody if the caller is not polled any more.
    pub(in crate::sync) fn watch(
        self: &Arc<Self>,
        client: &Client,
        question: Arc<Question>,
        now: Instant,
    ) {
        let mut state = self.state();
        // Noted before the task is ensured: a task that finds nothing to do ends.
        state.watch.ask(question);
        let look_at = state.look_at();
        let state = self.manned(state, client, now);
        Self::noted(state, client, look_at);
    }

    /// Ends the watch of a question, because the caller has its answer or has left. Returns whether
    /// the question was still the caller's own.
    pub(in crate::sync) fn answered(&self, owner: Owner) -> bool {
        let mut state = self.state();
        let question = state.watch.answered(owner);
        let client = state.rest();
        drop(state);
        drop(client);
        question.is_some()
    }

    /// Renews `hold` from now on. `hold` is the answer to the question of its owner. Returns
    /// whether that question is still the caller's. If it is not, nothing is kept.
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

    /// Renews `hold` from now on, which is handed to a waiter. The keeper takes it back if the
    /// waiter does not take it in time.
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

    /// Does the same for a grant that is passed on inside the process, unless the keeper has tried
    /// to release it meanwhile. Returns whether `hold` is kept.
    pub(in crate::sync) fn keep_passed(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        granted: (Instant, Ttl),
    ) -> bool {
        hold.offer();
        let mut state = self.state();
        // A tried release may have reached the server, so the successor's lease may be gone
        // already.
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

    /// Renews `hold`, whose lease of `granted` was set by a command that was sent at `sent`.
    fn keep(
        mut state: MutexGuard<'_, State>,
        client: &Client,
        hold: &Arc<Hold>,
        (sent, granted): (Instant, Ttl),
        hearing: Hearing,
    ) {
        // A hold that has only a claim needs the rest of its lease at once.
        let at = match granted < hold.lease {
            true => Instant::now(),
            false => sent + hold.lease.duration() / ROUND,
        };
        // A hold that lasts is subscribed, so that it learns of `break_lock` by push. Most holds
        // are released before, and are not worth a subscription.
        let told = hold.keys.kind.breaking == Breaking::ByPush && hearing == Hearing::Nothing;
        let listen = told.then(|| sent + LASTING);
        let group = state.group(client, &hold.keys);
        state.agenda.renew(hold.clone(), group, at, listen);
        // A subscription wakes no task by itself: the next look carries it out.
        let first = listen.map_or(at, |listen| at.min(listen + LOOK));
        let first = hold.limit.map_or(first, |limit| first.min(limit));
        Self::noted(state, client, first);
    }

    /// Stops renewing, because the holder is releasing or has lost its lease. A release in the
    /// background stays on the agenda: the guard may have been dropped while its renewal was in
    /// flight.
    pub(in crate::sync) fn forget(&self, owner: Owner) {
        let mut state = self.state();
        let renewed = state.agenda.hold(owner).is_some();
        let client = renewed.then(|| state.remove(owner));
        drop(state);
        drop(client);
    }

    /// Notes that the server has renewed the lease of `owner`, by a question that was sent at
    /// `sent`.
    pub(in crate::sync) fn renewed(&self, owner: Owner, sent: Instant) {
        self.state().agenda.renewed(owner, sent);
    }

    /// Notes that these holders are subscribed from now on. Earlier pushes to them were not
    /// received, so a renewal asks whether their locks were broken. Holders that are subscribed at
    /// about the same time share that renewal.
    pub(in crate::sync) fn heard_from_now_on(&self, client: &Client, holds: &[Arc<Hold>]) {
        let at = Instant::now() + GATHERING;
        let mut state = self.state();
        for hold in holds {
            state.agenda.listens(hold.owner);
            state.agenda.renew_soon(hold.owner, at);
        }
        Self::noted(state, client, at);
    }

    /// Notes that these holders could not be subscribed. The subscription is tried again. Until it
    /// succeeds, renewals tell whether their locks were broken.
    pub(in crate::sync) fn listen_later(&self, holds: &[Arc<Hold>]) {
        let now = Instant::now();
        let mut state = self.state();
        for hold in holds {
            state.agenda.listen_later(hold.owner, now);
        }
        // Wakes no task: the task that tried this looks at the agenda next.
    }

    /// Notes that messages on `channel` may have been missed. Its holders subscribe again, at the
    /// server that sends the messages now. Then they ask whether their locks were broken.
    pub(in crate::sync) fn listen_again(&self, channel: &Key) {
        let at = Instant::now() + BREATH;
        let mut state = self.state();
        state.agenda.listen_again(channel, at);
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// Stops keeping a hold that has ended. If `max_hold` or the local deadline ended it, the
    /// server did not, and its lease may live on there. After `max_hold` the lease is still there.
    /// After an expiry, a renewal may have arrived whose answer did not. No other code would
    /// release that lease.
    pub(in crate::sync) fn retire(&self, client: &Client, hold: &Arc<Hold>) {
        match hold.status() {
            Err(End::Lost(LossReason::MaxHold | LossReason::Expired)) => self.discard(client, hold),
            _ => self.forget(hold.owner),
        }
    }

    /// Notes that the holder of `hold` releases it `now`. The keeper releases it if no outcome is
    /// reported in time.
    pub(in crate::sync) fn release_unless_done(
        self: &Arc<Self>,
        client: &Client,
        hold: &Arc<Hold>,
        now: Instant,
    ) {
        let at = now + 3 * LOOK;
        let mut state = self.state();
        // Noted before the task is ensured: a task that finds nothing to do ends.
        state.agenda.release(Release::of(hold, now), at);
        let state = self.manned(state, client, now);
        // Wakes no task: most releases are settled before the next look, which carries out the
        // others.
        let first = at + LOOK;
        Self::noted(state, client, first);
    }

    /// Notes that the grant of `hold` is about to be passed on to `successor`. If no outcome is
    /// reported in time, the keeper releases what both owners have, and puts the successor back
    /// into the local queue.
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

    /// Takes a release off: nothing is left to be released.
    pub(in crate::sync) fn settled(&self, owner: Owner) {
        let client = self.state().remove(owner);
        drop(client);
    }

    /// Notes that a release in the background was tried and is not settled.
    pub(in crate::sync) fn unsettled(&self, owner: Owner, longest: Duration) {
        let mut state = self.state();
        state.agenda.release_again(owner, Instant::now(), longest);
    }

    /// Releases `hold` in the background.
    pub(in crate::sync) fn discard(&self, client: &Client, hold: &Arc<Hold>) {
        let now = Instant::now();
        self.release(client, Release::of(hold, now), now);
    }

    /// Releases whatever `owner` has, or may come to have if not all of its questions were
    /// answered. `asked` holds the moment after which none of its questions is sent, and the
    /// longest lease that it asked for.
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

    /// Releases whatever a waiter has, or may come to have, to which the grant of `hold` was to be
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

    /// Handles a push that says that `break_lock` took the lock of `owner` away. Any client that
    /// may publish can send it. So the server is asked at once, and its answer counts.
    pub(in crate::sync) fn said_to_be_broken(&self, owner: Owner) {
        let mut state = self.state();
        let hold = state.agenda.hold(owner);
        // Of other kinds nobody says so but a forger.
        let Some(hold) = hold.filter(|it| it.keys.kind.breaking == Breaking::ByPush) else {
            return;
        };
        hold.doubt();
        let at = state.agenda.renew_now(owner, Instant::now());
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// Notes that the waiters of a name have no queue task, for a caller that cannot spawn one.
    pub(in crate::sync) fn unattended(&self, keys: Arc<Keys>) {
        let mut state = self.state();
        state.unattended.push(keys);
        let nudges = state.late_for(Instant::now());
        drop(state);
        nudged(nudges);
    }

    /// Notes that leases of several slots cannot be renewed by one script here.
    pub(in crate::sync) fn slot_by_slot(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.slot_by_slot, true) {
            state.agenda.regroup(by_slot);
        }
    }

    /// Returns whether the server of `keys` knows the script that renews.
    pub(in crate::sync) fn script_is_known_at(&self, client: &Client, keys: &Keys) -> bool {
        let place = (keys.kind.name, client.script_group(keys.holders()));
        self.state().script_is_known_at.contains(&place)
    }

    /// Notes that the server of `keys` has renewed leases, and so knows the script.
    pub(in crate::sync) fn script_is_known_now(&self, client: &Client, keys: &Keys) {
        let place = (keys.kind.name, client.script_group(keys.holders()));
        self.state().script_is_known_at.insert(place);
    }

    /// Forgets which servers know the script, because one has not answered. Another server may
    /// answer next, or the same one without its scripts.
    pub(in crate::sync) fn script_may_be_unknown(&self) {
        self.state().script_is_known_at.clear();
    }

    /// Wakes the tasks that would be late for what was just noted, which is due at `at`.
    fn noted(mut state: MutexGuard<'_, State>, client: &Client, at: Instant) {
        // Only while there is a task: without one, the client and its keeper would own each other
        // for ever.
        if !state.tasks.is_empty() && state.client.is_none() {
            state.client = Some(client.clone());
        }
        let nudges = state.late_for(at);
        drop(state);
        nudged(nudges);
    }

    /// Returns whether there is nothing to do, now or later.
    #[cfg(test)]
    pub(in crate::sync) fn is_idle(&self) -> bool {
        self.state().is_idle()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Sets the worker whose tasks carry out what is noted here. Only the first call counts.
    pub(in crate::sync) fn employ(&self, worker: impl FnOnce() -> Weak<dyn Worker>) {
        self.worker.get_or_init(worker);
    }

    /// Returns the questions and offers whose callers no longer poll, and the callers to be woken.
    pub(in crate::sync) fn unpolled(&self) -> Found {
        let mut state = self.state();
        let found = state.watch.look();
        if state.watch.is_empty() {
            state.look_at = None;
        }
        found
    }

    /// Drops the client if there is nothing to do.
    pub(in crate::sync) fn settle_idle(&self) {
        let client = self.state().rest();
        drop(client);
    }

    /// Returns what the task with this number does now. `None` if the task is not needed any more.
    pub(in crate::sync) fn look(&self, number: u64, work: Work) -> Option<Look> {
        self.state().look(number, work, Instant::now())
    }
}

/// Registers a task with the keeper, also before the task is polled for the first time. When it is
/// dropped, the task is off the list, and the client is dropped with the last task.
pub(in crate::sync) struct TaskGuard {
    pub(in crate::sync) keeper: Arc<Keeper>,
    pub(in crate::sync) number: u64,
    pub(in crate::sync) nudge: Arc<Notify>,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let mut state = self.keeper.state();
        state.tasks.retain(|task| task.number != self.number);
        let client = match state.tasks.is_empty() {
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

/// How old a hold must be before it is worth a subscription.
const LASTING: Duration = Duration::from_millis(50);

/// How long newly subscribed holders wait for each other, so that one script renews them.
const GATHERING: Duration = Duration::from_millis(10);

/// How long after a missed message its holders subscribe again. While a slot moves, the server of a
/// channel may be named wrongly for a while. It is asked no more often than this.
const BREATH: Duration = Duration::from_millis(100);

/// How long after its start the keeper releases a local hand-over that has not reported its
/// outcome.
const PASSED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_keeper_whose_worker_is_gone_has_no_task_and_stops_nobody() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let keeper = Arc::<Keeper>::default();
        keeper.man(&client);
        assert!(keeper.state().tasks.is_empty());
    }
}
