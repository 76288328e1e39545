//! `Keeper`: the one task of a client that renews leases and releases what nobody wants any more.
//!
//! Invariant: every lease that this process may hold on the server is either in a live guard's
//! name here, being renewed, or on its way to be released; until the lease has run out by itself.
//! Guards and dropped calls leave notes; nothing here needs a caller to be polled. Notes outlive the
//! runtime of the task, for the next one to go on with, and keep no client alive by themselves.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::hold::{End, Hold, LossReason, Owner};
use super::line::Locks;
use super::{Keys, RELEASE, RENEW};
use crate::client::Client;
use crate::key::Bucket;
use crate::time::Deadline;

#[derive(Debug, Default)]
pub(super) struct Keeper {
    state: Mutex<State>,
    nudge: Notify,
}

#[derive(Debug, Default)]
struct State {
    duties: HashMap<Owner, Duty>,
    /// When each duty is due. A duty that is being carried out is not here.
    agenda: BTreeSet<(Instant, Owner)>,
    /// Calls under way that may leave a duty when they are dropped: the task stays for them.
    shifts: usize,
    /// Names whose waiters have nobody who queues for them.
    orphans: Vec<Arc<Keys>>,
    /// Whether there is a task: from before it is spawned until it is dropped.
    at_work: bool,
    /// Kept alive while there are duties and a task to carry them out. At any other time this
    /// would be a circle: the client owns the keeper.
    client: Option<Client>,
    /// When the task looks at the agenda again without being nudged.
    wakes_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Duty {
    task: Task,
    /// Its place on the agenda, if it is on it.
    at: Option<Instant>,
}

#[derive(Debug, Clone)]
enum Task {
    /// Renew the lease of a live guard.
    Renew(Arc<Hold>),
    /// Release what `owner` has, or may still come to have until `until`.
    Discard {
        keys: Arc<Keys>,
        until: Instant,
        pause: Duration,
        may_come: bool,
    },
}

/// Keeps the keeper at work while it lives.
#[derive(Debug)]
pub(super) struct Shift(Arc<Locks>);

impl Drop for Shift {
    fn drop(&mut self) {
        self.0.keeper().state().shifts -= 1;
    }
}

impl Keeper {
    /// Makes sure that the task runs, for a call that may have to leave a note when it is dropped.
    pub(super) fn shift(locks: &Arc<Locks>, client: &Client) -> Shift {
        let mut state = locks.keeper().state();
        state.shifts += 1;
        let shift = Shift(locks.clone());
        if state.at_work {
            return shift;
        }
        state.at_work = true;
        let at_work = AtWork {
            locks: locks.clone(),
            retired: false,
        };
        if !state.duties.is_empty() {
            state.client = Some(client.clone());
        }
        // A runtime that is shutting down drops the task at once, and that takes the lock.
        drop(state);
        tokio::spawn(run(at_work));
        shift
    }

    /// Renews `hold` from now on; at once if its lease is only a claim.
    pub(super) fn keep(&self, locks: &Arc<Locks>, client: &Client, hold: Arc<Hold>, at: Instant) {
        let owner = hold.owner.clone();
        let _shift = Self::shift(locks, client);
        self.add(owner, client, Task::Renew(hold), at);
    }

    /// Stops renewing, because the holder is releasing or has lost the lock. A release in the
    /// background stays: the guard may have been dropped while its renewal was under way.
    pub(super) fn forget(&self, owner: &Owner) {
        let mut state = self.state();
        let client = state.renews(owner).then(|| state.remove(owner));
        drop(state);
        drop(client);
    }

    /// A hold has ended otherwise than by the server's word. Its lease may live on there: one that
    /// lasted too long still has it, and a renewal may have arrived whose answer did not. Nobody
    /// else gives it up.
    fn retire(&self, client: &Client, hold: &Hold) {
        match hold.status() {
            Err(End::Lost(LossReason::MaxHold | LossReason::Expired)) => self.discard(client, hold),
            _ => self.forget(&hold.owner),
        }
    }

    /// A release in the background has come to its end.
    fn settled(&self, owner: &Owner) {
        let client = self.state().remove(owner);
        drop(client);
    }

    /// Releases `hold` in the background.
    pub(super) fn discard(&self, client: &Client, hold: &Hold) {
        let until = Instant::now() + hold.lease.duration();
        self.discard_owner(client, &hold.keys, &hold.owner, until, false);
    }

    /// Releases whatever `owner` has; with `may_come`, a grant to it may still be under way, so
    /// that one "not held" is not the end of it.
    pub(super) fn discard_owner(
        &self,
        client: &Client,
        keys: &Arc<Keys>,
        owner: &Owner,
        until: Instant,
        may_come: bool,
    ) {
        let task = Task::Discard {
            keys: keys.clone(),
            until,
            pause: FIRST_PAUSE,
            may_come,
        };
        self.add(owner.clone(), client, task, Instant::now());
    }

