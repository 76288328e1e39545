//! `Locks`: what one client knows of its locks, and the local queue of each contended name.
//!
//! Invariant: at most one call of this process asks the server for a name at a time; the others
//! stand in its [`Line`]. As long as a line has waiters, a [`campaign`](super::campaign) queues
//! for them on the server. State is kept only while somebody attempts or waits.

use std::collections::VecDeque;
use std::collections::hash_map::Entry::Vacant;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::attempt::Attempt;
use super::campaign::{Campaign, Standing};
use super::guard::Guard;
use super::hold::{Hold, Owner};
use super::keeper::Keeper;
use super::place::{Place, Places};
use super::{Fence, Keys};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::SeededMap;
use crate::name::Name;
use crate::pulse::Pulse;
use crate::script::{Call, Script};
use crate::time::Ttl;

/// What the locks of one client share.
#[derive(Debug, Default)]
pub(super) struct Locks {
    lines: Mutex<SeededMap<Name, Line>>,
    /// Campaigns that may be granted a lock by push.
    places: Places,
    keeper: Keeper,
    /// Tells campaigns apart.
    campaigns: AtomicU64,
}

/// The local queue of one name.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Who asks the server for all who come.
    attempting: Option<Owner>,
    /// The campaign for all of them.
    campaign: Option<Running>,
    pub(super) waiters: VecDeque<Waiting>,
    pub(super) nudge: Arc<Notify>,
    /// Who held the lock when the server answered last; nothing before its first answer.
    holder: Option<String>,
    /// What kept the server from answering, if it did not.
    trouble: Option<Error>,
    /// Since when a question is under way.
    asked: Option<Instant>,
}

/// A campaign under way.
#[derive(Debug)]
struct Running {
    number: u64,
    /// Its task's, once it is spawned.
    pulse: Option<Arc<Pulse>>,
}

/// What one call needs to acquire a lock.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) client: Client,
    pub(super) keys: Arc<Keys>,
    pub(super) lease: Ttl,
    pub(super) max_hold: Option<Duration>,
    pub(super) metadata: Arc<str>,
}

/// What an owner does in the queue of the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Queueing {
    /// It takes no place.
    No,
    /// It is granted the lock unheard, and asks every now and then whether it was.
    Asking,
    /// It is told of its grant by push.
    Listening,
}

/// A call that stands in line.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) entry: Entry,
    /// When its wait is over, whether or not anybody polls it.
    until: Instant,
    reply: oneshot::Sender<Result<Guard>>,
}

impl Entry {
    pub(super) fn call(&self, script: &'static Script) -> Call {
        self.keys.call(script)
    }

    /// The call that asks the server for the lock, and for a place in its queue.
    pub(super) fn acquire(&self, owner: Owner, queueing: Queueing) -> Call {
        let told = match queueing {
            Queueing::No => b" 0",
            Queueing::Asking => b" 1",
            Queueing::Listening => b" 2",
        };
        let seal = owner.id();
        let holder = [
            b" ",
            &owner.unqueued()[..],
            seal.as_bytes(),
            told,
            self.client.process().as_bytes(),
            b" ",
            self.metadata.as_bytes(),
        ];
        self.call(&super::ACQUIRE)
            .arg(holder.concat())
            .arg(self.lease.millis())
    }

    /// The lease that a hand-over grants at first; the keeper then renews it to its full length.
    pub(super) fn claim(&self) -> Ttl {
        self.lease.at_most(CLAIM)
    }
}

impl Locks {
    pub(super) fn of(client: &Client) -> Arc<Self> {
        client.room(Self::default)
    }

    pub(super) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Lets the caller ask the server, or says that others of this process come first.
    pub(super) fn attempt(self: &Arc<Self>, entry: &Entry) -> Option<Attempt> {
        let mut lines = self.lines();
        let Vacant(vacant) = lines.entry(entry.keys.name.clone()) else {
            return None;
        };
        let owner = Owner::random();
        vacant.insert(Line {
            attempting: Some(owner),
            asked: Some(Instant::now()),
            ..Line::default()
        });
        drop(lines);
        Some(Attempt::in_line(self, entry, owner))
    }

    /// Whether others of this process wait for `name`; an error if they do because the server does
    /// not answer.
    pub(super) fn waited_for(&self, name: &Name) -> Result<bool> {
        match self.lines().get(name) {
            Some(Line {
                trouble: Some(trouble),
                ..
            }) => Err(trouble.clone().with_key(name)),
            Some(line) => Ok(!line.waiters.is_empty()),
            None => Ok(false),
        }
    }

