//! `Durable`: writes that wait until replicas have acknowledged them.
//!
//! Invariant: `WAIT` waits for the last write of the session that sends it, and blocks that session
//! meanwhile. So a write and its `WAIT`s travel over one session, on a connection that carries
//! nothing else. What is returned was executed by the server process that all other calls of the
//! node go to: both connections have named it. Each [`Node`](super::node::Node) has one of these.
//!
//! Several callers share the connection. Another write in between only makes `WAIT` wait for more,
//! and each `WAIT` is short, so that nobody waits for the replicas of another caller for long.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::connection::{Answer, Connection, Session};
use super::server_run::server_run;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::wire::value::integer;

/// The connection for writes that wait for replicas. Its socket is opened when it is first needed.
#[derive(Debug)]
pub(crate) struct Durable {
    link: Arc<Connection>,
    /// The connection for everything else.
    shared: Arc<Connection>,
}

impl Durable {
    pub(crate) fn beside(shared: &Arc<Connection>) -> Arc<Self> {
        Arc::new(Self {
            link: shared.for_waiting(),
            shared: shared.clone(),
        })
    }

    /// Sends a write. Returns its answer, and the number of replicas that have acknowledged it: as
    /// soon as `replicas` have, or shortly before the deadline. An error reply is an answer.
    ///
    /// The write must change something whenever it is executed: `WAIT` does not wait for a write
    /// that changed nothing.
    ///
    /// Cancel safety: the write may still be executed.
    pub(crate) async fn send(
        &self,
        write: &Cmd,
        replicas: usize,
        deadline: Instant,
    ) -> Result<(Answer, usize)> {
        // A part is left for the proof.
        let until = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        let live = self.link.live(deadline).await?;
        let epoch = live.epoch();
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(write.clone());
        pipeline.add_command(wait(replicas, until));
        let sent = self.link.send_all_over(live.clone(), &pipeline, deadline);
        let (replies, sent) = sent.await?;
        let mut replies = replies.into_iter();
        let (Some(value), Some(waited)) = (replies.next(), replies.next()) else {
            return Err(no_count());
        };
        let answer = Answer { value, sent };
        if matches!(answer.value, Value::ServerError(_)) {
            return Ok((answer, 0));
        }
        let mut count = counted(waited)?;
        while count < replicas && Instant::now() < until {
            match self.waited(&live, replicas, until, deadline).await {
                Ok(more) => count = more,
                // The session is gone, and what a new one waits for is not this write.
                Err(_) => break,
            }
        }
        self.prove(epoch, deadline).await?;
        Ok((answer, count))
    }

    /// Ends the session, because it may lead to another server than the shared connection.
    pub(crate) fn reset(&self) {
        self.link.reset();
    }

    /// Opens no session any more; see [`Connection::retire`].
    pub(crate) fn retire(&self) {
        self.link.retire();
    }

    /// Waits once more for the last write of the session `live`.
    async fn waited(
        &self,
        live: &Session,
        replicas: usize,
        until: Instant,
        deadline: Instant,
    ) -> Result<usize> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(wait(replicas, until));
        let sent = self.link.send_all_over(live.clone(), &pipeline, deadline);
        let (replies, _) = sent.await?;
        counted(replies.into_iter().next().unwrap_or(Value::Nil))
    }

    /// Fails unless the session of `epoch` leads to the server that calls are sent to now. After a
    /// failover it may lead to a former primary whose writes are lost.
    async fn prove(&self, epoch: u64, deadline: Instant) -> Result<()> {
        let asked = tokio::try_join!(
            server_run(&self.link, deadline),
            server_run(&self.shared, deadline)
        );
        // The write was executed, but perhaps by another server.
        let ((asked, own), (_, shared)) = asked.map_err(|error| error.with_fate(Fate::Unknown))?;
        if asked == epoch && own == shared {
            return Ok(());
        }
        self.link.reset();
        Err(Error::new(
            ErrorKind::Disconnected,
            "the primary was replaced while its replicas were waited for",
        ))
    }
}

/// The command that waits for `replicas`, not beyond `until`, and never for long.
fn wait(replicas: usize, until: Instant) -> Cmd {
    let left = until.saturating_duration_since(Instant::now());
    // At least 1 ms: with 0, the server waits for ever.
    let millis = left.min(SLICE).as_millis().max(1) as u64;
    let mut wait = redis::cmd("WAIT");
    wait.arg(replicas).arg(millis);
    wait
}

fn counted(reply: Value) -> Result<usize> {
    let count = integer(reply).map_err(|error| error.with_fate(Fate::Unknown))?;
    count
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(no_count)
}

fn no_count() -> Error {
    Error::new(
        ErrorKind::Server,
        "{server} does not say how many replicas have acknowledged a write",
    )
    .with_fate(Fate::Unknown)
}

/// How long one `WAIT` blocks the connection at most.
const SLICE: Duration = Duration::from_millis(50);
