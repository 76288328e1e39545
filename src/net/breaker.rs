//! `Breaker`: a circuit breaker, which makes an outage cost microseconds instead of deadlines.
//!
//! Invariant: while it is open, at most one call at a time that heeds it gets through, as a probe,
//! to find out whether the server is back. Any answer of the server, to any caller, closes the
//! breaker. Only a probe makes the pause longer, because failures of calls that do not heed the
//! breaker say nothing new. A probe lapses when it should have ended long ago, so a future that is
//! kept and not polled blocks no caller. Refused calls fail with what was learnt last, be it that
//! the server is back and accepts no credentials.
//!
//! A [`Connection`](super::connection::Connection) reports every outcome here. While nothing is
//! wrong, that costs one atomic load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::ServerError;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Fate};
use crate::meters::{Described, Raised};
use crate::time::Deadline;
use crate::wire::fault::{from_server, is_stopped_by_a_move};

/// Whether one server answers, as far as known.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// A call has failed since the last success.
    // Read without the lock, so that the usual case stays cheap.
    troubled: AtomicBool,
    /// Another breaker logs the outages of this server.
    // A client has several connections to a server, and one outage is one event.
    silent: bool,
    state: Mutex<State>,
}

/// The state machine. The clock and the random factors are passed in, so that tests control them.
#[derive(Debug, Default)]
struct State {
    /// How many failures there were since the last success.
    failures: u32,
    /// When the first of these failures was.
    since: Option<Instant>,
    open: Option<Open>,
    /// The last of these failures, or what was learnt since.
    cause: Option<Error>,
    /// How many probes there have been. It numbers them.
    probes: u64,
}

/// The breaker is open.
#[derive(Debug)]
struct Open {
    /// No call is let through before this.
    until: Instant,
    pause: Duration,
    probing: Option<Probing>,
    /// How long probes have waited in vain since `until`, in sum.
    // Callers with short deadlines end their probes early. Together they count as one full probe.
    waited: Duration,
    /// Counts the breaker as open in the metrics.
    raised: Option<Raised>,
}

/// The call that is finding out whether the server is back.
#[derive(Debug)]
struct Probing {
    number: u64,
    since: Instant,
    /// A call to the server has failed since the probe began.
    failed: bool,
}

/// What a call that heeds the breaker may do.
#[derive(Debug, PartialEq)]
enum Admission {
    /// Go on: the breaker is closed.
    Free,
    /// Go on as the probe, for this long at most.
    Probe { number: u64, patience: Duration },
    /// Fail at once.
    Refused,
}

/// The permit to find out whether the server is back. If it is dropped without an outcome, the next
/// caller may probe.
#[derive(Debug)]
pub(crate) struct Probe<'b> {
    breaker: &'b Breaker,
    number: u64,
    patience: Duration,
}

