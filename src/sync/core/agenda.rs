//! `Agenda`: what the keeper has to do, and when. The keeper, and nothing else, calls it.
//!
//! Invariant: a job is on the agenda from the moment it is noted until it is taken off. Taking a
//! job to carry it out only moves it to the time of its next try. So if the task that took it
//! stands still, or is torn down, another task carries it out. Renewals that one script can make
//! are taken together, with others that are due soon. No clock and no I/O here.
//!
//! Most jobs are taken off long before they are due, because most grants are released soon after
//! they are made. So a job is sorted only when the keeper looks at the agenda. Until then it is in
//! a list of unsorted jobs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold::Hold;
use super::keys::Keys;
use super::owner::{ByOwner, Owner, Secret};
use crate::client::Client;
use crate::key::Key;
use crate::time::Ttl;

/// The jobs of the keeper, and the channels to subscribe again.
#[derive(Debug, Default)]
pub(in crate::sync) struct Agenda {
    // Every job. `due` and `unsorted` only say where to look.
    jobs: ByOwner<Job>,
    // By group, so that one script takes its renewals without a pass over all others.
    due: BTreeMap<Group, BTreeSet<(Instant, Owner)>>,
    /// The owners of jobs that are not sorted yet, and of some jobs that were taken off since.
    unsorted: Vec<Owner>,
    missed: Missed,
}

/// Channels on which messages may have been missed. A lost connection may have had hundreds, so one
/// pass finds the holders of all.
#[derive(Debug, Default)]
struct Missed {
    channels: HashSet<Key>,
    /// When to look for the holders. `None` if no channel is noted.
    at: Option<Instant>,
}

/// Jobs that may be taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sync) enum Group {
    /// Each release is a separate call.
    Releases,
    /// Renewals of leases that one script may renew: those of one kind, by its name, in one
    /// [`Client::script_group`](crate::client::Client::script_group).
    Renewals(&'static str, usize),
}

#[derive(Debug)]
struct Job {
    task: Task,
    group: Group,
    at: Instant,
    /// Whether the job is in `due`. Otherwise its owner is in `unsorted`.
    sorted: bool,
}

#[derive(Debug)]
enum Task {
    Renew(Renewal),
    Release(Release),
}

/// The lease of a live guard.
#[derive(Debug)]
struct Renewal {
    hold: Arc<Hold>,
    /// When to renew the lease.
    at: Instant,
    listening: Listening,
    /// How long to wait after the next failed subscription.
    pause: Duration,
    /// When the renewal was last taken to be sent. `None` before the first time.
    asked: Option<Instant>,
}

/// Whether a holder learns of `break_lock` by push.
#[derive(Debug, Clone, Copy)]
enum Listening {
    /// It does, as far as known.
    Told,
    /// Its channel is to be subscribed at this time.
    Due(Instant),
    /// Its channel is being subscribed. If there is no outcome by this time, the task that does it
    /// stands still.
    UnderWay(Instant),
}

/// The release of a lease, or of a position in the server's queue, that no caller uses any more.
#[derive(Debug, Clone)]
pub(in crate::sync) struct Release {
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) keys: Arc<Keys>,
    /// When everything that the owner could have has run out by itself.
    pub(in crate::sync) until: Instant,
    /// Whether a grant to the owner may still be in flight.
    pub(in crate::sync) answered: Answered,
    /// The waiter to which the grant was to be passed under this owner.
    pub(in crate::sync) successor: Option<Arc<dyn Reclaim>>,
    /// What the owner held, or what was to be passed to it. It counts the releases in the
    /// background, so that the guard's own release can tell whether one of them came first.
    pub(in crate::sync) hold: Option<Arc<Hold>>,
    /// Whether the release tells the owner's secret to the next holder.
    pub(in crate::sync) secret: Secret,
    /// How long to wait before the next try.
    pause: Duration,
    /// Whether the release was taken to be sent.
    tried: bool,
}

