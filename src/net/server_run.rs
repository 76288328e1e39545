//! `server_run`: which run of which server is behind a connection.
//!
//! Invariant: the answer belongs to the session whose epoch it names. Two sessions with equal runs
//! lead to one server process. The connection for large values and [`tracking`](super::tracking)
//! prove by it that they lead to the server that calls are sent to.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::fault::from_server;

/// Returns the epoch of the session of `link`, and the `run_id` of the server process behind it.
///
/// Cancel safety: safe.
pub(crate) async fn server_run(link: &Arc<Connection>, deadline: Instant) -> Result<(u64, String)> {
    let live = link.live(deadline).await?;
    let epoch = live.epoch();
    let mut pipeline = Pipeline::with_capacity(1);
    pipeline.add_command(question());
    let (replies, _) = link.send_all_over(live, &pipeline, deadline).await?;
    Ok((epoch, run_of(replies.into_iter().next())?))
}

/// The command whose reply names the run of the server.
pub(crate) fn question() -> Cmd {
    let mut info = redis::cmd("INFO");
    info.arg("server");
    info
}

/// Returns the `run_id` in the reply to [`question`].
pub(crate) fn run_of(reply: Option<Value>) -> Result<String> {
    let info = match reply {
        Some(Value::ServerError(error)) => return Err(from_server(&error)),
        Some(Value::VerbatimString { text, .. }) => text,
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    };
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    match id {
        Some(id) => Ok(id.trim().to_owned()),
        None => Err(Error::new(
            ErrorKind::Server,
            "{server} does not say which run of the server it is",
        )),
    }
}