    /// The attempt of `owner` on `name` is over: if others have come meanwhile, somebody must queue
    /// for them. Returns whether that is so.
    pub(super) fn attempted(&self, name: &Name, owner: Owner) -> bool {
        self.tidied(name, |line| {
            if line.attempting == Some(owner) {
                line.attempting = None;
                line.asked = None;
            }
        })
    }

    /// Puts the caller at the end of the line.
    pub(super) fn join(self: &Arc<Self>, entry: Entry, until: Instant) -> Ticket {
        self.stand(entry, until, VecDeque::push_back)
    }

    /// Puts the caller, who asked the server for those who have come since, at the head of the line.
    pub(super) fn lead(self: &Arc<Self>, entry: Entry, until: Instant) -> Ticket {
        self.stand(entry, until, VecDeque::push_front)
    }

    fn stand(
        self: &Arc<Self>,
        entry: Entry,
        until: Instant,
        place: impl FnOnce(&mut VecDeque<Waiting>, Waiting),
    ) -> Ticket {
        let (reply, answer) = oneshot::channel();
        let (keys, client) = (entry.keys.clone(), entry.client.clone());
        let mut lines = self.lines();
        let line = lines.entry(keys.name.clone()).or_default();
        let waiting = Waiting {
            entry,
            until,
            reply,
        };
        place(&mut line.waiters, waiting);
        let nudge = line.nudge.clone();
        let idle = line.attempting.is_none();
        drop(lines);
        if idle {
            self.campaign(&keys, client.clone(), None);
        }
        Ticket {
            answer,
            locks: self.clone(),
            keys,
            client,
            nudge,
        }
    }

    /// Puts a waiter that was to be the next holder, and is not, back at the head of the line.
    pub(super) fn back_in_line(&self, waiting: Waiting) {
        let mut lines = self.lines();
        if waiting.has_left() {
            return; // Nobody would ever take it out of the line again.
        }
        let line = lines.entry(waiting.entry.keys.name.clone()).or_default();
        line.waiters.push_front(waiting);
    }

    /// A waiter of `name` has left. The campaign or the attempt forgets it, and else this does: it
    /// would keep the client alive.
    fn left(&self, name: &Name) {
        let lines = self.lines();
        let line = lines.get(name);
        let alone = line.is_some_and(|line| line.campaign.is_none() && line.attempting.is_none());
        drop(lines);
        if alone {
            self.tidied(name, |_| ());
        }
    }

    /// Starts the campaign of a name whose last one was torn down, if somebody waits.
    pub(super) fn adopt(self: &Arc<Self>, keys: &Arc<Keys>) {
        let lines = self.lines();
        let front = lines.get(&keys.name).and_then(|line| line.waiters.front());
        let client = front.map(|waiting| waiting.entry.client.clone());
        drop(lines);
        if let Some(client) = client {
            self.campaign(keys, client, None);
        }
    }

    /// Starts the campaign of `name`, unless one is under way or nobody waits. `place` is a place
    /// in the queue of the server that was taken already.
    pub(super) fn campaign(
        self: &Arc<Self>,
        keys: &Arc<Keys>,
        client: Client,
        place: Option<(Place, Standing)>,
    ) {
        let mut lines = self.lines();
        let wanted = lines
            .get_mut(&keys.name)
            .filter(|line| !line.is_queued_for() && !line.waiters.is_empty());
        let Some(line) = wanted else {
            drop(lines);
            if let Some((place, _)) = place {
                let until = client.deadline().at;
                self.keeper
                    .discard_owner(&client, keys, place.owner, until, false);
            }
            return;
        };
        let number = self.campaigns.fetch_add(1, Ordering::Relaxed);
        line.campaign = Some(Running {
            number,
            pulse: None,
        });
        let nudge = line.nudge.clone();
        drop(lines);
        let (place, standing) = place.unzip();
        let spawner = client.spawner().clone();
        let campaign = Campaign::new(self.clone(), keys.clone(), client, number, nudge, place);
        let task = spawner.spawn(campaign.run(standing));
        if let Some(line) = self.lines().get_mut(&keys.name)
            && let Some(running) = line.campaign.as_mut().filter(|it| it.number == number)
        {
            running.pulse = Some(task.pulse().clone());
        }
    }

    /// Starts another campaign for `keys` if the one under way stands still with its runtime.
    fn see_to_campaign(self: &Arc<Self>, keys: &Arc<Keys>, client: &Client) {
        let lines = self.lines();
        let line = lines.get(&keys.name);
        let running = line.and_then(|line| line.campaign.as_ref());
        let pulse = running.and_then(|running| running.pulse.clone());
        drop(lines);
        if let Some(pulse) = pulse.filter(|pulse| pulse.stands_still_when_asked()) {
            client.spawner().distrust(pulse.runtime());
            self.campaign(keys, client.clone(), None);
        }
    }

