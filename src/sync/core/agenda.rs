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

mod release;
mod renewal;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use renewal::{
    ALONG, FIRST_PAUSE_OF_LISTENING, LONGEST_PAUSE_OF_LISTENING, Listening, Renewal,
    SHORTEST_PAUSE, again,
};
use tokio::time::Instant;

pub(in crate::sync) use release::{Answered, Reclaim, Release};

use super::hold::Hold;
use super::keys::Keys;
use super::kind::Breaking;
use super::owner::{ByOwner, Owner};
use crate::key::Key;

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

    /// How many leases are renewed or released.
    pub(in crate::sync) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Returns when the first job is due.
    pub(in crate::sync) fn first(&mut self) -> Option<Instant> {
        self.sort();
        let firsts = self.due.values().filter_map(|queue| queue.first());
        let missed = self.missed.at.filter(|_| !self.is_empty());
        firsts.map(|(at, _)| *at).chain(missed).min()
    }

    /// Notes that `hold` is renewed at `at`, and subscribed from `listen` on. Its `max_hold` is due
    /// in any case.
    pub(in crate::sync) fn renew(
        &mut self,
        hold: Arc<Hold>,
        group: usize,
        at: Instant,
        listen: Option<Instant>,
    ) {
        let owner = hold.owner;
        let group = Group::Renewals(hold.keys.kind.name, group);
        let renewal = Renewal {
            hold,
            at,
            listening: listen.map_or(Listening::Told, Listening::Due),
            pause: FIRST_PAUSE_OF_LISTENING,
            asked: None,
        };
        let first = renewal.due();
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
            let keys = &renewal.hold.keys;
            if keys.kind.breaking == Breaking::Never || !missed.channels.contains(&keys.channel) {
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
        release.pause = (release.pause * 4).min(release.answered.longest_pause());
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

/// Groups holds by the channel on which their holders are told.
fn by_channel(mut holds: Vec<Arc<Hold>>) -> Vec<Vec<Arc<Hold>>> {
    holds.sort_unstable_by(|one, other| one.keys.channel.cmp(&other.keys.channel));
    let channels = holds.chunk_by(|one, other| one.keys.channel == other.keys.channel);
    channels.map(<[_]>::to_vec).collect()
}

/// A lease is renewed after each `1 / ROUND` of its length.
pub(in crate::sync) const ROUND: u32 = 3;

/// How many owners the list of the unsorted has at least, before those are dropped whose jobs were
/// taken off.
const MOST_UNSORTED: usize = 64;

/// How many leases one script renews at most.
const LARGEST_BATCH: usize = 100;

/// How long a release or a subscription may take. After that, the task that carries it out stands
/// still.
const STANDS_STILL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
