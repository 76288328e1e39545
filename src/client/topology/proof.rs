//! How far a replica has come: what servers say of their replication, and what of that is proved.
//!
//! Invariant: a replica is proved only against what the same primary said before it was asked.

use std::collections::VecDeque;
use std::sync::Arc;

use redis::Value;
use tokio::time::Instant;

use super::writes::MOST_LAG;
use crate::client::link::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::fault::from_server;

/// What a server says of its place in the replication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) is_primary: bool,
    /// It is a replica, and in touch with its primary.
    pub(super) follows: bool,
    /// The history of writes that its offset counts in.
    pub(super) history: String,
    pub(super) offset: u64,
}

pub(super) async fn standing(link: &Arc<Link>, deadline: Instant) -> Result<Standing> {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    match link.send(&command, deadline).await?.value {
        Value::ServerError(error) => Err(from_server(&error)),
        Value::VerbatimString { text, .. } => Ok(Standing::parse(&text)),
        Value::BulkString(bytes) => Ok(Standing::parse(&String::from_utf8_lossy(&bytes))),
        _ => Err(Error::new(
            ErrorKind::Server,
            "INFO was answered with another type than a string",
        )),
    }
}

impl Standing {
    pub(super) fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim()
        };
        let is_primary = field("role") == "master";
        // The primary's count of what it has written; the replica's of what it has applied.
        let offset = match is_primary {
            true => field("master_repl_offset").parse().ok(),
            false => field("slave_repl_offset").parse().ok(),
        };
        Self {
            is_primary: is_primary && offset.is_some(),
            follows: field("role") == "slave"
                && field("master_link_status") == "up"
                && field("master_sync_in_progress") == "0"
                && offset.is_some(),
            history: field("master_replid").to_owned(),
            offset: offset.unwrap_or_default(),
        }
    }
}

/// How far the primary was when it was asked lately.
#[derive(Debug, Default)]
pub(super) struct History {
    name: String,
    /// When it was asked, and what it answered.
    offsets: VecDeque<(Instant, u64)>,
}

impl History {
    pub(super) fn note(&mut self, asked: Instant, standing: Standing) {
        if self.name != standing.history {
            self.offsets.clear();
            self.name = standing.history;
        }
        while self
            .offsets
            .front()
            .is_some_and(|(at, _)| *at + MOST_LAG <= asked)
        {
            self.offsets.pop_front();
        }
        self.offsets.push_back((asked, standing.offset));
    }

    /// The latest moment of which a replica has applied everything.
    pub(super) fn reached(&self, standing: &Standing) -> Option<Instant> {
        if self.name != standing.history {
            return None;
        }
        let reached = |(_, offset): &&(Instant, u64)| *offset <= standing.offset;
        let (at, _) = self.offsets.iter().rev().find(reached)?;
        Some(*at)
    }
}
