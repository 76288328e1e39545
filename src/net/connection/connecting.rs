//! `Connecting`: one try to get a connection.
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
pub(crate) struct Connecting {
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
pub(crate) struct ConnectTask {
    pub(crate) attempt: Arc<Connecting>,
    task: Task,
}

impl Connecting {
    pub(crate) fn new(timeout: Duration, failed_before: u32) -> Self {
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
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// How many tries before it have failed, since the last that did not.
    pub(crate) fn failed_before(&self) -> u32 {
        self.failed_before
    }

    /// Waits for one step; `late` says what it means when that does not end in time.
    pub(crate) async fn step<F: Future>(&self, late: fn() -> Error, step: F) -> Result<F::Output> {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        let outcome = timeout_at(self.until, step).await;
        outcome.map_err(|_| late())
    }

    /// What it would mean if the time were up now.
    pub(crate) fn late(&self) -> Error {
        let late = *self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late()
    }

    /// Whether a server that is well would have greeted by now.
    pub(crate) fn is_slow(&self) -> bool {
        self.begun.elapsed() >= SLOW
    }

    /// Its task is gone.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

impl ConnectTask {
    /// Has `attempt` made by a task of its own, which notes what comes of it.
    pub(crate) fn start(
        attempt: Arc<Connecting>,
        spawner: &Spawner,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = spawner.spawn(work);
        Self { attempt, task }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.attempt.over.load(Ordering::Acquire)
    }

    /// Where its task lives.
    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.task.pulse().runtime()
    }

    /// Whether its task is not polled though it is asked for.
    pub(crate) fn stands_still(&self) -> bool {
        self.task.pulse().stands_still_when_asked()
    }
}

impl Drop for ConnectTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn not_connected_in_time() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "no connection to {server} before the deadline; check that it runs and can be reached",
    )
}

/// How long a server that is well may take to greet.
const SLOW: Duration = Duration::from_millis(250);
