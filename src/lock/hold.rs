//! `Hold`: what this process knows of one grant.
//!
//! Invariant: the local deadline only ever comes from an instant before a command was sent, plus
//! the lease that the command set, less a margin for clocks of different rate. Once ended, a hold
//! stays ended. Guards read it without I/O; the keeper writes it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha1::{Digest as _, Sha1};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Fence, Keys};
use crate::error::{Error, ErrorKind};
use crate::time::Ttl;

/// Who holds or waits: an id by which the server knows it, and a secret of 128 random bits that the
/// server learns only when the lock is handed on.
///
/// A fresh id is the digest of its secret, the *seal*. Redis holds ids and seals, so that what can be
/// read there forges no grant: a waiter believes a push that brings the secret to the seal of whoever
/// was to hand over to it. Never shown.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Owner(Arc<str>);

impl Owner {
    pub(super) fn random() -> Self {
        let secret = hex(&rand::random());
        Self::with(&seal(&secret), &secret)
    }

    /// An owner in the same process to whom the lock is passed: with an id of its own, under the
    /// same seal, by which the waiters know whom to believe.
    pub(super) fn successor(&self) -> Self {
        Self::with(&hex(&rand::random()), self.secret())
    }

    fn with(id: &str, secret: &str) -> Self {
        let mut text = String::with_capacity(2 * DIGITS + 3);
        for part in [FORMAT, " ", id, " ", secret] {
            text.push_str(part);
        }
        Self(text.into())
    }

    pub(super) fn id(&self) -> &str {
        &self.0[2..2 + DIGITS]
    }

    pub(super) fn secret(&self) -> &str {
        &self.0[3 + DIGITS..]
    }

    /// What the value of a lock has behind the fence while nobody queues behind this holder.
    pub(super) fn unqueued(&self) -> &str {
        &self.0[..3 + DIGITS]
    }
}

/// The digest of a secret, cut to the length of an id.
pub(super) fn seal(secret: &str) -> String {
    let digest = Sha1::digest(secret.as_bytes());
    let mut head = [0; DIGITS / 2];
    head.copy_from_slice(&digest[..DIGITS / 2]);
    hex(&head)
}

fn hex(bytes: &[u8; DIGITS / 2]) -> String {
    let mut text = String::with_capacity(DIGITS);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}

/// The format of a lock's value. A client of another format refuses to touch what it finds.
const FORMAT: &str = "2";

/// The hex digits of an id, a seal and a secret.
const DIGITS: usize = 32;

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

/// Why a guard no longer holds its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease could not be renewed in time: the server was out of reach, or this process stood
    /// still. Somebody else may hold the lock.
    Expired,
    /// The server says that the lease is gone: it expired, was deleted, or the data was lost.
    Taken,
    /// [`Lock::break_lock`](super::Lock::break_lock) took it away.
    Broken,
    /// [`Lock::max_hold`](super::Lock::max_hold) was reached.
    MaxHold,
}

impl LossReason {
    pub(super) fn error(self, name: &str) -> Error {
        let message = match self {
            Self::Expired => "the lock is lost: its lease could not be renewed in time",
            Self::Taken => "the lock is lost: the server no longer knows its lease",
            Self::Broken => "the lock is lost: break_lock took it away",
            Self::MaxHold => "the lock is lost: it was held for max_hold",
        };
        Error::new(ErrorKind::Lost, message).with_key(name)
    }
}

/// One grant of a lock.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) keys: Arc<Keys>,
    pub(super) owner: Owner,
    pub(super) fence: Fence,
    pub(super) lease: Ttl,
    /// How often the lock has been passed on inside the process to get here, since the server's
    /// queue last had a say. It travels with the lock, for the line may be empty in between.
    pub(super) passes: u32,
    /// When `max_hold` ends it.
    pub(super) limit: Option<Instant>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    deadline: Instant,
    end: Option<End>,
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Released,
    Lost(LossReason),
}

impl Hold {
    /// A hold whose lease of `granted` was set by a command sent not before `sent`.
    pub(super) fn new(
        keys: Arc<Keys>,
        owner: Owner,
        fence: Fence,
        lease: Ttl,
        limit: Option<Duration>,
        (sent, granted): (Instant, Ttl),
        passes: u32,
    ) -> Arc<Self> {
        tracing::debug!(target: "hedgerow::lock", lock = &*keys.name, %fence, "acquired");
        let limit = limit.map(|limit| Instant::now() + limit);
        Arc::new(Self {
            keys,
            owner,
            fence,
            lease,
            passes,
            limit,
            state: Mutex::new(State {
                deadline: before(limit, sure_until(sent, granted)),
                end: None,
            }),
            changed: Notify::new(),
        })
    }

    /// The renewal sent at `sent` was acknowledged.
    pub(super) fn renewed(&self, sent: Instant) {
        let mut state = self.state();
        let sure = before(self.limit, sure_until(sent, self.lease));
        state.deadline = state.deadline.max(sure);
    }

    /// Ends the hold, unless it has ended; returns whether this call did it.
    pub(super) fn end(&self, end: End) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return false;
        }
        state.end = Some(end);
        drop(state);
        self.changed.notify_waiters();
        let (lock, fence) = (&*self.keys.name, self.fence);
        match end {
            End::Released => {
                tracing::debug!(target: "hedgerow::lock", lock, %fence, "given up");
            }
            End::Lost(reason) => {
                tracing::warn!(target: "hedgerow::lock", lock, %fence, ?reason, "lost");
            }
        }
        true
    }

    /// How it ended, or until when it is surely held. A hold past its deadline ends here.
    pub(super) fn status(&self) -> Result<Instant, End> {
        let state = self.state();
        if let Some(end) = state.end {
            return Err(end);
        }
        let now = Instant::now();
        if now < state.deadline {
            return Ok(state.deadline);
        }
        let reason = match self.limit {
            Some(limit) if limit <= state.deadline => LossReason::MaxHold,
            _ => LossReason::Expired,
        };
        drop(state);
        // Somebody may end it meanwhile, for another reason: what is stored first counts.
        self.end(End::Lost(reason));
        Err(self.state().end.unwrap_or(End::Lost(reason)))
    }

    /// Waits for the loss. A hold that is released is not lost.
    pub(super) async fn lost(&self) -> LossReason {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.status() {
                Err(End::Lost(reason)) => return reason,
                Err(End::Released) => std::future::pending().await,
                Ok(deadline) => {
                    let _ = tokio::time::timeout_at(deadline, changed).await;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest hold ends a hold whatever its lease.
fn before(limit: Option<Instant>, deadline: Instant) -> Instant {
    limit.map_or(deadline, |limit| limit.min(deadline))
}

/// Until when a lease that was set by a command sent not before `sent` surely lives: 1 % and 2 ms
/// less than its length, for a server clock that runs faster.
pub(super) fn sure_until(sent: Instant, lease: Ttl) -> Instant {
    let lease = lease.duration();
    sent + lease.saturating_sub(lease / 100 + Duration::from_millis(2))
}