    /// `break_lock` took the lock of `owner` away.
    pub(super) fn broken(&self, owner: &str) {
        let state = self.state();
        let hold = state
            .duties
            .iter()
            .find_map(|(known, duty)| match &duty.task {
                Task::Renew(hold) if known.as_str() == owner => Some(hold.clone()),
                _ => None,
            });
        drop(state);
        if let Some(hold) = hold {
            hold.end(End::Lost(LossReason::Broken));
            self.forget(&hold.owner);
        }
    }

    /// The waiters of a name need somebody to queue for them, and the caller cannot spawn.
    pub(super) fn orphaned(&self, keys: Arc<Keys>) {
        self.state().orphans.push(keys);
        self.nudge.notify_one();
    }

    fn add(&self, owner: Owner, client: &Client, task: Task, at: Instant) {
        let mut state = self.state();
        state.strike(&owner);
        if state.at_work && state.client.is_none() {
            state.client = Some(client.clone());
        }
        let sooner = state.wakes_at.is_some_and(|wakes_at| at < wakes_at);
        let duty = Duty { task, at: Some(at) };
        state.duties.insert(owner.clone(), duty);
        state.agenda.insert((at, owner));
        drop(state);
        if sooner {
            self.nudge.notify_one();
        }
    }

    /// Puts a discard back on the agenda, with a longer pause for the time after.
    fn later(&self, owner: &Owner, at: Instant) {
        if let Some(Duty {
            task: Task::Discard { pause, .. },
            ..
        }) = self.state().duties.get_mut(owner)
        {
            *pause *= 4;
        }
        self.again(owner, at);
    }

    /// Puts a renewal that was carried out back on the agenda, unless the guard was dropped
    /// meanwhile.
    fn renew_again(&self, owner: &Owner, at: Instant) {
        if self.state().renews(owner) {
            self.again(owner, at);
        }
    }

    /// Puts a duty that was carried out back on the agenda, unless it was taken off meanwhile.
    fn again(&self, owner: &Owner, at: Instant) {
        let mut state = self.state();
        if let Some(duty) = state.duties.get_mut(owner)
            && duty.at.is_none()
        {
            duty.at = Some(at);
            state.agenda.insert((at, owner.clone()));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keeper's task. Spawned by the first call that may need it, it ends when there is nothing to
/// keep. If it panics or its runtime ends, the next call that needs it starts another; until then
/// guards expire by their local deadlines, and what it was to release by its lease.
async fn run(mut at_work: AtWork) {
    let locks = at_work.locks.clone();
    let keeper = locks.keeper();
    // Declared after `at_work`, which sees to the duties of what is dropped here in mid-flight.
    let mut work: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        let (due, client, next, orphans) = {
            let mut state = keeper.state();
            let due = state.due(now);
            let orphans = std::mem::take(&mut state.orphans);
            let idle = state.duties.is_empty() && state.shifts == 0 && work.is_empty();
            if idle && due.is_empty() && orphans.is_empty() {
                state.at_work = false;
                state.wakes_at = None;
                at_work.retired = true;
                return;
            }
            let next = state
                .agenda
                .first()
                .map_or(now + IDLE, |(at, _)| (*at).min(now + IDLE));
            state.wakes_at = Some(next);
            (due, state.client.clone(), next, orphans)
        };
        for keys in orphans {
            locks.adopt(&keys);
        }
        if let Some(client) = client {
            work.extend(jobs(&locks, &client, due));
        }
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = keeper.nudge.notified() => {}
            Some(()) = work.next(), if !work.is_empty() => {}
        }
    }
}

/// The keeper's task, also before it is polled for the first time. Torn down, it lets the client go
/// and leaves its duties to the next.
struct AtWork {
    locks: Arc<Locks>,
    retired: bool,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if !self.retired {
            let mut state = self.locks.keeper().state();
            state.at_work = false;
            state.wakes_at = None;
            state.resume(Instant::now());
            let client = state.client.take();
            drop(state);
            drop(client);
        }
    }
}

impl State {
    /// Removes a duty. The client comes back with the last one, to be dropped without the lock.
    fn remove(&mut self, owner: &Owner) -> Option<Client> {
        self.strike(owner);
        if self.duties.is_empty() {
            self.client.take()
        } else {
            None
        }
    }

    fn strike(&mut self, owner: &Owner) {
        if let Some(Duty { at: Some(at), .. }) = self.duties.remove(owner) {
            self.agenda.remove(&(at, owner.clone()));
        }
    }

    /// Puts duties back on the agenda that were being carried out, and may or may not have been.
    fn resume(&mut self, now: Instant) {
        for (owner, duty) in &mut self.duties {
            if duty.at.is_none() {
                duty.at = Some(now);
                self.agenda.insert((now, owner.clone()));
            }
        }
    }

    fn renews(&self, owner: &Owner) -> bool {
        let duty = self.duties.get(owner);
        duty.is_some_and(|duty| matches!(duty.task, Task::Renew(_)))
    }

    fn due(&mut self, now: Instant) -> Vec<(Owner, Duty)> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.agenda.first()
            && *at <= now
        {
            let Some((_, owner)) = self.agenda.pop_first() else {
                break;
            };
            if let Some(duty) = self.duties.get_mut(&owner) {
                duty.at = None;
                due.push((owner, duty.clone()));
            }
        }
        due
    }
}

