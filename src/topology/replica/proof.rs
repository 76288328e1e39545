//! `ReplicationState` and `History`: how far servers report to be in the replication, and what that
//! proves.
//!
//! Invariant: a replica is proved only against an offset that the same primary reported before the
//! replica was asked. `Replicas` calls this.

use std::collections::VecDeque;
use std::sync::Arc;

use redis::Value;
use tokio::time::Instant;

use super::recent_writes::MOST_LAG;
use crate::error::{Error, ErrorKind, Result};
use crate::net::connection::Connection;
use crate::wire::fault::from_server;

/// What a server reports about its replication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::topology) struct ReplicationState {
    pub(in crate::topology) is_primary: bool,
    /// The server is a replica, and connected to its primary.
    pub(in crate::topology) follows: bool,
    /// The replication ID: offsets can be compared only within one history of writes.
    pub(in crate::topology) history: String,
    pub(in crate::topology) offset: u64,
}

pub(in crate::topology) async fn replication_state(
    link: &Arc<Connection>,
    deadline: Instant,
) -> Result<ReplicationState> {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    match link.send(&command, deadline).await?.value {
        Value::ServerError(error) => Err(from_server(&error)),
        Value::VerbatimString { text, .. } => Ok(ReplicationState::parse(&text)),
        Value::BulkString(bytes) => Ok(ReplicationState::parse(&String::from_utf8_lossy(&bytes))),
        _ => Err(Error::new(
            ErrorKind::Server,
            "INFO was answered with another type than a string",
        )),
    }
}

impl ReplicationState {
    pub(in crate::topology) fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim()
        };
        let is_primary = field("role") == "master";
        // The offset of the primary counts what it has written, that of the replica what it has
        // applied.
        let offset = match is_primary {
            true => field("master_repl_offset").parse().ok(),
            false => field("slave_repl_offset").parse().ok(),
        };
        Self {
            is_primary: is_primary && offset.is_some(),
            // A replica that is disconnected or in a full sync proves nothing about its data.
            follows: field("role") == "slave"
                && field("master_link_status") == "up"
                && field("master_sync_in_progress") == "0"
                && offset.is_some(),
            history: field("master_replid").to_owned(),
            offset: offset.unwrap_or_default(),
        }
    }
}

/// The offsets that the primary reported lately.
#[derive(Debug, Default)]
pub(in crate::topology) struct History {
    /// The replication ID that the offsets belong to.
    name: String,
    /// When the primary was asked, and the offset that it reported; oldest first.
    offsets: VecDeque<(Instant, u64)>,
}

impl History {
    pub(in crate::topology) fn note(
        &mut self,
        asked: Instant,
        replication_state: ReplicationState,
    ) {
        if self.name != replication_state.history {
            // After a failover offsets count another history, so the old ones prove nothing.
            self.offsets.clear();
            self.name = replication_state.history;
        }
        // An older offset cannot prove data that is recent enough.
        while self
            .offsets
            .front()
            .is_some_and(|(at, _)| *at + MOST_LAG <= asked)
        {
            self.offsets.pop_front();
        }
        self.offsets.push_back((asked, replication_state.offset));
    }

    /// Returns the latest moment up to which the replica has applied everything.
    pub(in crate::topology) fn reached(
        &self,
        replication_state: &ReplicationState,
    ) -> Option<Instant> {
        if self.name != replication_state.history {
            return None;
        }
        let reached = |(_, offset): &&(Instant, u64)| *offset <= replication_state.offset;
        let (at, _) = self.offsets.iter().rev().find(reached)?;
        Some(*at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_standing_is_read_from_what_servers_say() {
        let primary = ReplicationState::parse(
            "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
             slave0:ip=127.0.0.1,port=1,state=online,offset=14,lag=0\r\n\
             master_replid:aa\r\nmaster_replid2:00\r\nmaster_repl_offset:42\r\n",
        );
        let expected = ReplicationState {
            is_primary: true,
            follows: false,
            history: "aa".into(),
            offset: 42,
        };
        assert_eq!(primary, expected);
        let replica = |status: &str, sync: &str| {
            ReplicationState::parse(&format!(
                "role:slave\r\nmaster_host:h\r\nmaster_link_status:{status}\r\n\
                 master_sync_in_progress:{sync}\r\nslave_read_repl_offset:50\r\n\
                 slave_repl_offset:41\r\nmaster_replid:aa\r\nmaster_repl_offset:41\r\n"
            ))
        };
        assert!(replica("up", "0").follows && replica("up", "0").offset == 41);
        assert!(!replica("down", "0").follows && !replica("up", "1").follows);
        assert!(!replica("up", "0").is_primary);
        for nonsense in ["", "role:master", "role:slave\r\nmaster_link_status:up"] {
            let replication_state = ReplicationState::parse(nonsense);
            assert!(
                !replication_state.is_primary && !replication_state.follows,
                "{nonsense}"
            );
        }
    }

    #[test]
    fn a_replica_proves_the_latest_moment_that_it_has_reached_in_the_same_history() {
        let replication_state = |history: &str, offset| ReplicationState {
            history: history.into(),
            offset,
            ..ReplicationState::default()
        };
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut history = History::default();
        assert_eq!(history.reached(&replication_state("aa", 9)), None);
        history.note(after(0), replication_state("aa", 10));
        history.note(after(100), replication_state("aa", 20));
        assert_eq!(history.reached(&replication_state("aa", 9)), None);
        assert_eq!(
            history.reached(&replication_state("aa", 10)),
            Some(after(0))
        );
        assert_eq!(
            history.reached(&replication_state("aa", 19)),
            Some(after(0))
        );
        assert_eq!(
            history.reached(&replication_state("aa", 20)),
            Some(after(100))
        );
        assert_eq!(history.reached(&replication_state("bb", 99)), None);
        // Offsets that are too old are forgotten, and those of another history prove nothing.
        history.note(after(2050), replication_state("aa", 30));
        assert_eq!(history.reached(&replication_state("aa", 10)), None);
        assert_eq!(
            history.reached(&replication_state("aa", 20)),
            Some(after(100))
        );
        history.note(after(2060), replication_state("bb", 5));
        assert_eq!(history.reached(&replication_state("aa", 99)), None);
        assert_eq!(
            history.reached(&replication_state("bb", 5)),
            Some(after(2060))
        );
    }
}
