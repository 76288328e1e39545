//! `Pipeliner`: gathers the commands of concurrent callers into pipelines over one connection.
//!
//! The command of a lone caller goes straight to the connection. When several are under way, the
//! rest wait in a [`Queue`], and a task, the flusher, sends them as one pipeline. That costs the
//! client a fraction of the CPU of single commands. Reads that wait together travel as one `MGET`
//! of their distinct keys. They travel as one `GET` for each key if the keys have slots, or if the
//! server refuses the `MGET`.
//!
//! Invariant: every command is sent at most once. If its caller leaves, or its deadline passes,
//! before it was taken from the queue, it is not sent at all. The queue is bounded, and the excess
//! is refused at once.
//!
//! A [`Pipeline`](super::Pipeline) has one for all commands, and perhaps one for large values.

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

/// A handle. Its flushers share the state.
#[derive(Debug, Clone)]
pub(crate) struct Pipeliner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Arc<Connection>,
    reads: MultiGet,
    /// How many flushers may be at work at once.
    // With two, the server works on one pipeline while the client unpacks the other. More would
    // only cut the pipelines smaller.
    pipelines: usize,
    limits: Limits,
    /// About how many bytes reads have found lately for each key.
    // An estimate of the size of the next replies, so that a pipeline of reads stays small enough.
    reply: AtomicUsize,
    /// Learns which keys are large, if those have a connection of their own.
    large: Option<Arc<LargeKeys>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many callers are sending a command by themselves.
    direct: usize,
    /// The flushers. While anything waits, there is at least one, though it may stand still.
    flushers: Flushers,
    waiting: Queue,
}

/// A command that waits. Dropping this removes it from the queue, unless it was taken before.
#[derive(Debug)]
struct QueueGuard<'l> {
    pipeliner: &'l Shared,
    number: Option<Position>,
}

impl Pipeliner {
    /// A pipeliner for all commands, or for all but large values if `large` is given.
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

    /// A pipeliner for large values. Few replies are under way at once, so that the server has time
    /// for other calls between them.
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
                flushers: Flushers::default(),
                waiting,
            }),
        }))
    }

    /// Lets a call through, or fails if the breaker is open; see [`Breaker::admit`].
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
    /// Cancel safety: if the caller leaves before the command was taken, it is not sent.
    pub(crate) async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        self.0.limits.admit(command)?;
        let probe = self.admit(deadline.on_outage)?;
        let deadline = Probe::limit(probe.as_ref(), deadline);
        let direct = self.0.direct();
        // A renewal is worth nothing when it is late, so it passes the queue. It also waits for no
        // pipeline that is under way.
        if direct.is_none() && deadline.priority != Priority::Timely {
            let ask = |reply| Operation::Command(command.clone(), reply);
            return Box::pin(self.queued(deadline, ask)).await;
        }
        // Boxed on both ways: what one call allocates then stays below the size from which the
        // allocator of the C library is slow.
        Box::pin(self.0.link.send(command, deadline.at)).await
    }

    /// Reads string keys. A key of another type counts as missing.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<KeyReplies> {
        let probe = self.admit(deadline.on_outage)?;
        let deadline = Probe::limit(probe.as_ref(), deadline);
        self.read_admitted(keys, deadline).await
    }

    /// Like [`read`](Self::read), for a call that the breaker has let through.
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

    /// Reads the keys of each server by one command of its own, without the queues. `parts` has the
    /// index of the pipeliner of each key.
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

    /// Puts a command into the queue, and waits for its answer. `ask` makes the command.
    ///
    /// Cancel safety: if the caller leaves before the command was taken, it is not sent.
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
        // Dropped with this future: a caller that leaves takes its command out of the queue.
        let ticket = self.0.enqueue(waiting, deadline.priority)?;
        let pipeliner = std::slice::from_ref(&self.0);
        let outcome = Shared::answered(pipeliner, answer, Some(&settled), deadline.at).await;
        if let Waited::Answered(result) = outcome {
            ticket.answered();
            return result;
        }
        // From here on no flusher can take the command. If none had, it was not sent, and the error
        // may say so.
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

    /// Reads keys that several servers may hold: each key through the pipeliner of the same index.
    /// Either all keys are read, or the call fails. It heeds the breaker of each server.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn gather<'l>(
        keys: &[Key],
        pipeliners: impl Iterator<Item = &'l Self>,
        deadline: Deadline,
    ) -> Result<KeyReplies, KeyError> {
        // `asked` has each server once; `parts` says which of them holds each key.
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
        // One server holds all keys, so no scatter is needed.
        if let [pipeliner] = asked[..] {
            let cells = pipeliner.read_admitted(keys, deadline).await;
            return cells.map_err(|error| (0, error));
        }
        // Direct only if every server has a permit. Otherwise the permits that were taken are
        // returned.
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
            // A part that waits elsewhere is removed from its queue by its dropped `QueueGuard`.
            Waited::Gone => Err((read.missing(), torn_down())),
            Waited::Late => Err((read.missing(), unanswered())),
        }
    }
}

