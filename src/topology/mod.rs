//! `Topology`: which server is asked about a key.
//!
//! Invariant: everything that shares a hash tag is asked of one server, so that a script finds all
//! of its keys there. The primitives know keys only; the client asks here, once an attempt, so
//! that an attempt after a change of topology goes to the right server.

pub(crate) mod cluster;
pub(crate) mod placement;
pub(crate) mod replica;
pub(crate) mod replicated;
pub(crate) mod sentinel;
pub(crate) mod servers;
pub(crate) mod shard;

use std::sync::Arc;
use std::time::Duration;

use cluster::Cluster;
use placement::Copies;
use redis::{Cmd, Value};
use replicated::Replicated;

use replica::recent_writes::PendingWrite;
use shard::Shards;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::net::connection::changes::{ConnectionChanges, Count};
use crate::net::connection::{Answer, Connection};
use crate::net::node::Node;
use crate::net::pipeline::replies::{Values, values};
use crate::net::pubsub::PubSub;
use crate::time::Deadline;
use crate::wire::fault::from_server;

/// Where the servers are.
#[derive(Debug)]
pub(crate) enum Topology {
    One(Node),
    /// A primary, given or found by sentinels, and its replicas.
    Replicated(Replicated),
    Cluster(Cluster),
    Shards(Shards),
}

impl Topology {
    /// The pushes of the server that serves `key`, as far as known without asking.
    pub(crate) fn pubsub(&self, key: &Key) -> Option<Arc<PubSub>> {
        match self {
            Self::One(node) => node.pubsub.clone(),
            Self::Replicated(replicated) => replicated.pubsub(),
            Self::Cluster(cluster) => cluster.node(key)?.pubsub.clone(),
            Self::Shards(shards) => shards.node(key).pubsub.clone(),
        }
    }

    /// The server that serves `key` must be reached in time: see [`Connection::urgent`]. Nothing where it
    /// is not known which that is.
    pub(crate) fn urgent(&self, key: &Key, until: Instant, every: Duration) {
        match self {
            Self::One(node) => node.link.urgent(until, every),
            Self::Replicated(replicated) => replicated.primary().link.urgent(until, every),
            Self::Cluster(cluster) => {
                if let Some(node) = cluster.node(key) {
                    node.link.urgent(until, every);
                }
            }
            Self::Shards(shards) => shards.node(key).link.urgent(until, every),
        }
    }

    /// Which of `channels` a script on `key` may publish to.
    pub(crate) fn channel(
        &self,
        key: &Key,
        mut channels: impl Iterator<Item = Key>,
    ) -> Option<Key> {
        match self {
            Self::One(_) | Self::Replicated(_) | Self::Shards(_) => channels.next(),
            Self::Cluster(cluster) => cluster.beside(key, channels),
        }
    }

    /// Where a cached key lives while keys move from one ring of shards to another. At any other
    /// time, and for all other topologies, in one place.
    pub(crate) fn copies(&self, key: &Key) -> Copies {
        match self {
            Self::One(_) | Self::Replicated(_) | Self::Cluster(_) => Copies::none(),
            Self::Shards(shards) => shards.copies(key),
        }
    }

    /// A key like `key` for each [`part`](Self::slot_group) of the keys. That of a part is on the server
    /// of all its keys; in a cluster, of most.
    pub(crate) fn for_slot_groups(&self, key: &Key) -> Vec<Key> {
        match self {
            Self::One(_) | Self::Replicated(_) => vec![key.clone()],
            Self::Cluster(_) => key.of_slot_groups(),
            Self::Shards(shards) => shards.everywhere(key),
        }
    }

    /// The part that `key` is in.
    pub(crate) fn slot_group(&self, key: &Key) -> usize {
        match self {
            Self::One(_) | Self::Replicated(_) => 0,
            Self::Cluster(_) => key.slot_group(),
            Self::Shards(shards) => shards.place(key),
        }
    }

    /// Keys for which this is the same number may stand in one script.
    pub(crate) fn script_group(&self, key: &Key) -> usize {
        match self {
            Self::One(_) | Self::Replicated(_) => 0,
            Self::Cluster(_) => usize::from(key.slot()),
            Self::Shards(shards) => shards.place(key),
        }
    }

    /// Why there is no connection to the server of `key`, as far as known.
    pub(crate) fn trouble(&self, key: &Key) -> Option<Error> {
        self.at_server_of(key, |link| link.last_error())
    }

    /// Why calls that heed the breaker of the server of `key` are refused, while it is open.
    pub(crate) fn outage(&self, key: &Key) -> Option<Error> {
        let refusal = self.at_server_of(key, |link| link.breaker().outage())?;
        Some(self.located(refusal, Some(key)))
    }

    /// The connections to the server of `key`, as far as that is known.
    pub(crate) fn made(&self, key: &Key) -> Option<Count> {
        self.at_server_of(key, |link| link.counted().map(ConnectionChanges::count))
    }

    /// The same, for a question about `key` that was sent at `sent`: see [`ConnectionChanges::before`].
    pub(crate) fn made_before(&self, key: &Key, sent: Instant) -> Option<Count> {
        self.at_server_of(key, |link| link.counted()?.before(sent))
    }

