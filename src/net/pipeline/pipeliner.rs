//! `Pipeliner`: gathers the commands of concurrent callers into pipelines over one connection.
//!
//! Invariant: every command is sent at most once, and a command whose caller has left, or whose
//! deadline has passed, before it was taken is not sent at all. What waits is bounded; the excess
//! is refused at once. A lone caller's command goes straight to the connection; when several are
//! under way, the rest wait in a [`Queue`] and a carrier task sends all of them as one pipeline,
//! which costs the client a fraction of the CPU that single commands do. Reads that wait together
//! travel as one `MGET` of their distinct keys, or where keys have slots, or the server refuses the
//! `MGET`, as one `GET` for each.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use redis::Cmd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::batch::Batch;
use super::flushers::Flushers;
use super::large_keys::LargeKeys;
use super::queue::{BatchLimits, Limits, Position, Queue};
use super::replies::{KeyReplies, MultiGet, Reply, cells, gets, mget, size, together};
use super::request::{LARGE, Operation, Queued, Settled};
use super::scatter_read::{KeyError, ScatterRead};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::net::breaker::Probe;
use crate::net::connection::{Answer, Connection};
use crate::pulse::TICK;
use crate::time::{Deadline, OnOutage, Priority};

#[derive(Debug, Clone)]
pub(crate) struct Pipeliner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Arc<Connection>,
    reads: MultiGet,
    /// How many carriers may be under way at once.
    pipelines: usize,
    limits: Limits,
    /// How many bytes a read has found lately for each key.
    reply: AtomicUsize,
    /// Notes which keys are large, where those have a connection of their own.
    large: Option<Arc<LargeKeys>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Commands that callers are sending by themselves.
    direct: usize,
    /// Carrier tasks under way. There is at least one while anything waits, or one that stands
    /// still.
    carriers: Flushers,
    waiting: Queue,
}

/// A command that waits; dropping this takes it out of the queue, unless it was taken before.
#[derive(Debug)]
struct QueueGuard<'l> {
    pipeliner: &'l Shared,
    number: Option<Position>,
}

impl Pipeliner {
    /// One for all commands, but for large values if `large` is given.
    pub(crate) fn new(
        link: Arc<Connection>,
        reads: MultiGet,
        pipelines: usize,
        limits: Limits,
        waiting: Queue,
        large: Option<Arc<LargeKeys>>,
    ) -> Self {
        Self::with(link, reads, pipelines, limits, waiting, 0, large)
    }

    /// One for large values: few replies are under way at once, so that the server has time for
    /// others between them.
    pub(crate) fn of_large_values(
        link: Arc<Connection>,
        reads: MultiGet,
        limits: Limits,
        waiting: Queue,
    ) -> Self {
        Self::with(
            link,
            reads,
            PIPELINES_OF_LARGE,
            limits,
            waiting,
            LARGEST_BYTES,
            None,
        )
    }

    fn with(
        link: Arc<Connection>,
        reads: MultiGet,
        pipelines: usize,
        limits: Limits,
        waiting: Queue,
        reply: usize,
        large: Option<Arc<LargeKeys>>,
    ) -> Self {
        Self(Arc::new(Shared {
            link,
            reads,
            pipelines,
            limits,
            reply: AtomicUsize::new(reply),
            large,
            state: Mutex::new(State {
                direct: 0,
                carriers: Flushers::default(),
                waiting,
            }),
        }))
    }