/// How a wait for an answer has ended.
enum Waited<T> {
    Answered(T),
    /// The flusher that was to answer is gone, or stands still.
    Gone,
    /// The deadline has come.
    Late,
}

impl QueueGuard<'_> {
    /// Notes that the command was taken, so it is not in the queue any more.
    fn answered(mut self) {
        self.number = None;
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let left = self.pipeliner.state().waiting.remove(number);
            // Freed only here, when the queue is not locked any more.
            drop(left);
        }
    }
}

impl Shared {
    /// Reads `keys` without the queue.
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

    /// Learns from the sizes of what a read has found.
    fn learn(&self, keys: &[Key], cells: &KeyReplies) {
        let bytes: usize = cells.iter().map(size).sum();
        if bytes >= LARGE
            && let Some(large) = &self.large
        {
            large.learn(keys.iter().zip(cells));
        }
        // Per key, because the next read may have another number of keys.
        let each = bytes / cells.len().max(1);
        let before = self.reply.load(Ordering::Relaxed);
        // The mean of about the last eight reads. A concurrent update may be lost, which is
        // harmless for an estimate.
        self.reply
            .store(before - before / 8 + each / 8, Ordering::Relaxed);
    }

    /// A permit to send one command without the queue, if few are under way and none waits.
    fn direct(&self) -> Option<DirectPermit<'_>> {
        let mut state = self.state();
        // While a flusher is at work, or anything waits, the command joins the next pipeline.
        if state.direct >= MOST_DIRECT || state.flushers.len() > 0 || !state.waiting.is_empty() {
            return None;
        }
        state.direct += 1;
        Some(DirectPermit(self))
    }

    /// Puts a command into the queue, and starts a flusher if there are too few.
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

    /// Starts a flusher if something waits and there are too few. So while anything waits, there is
    /// a flusher, possibly a stalled one.
    fn be_carried(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.waiting.is_empty() || state.flushers.len() >= self.pipelines {
            return;
        }
        let number = state.flushers.add();
        // Unlocked before the spawn: a runtime that is shutting down drops the task at once, and
        // its `drop` takes the lock.
        drop(state);
        let flusher = Flusher {
            pipeliner: self.clone(),
            number,
        };
        let task = self.link.spawner().spawn(flusher.run());
        self.state().flushers.spawned(number, &task);
    }

    /// Waits for the answer to what was put in the queues of `pipeliners`. Meanwhile it makes sure
    /// that a flusher works on each queue, even if the runtimes of other callers end or stand
    /// still.
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
                state.flushers.dismiss(pipeliner.link.spawner());
                // The socket task may stand still as well. Waking both now finds that out in the
                // time that one takes.
                pipeliner.link.knock();
                let has_left = match settled.map(Settled::flusher) {
                    // No flusher has taken it yet.
                    Some(None) => false,
                    Some(taker) => state.flushers.has_left(taker),
                    None => state.flushers.has_left(None),
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

/// A permit to send one command without the queue. Dropping this returns it.
struct DirectPermit<'l>(&'l Shared);