/// A waiter to which a grant was to be passed inside the process.
pub(in crate::sync) trait Reclaim: fmt::Debug + Send + Sync {
    /// Puts the waiter back into the local queue, if the hand-over has not reported its outcome.
    fn reclaim(self: Arc<Self>, client: &Client);
}

/// Whether the server has answered all questions of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Answered {
    Yes,
    /// Its only question may still arrive and be granted.
    No,
    /// All but the last, which may still arrive. The answered ones may have left the owner a
    /// position in the server's queue. So it may be granted twice: by a hand-over, and by that
    /// question.
    AllButLast,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub(in crate::sync) struct Due {
    /// Leases to renew: one batch for each script call.
    pub(in crate::sync) batches: Vec<Vec<Arc<Hold>>>,
    /// Holds that have lasted, by channel. Their holders are subscribed, to learn of `break_lock`
    /// by push.
    pub(in crate::sync) lasting: Vec<Vec<Arc<Hold>>>,
    pub(in crate::sync) releases: Vec<Release>,
}

impl Agenda {
    pub(in crate::sync) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Returns when the first job is due.
    pub(in crate::sync) fn first(&mut self) -> Option<Instant> {
        self.sort();
        let firsts = self.due.values().filter_map(|queue| queue.first());
        let missed = self.missed.at.filter(|_| !self.is_empty());
        firsts.map(|(at, _)| *at).chain(missed).min()
    }

    /// Notes that `hold` is renewed at `at`, and subscribed from `listen` on.
    pub(in crate::sync) fn renew(
        &mut self,
        hold: Arc<Hold>,
        group: usize,
        at: Instant,
        listen: Option<Instant>,
    ) {
        let (owner, first) = (hold.owner, listen.map_or(at, |listen| listen.min(at)));
        let group = Group::Renewals(hold.keys.kind.name, group);
        let renewal = Renewal {
            hold,
            at,
            listening: listen.map_or(Listening::Told, Listening::Due),
            pause: FIRST_PAUSE_OF_LISTENING,
            asked: None,
        };
        self.note(owner, Task::Renew(renewal), group, first);
    }

    /// Notes that what an owner has is released from `at` on. This replaces its renewal, if there
    /// is one.
    pub(in crate::sync) fn release(&mut self, release: Release, at: Instant) {
        let owner = release.owner;
        self.note(owner, Task::Release(release), Group::Releases, at);
    }

    fn note(&mut self, owner: Owner, task: Task, group: Group, at: Instant) {
        let job = Job {
            task,
            group,
            at,
            sorted: false,
        };
        match self.jobs.insert(owner, job) {
            // Its owner is still in `unsorted`.
            Some(before) if !before.sorted => return,
            Some(before) => self.unschedule(before.group, before.at, owner),
            None => {}
        }
        // Without a look of the keeper nothing drains the list, so owners of jobs that were taken
        // off would pile up.
        if self.unsorted.len() >= MOST_UNSORTED.max(2 * self.jobs.len()) {
            let jobs = &self.jobs;
            self.unsorted
                .retain(|owner| jobs.get(owner).is_some_and(|job| !job.sorted));
        }
        self.unsorted.push(owner);
    }

    /// Sorts what was noted since the last time.
    fn sort(&mut self) {
        for owner in self.unsorted.drain(..) {
            if let Some(job) = self.jobs.get_mut(&owner)
                && !std::mem::replace(&mut job.sorted, true)
            {
                let queue = self.due.entry(job.group).or_default();
                queue.insert((job.at, owner));
            }
        }
    }

    /// Takes a job off. Returns whether there was one.
    pub(in crate::sync) fn remove(&mut self, owner: Owner) -> bool {
        let Some(job) = self.jobs.remove(&owner) else {
            return false;
        };
        if job.sorted {
            self.unschedule(job.group, job.at, owner);
        }
        true
    }

    /// Returns whether the release of `owner` is noted and was not tried yet.
    pub(in crate::sync) fn is_untouched(&self, owner: Owner) -> bool {
        let task = self.jobs.get(&owner).map(|job| &job.task);
        matches!(task, Some(Task::Release(release)) if !release.tried)
    }

