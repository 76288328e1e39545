//! `Queue`: the commands that wait to be sent to one server.
//!
//! Commands leave in the order in which they came, but small ones do not wait behind large ones:
//! the two take turns. (Any two that wait are concurrent, because neither is answered, so their
//! order is free.) A caller that leaves takes its command out.
//!
//! Invariant: what waits is bounded, in number and in bytes of arguments, for all connections to
//! one server together. A command that is refused because of that was not sent. However many large
//! values wait for their connection, there is room for commands of the shared one.
//!
//! Each [`Pipeliner`](super::pipeliner::Pipeliner) has one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::Cmd;
use tokio::time::Instant;

use super::request::{LARGE, Queued, arguments};
use crate::error::{Error, ErrorKind};
use crate::time::Priority;

/// How much may wait for one server, and how large one argument may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) commands: usize,
    /// Bytes of arguments of all commands that wait.
    pub(crate) bytes: usize,
    /// Bytes of one argument.
    pub(crate) argument: usize,
}

/// The position of a command in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    size: Size,
    number: u64,
}

/// The size class of a command. Each class has a FIFO of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    /// How much may wait here.
    most: Share,
    /// How much of what waits in the other queue counts against the limits at most.
    most_beside: Share,
    small: Fifo,
    large: Fifo,
    /// The number of the next command.
    next: u64,
    /// The size class whose turn it is when commands of both wait.
    turn: Size,
    /// How much waits here, published for the other queue of the server.
    held: Arc<Held>,
    /// How much waits in the queue of the other connection to the server.
    beside: Arc<Held>,
}

/// How much waits in a queue, as the other queue of the server sees it.
// The queues share no lock, so two that look at the same moment may each let one command in where
// there was room for one.
#[derive(Debug, Default)]
struct Held {
    commands: AtomicUsize,
    bytes: AtomicUsize,
}

/// A number of commands, and of bytes of arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    commands: usize,
    bytes: usize,
}

/// Commands in the order of their numbers.
#[derive(Debug, Default)]
struct Fifo {
    places: VecDeque<Element>,
    /// How many elements hold a command. Callers leave from the middle, so some are empty.
    taken: usize,
    /// The bytes of arguments of these commands.
    bytes: usize,
}

#[derive(Debug)]
struct Element {
    number: u64,
    bytes: usize,
    /// `None` if the caller has left.
    waiting: Option<Queued>,
}

/// How much one pipeline carries at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) commands: usize,
    /// Bytes of arguments, and of the replies that are expected.
    pub(crate) bytes: usize,
    /// How many bytes the reply for one key is expected to have.
    pub(crate) reply: usize,
}

impl Limits {
    /// Refuses a command with an argument that is too large for the server. Such an argument makes
    /// the server close the connection, and all calls on it would fail.
    pub(crate) fn admit(&self, command: &Cmd) -> Result<(), Error> {
        match arguments(command).find(|bytes| *bytes > self.argument) {
            Some(bytes) => Err(too_large(bytes, self.argument)),
            None => Ok(()),
        }
    }

    fn share(&self) -> Share {
        Share {
            commands: self.commands,
            bytes: self.bytes,
        }
    }
}