    /// The first live waiter of `name`, for the campaign with this number. When there is none, or
    /// another campaign has taken its place, it is over; and without waiters so is the line.
    pub(super) fn front(&self, name: &Name, number: u64) -> Option<Entry> {
        let mut lines = self.lines();
        let line = lines
            .get_mut(name)
            .filter(|line| line.is_campaign(number))?;
        line.drop_leavers();
        let front = line.waiters.front().map(|waiting| waiting.entry.clone());
        if front.is_none() {
            line.campaign = None;
            if line.attempting.is_none() {
                lines.remove(name);
            }
        }
        front
    }

    /// The campaign of `name` was torn down; says whether somebody waits for another.
    pub(super) fn torn_down(&self, name: &Name, number: u64) -> bool {
        self.tidied(name, |line| {
            if line.is_campaign(number) {
                line.campaign = None;
            }
        })
    }

    /// Changes a line, and forgets who has left it, and the line if nobody needs it any more. Returns
    /// whether somebody waits.
    fn tidied(&self, name: &Name, change: impl FnOnce(&mut Line)) -> bool {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(name) else {
            return false;
        };
        change(line);
        line.drop_leavers();
        let waited_for = !line.waiters.is_empty();
        if !waited_for && line.attempting.is_none() && line.campaign.is_none() {
            lines.remove(name);
        }
        waited_for
    }

    /// Whether a live waiter of `name` is left, and whether it is still `front`'s turn.
    pub(super) fn still_first(&self, name: &Name, front: &Entry) -> bool {
        let mut lines = self.lines();
        lines.get_mut(name).is_some_and(|line| {
            line.drop_leavers();
            line.waiters
                .front()
                .is_some_and(|first| first.entry.same_terms(front))
        })
    }

    /// Hands a grant to the first waiter of a name.
    pub(super) fn deliver(
        self: &Arc<Self>,
        keys: &Arc<Keys>,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        client: &Client,
    ) {
        let waiting = {
            let mut lines = self.lines();
            lines.get_mut(&keys.name).and_then(|line| {
                (line.trouble, line.asked) = (None, None);
                line.drop_leavers();
                line.waiters.pop_front()
            })
        };
        match waiting {
            Some(waiting) => self.hand_to(waiting, owner, fence, granted, 0),
            None => {
                // They all left this instant.
                let until = Instant::now() + granted.1.duration();
                self.keeper.discard_owner(client, keys, owner, until, false);
            }
        }
    }

    /// Makes the guard of a grant and gives it to who waited for it. If they have left, dropping
    /// it releases the lock.
    pub(super) fn hand_to(
        self: &Arc<Self>,
        waiting: Waiting,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        passes: u32,
    ) {
        let hold = waiting.entry.hold(owner, fence, granted, passes);
        let client = waiting.entry.client;
        Keeper::man(self, &client);
        self.keeper.keep_offered(&client, &hold, granted);
        let guard = Guard::new(hold, self.clone(), client);
        let _ = waiting.reply.send(Ok(guard));
    }

    /// The same for a lock that is passed on inside the process. The waiter comes back if the keeper has
    /// given that up meanwhile.
    pub(super) fn pass_to(
        self: &Arc<Self>,
        waiting: Waiting,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        passes: u32,
    ) -> Option<Waiting> {
        let hold = waiting.entry.hold(owner, fence, granted, passes);
        let client = &waiting.entry.client;
        Keeper::man(self, client);
        if !self.keeper.keep_passed(client, &hold, granted) {
            return Some(waiting);
        }
        let guard = Guard::new(hold, self.clone(), waiting.entry.client);
        let _ = waiting.reply.send(Ok(guard));
        None
    }

    /// Makes the guard of a grant that answers a caller's own question, if it is still its own.
    pub(super) fn guard_of_caller(
        self: &Arc<Self>,
        entry: Entry,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
    ) -> Option<Guard> {
        let hold = entry.hold(owner, fence, granted, 0);
        let kept = self.keeper.keep_asked(&entry.client, &hold, granted);
        kept.then(|| Guard::new(hold, self.clone(), entry.client))
    }

