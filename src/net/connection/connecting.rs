//! `Connecting`: one connect attempt.
//!
//! Invariant: an attempt belongs to the connection that needs it, not to a caller. Callers wait for
//! it together, each until its own deadline. A caller that leaves does not cancel the attempt.
//! Otherwise callers with short deadlines would never reach a server that is slow to greet.
//!
//! [`connect`](super::connect) starts the attempts, and [`dial`](super::dial) reports each step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::time::{Instant, timeout_at};

use crate::background::{Spawner, Task};
use crate::error::{Error, ErrorKind, Result};

/// How far a connect attempt has come.
#[derive(Debug)]
pub(crate) struct Connecting {
    begun: Instant,
    /// When it is given up.
    until: Instant,
    /// How many attempts before it have failed since the last success.
    failed_before: u32,
    /// Its task is gone, whether or not it recorded the outcome.
    over: AtomicBool,
    /// The error if the present step does not end in time.
    late: Mutex<fn() -> Error>,
}

/// An attempt under way. Dropping this gives it up.
#[derive(Debug)]
pub(crate) struct ConnectTask {
    pub(crate) attempt: Arc<Connecting>,
    task: Task,
}

impl Connecting {
    /// An attempt that starts now and is given up after `timeout`.
    pub(crate) fn new(timeout: Duration, failed_before: u32) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            until: begun + timeout,
            failed_before,
            over: AtomicBool::new(false),
            // Before the first step there is nothing better to say.
            late: Mutex::new(not_connected_in_time),
        }
    }

    /// When it is given up.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// How many attempts before it have failed since the last success.
    pub(crate) fn failed_before(&self) -> u32 {
        self.failed_before
    }

    /// Waits for one step until the attempt is given up. `late` makes the error if the step does
    /// not end in time.
    pub(crate) async fn step<F: Future>(&self, late: fn() -> Error, step: F) -> Result<F::Output> {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        let outcome = timeout_at(self.until, step).await;
        outcome.map_err(|_| late())
    }

    /// The error if the time were up now.
    pub(crate) fn late(&self) -> Error {
        let late = *self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late()
    }

    /// Whether a healthy server would have answered by now.
    pub(crate) fn is_slow(&self) -> bool {
        self.begun.elapsed() >= SLOW
    }

    /// Notes that its task is gone.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

impl ConnectTask {
    /// Spawns the task that makes `attempt`. The task `work` records the outcome itself.
    pub(crate) fn start(
        attempt: Arc<Connecting>,
        spawner: &Spawner,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = spawner.spawn(work);
        Self { attempt, task }
    }

    /// Whether its task is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.attempt.over.load(Ordering::Acquire)
    }

    /// The runtime of its task.
    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.task.pulse().runtime()
    }

    /// Whether its task is not polled although it was woken.
    pub(crate) fn stands_still(&self) -> bool {
        self.task.pulse().stands_still_when_asked()
    }
}

// An attempt that lost the race must not leave a second socket behind.
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

/// How long a healthy server may take to answer the handshake.
// A caller that gives up earlier says nothing about the server, so the breaker does not count it.
const SLOW: Duration = Duration::from_millis(250);
