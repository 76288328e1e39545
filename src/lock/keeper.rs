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

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Keys;
use super::agenda::{Agenda, Answered, Due, ROUND, Release};
use super::attempt::Question;
use super::hold::{End, Hold, LossReason, Owner};
use super::line::Locks;
use super::place::{Hearing, hears};
use super::release::Successor;
use super::renewal::{listen, release, renew};
use super::watch::Watch;
use crate::client::Client;
use crate::key::Key;
use crate::time::Ttl;

#[derive(Debug, Default)]
pub(super) struct Keeper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agenda: Agenda,
    watch: Watch,
    /// When to look after what is watched.
    look_at: Option<Instant>,
    /// Calls under way that may leave a note when they are dropped: the tasks stay for them.
    shifts: usize,
    /// Names whose waiters have nobody who queues for them.
    orphans: Vec<Arc<Keys>>,
    /// The tasks: from before they are spawned until they are dropped.
    posts: Vec<Post>,
    /// Tells posts apart.
    numbers: u64,
    /// Kept alive while there are notes and a task to carry them out. At any other time this
    /// would be a circle: the client owns the keeper.
    client: Option<Client>,
    /// One script may not renew leases of several slots, though they are on one server.
    slot_by_slot: bool,
    /// Where the script that renews is known, as far as is known, and need not be sent: by
    /// [`Client::together`].
    script_is_known_at: BTreeSet<usize>,
}

/// A task of the keeper, as the others know it.
#[derive(Debug)]
struct Post {
    number: u64,
    runtime: runtime::Id,
    /// When it looks at the agenda again without being nudged.
    wakes_at: Instant,
    /// Since when it has found nothing to do.
    quiet_since: Option<Instant>,
    nudge: Arc<Notify>,
}

impl Post {
    /// Whether the task is so late that it stands still: nobody waits for it.
    fn is_overdue(&self) -> bool {
        self.wakes_at.elapsed() >= OVERDUE
    }
}

/// Keeps the tasks of the keeper at their posts while it lives.
#[derive(Debug)]
pub(super) struct Shift(Arc<Locks>);

impl Drop for Shift {
    fn drop(&mut self) {
        self.0.keeper().state().shifts -= 1;
    }
}

impl Keeper {
    /// Makes sure that this runtime has a task, for a call that may have to leave a note when it
    /// is dropped.
    pub(super) fn shift(locks: &Arc<Locks>, client: &Client) -> Shift {
        locks.keeper().state().shifts += 1;
        let shift = Shift(locks.clone());
        Self::man(locks, client);
        shift
    }

    /// Spawns a keeper task on this runtime unless it has one.
    pub(super) fn man(locks: &Arc<Locks>, client: &Client) {
        let state = locks.keeper().state();
        drop(Self::manned(state, locks, client, Instant::now()));
    }