impl Share {
    /// The part of it that large commands may use.
    fn of_large(self) -> Self {
        Self {
            commands: (self.commands - self.commands.div_ceil(FOR_SMALL)).max(1),
            bytes: self.bytes - self.bytes.div_ceil(FOR_SMALL),
        }
    }
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            most: limits.share(),
            most_beside: limits.share(),
            small: Fifo::default(),
            large: Fifo::default(),
            next: 0,
            turn: Size::Small,
            held: Arc::default(),
            beside: Arc::default(),
        }
    }

    /// The queues of two connections to one server, which share the limits. The first is for all
    /// commands; the second is for large ones, which leave a part of the limits to all others.
    pub(crate) fn pair(limits: Limits) -> (Self, Self) {
        let (mut all, mut large) = (Self::new(limits), Self::new(limits));
        (all.beside, large.beside) = (large.held.clone(), all.held.clone());
        large.most = limits.share().of_large();
        // One large command alone may exceed its part. It counts no more than that, so that it
        // leaves room here.
        all.most_beside = large.most;
        (all, large)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.taken + self.large.taken == 0
    }

    /// Takes all commands out.
    pub(crate) fn drain(&mut self) -> Vec<Queued> {
        let small = std::mem::take(&mut self.small).places;
        let large = std::mem::take(&mut self.large).places;
        self.tell();
        let all = small.into_iter().chain(large);
        all.filter_map(|place| place.waiting).collect()
    }

    /// Puts a command at the end.
    ///
    /// # Errors
    /// `Overloaded`, as not executed, if too much waits already.
    pub(crate) fn push(&mut self, waiting: Queued, priority: Priority) -> Result<Position, Error> {
        let bytes = waiting.ask.bytes();
        let (own, all) = (self.held(), self.held_in_all());
        // A flood of calls must not lose a lock or leave a stale value in a cache.
        let reserve = |limit: usize| match priority {
            Priority::Ordinary | Priority::Apart => limit,
            Priority::Reserved | Priority::Timely => limit.saturating_add((limit / RESERVE).max(1)),
        };
        let is_above = |held: Share, most: Share| {
            held.commands >= reserve(most.commands)
                || held.bytes.saturating_add(bytes) > reserve(most.bytes)
        };
        let full = is_above(own, self.most) || is_above(all, self.limits.share());
        // A command that waits alone is never refused, or one above the limit could never be sent.
        if full && own.commands > 0 {
            return Err(overloaded(all.commands, all.bytes));
        }
        let (size, line) = match bytes >= LARGE {
            true => (Size::Large, &mut self.large),
            false => (Size::Small, &mut self.small),
        };
        let number = self.next;
        self.next += 1;
        line.push(Element {
            number,
            bytes,
            waiting: Some(waiting),
        });
        self.tell();
        Ok(Position { size, number })
    }

    /// Takes out the command of a caller that has left, unless it was taken before.
    pub(crate) fn remove(&mut self, place: Position) -> Option<Queued> {
        let removed = self.line(place.size).remove(place.number);
        self.tell();
        removed
    }

    /// Takes what goes into the next pipeline: at least one command, if any waits. A large command
    /// goes alone, so that no other caller in its pipeline waits for its transfer.
    pub(crate) fn take(&mut self, load: BatchLimits) -> Vec<Queued> {
        let size = match (self.small.taken, self.large.taken) {
            (_, 0) => Size::Small,
            (0, _) => Size::Large,
            _ => self.turn,
        };
        let taken = match size {
            Size::Small => {
                self.turn = Size::Large;
                self.small.take(load)
            }
            Size::Large => {
                self.turn = Size::Small;
                self.large.take(BatchLimits {
                    commands: 1,
                    ..load
                })
            }
        };
        self.tell();
        taken
    }

    /// The latest deadline of what waits.
    pub(crate) fn latest(&self) -> Option<Instant> {
        let all = self.small.waiting().chain(self.large.waiting());
        all.map(|waiting| waiting.deadline).max()
    }

    /// Takes out the commands whose deadline is at or before `at`.
    pub(crate) fn expired(&mut self, at: Instant) -> Vec<Queued> {
        let mut expired = self.small.expired(at);
        expired.append(&mut self.large.expired(at));
        self.tell();
        expired
    }

    /// How much waits here.
    fn held(&self) -> Share {
        Share {
            commands: self.small.taken + self.large.taken,
            bytes: self.small.bytes + self.large.bytes,
        }
    }

    /// How much waits here and in the other queue, as far as that counts.
    fn held_in_all(&self) -> Share {
        let (own, most) = (self.held(), self.most_beside);
        let commands = self.beside.commands.load(Ordering::Relaxed);
        let bytes = self.beside.bytes.load(Ordering::Relaxed);
        Share {
            commands: own.commands + commands.min(most.commands),
            bytes: own.bytes + bytes.min(most.bytes),
        }
    }

    /// Publishes how much waits here for the other queue. Call it after each change.
    fn tell(&self) {
        let Share { commands, bytes } = self.held();
        self.held.commands.store(commands, Ordering::Relaxed);
        self.held.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The FIFO of a size class.
    fn line(&mut self, size: Size) -> &mut Fifo {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }
}