    /// Returns the hold of `owner` if its lease is being renewed.
    pub(in crate::sync) fn hold(&self, owner: Owner) -> Option<Arc<Hold>> {
        match &self.jobs.get(&owner)?.task {
            Task::Renew(renewal) => Some(renewal.hold.clone()),
            Task::Release(_) => None,
        }
    }

    /// Notes that the server has renewed the lease of `owner`, by a question that was sent at
    /// `sent`.
    pub(in crate::sync) fn renewed(&mut self, owner: Owner, sent: Instant) {
        let Some(Task::Renew(renewal)) = self.jobs.get_mut(&owner).map(|job| &mut job.task) else {
            return; // The guard was dropped meanwhile.
        };
        if renewal.hold.is_in_doubt() {
            return; // It is asked for again at once.
        }
        let lease = renewal.hold.lease.duration();
        // A later question may still be in flight. It is given its time, too.
        let next = renewal.asked.map_or(sent, |asked| asked + again(lease));
        renewal.at = next.max(sent + lease / ROUND);
        let at = renewal.due();
        self.move_to(owner, at);
    }

    /// Moves the renewal of `owner` to `at`, unless it is due before.
    pub(in crate::sync) fn renew_soon(&mut self, owner: Owner, at: Instant) {
        if let Some(Task::Renew(renewal)) = self.jobs.get_mut(&owner).map(|job| &mut job.task) {
            renewal.at = renewal.at.min(at);
            let at = renewal.due();
            self.move_to(owner, at);
        }
    }

    /// Notes that messages on `channel` may have been missed. Its holders subscribe again from `at`
    /// on.
    pub(in crate::sync) fn listen_again(&mut self, channel: &Key, at: Instant) {
        self.missed.channels.insert(channel.clone());
        let first = self.missed.at.map_or(at, |first| first.min(at));
        self.missed.at = Some(first);
    }

    /// Makes the subscriptions of the holders of all missed channels due `now`. A holder whose last
    /// try failed waits for a pause first.
    fn find_missed(&mut self, now: Instant) {
        // In one pass over all jobs, however many channels were missed.
        let missed = std::mem::take(&mut self.missed);
        let mut owners: Vec<Owner> = Vec::new();
        for (owner, job) in &mut self.jobs {
            let Task::Renew(renewal) = &mut job.task else {
                continue;
            };
            if !missed.channels.contains(&renewal.hold.keys.channel) {
                continue;
            }
            let at = match renewal.listening {
                Listening::Due(at) => at.min(now + FIRST_PAUSE_OF_LISTENING),
                // A subscription in flight may be the one that was lost.
                Listening::Told | Listening::UnderWay(_) => now,
            };
            renewal.listening = Listening::Due(at);
            owners.push(*owner);
        }
        for owner in owners {
            self.reschedule(owner);
        }
    }

    /// Notes that the holder of `owner` is subscribed.
    pub(in crate::sync) fn listens(&mut self, owner: Owner) {
        let Some(Task::Renew(renewal)) = self.jobs.get_mut(&owner).map(|job| &mut job.task) else {
            return;
        };
        renewal.pause = FIRST_PAUSE_OF_LISTENING;
        // In any other state, messages may have been missed since, and the subscription is due
        // again.
        if let Listening::UnderWay(_) = renewal.listening {
            renewal.listening = Listening::Told;
            self.reschedule(owner);
        }
    }

    /// Notes that the holder of `owner` could not be subscribed. The next try follows, after ever
    /// longer pauses.
    pub(in crate::sync) fn listen_later(&mut self, owner: Owner, now: Instant) {
        let Some(Task::Renew(renewal)) = self.jobs.get_mut(&owner).map(|job| &mut job.task) else {
            return;
        };
        renewal.listening = Listening::Due(now + renewal.pause);
        renewal.pause = (2 * renewal.pause).min(LONGEST_PAUSE_OF_LISTENING);
        self.reschedule(owner);
    }