    /// Lets a call through, or says why not: see [`Breaker::admit`].
    ///
    /// [`Breaker::admit`]: crate::net::breaker::Breaker::admit
    pub(crate) fn admit(&self, on_outage: OnOutage) -> Result<Option<Probe<'_>>> {
        match on_outage {
            OnOutage::KeepTrying => Ok(None),
            OnOutage::FailFast => {
                let link = &self.0.link;
                link.breaker().admit().map_err(|error| link.located(error))
            }
        }
    }

    /// Sends one command and returns its reply.
    ///
    /// Cancel safety: a command whose caller has left before it was taken is not sent.
    pub(crate) async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        self.0.limits.admit(command)?;
        let probe = self.admit(deadline.on_outage)?;
        let deadline = Probe::limit(probe.as_ref(), deadline);
        let direct = self.0.direct();
        // What must be in time waits for nobody, and not for the answers to others either.
        if direct.is_none() && deadline.priority != Priority::Timely {
            let ask = |reply| Operation::Command(command.clone(), reply);
            return Box::pin(self.queued(deadline, ask)).await;
        }
        // Either in a box: what is allocated for a call at once is small enough to be cheap.
        Box::pin(self.0.link.send(command, deadline.at)).await
    }

    /// Reads string keys; one of another type counts as missing.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<KeyReplies> {
        let probe = self.admit(deadline.on_outage)?;
        let deadline = Probe::limit(probe.as_ref(), deadline);
        self.read_admitted(keys, deadline).await
    }

    pub(crate) async fn read_admitted(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<KeyReplies> {
        let Some(_direct) = self.0.direct() else {
            let ask = |reply| Operation::Read(keys.to_vec(), reply);
            return Box::pin(self.queued(deadline, ask)).await;
        };
        Box::pin(self.0.read(keys, deadline.at)).await
    }

    async fn gather_directly(
        keys: &[Key],
        pipeliners: &[&Self],
        parts: &[usize],
        deadline: Instant,
    ) -> Result<KeyReplies, KeyError> {
        let answers = pipeliners
            .iter()
            .enumerate()
            .map(|(part, pipeliner)| async move {
                let places = || (0..keys.len()).filter(move |place| parts[*place] == part);
                let own: Vec<Key> = places().map(|place| keys[place].clone()).collect();
                match pipeliner.0.read(&own, deadline).await {
                    Ok(cells) => Ok(places().zip(cells)),
                    Err(error) => Err((places().next().unwrap_or_default(), error)),
                }
            });
        let mut found: KeyReplies = vec![Ok(None); keys.len()];
        for (place, cell) in try_join_all(answers).await?.into_iter().flatten() {
            found[place] = cell;
        }
        Ok(found)
    }

    async fn queued<T>(
        &self,
        deadline: Deadline,
        ask: impl FnOnce(Reply<T>) -> Operation,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let settled = Arc::new(Settled::default());
        let waiting = Queued {
            ask: ask(reply),
            deadline: deadline.at,
            settled: Some(settled.clone()),
        };
        let ticket = self.0.enqueue(waiting, deadline.priority)?;
        let pipeliner = std::slice::from_ref(&self.0);
        let outcome = Shared::answered(pipeliner, answer, Some(&settled), deadline.at).await;
        if let Waited::Answered(result) = outcome {
            ticket.answered();
            return result;
        }
        let taken = settled.settle();
        Err(match outcome {
            _ if !taken => {
                let trouble = self.0.link.last_error();
                trouble.unwrap_or_else(|| late("the command for {server} was not sent before its deadline; allow more time or send less at once"))
            }
            Waited::Late => unanswered(),
            _ => torn_down(),
        })
    }

    /// Reads keys that several servers may hold: each by the pipeliner in its place, and all or
    /// none. It heeds the breaker of each server.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn gather<'l>(
        keys: &[Key],
        pipeliners: impl Iterator<Item = &'l Self>,
        deadline: Deadline,
    ) -> Result<KeyReplies, KeyError> {
        // Each server once, and which of them has each key.
        let mut asked: Vec<&Self> = Vec::with_capacity(2);
        let mut parts = Vec::with_capacity(keys.len());
        let mut probes = Vec::new();
        for (place, pipeliner) in pipeliners.enumerate() {
            let known = asked
                .iter()
                .position(|known| std::ptr::eq(*known, pipeliner));
            parts.push(known.unwrap_or(asked.len()));
            if known.is_none() {
                let probe = pipeliner.admit(deadline.on_outage);
                probes.extend(probe.map_err(|error| (place, error))?);
                asked.push(pipeliner);
            }
        }
        let deadline = probes.iter().fold(deadline, |deadline, probe| {
            Probe::limit(Some(probe), deadline)
        });
        if let [pipeliner] = asked[..] {
            let cells = pipeliner.read_admitted(keys, deadline).await;
            return cells.map_err(|error| (0, error));
        }
        let direct: Option<Vec<_>> = asked.iter().map(|pipeliner| pipeliner.0.direct()).collect();
        if direct.is_some() {
            return Box::pin(Self::gather_directly(keys, &asked, &parts, deadline.at)).await;
        }
        let (reply, answer) = oneshot::channel();
        let read = Arc::new(ScatterRead::new(keys.to_vec(), parts, reply));
        let pipeliners: Vec<Arc<Shared>> =
            asked.iter().map(|pipeliner| pipeliner.0.clone()).collect();
        let mut tickets = Vec::with_capacity(asked.len());
        for (part, pipeliner) in asked.into_iter().enumerate() {
            let waiting = Queued {
                ask: Operation::Part(read.clone(), part),
                deadline: deadline.at,
                settled: None,
            };
            let ticket = pipeliner.0.enqueue(waiting, deadline.priority);
            tickets.push(ticket.map_err(|error| (read.first(part), error))?);
        }
        match Shared::answered(&pipeliners, answer, None, deadline.at).await {
            Waited::Answered(outcome) => {
                if outcome.is_ok() {
                    tickets.into_iter().for_each(QueueGuard::answered);
                }
                outcome
            }
            Waited::Gone => Err((read.missing(), torn_down())),
            Waited::Late => Err((read.missing(), unanswered())),
        }
    }
}

