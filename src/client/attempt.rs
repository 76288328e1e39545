//! `Attempt`: one try to get a connection.
//!
//! Invariant: it belongs to the link that wants the connection, not to a caller. Callers wait for it
//! together, each as long as its own deadline allows; those who leave take nothing with them, so
//! that a server which greets slowly is reached by callers in a hurry, too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Result};

/// How far a try has come.
#[derive(Debug)]
pub(super) struct Attempt {
    begun: Instant,
    /// When it is given up.
    until: Instant,
    /// What it means when the present step does not end in time.
    late: Mutex<fn() -> Error>,
}

/// An attempt under way; dropping this gives it up.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) waiting: Waiting,
    task: JoinHandle<()>,
}

/// Waits for an attempt that somebody else owns.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) attempt: Arc<Attempt>,
    ended: watch::Receiver<Option<Result<()>>>,
}

impl Attempt {
    pub(super) fn new(timeout: Duration) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            until: begun + timeout,
            late: Mutex::new(not_connected_in_time),
        }
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Waits for one step; `late` says what it means when that does not end in time.
    pub(super) async fn step<F: Future>(&self, late: fn() -> Error, step: F) -> Result<F::Output> {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        let outcome = timeout_at(self.until, step).await;
        outcome.map_err(|_| late())
    }

    /// What it would mean if the time were up now.
    pub(super) fn late(&self) -> Error {
        let late = *self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late()
    }

    /// Whether a server that is well would have greeted by now.
    pub(super) fn is_slow(&self) -> bool {
        self.begun.elapsed() >= SLOW
    }
}

impl Running {
    /// Has `attempt` made by a task of its own, which answers what came of it.
    pub(super) fn start(
        attempt: Arc<Attempt>,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Self {
        let (end, ended) = watch::channel(None);
        let task = tokio::spawn(async move {
            let outcome = work.await;
            end.send_replace(Some(outcome));
        });
        let waiting = Waiting { attempt, ended };
        Self { waiting, task }
    }

    /// To wait for it, unless it is over.
    pub(super) fn join(&self) -> Option<Waiting> {
        let open = matches!(self.waiting.ended.has_changed(), Ok(false));
        open.then(|| self.waiting.clone())
    }
}

impl Waiting {
    /// What came of it; nothing if it went down with its runtime.
    ///
    /// Cancel safety: safe.
    pub(super) async fn outcome(&mut self) -> Option<Result<()>> {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|outcome| outcome.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn not_connected_in_time() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "no connection to {server} before the deadline; check that it runs and can be reached",
    )
}

/// How long a server that is well may take to greet.
const SLOW: Duration = Duration::from_millis(250);
