//! `Lane`: gathers the commands of concurrent callers into pipelines.
//!
//! Invariant: every command is sent at most once, and a command whose caller has left, or whose
//! deadline has passed, before it was taken is not sent at all. A lone caller's command goes
//! straight to the connection; when several are under way, the rest wait in a queue and a carrier
//! task sends all of them as one pipeline, which costs the client a fraction of the CPU that
//! single commands do. Reads that wait together travel as one `MGET` of their distinct keys, or where
//! keys have slots, or the server refuses the `MGET`, as one `GET` for each.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;

/// What a read found, in the order of its keys: a value, nothing, or what the server has against
/// reading this key here.
pub(crate) type Cells = Vec<Cell>;
pub(crate) type Cell = Result<Option<Bytes>, ServerError>;

/// How reads of several keys travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// As one command: the server holds all keys.
    Together,
    /// As one command for each key: the server takes no command on keys of several slots.
    OneByOne,
}

#[derive(Debug, Clone)]
pub(crate) struct Lane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Arc<Link>,
    reads: Reads,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Commands that callers are sending by themselves.
    direct: usize,
    /// Carrier tasks under way. There is at least one while anything waits.
    carriers: usize,
    waiting: VecDeque<Waiting>,
}

/// Where the answer to one caller goes.
type Reply<T> = oneshot::Sender<Result<T>>;

/// A command in the queue.
#[derive(Debug)]
struct Waiting {
    ask: Ask,
    deadline: Instant,
    /// Set by whoever settles what becomes of the command: the carrier that takes it, or the
    /// caller whose deadline has passed.
    settled: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Ask {
    Command(Cmd, Reply<Value>),
    Read(Vec<Key>, Reply<Cells>),
}

impl Lane {
    pub(crate) fn new(link: Arc<Link>, reads: Reads) -> Self {
        Self(Arc::new(Shared {
            link,
            reads,
            queue: Mutex::default(),
        }))
    }

    /// Sends one command and returns its reply; an error reply is an `Ok(Value::ServerError)`.
    pub(crate) async fn send(&self, command: &Cmd, deadline: Instant) -> Result<Value> {
        let Some(_direct) = self.0.direct() else {
            return self
                .queued(deadline, |reply| Ask::Command(command.clone(), reply))
                .await;
        };
        self.0.link.send(command, deadline).await
    }

    /// Reads string keys; one of another type counts as missing.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Cells> {
        let Some(_direct) = self.0.direct() else {
            return self
                .queued(deadline, |reply| Ask::Read(keys.to_vec(), reply))
                .await;
        };
        if self.0.reads == Reads::OneByOne && keys.len() > 1 {
            let replies = self.0.link.send_all(&gets(keys), deadline).await?;
            return cells(replies, keys.len());
        }
        let value = self.0.link.send(&mget(keys), deadline).await?;
        together(value, keys.len())
    }

    async fn queued<T>(&self, deadline: Instant, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let settled = Arc::new(AtomicBool::new(false));
        self.0.enqueue(Waiting {
            ask: ask(reply),
            deadline,
            settled: settled.clone(),
        });
        let outcome = timeout_at(deadline, answer).await;
        if let Ok(Ok(result)) = outcome {
            return result;
        }
        let taken = settled.swap(true, Ordering::AcqRel);
        Err(match outcome {
            _ if !taken => {
                let trouble = self.0.link.last_error();
                trouble.unwrap_or_else(|| late("the command was not sent before its deadline"))
            }
            Ok(_) => Error::new(
                ErrorKind::Disconnected,
                "the runtime that carried the command has shut down",
            ),
            Err(_) => {
                late("the server did not answer before the deadline").with_fate(Fate::Unknown)
            }
        })
    }
}

impl Shared {
    /// A place to send one command directly, if few are under way and none waits.
    fn direct(&self) -> Option<Direct<'_>> {
        let mut queue = self.queue();
        if queue.direct >= MOST_DIRECT || queue.carriers > 0 {
            return None;
        }
        queue.direct += 1;
        Some(Direct(self))
    }

    fn enqueue(self: &Arc<Self>, waiting: Waiting) {
        let mut queue = self.queue();
        queue.waiting.push_back(waiting);
        if queue.carriers < MOST_CARRIERS {
            queue.carriers += 1;
            drop(queue);
            tokio::spawn(
                Carrier {
                    lane: self.clone(),
                    retired: false,
                }
                .run(),
            );
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Direct<'l>(&'l Shared);

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        self.0.queue().direct -= 1;
    }
}