    /// Tells all waiters of `name` that the server refuses.
    pub(super) fn fail(&self, name: &Name, error: &Error) {
        let waiters = {
            let mut lines = self.lines();
            lines
                .get_mut(name)
                .map(|line| std::mem::take(&mut line.waiters))
        };
        for waiting in waiters.into_iter().flatten() {
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    /// The server is being asked.
    pub(super) fn asked(&self, name: &Name) {
        if let Some(line) = self.lines().get_mut(name) {
            line.asked = Some(Instant::now());
        }
    }

    /// Remembers what the server said last, for those who give up waiting.
    pub(super) fn heard(&self, name: &Name, heard: Result<String, Error>) {
        if let Some(line) = self.lines().get_mut(name) {
            line.asked = None;
            match heard {
                Ok(holder) => (line.holder, line.trouble) = (Some(holder), None),
                Err(trouble) => line.trouble = Some(trouble),
            }
        }
    }

    pub(super) fn lines(&self) -> MutexGuard<'_, SeededMap<Name, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }
}

impl Line {
    /// Whether a campaign is under way that is driven.
    fn is_queued_for(&self) -> bool {
        let pulse = self.campaign.as_ref().map(|it| it.pulse.as_ref());
        pulse.is_some_and(|pulse| !pulse.is_some_and(|pulse| pulse.stands_still()))
    }

    fn is_campaign(&self, number: u64) -> bool {
        self.campaign.as_ref().is_some_and(|it| it.number == number)
    }

    /// Forgets waiters whose calls were dropped, or whose wait is over.
    pub(super) fn drop_leavers(&mut self) {
        self.waiters.retain(|waiting| !waiting.has_left());
    }
}

impl Waiting {
    fn has_left(&self) -> bool {
        self.reply.is_closed() || Instant::now() >= self.until + LATE
    }
}

impl Entry {
    /// What is known of a grant to `owner`.
    fn hold(&self, owner: Owner, fence: Fence, granted: (Instant, Ttl), passes: u32) -> Arc<Hold> {
        let (keys, lease, limit) = (self.keys.clone(), self.lease, self.max_hold);
        Hold::new(keys, owner, fence, lease, limit, granted, passes)
    }

    /// Whether a grant made for `other` fits this call as it is.
    pub(super) fn same_terms(&self, other: &Self) -> bool {
        self.lease == other.lease && self.metadata == other.metadata
    }
}

/// A place in line. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Ticket {
    answer: oneshot::Receiver<Result<Guard>>,
    locks: Arc<Locks>,
    keys: Arc<Keys>,
    client: Client,
    nudge: Arc<Notify>,
}

impl Ticket {
    /// Waits for the grant. `None` if it was taken back, since nobody polled this when it came.
    pub(super) async fn granted(&mut self) -> Result<Option<Guard>> {
        match (&mut self.answer).await {
            Ok(Ok(guard)) => Ok(guard.take().then_some(guard)),
            Ok(Err(error)) => Err(error),
            // It was taken out of the line: nobody polled this when its wait was over.
            Err(_) => Err(self.expired()),
        }
    }

    /// Sees to it that somebody queues for this, and that a keeper is at work: whoever does, or is, may
    /// stand still.
    pub(super) fn see_to_it(&self) {
        Keeper::man(&self.locks, &self.client);
        self.locks.see_to_campaign(&self.keys, &self.client);
    }

    /// Why the wait ended without a grant.
    pub(super) fn expired(&self) -> Error {
        let lines = self.locks.lines();
        let Some(line) = lines.get(&self.keys.name) else {
            return unanswered();
        };
        if let Some(trouble) = &line.trouble {
            return trouble.clone();
        }
        let silent = line.asked.is_some_and(|asked| asked.elapsed() >= SILENCE);
        match &line.holder {
            // That others held it a while ago is not the reason when the server does not answer now.
            Some(holder) if !silent => contended(&format!("its holder has {holder}")),
            _ => {
                drop(lines);
                let trouble = self.client.trouble(self.keys.lock());
                trouble.unwrap_or_else(unanswered)
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer.close();
        self.nudge.notify_one();
        self.locks.left(&self.keys.name);
    }
}

fn contended(why: &str) -> Error {
    Error::new(
        ErrorKind::Contended,
        format!("the lock was not free in time; {why}"),
    )
}

fn unanswered() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the server has not answered who holds the lock",
    )
    .with_fate(crate::error::Fate::NotExecuted)
}

/// How long a question may be under way before a waiter that gives up says that the server is out.
const SILENCE: Duration = Duration::from_millis(500);

/// How much later than it should a waiter may be polled at the end of its wait.
const LATE: Duration = Duration::from_secs(1);

/// The longest lease that a hand-over grants before the new holder is heard of, as in `prelude.lua`.
const CLAIM: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::CLAIM;

    /// A guard counts by its own claim until it has renewed the one that the script has granted.
    #[test]
    fn scripts_grant_the_claim_that_guards_count_on() {
        let prelude = include_str!("prelude.lua");
        let granted = format!("local CLAIM = {} ", CLAIM.as_millis());
        assert!(prelude.contains(&granted), "{granted}");
    }
}