/// What is due, with the renewals of one bucket in one script call.
fn jobs(
    locks: &Arc<Locks>,
    client: &Client,
    due: Vec<(Owner, Duty)>,
) -> Vec<BoxFuture<'static, ()>> {
    let mut jobs: Vec<BoxFuture<'static, ()>> = Vec::new();
    let mut batches: HashMap<Bucket, Vec<Arc<Hold>>> = HashMap::new();
    for (owner, Duty { task, .. }) in due {
        match task {
            Task::Renew(hold) => {
                if hold.status().is_err() {
                    locks.keeper().retire(client, &hold);
                } else {
                    batches.entry(hold.keys.bucket).or_default().push(hold);
                }
            }
            Task::Discard {
                keys,
                until,
                pause,
                may_come,
            } => {
                jobs.push(Box::pin(discard(
                    locks.clone(),
                    client.clone(),
                    owner,
                    keys,
                    (until, pause, may_come),
                )));
            }
        }
    }
    for holds in batches.into_values() {
        jobs.push(Box::pin(listen(
            locks.clone(),
            client.clone(),
            holds.clone(),
        )));
        for holds in holds.chunks(LARGEST_BATCH) {
            jobs.push(Box::pin(renew(
                locks.clone(),
                client.clone(),
                holds.to_vec(),
            )));
        }
    }
    jobs
}

/// Sees to it that the holders of leases of one bucket are told of `break_lock` by push. Beside the
/// renewals, which must not wait for it, and over before the next.
async fn listen(locks: Arc<Locks>, client: Client, holds: Vec<Arc<Hold>>) {
    if let Some(first) = holds.first() {
        let patience = shortest_lease(&holds) / 3;
        let _ = tokio::time::timeout(patience, locks.listen(&client, &first.keys)).await;
    }
}

fn shortest_lease(holds: &[Arc<Hold>]) -> Duration {
    let leases = holds.iter().map(|hold| hold.lease.duration());
    leases.min().unwrap_or_default()
}

/// Renews leases of one bucket. What cannot be asked is asked again soon, until the local deadline.
async fn renew(locks: Arc<Locks>, client: Client, holds: Vec<Arc<Hold>>) {
    let keeper = locks.keeper();
    let sent = Instant::now();
    let shortest = shortest_lease(&holds);
    let mut call = RENEW.call(holds.iter().map(|hold| hold.keys.lock()));
    for hold in &holds {
        call = call.arg(hold.owner.as_str()).arg(hold.lease.millis());
    }
    let reply = client
        .run(
            call,
            Deadline::after((shortest / 6).max(SHORTEST_ATTEMPT)).reserved(),
        )
        .await;
    if let Err(error) = &reply {
        tracing::debug!(target: "hedgerow::lock", %error, leases = holds.len(), "renewal is tried again");
    }
    for (index, hold) in holds.iter().enumerate() {
        let renewed = reply
            .as_ref()
            .ok()
            .and_then(|reply| reply.int(index + 1).ok());
        match renewed {
            Some(1) => {
                hold.renewed(sent);
                keeper.renew_again(&hold.owner, next_renewal(hold, sent));
            }
            Some(_) => {
                hold.end(End::Lost(LossReason::Taken));
                keeper.forget(&hold.owner);
            }
            None => match hold.status() {
                Ok(deadline) => {
                    let soon = Instant::now() + (hold.lease.duration() / 12).max(SHORTEST_PAUSE);
                    keeper.renew_again(&hold.owner, soon.min(deadline));
                }
                Err(_) => keeper.retire(&client, hold),
            },
        }
    }
}

/// When a hold that was renewed by a command sent at `sent` needs the keeper again.
pub(super) fn next_renewal(hold: &Hold, sent: Instant) -> Instant {
    let at = sent + hold.lease.duration() / 3;
    hold.limit.map_or(at, |limit| limit.min(at))
}

/// Releases what `owner` has, and asks again until it is surely gone.
async fn discard(
    locks: Arc<Locks>,
    client: Client,
    owner: Owner,
    keys: Arc<Keys>,
    (until, pause, may_come): (Instant, Duration, bool),
) {
    let keeper = locks.keeper();
    let reply = client
        .run(
            keys.call(&RELEASE).arg(owner.as_str()),
            client.deadline().reserved(),
        )
        .await;
    let settled = match reply.as_ref().map(|reply| reply.status()) {
        Ok(Ok("RELEASED")) => true,
        Ok(Ok("NOT_HELD")) => !may_come,
        _ => false,
    };
    let now = Instant::now();
    if settled || now >= until {
        keeper.settled(&owner);
        return;
    }
    keeper.later(&owner, (now + pause).min(until));
}

/// After how long a discard that is not settled is tried again, at first; then four times longer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How long one attempt to renew takes at least before another is made.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(50);

/// The pause after a renewal that could not be asked for, at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// How many leases one script call renews at most.
const LARGEST_BATCH: usize = 100;

/// How long the keeper stays without anything to do.
const IDLE: Duration = Duration::from_secs(10);
