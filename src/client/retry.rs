//! Retry: sends a call, and sends it again only where that is proved harmless.
//!
//! Invariant: a call is sent a second time only if the first was proved not executed, or if a
//! second run answers as the first did ([`Retry::Safe`]). Nothing is sent after its deadline.
//! [`Client`](super::Client) calls this for all primitives.

use std::pin::pin;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::net::connection::Answer;
use crate::net::pipeline::replies::Values;
use crate::script::{Call, Reply, Retry};
use crate::time::{Backoff, Deadline};
use crate::topology::{Server, Topology};
use crate::wire::fault::from_server;

/// Runs `call` and returns its typed reply.
///
/// Cancel safety: dropping the future leaves the call unsent, or sent with its reply discarded.
pub(super) async fn run(topology: &Topology, call: Call, deadline: Deadline) -> Result<Reply> {
    let (name, retry) = (call.script().name(), call.retry());
    // One span for the whole call, so that its retries are seen together.
    let span = tracing::debug_span!(target: "hedgerow::script", "script", script = name);
    let (key, call) = (call.key(), &call);
    let answered = pin!(retried(topology, key, retry, deadline, || attempt(
        topology, call, deadline
    )));
    let answer = answered.instrument(span).await?;
    Reply::new(name, answer.value, answer.sent)
}

/// As [`run`], with the number of replicas that have acknowledged it: as soon as `replicas` have,
/// or shortly before the deadline.
///
/// Cancel safety: as [`run`].
pub(super) async fn run_durably(
    topology: &Topology,
    call: &Call,
    replicas: usize,
    deadline: Deadline,
) -> Result<(Reply, usize)> {
    let (key, name) = (call.key(), call.script().name());
    let attempt = || async move {
        let sent = topology.send_durably(call.by_sha(), key, replicas, deadline);
        let (mut answer, mut count) = sent.await?;
        if matches!(&answer.value, Value::ServerError(error) if error.code() == "NOSCRIPT") {
            let in_full = &call.by_source();
            let sent = topology.send_durably(in_full, key, replicas, deadline);
            (answer, count) = sent.await?;
        }
        match &answer.value {
            Value::ServerError(error) => Err(from_server(error)),
            _ => Ok((answer, count)),
        }
    };
    let (answer, count) = retried(topology, key, call.retry(), deadline, attempt).await?;
    Ok((Reply::new(name, answer.value, answer.sent)?, count))
}

/// Runs one plain command on `key`.
pub(super) async fn command(
    topology: &Topology,
    command: Cmd,
    key: Option<&Key>,
    retry: Retry,
    deadline: Deadline,
) -> Result<Value> {
    let answer = plainly(topology, command, key, retry, deadline).await;
    answer.map(|answer| answer.value)
}

/// As [`command`] on a key, for a caller that needs to know when the command was sent.
pub(super) async fn answer(
    topology: &Topology,
    command: Cmd,
    key: &Key,
    retry: Retry,
    deadline: Deadline,
) -> Result<Answer> {
    plainly(topology, command, Some(key), retry, deadline).await
}

/// Sends one plain command on `key`, and does not send it again.
pub(super) async fn once(
    topology: &Topology,
    command: Cmd,
    key: &Key,
    deadline: Deadline,
) -> Result<Value> {
    let answer = answered(topology, &command, Some(key), deadline).await;
    answer.map(|answer| answer.value)
}

async fn plainly(
    topology: &Topology,
    command: Cmd,
    key: Option<&Key>,
    retry: Retry,
    deadline: Deadline,
) -> Result<Answer> {
    let command = &command;
    let send = || answered(topology, command, key, deadline);
    retried(topology, key, retry, deadline, send).await
}

/// Runs one plain command on one server, whatever keys it names.
pub(super) async fn on_server(
    topology: &Topology,
    server: &Server,
    command: Cmd,
    retry: Retry,
    deadline: Deadline,
) -> Result<Value> {
    let command = &command;
    let send = || async move {
        let answer = topology.send_to(server, command, deadline).await?;
        match &answer.value {
            Value::ServerError(error) => Err(from_server(error)),
            _ => Ok(answer.value),
        }
    };
    retried(topology, None, retry, deadline, send).await
}

