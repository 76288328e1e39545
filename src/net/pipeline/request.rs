//! A command or a read that waits to be sent.
//!
//! Invariant: a command is settled once: either by the flusher that takes it, or by the caller that
//! leaves. So a caller that leaves knows for sure whether its command can still be sent.
//!
//! The [`Pipeliner`](super::pipeliner::Pipeliner) queues it, and [`Batch`](super::batch::Batch)
//! takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Arg, Cmd};
use tokio::time::Instant;

use super::replies::{KeyReplies, Reply};
use super::scatter_read::ScatterRead;
use crate::error::Error;
use crate::key::Key;
use crate::net::connection::Answer;

/// A command in the queue.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) ask: Operation,
    pub(crate) deadline: Instant,
    /// `None` for a part of a scatter read: a read changes nothing, so no caller needs to know
    /// whether it was sent.
    pub(crate) settled: Option<Arc<Settled>>,
}

/// What is to be sent, and where the answer goes.
#[derive(Debug)]
pub(crate) enum Operation {
    Command(Cmd, Reply<Answer>),
    Read(Vec<Key>, Reply<KeyReplies>),
    /// This part of a read that asks several servers.
    Part(Arc<ScatterRead>, usize),
}

impl Operation {
    /// Answers the caller with `error`.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Command(_, reply) => drop(reply.send(Err(error))),
            Self::Read(_, reply) => drop(reply.send(Err(error))),
            Self::Part(read, part) => read.refuse(part, error),
        }
    }

    /// Whether no caller waits for the answer any more.
    pub(crate) fn caller_left(&self) -> bool {
        match self {
            Self::Command(_, reply) => reply.is_closed(),
            Self::Read(_, reply) => reply.is_closed(),
            Self::Part(read, _) => read.is_over(),
        }
    }

    /// How many bytes of arguments it has.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Command(command, _) => arguments(command).sum(),
            Self::Read(keys, _) => keys.iter().map(|key| key.as_str().len()).sum(),
            Self::Part(read, part) => read.keys(*part).map(|key| key.as_str().len()).sum(),
        }
    }

    /// How many keys it reads.
    pub(crate) fn keys(&self) -> usize {
        match self {
            Self::Command(..) => 0,
            Self::Read(keys, _) => keys.len(),
            Self::Part(read, part) => read.keys(*part).count(),
        }
    }
}

/// Decides between the flusher that takes a command and the caller that leaves, without a lock.
#[derive(Debug, Default)]
pub(crate) struct Settled(AtomicU64);

impl Settled {
    /// Settles it for a caller that leaves. Returns whether it was settled before.
    pub(crate) fn settle(&self) -> bool {
        // One exchange decides the race with `take`, without a lock between caller and flusher.
        let settled = self
            .0
            .compare_exchange(OPEN, LEFT, Ordering::AcqRel, Ordering::Acquire);
        settled.is_err()
    }

    /// Settles it for the flusher that takes it. Returns whether it was settled before.
    pub(crate) fn take(&self, flusher: u64) -> bool {
        let taken = TAKEN + flusher;
        let settled = self
            .0
            .compare_exchange(OPEN, taken, Ordering::AcqRel, Ordering::Acquire);
        settled.is_err()
    }

    /// The number of the flusher that has taken it.
    pub(crate) fn flusher(&self) -> Option<u64> {
        self.0.load(Ordering::Acquire).checked_sub(TAKEN)
    }
}

/// The lengths of the arguments of a command.
pub(crate) fn arguments(command: &Cmd) -> impl Iterator<Item = usize> {
    command.args_iter().map(|arg| match arg {
        Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    })
}

/// A command with at least this many bytes of arguments, or a value of at least this size, is
/// large.
// Such a value goes over a connection of its own, so that small calls do not wait for its transfer.
pub(crate) const LARGE: usize = 64 << 10;

/// The states of [`Settled`]: not settled, left by its caller, or taken by flusher `n` (`TAKEN +
/// n`).
const OPEN: u64 = 0;
const LEFT: u64 = 1;
const TAKEN: u64 = 2;
