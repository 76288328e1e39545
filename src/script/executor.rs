//! The executor: sends a script call, and sends it again only where that is proved harmless.
//!
//! Invariant: a call is sent a second time only when the first was proved not executed, or when
//! the script's header says that a second run answers as the first did (`Retry: safe`). Nothing is
//! sent after its deadline. The primitives reach Redis through here and through the few plain
//! commands of the client.

use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Call, Reply, Retry, from_server};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;

/// What a read found, in the order of its keys.
pub(crate) type Found = Vec<Option<Bytes>>;

/// Whether a call gives way at once while its server is known to be out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It does: its caller can do without.
    Yielding,
    /// It goes on trying until its deadline.
    Persistent,
}

/// What the executor needs from the servers: one command, one reply.
pub(crate) trait Transport: Send + Sync {
    /// Sends `command` to the server that serves `key`, any where there is none, and waits for
    /// its reply until `deadline`. An error reply is an `Ok(Value::ServerError)`; an `Err` tells by
    /// its fate whether the command was sent.
    fn send(
        &self,
        command: &Cmd,
        key: Option<&Key>,
        patience: Patience,
        deadline: Instant,
    ) -> impl Future<Output = Result<Value>> + Send;

    /// Returns when the servers have given a sign of life: as many of them as must be there for
    /// calls to be served.
    fn greet(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;

    /// Reads string keys, in their order; a missing key, or one of another type, is `None`.
    fn read(&self, keys: &[Key], deadline: Instant) -> impl Future<Output = Result<Found>> + Send;
}

/// Runs script calls over one transport.
#[derive(Debug)]
pub(crate) struct Executor<T> {
    transport: T,
}

impl<T: Transport> Executor<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self { transport }
    }

    /// Runs `call` and returns its typed reply.
    ///
    /// Cancel safety: dropping the future leaves the call unsent, or sent with its reply
    /// discarded.
    pub(crate) async fn run(&self, call: Call, deadline: Instant) -> Result<Reply> {
        let span =
            tracing::debug_span!(target: "hedgerow::script", "script", script = call.script.name);
        self.answered(call, deadline).instrument(span).await
    }

    async fn answered(&self, call: Call, deadline: Instant) -> Result<Reply> {
        let mut attempts = Attempts::new(call.script.retry, deadline);
        loop {
            match self.attempt(&call, deadline).await {
                Ok(value) => return Reply::new(call.script.name, value),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    /// The servers that calls are sent to.
    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    /// Runs one plain command on `key`.
    pub(crate) async fn command(
        &self,
        command: Cmd,
        key: Option<&Key>,
        retry: Retry,
        deadline: Instant,
    ) -> Result<Value> {
        let mut attempts = Attempts::new(retry, deadline);
        loop {
            match self
                .sent(&command, key, Patience::Persistent, deadline)
                .await
            {
                Ok(value) => return Ok(value),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    /// Waits for a sign of life of the servers.
    pub(crate) async fn greet(&self, deadline: Instant) -> Result<()> {
        let mut attempts = Attempts::new(Retry::Safe, deadline);
        loop {
            match self.transport.greet(deadline).await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    /// Reads string keys. Reads change nothing, so they may always be sent again.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Found> {
        let mut attempts = Attempts::new(Retry::Safe, deadline);
        loop {
            match self.transport.read(keys, deadline).await {
                Ok(found) => return Ok(found),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    /// EVALSHA; where the server does not know the script, EVAL on the same connection.
    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Value> {
        let (key, patience) = (call.key.as_ref(), call.patience);
        let sent = self.transport.send(call.by_sha(), key, patience, deadline);
        match sent.await? {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => {
                tracing::debug!(target: "hedgerow::script", script = call.script.name, "uploading");
                self.sent(&call.by_source(), key, patience, deadline).await
            }
            Value::ServerError(error) => Err(from_server(&error)),
            value => Ok(value),
        }
    }

    async fn sent(
        &self,
        command: &Cmd,
        key: Option<&Key>,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Value> {
        match self
            .transport
            .send(command, key, patience, deadline)
            .await?
        {
            Value::ServerError(error) => Err(from_server(&error)),
            value => Ok(value),
        }
    }
}

/// What is known of the attempts of one call so far.
#[derive(Debug)]
struct Attempts {
    retry: Retry,
    deadline: Instant,
    /// What is kept for the answer to the last attempt: a tenth of the whole.
    room: Duration,
    pauses: Pauses,
    may_have_run: bool,
    /// What the attempt before failed with.
    last: Option<Error>,
    /// When the present attempt began: the next may take as long.
    began: Instant,
}

impl Attempts {
    fn new(retry: Retry, deadline: Instant) -> Self {
        Self {
            retry,
            deadline,
            room: deadline.saturating_duration_since(Instant::now()) / 10,
            pauses: Pauses::default(),
            may_have_run: false,
            last: None,
            began: Instant::now(),
        }
    }

    /// Pauses before the next attempt, or says that there must be none.
    ///
    /// Once an attempt may have run, the fate of the whole call stays unknown if it fails, whatever
    /// a later attempt says of itself: that one was refused, the first may have been applied.
    async fn pause_after(&mut self, error: Error) -> Result<()> {
        let unsent = error.kind() == ErrorKind::Timeout && error.fate() == Fate::NotExecuted;
        if unsent || error.kind() == ErrorKind::CircuitOpen {
            // The deadline came, or the breaker opened, before the call was sent again: what it has
            // met itself says more.
            return Err(self.last.take().unwrap_or(error));
        }
        self.may_have_run |= error.fate() == Fate::Unknown;
        let again = match error.fate() {
            Fate::NotExecuted => !self.may_have_run || self.retry == Retry::Safe,
            Fate::Unknown => self.retry == Retry::Safe,
            Fate::Refused => false,
        };
        let pause = self.pauses.next();
        // An attempt that the deadline cuts short would turn a clear refusal into an unknown fate.
        let answer = if self.may_have_run {
            Duration::ZERO
        } else {
            pause.max(2 * self.began.elapsed()).max(self.room)
        };
        if !again || Instant::now() + pause + answer >= self.deadline {
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

/// Pauses between attempts: 5 ms doubling to 250 ms, each with full jitter above a quarter.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            next: Duration::from_millis(5),
        }
    }
}

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(Duration::from_millis(250));
        whole.mul_f64(rand::random_range(0.25..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind, fate: Fate) -> Error {
        Error::new(kind, "told by the test").with_fate(fate)
    }

    /// What a call ends with whose first attempt fails with `first`, and whose second is not sent.
    async fn ended(first: Error) -> Error {
        let mut attempts = Attempts::new(Retry::Safe, Instant::now() + Duration::from_secs(60));
        let again = attempts.pause_after(first).await;
        again.expect("there is time for another attempt");
        let unsent = error(ErrorKind::Timeout, Fate::NotExecuted);
        let ended = attempts.pause_after(unsent).await;
        ended.expect_err("the deadline has come")
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