/// Returns once the servers have answered a `PING`.
pub(super) async fn greet(topology: &Topology, deadline: Deadline) -> Result<()> {
    let greet = || topology.greet(deadline);
    retried(topology, None, Retry::Reads, deadline, greet).await
}

/// Reads string keys. Reads change nothing, so they may always be sent again.
pub(super) async fn read(topology: &Topology, keys: &[Key], deadline: Deadline) -> Result<Values> {
    let read = || topology.read(keys, deadline);
    retried(topology, keys.first(), Retry::Reads, deadline, read).await
}

/// Attempts a call on `key` until an attempt succeeds, or no other may follow.
async fn retried<T, F: Future<Output = Result<T>>>(
    topology: &Topology,
    key: Option<&Key>,
    retry: Retry,
    deadline: Deadline,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let began = Instant::now();
    let mut error = match attempt().await {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    // Boxed: nearly every call is answered at once, and its future need not have room for a retry.
    Box::pin(async move {
        let mut attempts = RetryState::new(retry, deadline, began);
        loop {
            attempts.pause_after(topology.located(error, key)).await?;
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(another) => error = another,
            }
        }
    })
    .await
}

/// Sends `EVALSHA`, and `EVAL` if the server does not know the script or the call is to be sent in
/// full.
async fn attempt(topology: &Topology, call: &Call, deadline: Deadline) -> Result<Answer> {
    if call.is_in_full() {
        return Box::pin(in_full(topology, call, deadline)).await;
    }
    let answer = topology.send(call.by_sha(), call.key(), deadline).await?;
    match &answer.value {
        Value::ServerError(error) if error.code() == "NOSCRIPT" => {
            tracing::debug!(target: "hedgerow::script", script = call.script().name(), "uploading");
            Box::pin(in_full(topology, call, deadline)).await
        }
        Value::ServerError(error) => Err(from_server(error)),
        _ => Ok(answer),
    }
}

/// Sends `EVAL`.
async fn in_full(topology: &Topology, call: &Call, deadline: Deadline) -> Result<Answer> {
    answered(topology, &call.by_source(), call.key(), deadline).await
}

async fn answered(
    topology: &Topology,
    command: &Cmd,
    key: Option<&Key>,
    deadline: Deadline,
) -> Result<Answer> {
    let answer = topology.send(command, key, deadline).await?;
    match &answer.value {
        Value::ServerError(error) => Err(from_server(error)),
        _ => Ok(answer),
    }
}

/// What is known of the attempts of one call so far.
#[derive(Debug)]
struct RetryState {
    retry: Retry,
    deadline: Deadline,
    /// Time that is kept for the answer to the last attempt: a tenth of the whole.
    reserve: Duration,
    backoff: Backoff,
    /// Whether an attempt so far may have been executed. Never set back.
    may_have_run: bool,
    /// The error of the attempt before.
    last: Option<Error>,
    /// When the present attempt started. The next may take as long.
    began: Instant,
}