/// A task that sends what waits until nothing waits. Spawned by a caller that has to queue; if it
/// is torn down with its runtime, the callers it carried are told that their fate is unknown.
struct Carrier {
    lane: Arc<Shared>,
    retired: bool,
}

impl Carrier {
    async fn run(mut self) {
        // Let the callers that are ready to run join the first pipeline.
        tokio::task::yield_now().await;
        while let Some(latest) = self.latest() {
            // Nothing is taken before there is a connection to send it on: whoever gives up
            // meanwhile knows that nothing of his was sent.
            match self.lane.link.live(latest).await {
                Ok(_) => self.take().send(&self.lane).await,
                Err(error) => self.refuse(latest, &error),
            }
        }
    }

    /// The latest deadline of what waits, or `None`, after which this carrier no longer counts.
    fn latest(&mut self) -> Option<Instant> {
        let mut queue = self.lane.queue();
        let latest = queue.waiting.iter().map(|waiting| waiting.deadline).max();
        if latest.is_none() {
            // Under the same lock: whoever enqueues next sees that it must start a carrier.
            queue.carriers -= 1;
            self.retired = true;
        }
        latest
    }

    fn take(&self) -> Batch {
        let mut queue = self.lane.queue();
        let count = queue.waiting.len().min(LARGEST_BATCH);
        let taken: Vec<Waiting> = queue.waiting.drain(..count).collect();
        drop(queue);
        Batch::of(taken)
    }

    /// There is no connection before `latest`: tells those who would not wait longer.
    fn refuse(&self, latest: Instant, error: &Error) {
        let mut queue = self.lane.queue();
        let (refused, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut queue.waiting)
            .into_iter()
            .partition(|waiting| waiting.deadline <= latest);
        queue.waiting = kept;
        drop(queue);
        for waiting in refused {
            if !waiting.settled.swap(true, Ordering::AcqRel) {
                waiting.ask.refuse(error.clone());
            }
        }
    }
}

impl Drop for Carrier {
    /// Torn down in mid-flight: the place is free again, or nothing would ever be carried.
    fn drop(&mut self) {
        if !self.retired {
            self.lane.queue().carriers -= 1;
        }
    }
}

/// Commands that travel together.
#[derive(Default)]
struct Batch {
    commands: Vec<(Cmd, Reply<Value>)>,
    reads: Vec<(Vec<usize>, Reply<Cells>)>,
    keys: Vec<Key>,
    /// How many reads want each key.
    wanted: Vec<u32>,
    deadline: Option<Instant>,
}

impl Batch {
    fn of(taken: Vec<Waiting>) -> Self {
        let now = Instant::now();
        let mut batch = Self::default();
        let mut places: HashMap<Key, usize> = HashMap::new();
        for Waiting {
            ask,
            deadline,
            settled,
        } in taken
        {
            if deadline <= now || ask.caller_left() || settled.swap(true, Ordering::AcqRel) {
                // Past its deadline the caller gives up by itself, and says that nothing was sent.
                continue;
            }
            batch.deadline = batch.deadline.max(Some(deadline));
            match ask {
                Ask::Command(command, reply) => batch.commands.push((command, reply)),
                Ask::Read(keys, reply) => {
                    let mut read = Vec::with_capacity(keys.len());
                    for key in keys {
                        let place = *places.entry(key).or_insert_with_key(|key| {
                            batch.keys.push(key.clone());
                            batch.wanted.push(0);
                            batch.keys.len() - 1
                        });
                        batch.wanted[place] += 1;
                        read.push(place);
                    }
                    batch.reads.push((read, reply));
                }
            }
        }
        batch
    }