    /// Moves the renewal of `owner` to the earliest moment that makes sense, however often this is
    /// called. Returns that moment.
    pub(in crate::sync) fn renew_now(&mut self, owner: Owner, now: Instant) -> Instant {
        let Some(Task::Renew(renewal)) = self.jobs.get(&owner).map(|job| &job.task) else {
            return now;
        };
        // A flood of forged pushes must not become a flood of questions to the server.
        let at = renewal
            .asked
            .map_or(now, |asked| now.max(asked + SHORTEST_PAUSE));
        self.renew_soon(owner, at);
        at
    }

    /// Notes that a release was tried and is not settled. The pause before the next try is
    /// `longest` at most.
    pub(in crate::sync) fn release_again(&mut self, owner: Owner, now: Instant, longest: Duration) {
        let Some(Task::Release(release)) = self.jobs.get_mut(&owner).map(|job| &mut job.task)
        else {
            return;
        };
        // The last try is at `until`, when nothing can be left.
        let at = (now + release.pause.min(longest)).min(release.until.max(now));
        let longest = match release.answered {
            Answered::Yes => LONGEST_PAUSE,
            Answered::No | Answered::AllButLast => LONGEST_PAUSE_FOR_A_GRANT,
        };
        release.pause = (release.pause * 4).min(longest);
        self.move_to(owner, at);
    }

    /// Returns what has been due since `since`, which is not after `now`, and what is taken along
    /// with it. All of it stays on the agenda, in case its outcome is never reported.
    pub(in crate::sync) fn take(&mut self, since: Instant, now: Instant) -> Due {
        if self.missed.at.is_some_and(|at| at <= since) {
            self.find_missed(now);
        }
        self.sort();
        let mut due = Due::default();
        let overdue =
            |queue: &BTreeSet<(Instant, Owner)>| queue.first().is_some_and(|(at, _)| *at <= since);
        let groups = self.due.iter().filter(|(_, queue)| overdue(queue));
        let groups: Vec<Group> = groups.map(|(group, _)| *group).collect();
        let mut lasting = Vec::new();
        for group in groups {
            match group {
                Group::Releases => self.take_releases(now, &mut due),
                Group::Renewals(..) => self.take_renewals(group, now, &mut lasting, &mut due),
            }
        }
        due.lasting = by_channel(lasting);
        due
    }

    fn take_releases(&mut self, now: Instant, due: &mut Due) {
        let queue = self.due.get(&Group::Releases).into_iter().flatten();
        let owners: Vec<Owner> = queue
            .take_while(|(at, _)| *at <= now)
            .map(|(_, owner)| *owner)
            .collect();
        for owner in owners {
            let Some(Task::Release(release)) = self.jobs.get_mut(&owner).map(|job| &mut job.task)
            else {
                continue;
            };
            // From here on it may reach the server, so a local hand-over may no longer count on the
            // lease.
            release.tried = true;
            due.releases.push(release.clone());
            // Not taken off: the task that carries it out may stop half way.
            self.move_to(owner, now + STANDS_STILL);
        }
    }

    fn take_renewals(
        &mut self,
        group: Group,
        now: Instant,
        to_listen: &mut Vec<Arc<Hold>>,
        due: &mut Due,
    ) {
        let (mut taken, mut lasting) = (Vec::new(), Vec::new());
        let mut soon = now;
        for (looked_at, (at, owner)) in self.due.get(&group).into_iter().flatten().enumerate() {
            let Some(Task::Renew(renewal)) = self.jobs.get(owner).map(|job| &job.task) else {
                continue;
            };
            if *at > now {
                // Nothing more is due. Renewals that are due soon fill the last script up.
                // The pass ends when the last script is full, or after a bounded number of looks in
                // vain.
                let full = taken.len() % LARGEST_BATCH == 0;
                if full || *at > soon || looked_at > taken.len() + 4 * LARGEST_BATCH {
                    break;
                }
                if renewal.goes_along(now) {
                    taken.push(*owner);
                }
            } else if renewal.at <= now || renewal.hold.limit.is_some_and(|limit| limit <= now) {
                soon = soon.max(now + renewal.hold.lease.duration() / ALONG);
                taken.push(*owner);
            } else {
                lasting.push(*owner);
            }
        }
        for owner in lasting.iter().chain(&taken) {
            let Some(Task::Renew(renewal)) = self.jobs.get_mut(owner).map(|job| &mut job.task)
            else {
                continue;
            };
            if renewal.listening.next().is_some_and(|at| at <= now) {
                renewal.listening = Listening::UnderWay(now + STANDS_STILL);
                to_listen.push(renewal.hold.clone());
            }
        }
        // Only their subscriptions were due, so their renewals keep their time.
        for owner in &lasting {
            self.reschedule(*owner);
        }
        for batch in taken.chunks(LARGEST_BATCH) {
            let holds = batch.iter().filter_map(|owner| self.asked(*owner, now));
            due.batches.push(holds.collect());
        }
    }

