//! `State`: what the tasks of the keeper share. That is the agenda, what is watched, and the list
//! of the tasks.
//!
//! Invariant: the client is kept alive only while there are notes and a task to carry them out. No
//! I/O here, and nothing is spawned. `keeper` has it behind its lock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::agenda::{Agenda, Due};
use super::keys::Keys;
use super::owner::Owner;
use super::watch::Watch;
use crate::client::Client;

#[derive(Debug, Default)]
pub(in crate::sync) struct State {
    pub(in crate::sync) agenda: Agenda,
    pub(in crate::sync) watch: Watch,
    /// When to look at what is watched. `None` if nothing is.
    pub(in crate::sync) look_at: Option<Instant>,
    /// How many calls in flight may leave a note when they are dropped. The tasks stay for them,
    /// because a drop cannot spawn one.
    pub(in crate::sync) handles: usize,
    /// Names whose waiters have no queue task.
    pub(in crate::sync) unattended: Vec<Arc<Keys>>,
    /// The tasks, from before they are spawned until they are dropped. A task stands in for those
    /// before it.
    pub(in crate::sync) tasks: Vec<KeeperTask>,
    /// The number of the latest task.
    pub(in crate::sync) numbers: u64,
    /// Kept alive while there are notes and a task to carry them out. At any other time this would
    /// be a circle, because the client owns the keeper.
    pub(in crate::sync) client: Option<Client>,
    /// Whether one script may not renew leases of several slots, even on one server.
    pub(in crate::sync) slot_by_slot: bool,
    /// The groups of keys whose server knows the script that renews a kind, as far as known, so
    /// that the script need not be sent. The numbers are those of [`Client::script_group`].
    pub(in crate::sync) script_is_known_at: BTreeSet<(&'static str, usize)>,
}

/// A task of the keeper, as the others know it.
#[derive(Debug)]
pub(in crate::sync) struct KeeperTask {
    pub(in crate::sync) number: u64,
    pub(in crate::sync) runtime: runtime::Id,
    /// When the task looks at the agenda again if nothing wakes it.
    pub(in crate::sync) wakes_at: Instant,
    /// Since when the task has found nothing to do.
    pub(in crate::sync) quiet_since: Option<Instant>,
    pub(in crate::sync) nudge: Arc<Notify>,
}

impl KeeperTask {
    /// Returns whether the task is so late that it stands still. The others do not wait for such a
    /// task.
    pub(in crate::sync) fn is_overdue(&self) -> bool {
        self.wakes_at.elapsed() >= OVERDUE
    }
}

/// What a task finds when it looks at the agenda.
pub(in crate::sync) struct Look {
    pub(in crate::sync) due: Due,
    /// Whether to look at what is watched.
    pub(in crate::sync) look: bool,
    pub(in crate::sync) unattended: Vec<Arc<Keys>>,
    pub(in crate::sync) client: Option<Client>,
    /// When to look again.
    pub(in crate::sync) next: Instant,
}

/// Whether a task of the keeper is carrying something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Work {
    UnderWay,
    Done,
}

impl State {
    /// Returns whether there is nothing to do, now or later.
    pub(in crate::sync) fn is_idle(&self) -> bool {
        self.agenda.is_empty() && self.watch.is_empty()
    }

    /// How many leases are held, asked for, or on their way to be released.
    pub(in crate::sync) fn notes(&self) -> usize {
        self.agenda.len() + self.watch.len()
    }

    /// Takes a note off. With the last note it returns the client, which is dropped after
    /// unlocking.
    pub(in crate::sync) fn remove(&mut self, owner: Owner) -> Option<Client> {
        self.agenda.remove(owner);
        self.rest()
    }

    /// Returns the client if there is nothing to do. It is dropped after unlocking, because the
    /// last client takes the keeper along.
    pub(in crate::sync) fn rest(&mut self) -> Option<Client> {
        match self.is_idle() {
            // Nothing to do: a client that is kept now would never be dropped.
            true => self.client.take(),
            false => None,
        }
    }

