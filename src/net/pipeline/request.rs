//! A command or a read that waits to be sent, and what becomes of it.
//!
//! Invariant: it is settled once: by the task that takes it, or by the caller that leaves.

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
    /// Part of a read has none: whether it was sent is of no interest to anybody.
    pub(crate) settled: Option<Arc<Settled>>,
}

#[derive(Debug)]
pub(crate) enum Operation {
    Command(Cmd, Reply<Answer>),
    Read(Vec<Key>, Reply<KeyReplies>),
    /// This part of a read.
    Part(Arc<ScatterRead>, usize),
}

impl Operation {
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Command(_, reply) => drop(reply.send(Err(error))),
            Self::Read(_, reply) => drop(reply.send(Err(error))),
            Self::Part(read, part) => read.refuse(part, error),
        }
    }

    pub(crate) fn caller_left(&self) -> bool {
        match self {
            Self::Command(_, reply) => reply.is_closed(),
            Self::Read(_, reply) => reply.is_closed(),
            Self::Part(read, _) => read.is_over(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Command(command, _) => arguments(command).sum(),
            Self::Read(keys, _) => keys.iter().map(|key| key.as_str().len()).sum(),
            Self::Part(read, part) => read.keys(*part).map(|key| key.as_str().len()).sum(),
        }
    }

    /// How many keys are read.
    pub(crate) fn keys(&self) -> usize {
        match self {
            Self::Command(..) => 0,
            Self::Read(keys, _) => keys.len(),
            Self::Part(read, part) => read.keys(*part).count(),
        }
    }
}

/// Settled by whoever decides what becomes of a command: the carrier that takes it, or the caller
/// whose deadline has passed.
#[derive(Debug, Default)]
pub(crate) struct Settled(AtomicU64);

impl Settled {
    /// The caller leaves. Whether it was settled before.
    pub(crate) fn settle(&self) -> bool {
        let settled = self
            .0
            .compare_exchange(OPEN, LEFT, Ordering::AcqRel, Ordering::Acquire);
        settled.is_err()
    }

    /// This carrier takes it. Whether it was settled before.
    pub(crate) fn take(&self, carrier: u64) -> bool {
        let taken = TAKEN + carrier;
        let settled = self
            .0
            .compare_exchange(OPEN, taken, Ordering::AcqRel, Ordering::Acquire);
        settled.is_err()
    }

    /// Who has taken it.
    pub(crate) fn carrier(&self) -> Option<u64> {
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

/// From this size on a command is large.
pub(crate) const LARGE: usize = 64 << 10;

/// What is stored of a command that nobody has settled, whose caller has left, or that a carrier
/// has taken: its number, after that.
const OPEN: u64 = 0;
const LEFT: u64 = 1;
const TAKEN: u64 = 2;