    /// Notes that a renewal is sent now. Returns the hold to renew.
    fn asked(&mut self, owner: Owner, now: Instant) -> Option<Arc<Hold>> {
        let Task::Renew(renewal) = &mut self.jobs.get_mut(&owner)?.task else {
            return None;
        };
        renewal.asked = Some(now);
        // An answer moves it later. Without one, this is when it is sent again.
        renewal.at = now + again(renewal.hold.lease.duration());
        let (hold, at) = (renewal.hold.clone(), renewal.due());
        self.move_to(owner, at);
        Some(hold)
    }

    fn reschedule(&mut self, owner: Owner) {
        if let Some(Task::Renew(renewal)) = self.jobs.get(&owner).map(|job| &job.task) {
            let at = renewal.due();
            self.move_to(owner, at);
        }
    }

    fn move_to(&mut self, owner: Owner, at: Instant) {
        let Some(job) = self.jobs.get_mut(&owner) else {
            return;
        };
        let (group, before) = (job.group, std::mem::replace(&mut job.at, at));
        if job.sorted {
            self.unschedule(group, before, owner);
            self.due.entry(group).or_default().insert((at, owner));
        }
    }

    fn unschedule(&mut self, group: Group, at: Instant, owner: Owner) {
        if let Some(queue) = self.due.get_mut(&group) {
            queue.remove(&(at, owner));
        }
    }

    /// Sorts all renewals into the groups that `group` returns.
    pub(in crate::sync) fn regroup(&mut self, group: impl Fn(&Keys) -> usize) {
        self.sort();
        let owners: Vec<Owner> = self.jobs.keys().copied().collect();
        for owner in owners {
            let Some(job) = self.jobs.get_mut(&owner) else {
                continue;
            };
            let Task::Renew(renewal) = &job.task else {
                continue;
            };
            let keys = &renewal.hold.keys;
            let after = Group::Renewals(keys.kind.name, group(keys));
            let (before, at) = (std::mem::replace(&mut job.group, after), job.at);
            self.unschedule(before, at, owner);
            self.due.entry(after).or_default().insert((at, owner));
        }
        // Most of the old groups are empty now.
        self.due.retain(|_, queue| !queue.is_empty());
    }
}

impl Release {
    fn new(owner: Owner, keys: &Arc<Keys>, until: Instant) -> Self {
        Self {
            owner,
            keys: keys.clone(),
            until,
            answered: Answered::Yes,
            successor: None,
            hold: None,
            secret: Secret::Kept,
            pause: FIRST_PAUSE,
            tried: false,
        }
    }

    /// The release of what an owner without a guard asked for: `lease` at most, by questions of
    /// which none was sent after `last`.
    pub(in crate::sync) fn of_question(
        owner: Owner,
        keys: &Arc<Keys>,
        (last, lease): (Instant, Ttl),
        answered: Answered,
    ) -> Self {
        Self {
            answered,
            ..Self::new(owner, keys, last + lease.duration())
        }
    }