    async fn send(self, lane: &Shared) {
        let Some(deadline) = self.deadline else {
            return;
        };
        let mut pipeline = match lane.reads {
            Reads::Together => Pipeline::with_capacity(self.commands.len() + 1),
            Reads::OneByOne => gets(&self.keys),
        };
        if lane.reads == Reads::Together && !self.keys.is_empty() {
            pipeline.add_command(mget(&self.keys));
        }
        let reading = pipeline.len();
        let mut singles = Vec::with_capacity(self.commands.len());
        for (command, reply) in self.commands {
            pipeline.add_command(command);
            singles.push(reply);
        }
        let mut replies = match lane.link.send_all(&pipeline, deadline).await {
            Ok(replies) => replies.into_iter(),
            Err(error) => {
                for reply in singles {
                    let _ = reply.send(Err(error.clone()));
                }
                for (_, reply) in self.reads {
                    let _ = reply.send(Err(error.clone()));
                }
                return;
            }
        };
        let read: Vec<Value> = replies.by_ref().take(reading).collect();
        for reply in singles {
            let _ = reply.send(replies.next().ok_or_else(short));
        }
        if reading > 0 {
            let all = match (lane.reads, &read[..]) {
                // Nobody may fail for what another has asked for, such as a forbidden key.
                (Reads::Together, [Value::ServerError(_)]) if self.reads.len() > 1 => {
                    let replies = lane.link.send_all(&gets(&self.keys), deadline).await;
                    replies.and_then(|replies| cells(replies, self.keys.len()))
                }
                (Reads::Together, _) => read
                    .into_iter()
                    .next()
                    .ok_or_else(short)
                    .and_then(|value| together(value, self.keys.len())),
                (Reads::OneByOne, _) => cells(read, reading),
            };
            hand_out(all, self.reads, self.wanted);
        }
    }
}

/// Gives each reader the cells at its places.
fn hand_out(all: Result<Cells>, reads: Vec<(Vec<usize>, Reply<Cells>)>, mut wanted: Vec<u32>) {
    let mut all = match all {
        Ok(all) => all,
        Err(error) => {
            for (_, reply) in reads {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
    };
    for (places, reply) in reads {
        let own = places.into_iter().map(|place| {
            // The last who wants it gets it without a copy.
            wanted[place] -= 1;
            match wanted[place] {
                0 => std::mem::replace(&mut all[place], Ok(None)),
                _ => all[place].clone(),
            }
        });
        let _ = reply.send(Ok(own.collect()));
    }
}

impl Ask {
    fn refuse(self, error: Error) {
        match self {
            Self::Command(_, reply) => drop(reply.send(Err(error))),
            Self::Read(_, reply) => drop(reply.send(Err(error))),
        }
    }

    fn caller_left(&self) -> bool {
        match self {
            Self::Command(_, reply) => reply.is_closed(),
            Self::Read(_, reply) => reply.is_closed(),
        }
    }
}

fn mget(keys: &[Key]) -> Cmd {
    let mut command = Cmd::with_capacity(keys.len() + 1, keys.len() * 40 + 4);
    command.arg(if keys.len() == 1 { "GET" } else { "MGET" });
    for key in keys {
        command.arg(key.as_str());
    }
    command
}

fn gets(keys: &[Key]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(keys.len());
    for key in keys {
        pipeline.add_command(mget(std::slice::from_ref(key)));
    }
    pipeline
}

/// The cells of a `GET` or `MGET` of `count` keys.
fn together(value: Value, count: usize) -> Result<Cells> {
    match value {
        Value::Array(values) => cells(values, count),
        // What the server has against the command it has against each key.
        Value::ServerError(error) if count > 1 => Ok(vec![Err(error); count]),
        value => cells([value], count),
    }
}

fn cells(values: impl IntoIterator<Item = Value>, count: usize) -> Result<Cells> {
    let cells: Cells = values.into_iter().map(cell).collect::<Result<_>>()?;
    match cells.len() == count {
        true => Ok(cells),
        false => Err(short()),
    }
}

pub(crate) fn cell(value: Value) -> Result<Cell> {
    match value {
        Value::BulkString(bytes) => Ok(Ok(Some(bytes.into()))),
        Value::Nil => Ok(Ok(None)),
        // GET says WRONGTYPE where MGET says nil; one rule for both.
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Ok(None)),
        Value::ServerError(error) => Ok(Err(error)),
        _ => Err(Error::new(
            ErrorKind::Server,
            "a read was answered with another type than a string",
        )),
    }
}

fn late(message: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, message).with_fate(Fate::NotExecuted)
}

fn short() -> Error {
    Error::new(
        ErrorKind::Server,
        "the server answered fewer commands than were sent",
    )
    .with_fate(Fate::Unknown)
}

/// How many commands may travel by themselves before others are gathered.
const MOST_DIRECT: usize = 1;

/// How many pipelines may be under way at once: the server works on one while the client unpacks
/// the other.
const MOST_CARRIERS: usize = 2;

/// How many commands one pipeline carries at most.
const LARGEST_BATCH: usize = 512;