    /// Whether one server serves both keys of one part, or it is not known which do.
    pub(crate) fn share_server(&self, key: &Key, other: &Key) -> bool {
        match self {
            Self::One(_) | Self::Replicated(_) | Self::Shards(_) => true,
            Self::Cluster(cluster) => match (cluster.node(key), cluster.node(other)) {
                (Some(one), Some(other)) => Arc::ptr_eq(&one, &other),
                _ => true,
            },
        }
    }

    fn at_server_of<T>(&self, key: &Key, ask: impl FnOnce(&Connection) -> Option<T>) -> Option<T> {
        match self {
            Self::One(node) => ask(&node.link),
            Self::Replicated(replicated) => ask(&replicated.primary().link),
            Self::Cluster(cluster) => ask(&cluster.node(key)?.link),
            Self::Shards(shards) => ask(&shards.node(key).link),
        }
    }

    /// All servers that are written to, with their addresses.
    pub(crate) async fn nodes(&self, deadline: Deadline) -> Result<Vec<(String, Arc<Connection>)>> {
        match self {
            Self::One(node) => Ok(vec![(node.address().to_owned(), node.link.clone())]),
            Self::Replicated(replicated) => Ok(vec![replicated.node()]),
            Self::Cluster(cluster) => cluster.nodes(deadline).await,
            Self::Shards(shards) => Ok(shards.nodes()),
        }
    }

    /// Whether the servers are to be parts of a cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Where the servers are, without credentials.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::One(node) => node.address().to_owned(),
            Self::Replicated(replicated) => replicated.address().to_owned(),
            Self::Cluster(cluster) => cluster.address(),
            Self::Shards(shards) => shards.address(),
        }
    }

    /// What a replica answers to a read of `keys`, where one may be asked: all of it at one moment,
    /// which is before no write of this client's that [`writing`](Self::writing) was told of.
    pub(crate) async fn read_replica(&self, keys: &[Key], deadline: Instant) -> Option<Values> {
        match self {
            Self::Replicated(replicated) => replicated.read_replica(keys, deadline).await,
            Self::One(_) | Self::Cluster(_) | Self::Shards(_) => None,
        }
    }

    /// Notes that `key` is being written, where a replica may be asked about it.
    pub(crate) fn writing(&self, key: &Key) -> Option<PendingWrite> {
        match self {
            Self::Replicated(replicated) => Some(replicated.writing(key)),
            Self::One(_) | Self::Cluster(_) | Self::Shards(_) => None,
        }
    }

    /// Sends `command` to the server that serves `key`, any where there is none, and waits for
    /// its reply until `deadline`. The fate of an `Err` says whether the command was sent.
    pub(crate) async fn send(
        &self,
        command: &Cmd,
        key: Option<&Key>,
        deadline: Deadline,
    ) -> Result<Answer> {
        match (self, key) {
            (Self::One(node), _) => node.pipeline.send(command, deadline).await,
            (Self::Replicated(replicated), _) => replicated.send(command, deadline).await,
            // In boxes: a call of one server need not have room for what several take.
            (Self::Cluster(cluster), Some(key)) => {
                Box::pin(cluster.send(command, key, deadline)).await
            }
            (Self::Cluster(cluster), None) => {
                said(Box::pin(cluster.send_to_all(command, deadline)).await?)
            }
            (Self::Shards(shards), Some(key)) => shards.send(command, key, deadline).await,
            (Self::Shards(shards), None) => {
                said(Box::pin(shards.send_to_all(command, deadline)).await?)
            }
        }
    }

    /// Says in `error` where the server of `key` is, unless that is said already.
    pub(crate) fn located(&self, error: Error, key: Option<&Key>) -> Error {
        match (self, key) {
            (Self::One(node), _) => node.link.located(error),
            (Self::Replicated(replicated), _) => replicated.primary().link.located(error),
            (Self::Shards(shards), Some(key)) => shards.node(key).link.located(error),
            (Self::Shards(_), None) => error,
            (Self::Cluster(cluster), key) => match key.and_then(|key| cluster.node(key)) {
                Some(node) => node.link.located(error),
                None => error.at_address(&cluster.address().into()),
            },
        }
    }

    /// Returns when the servers have given a sign of life: as many of them as must be there for
    /// calls to be served.
    pub(crate) async fn greet(&self, deadline: Deadline) -> Result<()> {
        let ping = redis::cmd("PING");
        if let Self::Cluster(cluster) = self {
            return cluster.send_to_any(&ping, deadline.keep_trying()).await;
        }
        match self.send(&ping, None, deadline.keep_trying()).await?.value {
            Value::ServerError(error) => Err(from_server(&error)),
            _ => Ok(()),
        }
    }

    /// Reads string keys, in their order; a missing key, or one of another type, is `None`.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        match self {
            Self::One(node) => values(node.pipeline.read(keys, deadline).await?),
            // In a box: a read of one server need not be as large as one of several.
            Self::Replicated(replicated) => Box::pin(replicated.read(keys, deadline)).await,
            Self::Cluster(cluster) => Box::pin(cluster.read(keys, deadline)).await,
            Self::Shards(shards) => Box::pin(shards.read(keys, deadline)).await,
        }
    }
}

/// What the first of several servers has answered.
fn said(answer: Option<Answer>) -> Result<Answer> {
    answer.ok_or_else(|| Error::new(ErrorKind::Unreachable, "no server is known"))
}