/// How a wait for an answer has ended.
enum Waited<T> {
    Answered(T),
    /// Whoever was to answer is gone, or stands still.
    Gone,
    Late,
}

impl QueueGuard<'_> {
    /// The command was taken, and so is not in the queue any more.
    fn answered(mut self) {
        self.number = None;
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let left = self.pipeliner.state().waiting.remove(number);
            // Not while the queue is locked.
            drop(left);
        }
    }
}

impl Shared {
    /// Reads `keys` by themselves.
    async fn read(&self, keys: &[Key], deadline: Instant) -> Result<KeyReplies> {
        let cells = if self.reads == MultiGet::OneByOne && keys.len() > 1 {
            let replies = self.link.send_all(&gets(keys), deadline).await?;
            cells(replies, keys.len())
        } else {
            let answer = self.link.send(&mget(keys), deadline).await?;
            together(answer.value, keys.len())
        }?;
        self.learn(keys, &cells);
        Ok(cells)
    }

    /// Notes how much a read has found.
    fn learn(&self, keys: &[Key], cells: &KeyReplies) {
        let bytes: usize = cells.iter().map(size).sum();
        if bytes >= LARGE
            && let Some(large) = &self.large
        {
            large.learn(keys.iter().zip(cells));
        }
        let each = bytes / cells.len().max(1);
        let before = self.reply.load(Ordering::Relaxed);
        // The mean of about the last eight reads. Concurrent updates may be lost; this is an
        // estimate.
        self.reply
            .store(before - before / 8 + each / 8, Ordering::Relaxed);
    }

    /// A place to send one command directly, if few are under way and none waits.
    fn direct(&self) -> Option<DirectPermit<'_>> {
        let mut state = self.state();
        if state.direct >= MOST_DIRECT || state.carriers.len() > 0 || !state.waiting.is_empty() {
            return None;
        }
        state.direct += 1;
        Some(DirectPermit(self))
    }

    fn enqueue(self: &Arc<Self>, waiting: Queued, priority: Priority) -> Result<QueueGuard<'_>> {
        let mut state = self.state();
        let number = state.waiting.push(waiting, priority)?;
        let ticket = QueueGuard {
            pipeliner: self,
            number: Some(number),
        };
        self.be_carried(state);
        Ok(ticket)
    }

    /// Starts a carrier if something waits and there are too few. While anything waits, there is a
    /// carrier, possibly a stalled one.
    fn be_carried(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.waiting.is_empty() || state.carriers.len() >= self.pipelines {
            return;
        }
        let number = state.carriers.add();
        // A runtime that is shutting down drops the task at once, and that takes the lock.
        drop(state);
        let carrier = Flusher {
            pipeliner: self.clone(),
            number,
        };
        let task = self.link.spawner().spawn(carrier.run());
        self.state().carriers.spawned(number, &task);
    }

    /// Waits for the answer to what was put in the queue of `pipeliners`, and sees to it meanwhile
    /// that somebody carries it, whatever becomes of the runtimes of others.
    async fn answered<T>(
        pipeliners: &[Arc<Self>],
        answer: oneshot::Receiver<T>,
        settled: Option<&Settled>,
        deadline: Instant,
    ) -> Waited<T> {
        let mut answer = pin!(answer);
        let mut timer = pin!(sleep_until(deadline.min(Instant::now() + LOOK)));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(answer) => Waited::Answered(answer),
                    Err(_) => Waited::Gone,
                },
                () = &mut timer => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Waited::Late;
            }
            for pipeliner in pipeliners {
                let mut state = pipeliner.state();
                state.carriers.dismiss(pipeliner.link.spawner());
                // The connection may stand still as well: asked at the same time, it costs no more.
                pipeliner.link.knock();
                let has_left = match settled.map(Settled::carrier) {
                    // It waits yet.
                    Some(None) => false,
                    Some(taker) => state.carriers.has_left(taker),
                    None => state.carriers.has_left(None),
                };
                pipeliner.be_carried(state);
                if has_left {
                    return Waited::Gone;
                }
            }
            timer.as_mut().reset(deadline.min(now + LOOK));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct DirectPermit<'l>(&'l Shared);

