//! `Health`: what is known of one connection, and the wait for an answer on it.
//!
//! Invariant: nobody waits on a connection that was given up, and nothing is sent after its
//! deadline. What was handed over and not answered is `Unknown`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::dial::Wire;
use crate::background::Background;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::from_driver;

/// What the watchdog looks at.
#[derive(Debug, Default)]
pub(super) struct Health {
    dead: AtomicBool,
    /// Tells those who wait for a reply that there will be none.
    gone: Notify,
    in_flight: AtomicUsize,
    /// A caller has left without its reply.
    owes: AtomicBool,
    replies: AtomicU64,
    /// Of a connection that we have dialled: taken, and so closed, when the connection ends.
    wire: Mutex<Option<Wire>>,
    renewal: Background,
}

impl Health {
    /// Sends by polling `sent`, and waits for the reply until `deadline`, or until the connection
    /// is given up.
    pub(super) async fn answer<T>(
        &self,
        sent: impl Future<Output = redis::RedisResult<T>>,
        deadline: Instant,
    ) -> Result<T> {
        let mut gone = std::pin::pin!(self.gone.notified());
        gone.as_mut().enable();
        if self.is_dead() {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the connection was lost before the command was sent",
            ));
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Timeout,
                "the command was not sent before its deadline",
            )
            .with_fate(Fate::NotExecuted));
        }
        let mut flight = self.enter();
        let outcome = tokio::select! {
            biased;
            outcome = timeout_at(deadline, sent) => outcome,
            () = gone => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    "the connection was given up before the reply came",
                ));
            }
        };
        match outcome {
            Ok(Ok(value)) => {
                flight.answered = true;
                self.replies.fetch_add(1, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) => {
                if error.is_io_error() || error.is_unrecoverable_error() {
                    self.end();
                }
                Err(from_driver(error))
            }
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the server did not answer before the deadline",
            )
            .with_fate(Fate::Unknown)),
        }
    }

    /// Ties the life of the socket to this.
    pub(super) fn hold(&self, wire: Wire) {
        *self.wire() = Some(wire);
    }

    /// When the credentials expire that the server was shown on this connection, if they do.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.wire().as_ref()?.expires()
    }

    /// What shows the server fresh credentials before that.
    pub(super) fn renewal(&self) -> &Background {
        &self.renewal
    }

    /// The connection is not used any more.
    pub(super) fn end(&self) {
        self.dead.store(true, Ordering::Release);
        self.gone.notify_waiters();
        self.renewal.end();
        let wire = self.wire().take();
        drop(wire);
    }

    fn wire(&self) -> MutexGuard<'_, Option<Wire>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// How many replies have come so far.
    pub(super) fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Whether a reply is due, or was when this was asked last.
    pub(super) fn owes(&self) -> bool {
        self.owes.swap(false, Ordering::Relaxed) || self.in_flight.load(Ordering::Relaxed) > 0
    }

    fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight {
            health: self,
            answered: false,
        }
    }
}

/// Counts a command as in flight while somebody waits for its reply.
struct InFlight<'h> {
    health: &'h Health,
    answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.health.owes.store(true, Ordering::Relaxed);
        }
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