impl Breaker {
    /// A breaker that logs nothing, for a second connection to a server whose outages are logged
    /// already.
    pub(crate) fn silent() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    /// Lets a call through. While the breaker is open, only a probe gets through, after the
    /// pause.
    ///
    /// # Errors
    /// `CircuitOpen`, as not executed, with the cause and the time of the next probe.
    pub(crate) fn admit(&self) -> Result<Option<Probe<'_>>, Error> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut state = self.state();
        let now = Instant::now();
        match state.admit(now) {
            Admission::Free => Ok(None),
            Admission::Probe { number, patience } => Ok(Some(Probe {
                breaker: self,
                number,
                patience,
            })),
            Admission::Refused => Err(state.refusal(now)),
        }
    }

    /// The error of calls that heed the breaker while it is open. This lets no call through.
    pub(crate) fn outage(&self) -> Option<Error> {
        if !self.troubled.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.state();
        state.open.is_some().then(|| state.refusal(Instant::now()))
    }

    /// Notes that the server has answered.
    pub(crate) fn succeeded(&self) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        let cause = state.cause.take();
        let was_open = state.succeeded();
        self.troubled.store(false, Ordering::Relaxed);
        drop(state);
        if was_open && !self.silent {
            let address = cause.as_ref().and_then(Error::address);
            tracing::info!(target: "hedgerow::client", address, "the server answers again; the breaker is closed");
        }
    }

    /// Notes that the server could not be reached, did not answer, or cannot serve any call.
    pub(crate) fn failed(&self, error: &Error) {
        let mut state = self.state();
        self.troubled.store(true, Ordering::Relaxed);
        let opened = state.failed(error, Instant::now(), spread());
        drop(state);
        if opened && !self.silent {
            let address = error.address();
            tracing::warn!(target: "hedgerow::client", address, %error, "the server is out; the breaker is open");
            let raised = Raised::new(&[("server", address.unwrap_or_default())], OPEN);
            // It may be closed by now.
            if let Some(open) = &mut self.state().open {
                open.raised = Some(raised);
            }
        }
    }

    /// Notes that the client cannot use the server for a reason that is no outage, such as
    /// credentials that it does not accept. The breaker stays as it is. While it is open, calls
    /// fail with that reason: it does not pass by itself, so no cache may do without the server.
    pub(crate) fn refused(&self, error: &Error) {
        if self.troubled.load(Ordering::Relaxed) {
            self.state().cause = Some(error.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Decides about a call that heeds the breaker.
    fn admit(&mut self, now: Instant) -> Admission {
        let Some(open) = &mut self.open else {
            return Admission::Free;
        };
        // A future that is kept and not polled would otherwise hold the permit for ever.
        let lapse = LAPSES * open.patience();
        let under_way = open.probing.as_ref();
        if now < open.until || under_way.is_some_and(|it| now < it.since + lapse) {
            return Admission::Refused;
        }
        self.probes += 1;
        open.probing = Some(Probing {
            number: self.probes,
            since: now,
            failed: false,
        });
        Admission::Probe {
            number: self.probes,
            patience: open.patience(),
        }
    }

    /// The error of a call that is not let through.
    fn refusal(&self, now: Instant) -> Error {
        let (times, cause) = match &self.cause {
            Some(cause) => (self.failures, cause.brief()),
            None => (self.failures, "no connection".into()),
        };
        let until = self.open.as_ref().map_or(now, |open| open.until);
        let wait = until.saturating_duration_since(now);
        let next = match self
            .open
            .as_ref()
            .is_some_and(|open| open.probing.is_some())
        {
            true => "a probe is under way".to_owned(),
            false => format!("next probe in {:.1} s", wait.as_secs_f64()),
        };
        let error = Error::new(
            ErrorKind::CircuitOpen,
            format!(
                "not sent: the circuit breaker for {{address}} is open after {times} failures ({cause}); {next}"
            ),
        );
        match &self.cause {
            // The call that failed may have been executed; this one was not sent.
            Some(cause) => error.with_source(cause.clone().with_fate(Fate::NotExecuted)),
            None => error,
        }
    }

    /// Closes the breaker. Returns whether it was open.
    fn succeeded(&mut self) -> bool {
        let before = std::mem::take(self);
        // The numbers go on, so that a probe that ends later is not mistaken for a new one.
        self.probes = before.probes;
        before.open.is_some()
    }

    /// Counts a failure. Returns whether that opens the breaker.
    fn failed(&mut self, error: &Error, now: Instant, spread: f64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        self.cause = Some(error.clone());
        if let Some(open) = &mut self.open {
            // It is open already, and only a probe makes the pause longer.
            if let Some(probing) = &mut open.probing {
                probing.failed = true;
            }
            return false;
        }
        if self.failures < FAILURES || now - since < LEAST {
            return false;
        }
        self.open = Some(Open {
            until: now + SHORTEST.mul_f64(spread),
            pause: SHORTEST,
            probing: None,
            waited: Duration::ZERO,
            raised: None,
        });
        true
    }

    /// Notes that a probe has ended without an answer (an answer would have closed the breaker).
    /// The next pause is longer if the server failed meanwhile. It is also longer if this probe has
    /// waited as long as a probe may, counted together with earlier ones that were given up early.
    fn left(&mut self, number: u64, now: Instant, spread: f64) {
        let Some(open) = &mut self.open else {
            return;
        };
        let Some(probing) = open.probing.take_if(|probing| probing.number == number) else {
            return;
        };
        open.waited += now - probing.since;
        if probing.failed || open.waited >= open.patience() {
            open.pause = (open.pause * 2).min(LONGEST);
            open.until = now + open.pause.mul_f64(spread);
            open.waited = Duration::ZERO;
        }
    }
}

impl Open {
    /// How long a probe may wait.
    fn patience(&self) -> Duration {
        self.pause.max(PROBE)
    }
}

impl Probe<'_> {
    /// The deadline of a call that was let through. A probe is given up soon, so that its caller
    /// does not wait long for a server that is out. A probe may take as long as the pause before
    /// it, and at least 300 ms. Otherwise a server that is slow to accept connections would never
    /// be found healthy.
    pub(crate) fn limit(probe: Option<&Self>, deadline: Deadline) -> Deadline {
        match probe {
            Some(probe) => deadline.at_most(Instant::now() + probe.patience),
            None => deadline,
        }
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.state();
        state.left(self.number, Instant::now(), spread());
    }
}

/// Whether an error means that the server is out, and not only that one call failed.
pub(crate) fn is_out(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unreachable
        | ErrorKind::Disconnected
        | ErrorKind::MaxClients
        | ErrorKind::Loading
        | ErrorKind::Busy
        | ErrorKind::MasterDown
        | ErrorKind::ClusterDown => true,
        // A deadline that passed before the command was sent says nothing about the server.
        ErrorKind::Timeout => error.fate() == Fate::Unknown,
        _ => false,
    }
}

/// Whether an error means that the server refuses the client, such as its credentials. Waiting does
/// not change that.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.fate() == Fate::Refused || error.kind() == ErrorKind::Unauthenticated
}

/// Whether an error reply means that the server is out. A slot that moves to another server, or
/// that no server serves, says nothing about the other slots.
pub(crate) fn says_out(error: &ServerError) -> bool {
    let of_one_slot = match error.code() {
        "TRYAGAIN" => true,
        "CLUSTERDOWN" => error.details().is_some_and(|it| it.contains("not served")),
        "ERR" => error.details().is_some_and(is_stopped_by_a_move),
        _ => false,
    };
    !of_one_slot && is_out(&from_server(error))
}

/// A random factor for a pause, so that many processes do not probe at the same time.
fn spread() -> f64 {
    rand::random_range(SPREAD)
}

const OPEN: Described = Described {
    name: "hedgerow_breakers_open",
    what: "Circuit breakers to this server that are open now, one for each client.",
};

/// The breaker opens after this many failures in a row ..
// One lost connection makes all calls in flight on it fail, and is no outage.
const FAILURES: u32 = 3;

/// .. if the last came at least this long after the first. A reconnect alone is no outage.
const LEAST: Duration = Duration::from_millis(500);

/// The pause in which no call is let through: the first, and the longest.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);

/// The range of the random factor of a pause.
const SPREAD: std::ops::Range<f64> = 0.75..1.25;

/// How long a probe may take at least.
const PROBE: Duration = Duration::from_millis(300);

/// A probe lapses after this many times the time that it may take: its future is kept and not
/// polled.
const LAPSES: u32 = 2;

#[cfg(test)]
mod tests;