impl Drop for DirectPermit<'_> {
    fn drop(&mut self) {
        self.0.state().direct -= 1;
    }
}

/// A task that sends what waits until nothing waits. Spawned by a caller that has to queue; if it
/// is torn down with its runtime, the callers it carried are told that their fate is unknown.
struct Flusher {
    pipeliner: Arc<Shared>,
    number: u64,
}

impl Flusher {
    async fn run(self) {
        let mut carried = MANY;
        loop {
            if carried >= MANY {
                // Lets callers that are ready to run join the pipeline: those that have come with
                // the first one, then those that were just answered. A lone caller does better
                // without us.
                tokio::task::yield_now().await;
            }
            let Some(latest) = self.latest() else { return };
            // Nothing is taken before there is a connection to send it on: a caller that gives up
            // meanwhile knows that its command was not sent. In slices: when all callers have left,
            // nobody needs the connection any more, however far their deadlines are.
            match timeout(SLICE, self.pipeliner.link.live(latest)).await {
                Ok(Ok(live)) => {
                    let batch = self.take();
                    carried = batch.len();
                    let pipeliner = &self.pipeliner;
                    let learn = |keys: &[Key], cells: &KeyReplies| pipeliner.learn(keys, cells);
                    batch
                        .send(&pipeliner.link, pipeliner.reads, live, learn)
                        .await;
                }
                Ok(Err(error)) => self.refuse(latest, &error),
                Err(_) => {}
            }
        }
    }

    /// The latest deadline of what waits, or `None`, after which this carrier no longer counts.
    fn latest(&self) -> Option<Instant> {
        let mut state = self.pipeliner.state();
        let latest = state.waiting.latest();
        if latest.is_none() {
            // Under the same lock: whoever enqueues next sees that it must start a carrier.
            state.carriers.remove(self.number);
        }
        latest
    }

    fn take(&self) -> Batch {
        let load = BatchLimits {
            commands: LARGEST_BATCH,
            bytes: LARGEST_BYTES,
            reply: self.pipeliner.reply.load(Ordering::Relaxed),
        };
        let taken = self.pipeliner.state().waiting.take(load);
        Batch::of(taken, self.number)
    }

    /// There is no connection before `latest`: tells those who would not wait longer.
    fn refuse(&self, latest: Instant, error: &Error) {
        let refused = self.pipeliner.state().waiting.expired(latest);
        for waiting in refused {
            if !waiting.settled.is_some_and(|it| it.settle()) {
                waiting.ask.refuse(error.clone());
            }
        }
    }
}

impl Drop for Flusher {
    /// Torn down with its runtime: the place is free again. If no other carrier is left, what waits
    /// is refused as not executed, so that callers on other runtimes send it again and start a
    /// carrier of their own.
    fn drop(&mut self) {
        let mut state = self.pipeliner.state();
        state.carriers.remove(self.number);
        let stranded = match state.carriers.len() {
            0 => state.waiting.drain(),
            _ => Vec::new(),
        };
        drop(state);
        for waiting in stranded {
            if !waiting.settled.is_some_and(|it| it.settle()) {
                waiting.ask.refuse(not_carried());
            }
        }
    }
}

fn not_carried() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the runtime that was to send the command has shut down, or stands still",
    )
}

fn torn_down() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the runtime that carried the command has shut down, or stands still",
    )
}

fn unanswered() -> Error {
    late("{server} did not answer before the deadline").with_fate(Fate::Unknown)
}

fn late(message: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, message).with_fate(Fate::NotExecuted)
}

/// For how long a carrier waits for a connection before it looks at the queue again.
const SLICE: Duration = Duration::from_secs(1);

/// How often a caller in the queue looks whether its carrier stands still.
const LOOK: Duration = TICK.saturating_mul(2);

/// How many calls of a pipeline were made at once, so that those who made them may come together
/// again.
const MANY: usize = 2;

/// How many commands may travel by themselves before others are gathered.
const MOST_DIRECT: usize = 1;

/// The same for large values: the next is asked for when the last has come.
const PIPELINES_OF_LARGE: usize = 1;

/// How many commands one pipeline carries at most, and how many bytes of arguments and of replies
/// that are expected: a caller waits for its whole pipeline.
const LARGEST_BATCH: usize = 512;
const LARGEST_BYTES: usize = 1 << 20;
