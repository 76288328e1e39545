//! `Breaker`: makes an outage cost microseconds instead of deadlines.
//!
//! Invariant: while it is open, at most one call at a time that heeds it gets through, to find out
//! whether the server is back. Any answer of the server, to whomever, closes it. Cache calls heed
//! it; locks and counters go on trying within their deadlines.
//!
//! Every outcome on a [`Link`](super::link::Link) is told here. While nothing is wrong, that costs
//! one atomic load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Fate};

/// What is known of the health of one server.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Something has failed since the last success.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// The first of these failures.
    since: Option<Instant>,
    open: Option<Open>,
    cause: Option<Error>,
}

#[derive(Debug)]
struct Open {
    /// Nobody is let through before this.
    until: Instant,
    pause: Duration,
    probing: bool,
}

/// The right to find out whether the server is back. Dropped without an outcome, it lets the next
/// caller find out.
#[derive(Debug)]
pub(crate) struct Probe<'b>(&'b Breaker);

impl Breaker {
    /// Lets a call through, as a probe when the server was in trouble; or says why not.
    pub(crate) fn admit(&self) -> Result<Option<Probe<'_>>, Error> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut state = self.state();
        let cause = state.cause.clone();
        let Some(open) = &mut state.open else {
            return Ok(None);
        };
        if open.probing || Instant::now() < open.until {
            return Err(is_open(cause));
        }
        open.probing = true;
        Ok(Some(Probe(self)))
    }

    /// The server has answered.
    pub(crate) fn succeeded(&self) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        let was_open = state.open.is_some();
        *state = State::default();
        self.troubled.store(false, Ordering::Relaxed);
        drop(state);
        if was_open {
            tracing::info!(target: "hedgerow::client", "the server answers again; the breaker is closed");
        }
    }

    /// The server could not be reached, did not answer, or cannot serve at all.
    pub(crate) fn failed(&self, error: &Error) {
        let now = Instant::now();
        let mut state = self.state();
        self.troubled.store(true, Ordering::Relaxed);
        state.failures = state.failures.saturating_add(1);
        let since = *state.since.get_or_insert(now);
        state.cause = Some(error.clone());
        let enough = state.failures >= FAILURES && now - since >= LEAST;
        let (pause, first) = match &state.open {
            // One failure for each time that somebody was let through.
            Some(open) if now >= open.until => ((open.pause * 2).min(LONGEST), false),
            None if enough => (SHORTEST, true),
            _ => return,
        };
        state.open = Some(Open {
            until: now + pause.mul_f64(rand::random_range(0.75..1.25)),
            pause,
            probing: false,
        });
        drop(state);
        if first {
            tracing::warn!(target: "hedgerow::client", %error, "the server is out; the breaker is open");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe<'_> {
    /// The deadline of a call that was let through: a probe is given up soon, since its caller has
    /// something better to do than to wait for a server that is out.
    pub(crate) fn deadline(probe: Option<&Self>, deadline: Instant) -> Instant {
        match probe {
            Some(_) => deadline.min(Instant::now() + PROBE),
            None => deadline,
        }
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Some(open) = &mut self.0.state().open {
            open.probing = false;
        }
    }
}

/// Whether an error says that the server is out, and not only what it thinks of one call.
pub(crate) fn is_out(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unreachable
        | ErrorKind::Disconnected
        | ErrorKind::MaxClients
        | ErrorKind::Loading
        | ErrorKind::Busy
        | ErrorKind::MasterDown
        | ErrorKind::ClusterDown => true,
        // A caller in a hurry is no outage.
        ErrorKind::Timeout => error.fate() == Fate::Unknown,
        _ => false,
    }
}

fn is_open(cause: Option<Error>) -> Error {
    const OPEN: &str = "nothing was sent: the circuit breaker is open";
    match cause {
        Some(cause) => {
            // What became of the call that failed says nothing about this one.
            let cause = cause.with_fate(Fate::NotExecuted);
            Error::new(ErrorKind::CircuitOpen, format!("{OPEN}, for {cause}")).with_source(cause)
        }
        None => Error::new(ErrorKind::CircuitOpen, OPEN),
    }
}

/// The breaker opens after so many failures in a row ..
const FAILURES: u32 = 3;

/// .. the last of which came so long after the first: a connection made anew is no outage.
const LEAST: Duration = Duration::from_millis(500);

/// How long nobody is let through: at first, and at most.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);

/// How long the one who is let through may wait.
const PROBE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn out() -> Error {
        Error::new(ErrorKind::Unreachable, "out")
    }

    /// Fails until the breaker is open.
    async fn opened() -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.failed(&out());
            tokio::time::advance(LEAST).await;
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_at_one_moment_open_nothing() {
        let breaker = Breaker::default();
        for _ in 0..10 * FAILURES {
            breaker.failed(&out());
        }
        assert!(breaker.admit().is_ok_and(|probe| probe.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_failures_keeps_it_closed() {
        let breaker = Breaker::default();
        for _ in 0..10 * FAILURES {
            breaker.failed(&out());
            breaker.succeeded();
            tokio::time::advance(LEAST).await;
        }
        assert!(breaker.admit().is_ok_and(|probe| probe.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_open_one_at_a_time_gets_through_after_a_pause() {
        let breaker = opened().await;
        breaker.failed(&out());
        let error = breaker.admit().expect_err("open");
        assert_eq!(error.kind(), ErrorKind::CircuitOpen);
        assert!(error.is_retryable(), "nothing was sent");
        tokio::time::advance(2 * LONGEST).await;
        let probe = breaker.admit().expect("let through").expect("as a probe");
        assert!(breaker.admit().is_err(), "one at a time");
        // The caller was dropped: the next finds out.
        drop(probe);
        let probe = breaker.admit().expect("let through").expect("as a probe");
        breaker.failed(&out());
        drop(probe);
        assert!(breaker.admit().is_err(), "the server is still out");
        tokio::time::advance(2 * LONGEST).await;
        breaker.admit().expect("let through").expect("as a probe");
        breaker.succeeded();
        assert!(breaker.admit().is_ok_and(|probe| probe.is_none()), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_limit() {
        let breaker = opened().await;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            tokio::time::advance(2 * LONGEST).await;
            drop(breaker.admit().expect("let through"));
            breaker.failed(&out());
            pauses.push(breaker.state().open.as_ref().expect("open").pause);
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&LONGEST));
    }
}