    /// The release of what a waiter may come to have, to which the grant of `hold` is passed `now`.
    pub(in crate::sync) fn of_successor(
        hold: &Arc<Hold>,
        (owner, lease): (Owner, Ttl),
        successor: Arc<dyn Reclaim>,
        answered: Answered,
        now: Instant,
    ) -> Self {
        // The hand-over is sent after `now`, and may be in flight for a while.
        let until = now + lease.duration() + ON_ITS_WAY;
        Self {
            successor: Some(successor),
            hold: Some(hold.clone()),
            answered,
            secret: Secret::Said,
            ..Self::new(owner, &hold.keys, until)
        }
    }

    /// The release of what a guard holds, as of `now`.
    pub(in crate::sync) fn of(hold: &Arc<Hold>, now: Instant) -> Self {
        let until = now + hold.lease.duration();
        Self {
            hold: Some(hold.clone()),
            secret: Secret::Said,
            ..Self::new(hold.owner, &hold.keys, until)
        }
    }

    /// Returns whether nothing is left to be released once the server has answered `RELEASED`.
    pub(in crate::sync) fn ends_with_a_release(&self) -> bool {
        self.answered != Answered::AllButLast
    }

    /// Returns whether nothing is left to be released once the server has answered `NOT_HELD`.
    pub(in crate::sync) fn ends_without_a_release(&self) -> bool {
        self.answered == Answered::Yes
    }
}

impl Renewal {
    /// Returns when the first of these is due: the renewal, the subscription, or the end by
    /// `max_hold`.
    fn due(&self) -> Instant {
        let listen = self.listening.next();
        let at = listen.map_or(self.at, |listen| listen.min(self.at));
        self.hold.limit.map_or(at, |limit| limit.min(at))
    }

    /// Returns whether the lease is renewed early, because others are renewed now. One whose
    /// renewal is in flight is not.
    fn goes_along(&self, now: Instant) -> bool {
        let lease = self.hold.lease.duration();
        let under_way = self
            .asked
            .is_some_and(|asked| self.at < asked + lease / ALONG);
        !under_way && self.at <= now + lease / ALONG
    }
}

impl Listening {
    /// Returns when to subscribe next.
    fn next(self) -> Option<Instant> {
        match self {
            Self::Told => None,
            Self::Due(at) | Self::UnderWay(at) => Some(at),
        }
    }
}

/// Groups holds by the channel on which their holders are told.
fn by_channel(mut holds: Vec<Arc<Hold>>) -> Vec<Vec<Arc<Hold>>> {
    holds.sort_unstable_by(|one, other| one.keys.channel.cmp(&other.keys.channel));
    let channels = holds.chunk_by(|one, other| one.keys.channel == other.keys.channel);
    channels.map(<[_]>::to_vec).collect()
}

/// After how long a renewal that was not answered is sent again, beside the question in flight. The
/// first is not given up: its answer counts, however late it comes.
fn again(lease: Duration) -> Duration {
    (lease / 24).max(SHORTEST_PAUSE)
}

/// A lease is renewed after each `1 / ROUND` of its length ..
pub(in crate::sync) const ROUND: u32 = 3;

/// .. or up to `1 / ALONG` of its length earlier, together with others.
const ALONG: u32 = 6;

/// How many owners the list of the unsorted has at least, before those are dropped whose jobs were
/// taken off.
const MOST_UNSORTED: usize = 64;

/// How many leases one script renews at most.
const LARGEST_BATCH: usize = 100;

/// The shortest pause between two questions for one lease.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// How long a call that may grant a lease may be in flight.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// How long a release or a subscription may take. After that, the task that carries it out stands
/// still.
const STANDS_STILL: Duration = Duration::from_secs(10);

/// The first pause between two tries to release. Each pause is four times as long as the one
/// before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The longest pause while a grant may still be in flight. It is short, because nobody uses such a
/// grant, and others wait for it to end.
const LONGEST_PAUSE_FOR_A_GRANT: Duration = Duration::from_secs(3);

/// The first pause after a subscription that failed. Each pause is twice as long as the one before.
const FIRST_PAUSE_OF_LISTENING: Duration = Duration::from_secs(1);
const LONGEST_PAUSE_OF_LISTENING: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
