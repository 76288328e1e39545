//! What the tasks of the keeper share: the agenda, what is watched, and which tasks there are.
//!
//! Invariant: the client is kept alive only while there are notes and a task to carry them out. No
//! I/O here, and nothing is spawned.

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
    /// When to look after what is watched.
    pub(in crate::sync) look_at: Option<Instant>,
    /// Calls under way that may leave a note when they are dropped: the tasks stay for them.
    pub(in crate::sync) handles: usize,
    /// Names whose waiters have nobody who queues for them.
    pub(in crate::sync) unattended: Vec<Arc<Keys>>,
    /// The tasks: from before they are spawned until they are dropped.
    pub(in crate::sync) posts: Vec<KeeperTask>,
    /// Tells posts apart.
    pub(in crate::sync) numbers: u64,
    /// Kept alive while there are notes and a task to carry them out. At any other time this
    /// would be a circle: the client owns the keeper.
    pub(in crate::sync) client: Option<Client>,
    /// One script may not renew leases of several slots, though they are on one server.
    pub(in crate::sync) slot_by_slot: bool,
    /// Where the script that renews is known, as far as is known, and need not be sent: by
    /// [`Client::together`].
    pub(in crate::sync) script_is_known_at: BTreeSet<usize>,
}

/// A task of the keeper, as the others know it.
#[derive(Debug)]
pub(in crate::sync) struct KeeperTask {
    pub(in crate::sync) number: u64,
    pub(in crate::sync) runtime: runtime::Id,
    /// When it looks at the agenda again without being nudged.
    pub(in crate::sync) wakes_at: Instant,
    /// Since when it has found nothing to do.
    pub(in crate::sync) quiet_since: Option<Instant>,
    pub(in crate::sync) nudge: Arc<Notify>,
}

impl KeeperTask {
    /// Whether the task is so late that it stands still: nobody waits for it.
    pub(in crate::sync) fn is_overdue(&self) -> bool {
        self.wakes_at.elapsed() >= OVERDUE
    }
}

/// What a task finds when it looks at the agenda.
pub(in crate::sync) struct Look {
    pub(in crate::sync) due: Due,
    /// Whether to look after what is watched.
    pub(in crate::sync) look: bool,
    pub(in crate::sync) unattended: Vec<Arc<Keys>>,
    pub(in crate::sync) client: Option<Client>,
    /// When to look again.
    pub(in crate::sync) next: Instant,
}

impl State {
    /// Whether there is nothing to do, now or later.
    pub(in crate::sync) fn is_idle(&self) -> bool {
        self.agenda.is_empty() && self.watch.is_empty()
    }

    /// Takes a note off. The client comes back with the last one, to be dropped without the lock.
    pub(in crate::sync) fn remove(&mut self, owner: Owner) -> Option<Client> {
        self.agenda.remove(owner);
        self.rest()
    }

    /// The client, when there is nothing to do, to be dropped without the lock.
    pub(in crate::sync) fn rest(&mut self) -> Option<Client> {
        match self.is_idle() {
            true => self.client.take(),
            false => None,
        }
    }

    /// When what is watched is looked after.
    pub(in crate::sync) fn look_at(&mut self) -> Instant {
        *self.look_at.get_or_insert_with(|| Instant::now() + LOOK)
    }

    pub(in crate::sync) fn group(&self, client: &Client, keys: &Keys) -> usize {
        match self.slot_by_slot {
            true => by_slot(keys),
            false => client.script_group(keys.lock()),
        }
    }

    /// Those of the tasks that would be late for what is due at `at`.
    pub(in crate::sync) fn late_for(&self, at: Instant) -> Vec<Arc<Notify>> {
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
    pub(in crate::sync) fn ahead_of(&self, place: usize) -> u32 {
        let ahead = self.posts.iter().take(place);
        let ahead = ahead.filter(|post| !post.is_overdue()).count();
        u32::try_from(ahead).unwrap_or(u32::MAX)
    }
}

pub(in crate::sync) fn by_slot(keys: &Keys) -> usize {
    usize::from(keys.lock().slot())
}

/// How much later than due a task takes what the `ahead` tasks before it have not taken.
pub(in crate::sync) fn patience(ahead: u32) -> Duration {
    STAND_IN * ahead.min(MOST_AHEAD)
}

/// How often callers are looked after on whom others depend.
pub(in crate::sync) const LOOK: Duration = Duration::from_millis(100);

/// How long the keeper stays without anything to do ..
pub(in crate::sync) const QUIET: Duration = Duration::from_secs(5);

/// .. which it finds out when it looks again after this.
pub(in crate::sync) const IDLE: Duration = Duration::from_secs(10);

/// How long the task of a runtime may be late before that of the next takes its work.
const STAND_IN: Duration = Duration::from_millis(10);

/// For so many tasks does another one wait at most. All of them may stand still, which is not known
/// yet of those that should have looked a moment ago.
const MOST_AHEAD: u32 = 3;

/// A task that is so late stands still.
pub(in crate::sync) const OVERDUE: Duration = Duration::from_secs(1);
