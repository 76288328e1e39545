//! `Locks`: what one client knows of its locks, and the local queue of each contended name.
//!
//! Invariant: at most one call of this process asks the server for a name at a time, for itself and
//! the others, who stand in its [`Line`]; beside it, calls that do not wait may ask for themselves.
//! As long as a line has waiters, a [`campaign`](super::campaign) queues for them on the server.
//! State is kept only while somebody attempts or waits.

use std::collections::VecDeque;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::agenda::Answered;
use super::attempt::Attempt;
use super::campaign::{Campaign, Standing};
use super::guard::Guard;
use super::hold::{Hold, Owner};
use super::keeper::Keeper;
use super::place::{Place, Places};
use super::{Fence, Keys};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::hash::SeededMap;
use crate::name::Name;
use crate::pulse::Pulse;
use crate::script::{Call, Script};
use crate::time::{Deadline, Ttl};

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
    /// The owner whose request is in flight; later calls wait for its answer.
    attempting: Option<Owner>,
    /// The campaign for all of them.
    campaign: Option<Running>,
    pub(super) waiters: VecDeque<Waiting>,
    /// Made when somebody waits.
    nudge: Option<Arc<Notify>>,
    /// The holder in the server's last answer; none before the first.
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
        // Also its seal.
        let id = owner.id();
        let holder = [
            &b" 2 "[..],
            id.as_bytes(),
            b" ",
            id.as_bytes(),
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

    /// Lets the caller ask the server `now`, or says that others of this process come first.
    pub(super) fn attempt(
        self: &Arc<Self>,
        entry: &Entry,
        deadline: Deadline,
        now: Instant,
    ) -> Option<Attempt> {
        let mut lines = self.lines();
        let Vacant(vacant) = lines.entry(entry.keys.name.clone()) else {
            return None;
        };
        let owner = Owner::random();
        vacant.insert(Line {
            attempting: Some(owner),
            asked: Some(now),
            ..Line::default()
        });
        drop(lines);
        Some(Attempt::in_line(self, entry, owner, deadline, now))
    }

    /// Whether others of this process wait for the lock, as the server has said lately; an error if
    /// it could not be asked. If it says nothing, the caller had better ask for itself.
    pub(super) fn waited_for(&self, entry: &Entry) -> Result<bool> {
        let name = &entry.keys.name;
        let lines = self.lines();
        let Some(line) = lines.get(name) else {
            return Ok(false);
        };
        match line.trouble() {
            Some(trouble) => Err(trouble.with_key(name)),
            None => Ok(!line.waiters.is_empty() && !line.is_unanswered()),
        }
    }

    /// Why a call that does not wait out an outage does not stand in line, if that is so.
    pub(super) fn outage(&self, entry: &Entry) -> Option<Error> {
        let lines = self.lines();
        let trouble = lines.get(&entry.keys.name).and_then(Line::trouble);
        drop(lines);
        let trouble = trouble.filter(|trouble| trouble.kind().is_outage());
        trouble.or_else(|| entry.client.outage(entry.keys.lock()))
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
        self.stand(entry, until, VecDeque::push_back, None)
    }

    /// The same for a caller whose own question has met `trouble`. Of a line that is there already
    /// others may have heard better meanwhile.
    pub(super) fn join_after(
        self: &Arc<Self>,
        trouble: Error,
        entry: Entry,
        until: Instant,
    ) -> Ticket {
        self.stand(entry, until, VecDeque::push_back, Some(trouble))
    }

    /// Puts the caller, who asked the server for those who have come since, at the head of the
    /// line.
    pub(super) fn lead(self: &Arc<Self>, entry: Entry, until: Instant) -> Ticket {
        self.stand(entry, until, VecDeque::push_front, None)
    }

    fn stand(
        self: &Arc<Self>,
        entry: Entry,
        until: Instant,
        place: impl FnOnce(&mut VecDeque<Waiting>, Waiting),
        trouble: Option<Error>,
    ) -> Ticket {
        let (reply, answer) = oneshot::channel();
        let asks = entry.clone();
        let mut lines = self.lines();
        let line = lines.entry(asks.keys.name.clone());
        let line = line.or_insert_with(|| Line {
            trouble,
            ..Line::default()
        });
        let waiting = Waiting {
            entry,
            until,
            reply,
        };
        place(&mut line.waiters, waiting);
        let nudge = line.nudge();
        let idle = line.attempting.is_none();
        drop(lines);
        // Whoever asks or queues for it may stand still, or end, with another runtime.
        Keeper::man(self, &asks.client);
        if idle {
            self.campaign(&asks.keys, asks.client.clone(), None);
        }
        Ticket {
            answer,
            locks: self.clone(),
            asks,
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
            if let Some((place, standing)) = place {
                let (owner, asked) = (place.owner, (client.deadline().at, standing.asked.lease));
                self.keeper
                    .discard_owner(&client, keys, owner, asked, Answered::Yes);
            }
            return;
        };
        let number = self.campaigns.fetch_add(1, Ordering::Relaxed);
        line.campaign = Some(Running {
            number,
            pulse: None,
        });
        let nudge = line.nudge();
        drop(lines);
        let (place, standing) = place.unzip();
        let asked = standing.as_ref().map(|standing| standing.asked.lease);
        let spawner = client.spawner().clone();
        let campaign = Campaign::new(
            self.clone(),
            keys.clone(),
            client,
            number,
            nudge,
            place,
            asked,
        );
        let task = spawner.spawn(campaign.run(standing));
        if let Some(line) = self.lines().get_mut(&keys.name)
            && let Some(running) = line.campaign.as_mut().filter(|it| it.number == number)
        {
            running.pulse = Some(task.pulse().clone());
        }
    }

    /// Starts a campaign for `keys` if those who wait have none, or one that stands still with its
    /// runtime.
    fn see_to_campaign(self: &Arc<Self>, keys: &Arc<Keys>, client: &Client) {
        let lines = self.lines();
        let Some(line) = lines.get(&keys.name) else {
            return;
        };
        let nobody = line.attempting.is_none() && line.campaign.is_none();
        let running = line.campaign.as_ref();
        let pulse = running.and_then(|running| running.pulse.clone());
        drop(lines);
        let still = pulse.filter(|pulse| pulse.stands_still_when_asked());
        if let Some(pulse) = &still {
            client.spawner().distrust(pulse.runtime());
        }
        if nobody || still.is_some() {
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
        let leavers = line.without_leavers();
        let front = line.waiters.front().map(|waiting| waiting.entry.clone());
        if front.is_none() {
            line.campaign = None;
            if line.attempting.is_none() {
                lines.remove(name);
            }
        }
        drop(lines);
        drop(leavers);
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

    /// Changes a line, and forgets who has left it, and the line if nobody needs it any more.
    /// Returns whether somebody waits.
    fn tidied(&self, name: &Name, change: impl FnOnce(&mut Line)) -> bool {
        let mut lines = self.lines();
        let Occupied(mut found) = lines.entry(name.clone()) else {
            return false;
        };
        let line = found.get_mut();
        change(line);
        let leavers = line.without_leavers();
        let waited_for = !line.waiters.is_empty();
        if !waited_for && line.attempting.is_none() && line.campaign.is_none() {
            found.remove();
        }
        drop(lines);
        drop(leavers);
        waited_for
    }

    /// Whether a live waiter of `name` is left, and whether it is still `front`'s turn.
    pub(super) fn still_first(&self, name: &Name, front: &Entry) -> bool {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(name) else {
            return false;
        };
        let leavers = line.without_leavers();
        let is_first = line.is_first(front);
        drop(lines);
        drop(leavers);
        is_first
    }

    /// Hands a grant on the terms of `asked` to the first waiter of the name. Says whether there is
    /// one, and on those terms.
    pub(super) fn deliver(
        self: &Arc<Self>,
        asked: &Entry,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
    ) -> bool {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&asked.keys.name) else {
            return false;
        };
        (line.trouble, line.asked) = (None, None);
        let leavers = line.without_leavers();
        // Asked under the same lock under which it is taken: the one before it may leave at any
        // time.
        let is_first = line.is_first(asked);
        let waiting = is_first.then(|| line.waiters.pop_front()).flatten();
        drop(lines);
        drop(leavers);
        let Some(waiting) = waiting else {
            return false;
        };
        self.hand_to(waiting, owner, fence, granted);
        true
    }

    /// Makes the guard of a grant and gives it to who waited for it. If they have left, dropping
    /// it releases the lock.
    pub(super) fn hand_to(
        self: &Arc<Self>,
        waiting: Waiting,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
    ) {
        let hold = waiting.entry.hold(owner, fence, granted, 0);
        let client = waiting.entry.client;
        Keeper::man(self, &client);
        self.keeper.keep_offered(&client, &hold, granted);
        let guard = Guard::new(hold, self.clone(), client);
        let _ = waiting.reply.send(Ok(guard));
    }

    /// The same for a lock that is passed on inside the process. The waiter comes back if the
    /// keeper has given that up meanwhile.
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
    /// What tells the campaign that somebody has come or left.
    pub(super) fn nudge(&mut self) -> Arc<Notify> {
        self.nudge.get_or_insert_default().clone()
    }

    /// Whether a campaign is under way that is driven.
    fn is_queued_for(&self) -> bool {
        let pulse = self.campaign.as_ref().map(|it| it.pulse.as_ref());
        pulse.is_some_and(|pulse| !pulse.is_some_and(|pulse| pulse.stands_still()))
    }

    fn is_campaign(&self, number: u64) -> bool {
        self.campaign.as_ref().is_some_and(|it| it.number == number)
    }

    /// Takes out waiters whose calls were dropped, or whose wait is over. To be dropped without the
    /// lock on the lines: that may wake a task, and a waker may do anything.
    #[must_use = "drop it when the lines are unlocked"]
    pub(super) fn without_leavers(&mut self) -> VecDeque<Waiting> {
        if !self.waiters.iter().any(Waiting::has_left) {
            return VecDeque::new();
        }
        let (left, stay) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(Waiting::has_left);
        self.waiters = stay;
        left
    }

    /// Whether the first waiter has the terms of `asked`.
    fn is_first(&self, asked: &Entry) -> bool {
        let first = self.waiters.front();
        first.is_some_and(|first| first.entry.same_terms(asked))
    }

    /// Whether the server was asked for these waiters and has not answered.
    fn is_unanswered(&self) -> bool {
        let silent = self.asked.is_some_and(|asked| asked.elapsed() >= SILENCE);
        silent || self.trouble.is_some()
    }

    /// What kept the server from answering a question of another: nothing of the caller's was sent.
    fn trouble(&self) -> Option<Error> {
        let trouble = self.trouble.clone();
        trouble.map(|trouble| trouble.with_fate(Fate::NotExecuted))
    }
}

impl Waiting {
    fn has_left(&self) -> bool {
        self.reply.is_closed() || Instant::now() >= self.until + LATE
    }
}

impl Entry {
    /// What is known of a grant to `owner`.
    pub(super) fn hold(
        &self,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        passes: u32,
    ) -> Arc<Hold> {
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
    asks: Entry,
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

    /// Starts another campaign if the current one has stalled, and a keeper task if this runtime
    /// has none.
    pub(super) fn see_to_it(&self) {
        Keeper::man(&self.locks, &self.asks.client);
        self.locks
            .see_to_campaign(&self.asks.keys, &self.asks.client);
    }

    /// Why the wait ended without a grant.
    pub(super) fn expired(&self) -> Error {
        let lines = self.locks.lines();
        let line = lines.get(&self.asks.keys.name);
        if let Some(trouble) = line.and_then(Line::trouble) {
            return trouble;
        }
        // That others held it a while ago is not the reason when the server does not answer now.
        let line = line.filter(|line| !line.is_unanswered());
        if let Some(holder) = line.and_then(|line| line.holder.as_ref()) {
            return contended(&format!("its holder has {holder}"));
        }
        drop(lines);
        unanswered(&self.asks)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer.close();
        self.nudge.notify_one();
        self.locks.left(&self.asks.keys.name);
    }
}

fn contended(why: &str) -> Error {
    Error::new(
        ErrorKind::Contended,
        format!("the lock was not free in time; {why}"),
    )
}

/// The server was asked for others, and says nothing.
fn unanswered(entry: &Entry) -> Error {
    let silence = || {
        Error::new(
            ErrorKind::Timeout,
            "the server has not answered who holds the lock",
        )
    };
    let trouble = entry.client.trouble(entry.keys.lock());
    let trouble = trouble.unwrap_or_else(silence);
    trouble.with_fate(Fate::NotExecuted)
}

/// How long a question may be under way before a waiter that gives up says that the server is out.
const SILENCE: Duration = Duration::from_millis(500);

/// How much later than it should a waiter may be polled at the end of its wait.
const LATE: Duration = Duration::from_secs(1);

/// The longest lease that a hand-over grants before the new holder is heard of, as in
/// `prelude.lua`.
const CLAIM: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets in a lock's value, as scripts that do not take it apart spell them.
    #[test]
    fn scripts_look_where_the_value_of_a_lock_has_what_they_want() {
        let fence = "0".repeat(16) + " ";
        let owner = Owner::random().unqueued();
        let (begins, ends) = (fence.len(), fence.len() + owner.len() - 1);
        let acquire = include_str!("acquire.lua");
        assert!(acquire.contains(&format!("'SETRANGE', KEYS[1], {ends}, '+'")));
        let release = include_str!("release.lua");
        for text in [release, include_str!("release_alone.lua")] {
            assert!(text.contains(&format!("'GETRANGE', KEYS[1], '{begins}', '{ends}'")));
        }
        let id = owner.len() - 1;
        assert!(release.contains(&format!("string.sub(ARGV[1], 3, {id})")));
        // Lua counts from 1; the blank behind the id is left out.
        let renew = include_str!("renew.lua");
        assert!(renew.contains(&format!("string.sub(value, {}, {ends})", begins + 1)));
    }

    fn entry(client: &Client, millis: u64) -> Entry {
        let keys = Keys::of(client, &client.name("a"));
        Entry {
            client: client.clone(),
            keys: keys.expect("a good name").into(),
            lease: Ttl::new("the lease", Duration::from_millis(millis)).expect("in range"),
            max_hold: None,
            metadata: "".into(),
        }
    }

    /// The next question is under way, and not for long.
    #[tokio::test]
    async fn a_waiter_that_gives_up_is_told_what_the_last_question_has_met() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = Locks::of(&client);
        let entry = entry(&client, 30_000);
        let name = entry.keys.name.clone();
        let ticket = locks.join(entry, Instant::now() + Duration::from_secs(60));
        locks.heard(&name, Ok("fence 1".to_owned()));
        assert_eq!(ticket.expired().kind(), ErrorKind::Contended);
        locks.heard(&name, Err(Error::new(ErrorKind::Busy, "told by the test")));
        locks.asked(&name);
        let told = ticket.expired();
        assert_eq!(told.kind(), ErrorKind::Busy);
        assert_eq!(told.fate(), Fate::NotExecuted);
    }

    /// The first has left between the answer to its question and the delivery.
    #[tokio::test]
    async fn a_grant_is_not_delivered_to_a_waiter_on_other_terms() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = Locks::of(&client);
        let (asked, other) = (entry(&client, 30_000), entry(&client, 100));
        let until = Instant::now() + Duration::from_secs(60);
        let first = locks.join(asked.clone(), until);
        let mut second = locks.join(other.clone(), until);
        drop(first);
        let (sent, owner) = (Instant::now(), Owner::random());
        assert!(!locks.deliver(&asked, owner, Fence(1), (sent, asked.lease)));
        assert!(locks.deliver(&other, owner, Fence(1), (sent, other.lease)));
        let guard = second.granted().await.expect("granted");
        assert_eq!(guard.expect("in time").fence(), Fence(1));
    }

    /// The campaign of others may have heard of the server since the caller's question failed.
    #[tokio::test]
    async fn what_the_server_has_said_since_is_not_overwritten_by_an_old_failure() {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let locks = Locks::of(&client);
        let name = client.name("a");
        let entry = Entry {
            client: client.clone(),
            keys: Keys::of(&client, &name).expect("a good name").into(),
            lease: Ttl::new("the lease", Duration::from_secs(30)).expect("in range"),
            max_hold: None,
            metadata: "".into(),
        };
        let until = Instant::now() + Duration::from_secs(60);
        let failed = || Error::new(ErrorKind::Disconnected, "the server was out");
        let first = locks.join_after(failed(), entry.clone(), until);
        let told = locks
            .waited_for(&entry)
            .expect_err("nobody was heard since");
        assert_eq!(told.kind(), ErrorKind::Disconnected);
        locks.heard(&name, Ok("fence 1".into()));
        let second = locks.join_after(failed(), entry.clone(), until);
        assert!(locks.waited_for(&entry).expect("the server has answered"));
        drop((first, second));
    }

    /// A guard counts by its own claim until it has renewed the one that the script has granted.
    #[test]
    fn scripts_grant_the_claim_that_guards_count_on() {
        let prelude = include_str!("prelude.lua");
        let granted = format!("local CLAIM = {} ", CLAIM.as_millis());
        assert!(prelude.contains(&granted), "{granted}");
    }
}