    /// Returns what the task with this number does at `now`. `None` if the task is not needed any
    /// more.
    pub(in crate::sync) fn look(&mut self, number: u64, work: Work, now: Instant) -> Option<Look> {
        let place = self.tasks.iter().position(|task| task.number == number)?;
        let patience = patience(self.ahead_of(place));
        // A task that has others before it takes only what they have left undone for a while.
        let since = now.checked_sub(patience).unwrap_or(now);
        let look = self.look_at.is_some_and(|at| at <= since);
        let due = match self.client {
            Some(_) => self.agenda.take(since, now),
            None => Due::default(),
        };
        let unattended = std::mem::take(&mut self.unattended);
        if work == Work::Done && self.is_idle() && self.handles == 0 && unattended.is_empty() {
            let since = *self.tasks[place].quiet_since.get_or_insert(now);
            if now.duration_since(since) >= QUIET {
                // Whatever is noted from here on starts another task. The client need not be
                // dropped here: an idle keeper has none.
                self.tasks.remove(place);
                return None;
            }
        } else {
            self.tasks[place].quiet_since = None;
        }
        let rest = now + IDLE;
        if look {
            // The callers that are woken now have until the next look to be polled.
            self.look_at = Some(now + LOOK);
        }
        let first = self.agenda.first().into_iter().chain(self.look_at).min();
        let next = first.map_or(rest, |at| rest.min(at + patience));
        self.tasks[place].wakes_at = next;
        Some(Look {
            due,
            look,
            unattended,
            client: self.client.clone(),
            next,
        })
    }

    /// Returns when to look at what is watched, and sets that moment if there is none.
    pub(in crate::sync) fn look_at(&mut self) -> Instant {
        *self.look_at.get_or_insert_with(|| Instant::now() + LOOK)
    }

    /// Returns the number of the leases that one script may renew together with `keys`.
    pub(in crate::sync) fn group(&self, client: &Client, keys: &Keys) -> usize {
        match self.slot_by_slot {
            true => by_slot(keys),
            false => client.script_group(keys.holders()),
        }
    }

    /// Returns the tasks that would be late for what is due at `at`.
    pub(in crate::sync) fn late_for(&self, at: Instant) -> Vec<Arc<Notify>> {
        let mut ahead = 0;
        let mut late = Vec::new();
        for task in &self.tasks {
            // Only those: a task that looks in time need not be woken.
            if task.wakes_at > at + patience(ahead) {
                late.push(task.nudge.clone());
            }
            // A task that stands still takes nothing, so nobody waits for it.
            ahead += u32::from(!task.is_overdue());
        }
        late
    }

    /// Returns how many of the first `place` tasks may take what is due before the next one does.
    fn ahead_of(&self, place: usize) -> u32 {
        let ahead = self.tasks.iter().take(place);
        let ahead = ahead.filter(|task| !task.is_overdue()).count();
        u32::try_from(ahead).unwrap_or(u32::MAX)
    }
}

/// Returns the group of `keys` where one script may renew the leases of one slot only.
pub(in crate::sync) fn by_slot(keys: &Keys) -> usize {
    usize::from(keys.holders().slot())
}

/// Returns how long after it is due a task takes what the `ahead` tasks before it have left.
fn patience(ahead: u32) -> Duration {
    STAND_IN * ahead.min(MOST_AHEAD)
}

/// How often the keeper looks at the callers on which others depend.
pub(in crate::sync) const LOOK: Duration = Duration::from_millis(100);

/// How long a task stays without anything to do ..
const QUIET: Duration = Duration::from_secs(5);

/// .. and the longest pause between two looks, so that it finds out.
const IDLE: Duration = Duration::from_secs(10);

/// How late the task of a runtime may be before the task of the next takes its work.
const STAND_IN: Duration = Duration::from_millis(10);

/// How many tasks another one waits for at most. All of them may stand still, which is not known
/// yet of those that should have looked a moment ago.
const MOST_AHEAD: u32 = 3;

/// A task that is this late stands still.
pub(in crate::sync) const OVERDUE: Duration = Duration::from_secs(1);