impl Fifo {
    fn push(&mut self, place: Element) {
        self.taken += 1;
        self.bytes += place.bytes;
        self.places.push_back(place);
    }

    fn remove(&mut self, number: u64) -> Option<Queued> {
        // Numbers rise and elements only leave, so the elements stay sorted.
        let index = self.places.binary_search_by_key(&number, |it| it.number);
        let place = &mut self.places[index.ok()?];
        let waiting = place.waiting.take()?;
        self.taken -= 1;
        self.bytes -= place.bytes;
        self.tidy();
        Some(waiting)
    }

    /// Removes empty elements when there are more of them than commands, about.
    // Not at each departure: that would make each one as expensive as the queue is long.
    fn tidy(&mut self) {
        if self.places.len() > 2 * self.taken + SPARE {
            self.places.retain(|place| place.waiting.is_some());
        }
    }

    fn take(&mut self, load: BatchLimits) -> Vec<Queued> {
        let mut taken = Vec::with_capacity(self.taken.min(load.commands));
        let mut bytes = 0_usize;
        while taken.len() < load.commands
            && let Some(place) = self.places.front()
        {
            if let Some(waiting) = &place.waiting {
                let replies = waiting.ask.keys().saturating_mul(load.reply);
                bytes = bytes.saturating_add(place.bytes).saturating_add(replies);
                // The first one always goes, or one above the limit would never leave.
                if bytes > load.bytes && !taken.is_empty() {
                    break;
                }
            }
            let Some(place) = self.places.pop_front() else {
                break;
            };
            if let Some(waiting) = place.waiting {
                self.taken -= 1;
                self.bytes -= place.bytes;
                taken.push(waiting);
            }
        }
        self.tidy();
        taken
    }

    fn expired(&mut self, at: Instant) -> Vec<Queued> {
        let (expired, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.places)
            .into_iter()
            .filter(|place| place.waiting.is_some())
            .partition(|place| place.waiting.as_ref().is_some_and(|it| it.deadline <= at));
        self.taken = kept.len();
        self.bytes = kept.iter().map(|place| place.bytes).sum();
        self.places = kept;
        expired.into_iter().filter_map(|it| it.waiting).collect()
    }

    fn waiting(&self) -> impl Iterator<Item = &Queued> {
        self.places.iter().filter_map(|it| it.waiting.as_ref())
    }
}

pub(crate) fn overloaded(commands: usize, bytes: usize) -> Error {
    Error::new(
        ErrorKind::Overloaded,
        format!(
            "not sent: {commands} calls with {bytes} bytes wait for {{server}} already; make fewer \
             at once, or raise ClientBuilder::max_waiting or max_waiting_bytes"
        ),
    )
}

fn too_large(bytes: usize, most: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("not sent: {bytes} bytes in one argument; at most {most} are sent"),
    )
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commands: 16_384,
            bytes: 64 << 20,
            // The default `proto-max-bulk-len` of Redis.
            argument: 512 << 20,
        }
    }
}

/// Calls of reserved and timely priority may use one part in this many on top of the limits.
// A release or an invalidation that is lost in a flood costs more than the call itself.
pub(crate) const RESERVE: usize = 8;

/// Large commands leave one part in this many of the limits to all others.
const FOR_SMALL: usize = 8;

/// How many empty elements are always tolerated.
const SPARE: usize = 64;

#[cfg(test)]
mod tests;
