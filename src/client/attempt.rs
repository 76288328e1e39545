//! `Attempt`: one try to get a connection.
//!
//! Invariant: it belongs to the link that wants the connection, not to a caller. Callers wait for
//! it together, each as long as its own deadline allows. A caller that leaves does not cancel the
//! attempt, so callers in a hurry reach a server that greets slowly, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::time::{Instant, timeout_at};

use crate::background::{Spawner, Task};
use crate::error::{Error, ErrorKind, Result};

/// How far a try has come.
#[derive(Debug)]
pub(super) struct Attempt {
    begun: Instant,
    /// When it is given up.
    until: Instant,
    /// How many tries before it have failed, since the last that did not.
    failed_before: u32,
    /// Its task is gone, whether it has noted what came of the try or not.
    over: AtomicBool,
    /// What it means when the present step does not end in time.
    late: Mutex<fn() -> Error>,
}

/// An attempt under way; dropping this gives it up.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) attempt: Arc<Attempt>,
    task: Task,
}

impl Attempt {
    pub(super) fn new(timeout: Duration, failed_before: u32) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            until: begun + timeout,
            failed_before,
            over: AtomicBool::new(false),
            late: Mutex::new(not_connected_in_time),
        }
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// How many tries before it have failed, since the last that did not.
    pub(super) fn failed_before(&self) -> u32 {
        self.failed_before
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

    /// Its task is gone.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

impl Running {
    /// Has `attempt` made by a task of its own, which notes what comes of it.
    pub(super) fn start(
        attempt: Arc<Attempt>,
        spawner: &Spawner,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = spawner.spawn(work);
        Self { attempt, task }
    }

    pub(super) fn is_over(&self) -> bool {
        self.attempt.over.load(Ordering::Acquire)
    }

    /// Where its task lives.
    pub(super) fn runtime(&self) -> Option<runtime::Id> {
        self.task.pulse().runtime()
    }

    /// Whether its task is not polled though it is asked for.
    pub(super) fn stands_still(&self) -> bool {
        self.task.pulse().stands_still_when_asked()
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