impl RetryState {
    /// Makes the state of a call whose first attempt started at `began`.
    fn new(retry: Retry, deadline: Deadline, began: Instant) -> Self {
        Self {
            retry,
            deadline,
            reserve: deadline.at.saturating_duration_since(began) / 10,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, 0.25..1.0),
            may_have_run: false,
            last: None,
            began,
        }
    }

    /// Pauses before the next attempt. Fails if no other attempt may follow.
    ///
    /// Once an attempt may have run, a call that fails stays indeterminate, whatever a later
    /// attempt reports. The later one was refused, but the first may have been applied. A call that
    /// only reads applies nothing, and may be called again in any case.
    async fn pause_after(&mut self, error: Error) -> Result<()> {
        let outcome = self.pause_unless_last(error).await;
        outcome.map_err(|error| match self.retry {
            Retry::Reads => error.of_a_read(),
            Retry::Safe | Retry::Unsafe => error,
        })
    }

    async fn pause_unless_last(&mut self, error: Error) -> Result<()> {
        let unsent = error.kind() == ErrorKind::Timeout && error.fate() == Fate::NotExecuted;
        let refused = matches!(error.kind(), ErrorKind::CircuitOpen | ErrorKind::Overloaded);
        if unsent || refused {
            // The deadline came, the breaker opened or the queue is full, before the call was sent
            // again. The error of the attempt before says more.
            return Err(self.last.take().unwrap_or(error));
        }
        let error = match self.retry {
            // A write of another call got READONLY, and the connection was given up for it. No read
            // is refused so.
            Retry::Reads if error.kind() == ErrorKind::ReadOnly => {
                self.last.take().unwrap_or(error)
            }
            _ => error,
        };
        self.may_have_run |= error.fate() == Fate::Unknown;
        let again = match error.fate() {
            Fate::NotExecuted => !self.may_have_run || self.retry != Retry::Unsafe,
            Fate::Unknown | Fate::Unanswered => self.retry != Retry::Unsafe,
            Fate::Refused | Fate::Executed => false,
        };
        let pause = self.backoff.pause();
        // An attempt that the deadline cuts short would turn a clear refusal into an indeterminate
        // error.
        let answer = if self.may_have_run {
            Duration::ZERO
        } else {
            pause.max(2 * self.began.elapsed()).max(self.reserve)
        };
        // Rather the present error now than a timeout at the deadline, which says less.
        if !again || Instant::now() + pause + answer >= self.deadline.at {
            return Err(if self.may_have_run {
                error.with_fate(Fate::Unknown)
            } else {
                error
            });
        }
        tracing::debug!(target: "hedgerow::script", %error, pause_ms = pause.as_millis() as u64, "sending again");
        tokio::time::sleep(pause).await;
        self.last = Some(if self.may_have_run {
            error.with_fate(Fate::Unknown)
        } else {
            error
        });
        self.began = Instant::now();
        Ok(())
    }
}

/// The shortest and longest pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn error(kind: ErrorKind, fate: Fate) -> Error {
        Error::new(kind, "told by the test").with_fate(fate)
    }

    /// The error of a call whose first attempt fails with `first`, and whose second is not sent.
    async fn ended(first: Error) -> Error {
        let mut attempts = RetryState::new(Retry::Safe, Deadline::after(MINUTE), Instant::now());
        let again = attempts.pause_after(first).await;
        again.expect("there is time for another attempt");
        let unsent = error(ErrorKind::Timeout, Fate::NotExecuted);
        let ended = attempts.pause_after(unsent).await;
        ended.expect_err("the deadline has come")
    }

    /// The kind of error of a call that meets MASTERDOWN, then READONLY shortly before its
    /// deadline.
    async fn told_after_a_demotion(retry: Retry) -> ErrorKind {
        let mut attempts = RetryState::new(retry, Deadline::after(MINUTE), Instant::now());
        let first = attempts.pause_after(error(ErrorKind::MasterDown, Fate::NotExecuted));
        first.await.expect("there is time for another attempt");
        tokio::time::advance(Duration::from_secs(59)).await;
        let second = attempts.pause_after(error(ErrorKind::ReadOnly, Fate::NotExecuted));
        second.await.expect_err("the deadline is near").kind()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_does_not_fail_with_what_the_writes_of_others_have_met() {
        assert_eq!(
            told_after_a_demotion(Retry::Reads).await,
            ErrorKind::MasterDown
        );
        assert_eq!(
            told_after_a_demotion(Retry::Safe).await,
            ErrorKind::ReadOnly
        );
    }

    #[tokio::test]
    async fn a_call_that_could_not_be_sent_again_tells_why_it_was_to_be() {
        let ended_with = ended(error(ErrorKind::Busy, Fate::NotExecuted)).await;
        assert_eq!(ended_with.kind(), ErrorKind::Busy);
        assert_eq!(ended_with.fate(), Fate::NotExecuted);

        let ended_with = ended(error(ErrorKind::Disconnected, Fate::Unknown)).await;
        assert_eq!(ended_with.kind(), ErrorKind::Disconnected);
        assert_eq!(ended_with.fate(), Fate::Unknown);
    }
}