    /// The same for a caller that has just noted something, and looked at the clock at `now`.
    fn manned<'s>(
        mut state: MutexGuard<'s, State>,
        locks: &'s Arc<Locks>,
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
        let at_post = AtPost {
            locks: locks.clone(),
            number: state.numbers,
            nudge: Arc::default(),
        };
        state.posts.push(Post {
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
        spawner.spawn(run(at_post));
        locks.keeper().state()
    }

    /// Looks after a question that a caller is about to ask, as of `now`, so that it blocks nobody
    /// when the caller is not polled any more.
    pub(super) fn watch(
        locks: &Arc<Locks>,
        client: &Client,
        question: Arc<Question>,
        now: Instant,
    ) {
        let mut state = locks.keeper().state();
        // Noted first: a task that finds nothing to do leaves its post.
        state.watch.ask(question);
        let look_at = state.look_at();
        let state = Self::manned(state, locks, client, now);
        Self::noted(state, client, look_at);
    }

    /// The caller has its answer, or has left. Says whether the question was still its own.
    pub(super) fn answered(&self, owner: Owner) -> bool {
        let mut state = self.state();
        let question = state.watch.answered(owner);
        let client = state.rest();
        drop(state);
        drop(client);
        question.is_some()
    }

    /// Renews `hold` from now on, which answers the question of its owner. Says whether that is
    /// still the caller's: nothing is kept if not.
    pub(super) fn keep_asked(
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
    pub(super) fn keep_offered(&self, client: &Client, hold: &Arc<Hold>, granted: (Instant, Ttl)) {
        hold.offer();
        let mut state = self.state();
        state.watch.offer(hold.clone());
        let look_at = state.look_at();
        let nudges = state.late_for(look_at);
        Self::keep(state, client, hold, granted, hears(client, &hold.keys));
        nudged(nudges);
    }

    /// The same for what is passed on inside the process, unless the keeper has given it up
    /// meanwhile. Says whether it is kept.
    pub(super) fn keep_passed(
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
        Self::keep(state, client, hold, granted, hears(client, &hold.keys));
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
    pub(super) fn forget(&self, owner: Owner) {
        let mut state = self.state();
        let renewed = state.agenda.hold(owner).is_some();
        let client = renewed.then(|| state.remove(owner));
        drop(state);
        drop(client);
    }

    /// The server has renewed the lease of `owner`, by a question sent at `sent`.
    pub(super) fn renewed(&self, owner: Owner, sent: Instant) {
        self.state().agenda.renewed(owner, sent);
    }

    /// What was pushed to these holders until now was not heard. A renewal tells whether their
    /// locks were broken; those of others that have come to be heard go along.
    pub(super) fn heard_from_now_on(&self, client: &Client, holds: &[Arc<Hold>]) {
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
    pub(super) fn listen_later(&self, holds: &[Arc<Hold>]) {
        let now = Instant::now();
        let mut state = self.state();
        for hold in holds {
            state.agenda.listen_later(hold.owner, now);
        }
        // Wakes no task: one was busy with this, and looks at the agenda next.
    }

    /// Messages on `channel` may have been missed: its holders are told anew, at whichever server
    /// sends them now, and then ask whether their locks were broken.
    pub(super) fn listen_again(&self, channel: &Key) {
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
    pub(super) fn retire(&self, client: &Client, hold: &Arc<Hold>) {
        match hold.status() {
            Err(End::Lost(LossReason::MaxHold | LossReason::Expired)) => self.discard(client, hold),
            _ => self.forget(hold.owner),
        }
    }

    /// The holder of `hold` is about to release it, `now`; the keeper does so if nothing is heard
    /// of that.
    pub(super) fn release_unless_done(
        locks: &Arc<Locks>,
        client: &Client,
        hold: &Arc<Hold>,
        now: Instant,
    ) {
        let at = now + 3 * LOOK;
        let mut state = locks.keeper().state();
        // Noted first: a task that finds nothing to do leaves its post.
        state.agenda.release(Release::of(hold, now), at);
        let state = Self::manned(state, locks, client, now);
        // Wakes no task; the next look carries it out.
        let first = at + LOOK;
        Self::noted(state, client, first);
    }

    /// The lock of `hold` is about to be passed on to `successor`. If nothing is heard of that, the
    /// keeper releases what both have, and puts the successor back in line.
    pub(super) fn release_unless_passed(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        successor: &Arc<Successor>,
        now: Instant,
    ) {
        let at = now + PASSED;
        let mut state = self.state();
        state.agenda.release(Release::of(hold, now), at);
        state.agenda.release(
            Release::of_successor(hold, successor, Answered::No, now),
            at,
        );
        let first = at + LOOK;
        Self::noted(state, client, first);
    }

    /// A release has come to its end.
    pub(super) fn settled(&self, owner: Owner) {
        let client = self.state().remove(owner);
        drop(client);
    }

    /// A release in the background has not come to its end.
    pub(super) fn unsettled(&self, owner: Owner, longest: Duration) {
        let mut state = self.state();
        state.agenda.release_again(owner, Instant::now(), longest);
    }

    /// Releases `hold` in the background.
    pub(super) fn discard(&self, client: &Client, hold: &Arc<Hold>) {
        let now = Instant::now();
        self.release(client, Release::of(hold, now), now);
    }

    /// Releases whatever `owner` has that asked for `lease` at most, by questions of which none is
    /// sent after `last`; or may come to have, if not all of them were answered.
    pub(super) fn discard_owner(
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
    pub(super) fn discard_successor(
        &self,
        client: &Client,
        hold: &Arc<Hold>,
        successor: &Arc<Successor>,
        answered: Answered,
    ) {
        let now = Instant::now();
        self.release(
            client,
            Release::of_successor(hold, successor, answered, now),
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
    pub(super) fn said_to_be_broken(&self, owner: Owner) {
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
    pub(super) fn orphaned(&self, keys: Arc<Keys>) {
        let mut state = self.state();
        state.orphans.push(keys);
        let nudges = state.late_for(Instant::now());
        drop(state);
        nudged(nudges);
    }

    /// Leases of several slots cannot be renewed by one script here.
    pub(super) fn slot_by_slot(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.slot_by_slot, true) {
            state.agenda.regroup(by_slot);
        }
    }

    /// Whether the server of `keys` knows the script that renews.
    pub(super) fn script_is_known_at(&self, client: &Client, keys: &Keys) -> bool {
        let place = client.together(keys.lock());
        self.state().script_is_known_at.contains(&place)
    }

    /// The server of `keys` has renewed leases.
    pub(super) fn script_is_known_now(&self, client: &Client, keys: &Keys) {
        let place = client.together(keys.lock());
        self.state().script_is_known_at.insert(place);
    }

    /// A server has not answered: it may be another that does, or have forgotten what it knew.
    pub(super) fn script_may_be_unknown(&self) {
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
    pub(super) fn is_idle(&self) -> bool {
        self.state().is_idle()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task of the keeper. Spawned by the first call in a runtime that may need it, it ends when
/// there is nothing to keep. If it panics or its runtime ends, those of other runtimes go on, or
/// the next call that needs one starts another; until then guards expire by their local deadlines,
/// and what was to be released by its lease.
async fn run(at_post: AtPost) {
    let locks = at_post.locks.clone();
    let keeper = locks.keeper();
    let mut work: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let Some(look) = keeper.look(at_post.number, work.is_empty()) else {
            return;
        };
        for keys in look.orphans {
            locks.adopt(&keys);
        }
        if look.look {
            keeper.look_after(&locks, look.client.as_ref());
        }
        if let Some(client) = look.client {
            work.extend(jobs(&locks, &client, look.due));
        }
        tokio::select! {
            () = tokio::time::sleep_until(look.next) => {}
            () = at_post.nudge.notified() => {}
            Some(()) = work.next(), if !work.is_empty() => {}
        }
    }
}

/// What a task finds when it looks at the agenda.
struct Look {
    due: Due,
    /// Whether to look after what is watched.
    look: bool,
    orphans: Vec<Arc<Keys>>,
    client: Option<Client>,
    /// When to look again.
    next: Instant,
}

impl Keeper {
    /// Takes over questions and offers whose callers no longer poll.
    fn look_after(&self, locks: &Arc<Locks>, client: Option<&Client>) {
        let mut state = self.state();
        let found = state.watch.look();
        if state.watch.is_empty() {
            state.look_at = None;
        }
        drop(state);
        // Wakers may run anything: not under the lock.
        for question in found.to_wake {
            question.pulse.knock();
        }
        let Some(client) = client else { return };
        for question in found.questions {
            locks.take_over(client, &question);
        }
        for hold in found.offers {
            if hold.take_back() {
                self.discard(client, &hold);
            }
        }
        let client = self.state().rest();
        drop(client);
    }

    /// What the task at this post is to do now; `None` when it is not needed any more.
    fn look(&self, number: u64, idle: bool) -> Option<Look> {
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
        let orphans = std::mem::take(&mut state.orphans);
        if idle && state.is_idle() && state.shifts == 0 && orphans.is_empty() {
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
            orphans,
            client: state.client.clone(),
            next,
        })
    }
}

/// A task at its post, also before it is polled for the first time. Torn down, it leaves the post,
/// and lets the client go if it was the last.
struct AtPost {
    locks: Arc<Locks>,
    number: u64,
    nudge: Arc<Notify>,
}

impl Drop for AtPost {
    fn drop(&mut self) {
        let mut state = self.locks.keeper().state();
        state.posts.retain(|post| post.number != self.number);
        let client = match state.posts.is_empty() {
            true => state.client.take(),
            false => None,
        };
        drop(state);
        drop(client);
    }
}

impl State {
    /// Whether there is nothing to do, now or later.
    fn is_idle(&self) -> bool {
        self.agenda.is_empty() && self.watch.is_empty()
    }

    /// Takes a note off. The client comes back with the last one, to be dropped without the lock.
    fn remove(&mut self, owner: Owner) -> Option<Client> {
        self.agenda.remove(owner);
        self.rest()
    }

    /// The client, when there is nothing to do, to be dropped without the lock.
    fn rest(&mut self) -> Option<Client> {
        match self.is_idle() {
            true => self.client.take(),
            false => None,
        }
    }

    /// When what is watched is looked after.
    fn look_at(&mut self) -> Instant {
        *self.look_at.get_or_insert_with(|| Instant::now() + LOOK)
    }

    fn group(&self, client: &Client, keys: &Keys) -> usize {
        match self.slot_by_slot {
            true => by_slot(keys),
            false => client.together(keys.lock()),
        }
    }

    /// Those of the tasks that would be late for what is due at `at`.
    fn late_for(&self, at: Instant) -> Vec<Arc<Notify>> {
        let mut ahead = 0;
        let mut late = Vec::new();
        for post in &self.posts {
            if post.wakes_at > at + patience(ahead) {
                late.push(post.nudge.clone());
            }
            ahead += u32::from(!post.is_overdue());
        }
        late
    }

    /// How many of the first `place` tasks may take what is due before the next one does.
    fn ahead_of(&self, place: usize) -> u32 {
        let ahead = self.posts.iter().take(place);
        let ahead = ahead.filter(|post| !post.is_overdue()).count();
        u32::try_from(ahead).unwrap_or(u32::MAX)
    }
}

fn nudged(nudges: Vec<Arc<Notify>>) {
    for nudge in nudges {
        nudge.notify_one();
    }
}

fn by_slot(keys: &Keys) -> usize {
    usize::from(keys.lock().slot())
}

/// How much later than due a task takes what the `ahead` tasks before it have not taken.
fn patience(ahead: u32) -> Duration {
    STAND_IN * ahead.min(MOST_AHEAD)
}

/// What is due, as calls.
fn jobs(locks: &Arc<Locks>, client: &Client, due: Due) -> Vec<BoxFuture<'static, ()>> {
    let mut jobs: Vec<BoxFuture<'static, ()>> = Vec::new();
    for holds in due.lasting {
        jobs.push(Box::pin(listen(locks.clone(), client.clone(), holds)));
    }
    for mut holds in due.batches {
        holds.retain(|hold| {
            let ended = hold.status().is_err();
            if ended {
                locks.keeper().retire(client, hold);
            }
            !ended
        });
        if !holds.is_empty() {
            jobs.push(Box::pin(renew(locks.clone(), client.clone(), holds)));
        }
    }
    for it in due.releases {
        jobs.push(Box::pin(release(locks.clone(), client.clone(), it)));
    }
    jobs
}

/// After how long a hold is worth a subscription.
const LASTING: Duration = Duration::from_millis(50);

/// How long those who have come to be heard wait for each other.
const GATHERING: Duration = Duration::from_millis(10);

/// A task that is so late stands still.
const OVERDUE: Duration = Duration::from_secs(1);

/// How long after messages may have been missed their holders listen again: while a slot moves, the
/// server to listen at may be named wrongly for a while, and is asked no more often than this.
const BREATH: Duration = Duration::from_millis(100);

/// After this the keeper releases a hand-over that has not reported back.
const PASSED: Duration = Duration::from_secs(1);

/// How often callers are looked after on whom others depend.
const LOOK: Duration = Duration::from_millis(100);

/// How long the keeper stays without anything to do ..
const QUIET: Duration = Duration::from_secs(5);

/// .. which it finds out when it looks again after this.
const IDLE: Duration = Duration::from_secs(10);

/// How long the task of a runtime may be late before that of the next takes its work.
const STAND_IN: Duration = Duration::from_millis(10);

/// For so many tasks does another one wait at most. All of them may stand still, which is not known
/// yet of those that should have looked a moment ago.
const MOST_AHEAD: u32 = 3;