impl Drop for DirectPermit<'_> {
    fn drop(&mut self) {
        self.0.state().direct -= 1;
    }
}

/// A task that sends what waits in the queue, until nothing waits. A caller that has to queue
/// spawns it. If it is torn down with its runtime, or panics, the fate of the commands that it had
/// taken is unknown, and their callers get that error.
struct Flusher {
    pipeliner: Arc<Shared>,
    number: u64,
}

impl Flusher {
    /// Sends pipelines until nothing waits.
    async fn run(self) {
        let mut carried = MANY;
        loop {
            if carried >= MANY {
                // Callers that are ready to run can join the pipeline now: at first those that came
                // together with the first one, later those that were just answered. For a lone
                // caller the yield would only cost time.
                tokio::task::yield_now().await;
            }
            // The latest deadline: as long as any caller waits, a session is still of use.
            let Some(latest) = self.latest() else { return };
            // Nothing is taken before there is a session to send it on, so a caller that gives up
            // meanwhile knows that its command was not sent. The wait is cut into slices: when all
            // callers have left, the session is not needed any more, even if their deadlines were
            // far.
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

    /// The latest deadline of what waits. If nothing waits, returns `None`, and this flusher does
    /// not count any more.
    fn latest(&self) -> Option<Instant> {
        let mut state = self.pipeliner.state();
        let latest = state.waiting.latest();
        if latest.is_none() {
            // Under the same lock, so the next caller that enqueues sees that it must start a
            // flusher.
            state.flushers.remove(self.number);
        }
        latest
    }

    /// Takes the next pipeline from the queue.
    fn take(&self) -> Batch {
        let load = BatchLimits {
            commands: LARGEST_BATCH,
            bytes: LARGEST_BYTES,
            reply: self.pipeliner.reply.load(Ordering::Relaxed),
        };
        let taken = self.pipeliner.state().waiting.take(load);
        Batch::of(taken, self.number)
    }

    /// No session was opened before `latest`: refuses the commands that would not wait longer.
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
    /// Frees the slot of a flusher that was torn down with its runtime. If no other flusher is
    /// left, what waits is refused as not executed, so that callers on other runtimes send it again
    /// and start a flusher of their own.
    fn drop(&mut self) {
        let mut state = self.pipeliner.state();
        state.flushers.remove(self.number);
        let stranded = match state.flushers.len() {
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

/// The error of a command that was not taken from the queue. It is not executed.
fn not_carried() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the runtime that was to send the command has shut down, or stands still",
    )
}

/// The error of a command that a flusher had taken. Its fate is unknown.
fn torn_down() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the runtime that carried the command has shut down, or stands still",
    )
}

fn unanswered() -> Error {
    late("{server} did not answer before the deadline").with_fate(Fate::Unknown)
}

/// The error of a command that was not sent before its deadline.
fn late(message: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, message).with_fate(Fate::NotExecuted)
}

/// How long a flusher waits for a session before it looks at the queue again.
// The connect attempt goes on meanwhile, so a slice costs nothing.
const SLICE: Duration = Duration::from_secs(1);

/// How often a queued caller checks whether its flusher stands still.
const LOOK: Duration = TICK.saturating_mul(2);

/// After a pipeline of at least this many calls the flusher yields: their callers may come together
/// again.
const MANY: usize = 2;

/// How many commands may be sent without the queue at the same time.
// One: a lone caller pays neither for a task nor for a wait, and all others gain by a pipeline.
const MOST_DIRECT: usize = 1;

/// How many pipelines of large values may be under way at once: the next one starts when the last
/// has ended.
const PIPELINES_OF_LARGE: usize = 1;

/// The most commands in one pipeline, and the most bytes of arguments and expected replies.
// A caller waits for its whole pipeline, so a pipeline must not grow without bound.
const LARGEST_BATCH: usize = 512;
const LARGEST_BYTES: usize = 1 << 20;
