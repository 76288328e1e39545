//! `Topology`: decides which server gets a call for a key.
//!
//! Invariant: all keys that share a hash tag go to one server, so that a script finds all of its
//! keys there. The primitives know only keys. The client asks this module for each try of a call,
//! so that a retry after a change of topology goes to the right server.

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
#[cfg(feature = "near")]
use crate::net::tracking::Tracking;
use crate::time::Deadline;
use crate::wire::fault::from_server;

/// The servers of one client.
#[derive(Debug)]
pub(crate) enum Topology {
    /// One server, given by its URL or as a connection.
    One(Node),
    /// A primary, given or found by sentinels, and its replicas.
    Replicated(Replicated),
    Cluster(Cluster),
    /// Independent servers, which share the keys.
    Shards(Shards),
}

impl Topology {
    /// Returns the pub/sub connection to the server that serves `key`, if that server is known.
    pub(crate) fn pubsub(&self, key: &Key) -> Option<Arc<PubSub>> {
        match self {
            Self::One(node) => node.pubsub.clone(),
            Self::Replicated(replicated) => replicated.pubsub(),
            Self::Cluster(cluster) => cluster.node(key)?.pubsub.clone(),
            Self::Shards(shards) => shards.node(key).pubsub.clone(),
        }
    }

    /// Calls `with` with the tracking of the server that serves `key`. `None` if that server is not
    /// known, or sends no pushes.
    #[cfg(feature = "near")]
    pub(crate) fn tracking<T>(
        &self,
        key: &Key,
        with: impl FnOnce(&Arc<Tracking>) -> T,
    ) -> Option<T> {
        // Lent and not cloned: each hit of a near cache calls this.
        match self {
            Self::One(node) => node.tracking.as_ref().map(with),
            Self::Replicated(replicated) => replicated.primary().tracking.as_ref().map(with),
            Self::Cluster(cluster) => cluster.node(key)?.tracking.as_ref().map(with),
            Self::Shards(shards) => shards.node(key).tracking.as_ref().map(with),
        }
    }

    /// Makes the near caches of this client forget `key`, which a call of this client may have
    /// changed. The push about it may come after the reply.
    #[cfg(feature = "near")]
    pub(crate) fn changed_here(&self, key: &Key) {
        self.tracking(key, |tracking| tracking.changed_here(key));
    }

    /// How many calls a server has sent on to another one so far. What such a read has found comes
    /// from a server that may not track it, and was sent again, after calls that came later.
    pub(crate) fn detours(&self) -> u64 {
        match self {
            Self::One(_) | Self::Replicated(_) | Self::Shards(_) => 0,
            Self::Cluster(cluster) => cluster.detours(),
        }
    }

    /// Requires a connection to the server that serves `key` by `until`: see
    /// [`Connection::urgent`]. Does nothing if that server is not known.
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

    /// Returns the first of `channels` that a script on `key` may publish to. `None` if the server
    /// of `key` is not known.
    pub(crate) fn channel(
        &self,
        key: &Key,
        mut channels: impl Iterator<Item = Key>,
    ) -> Option<Key> {
        match self {
            // Without slots a script may publish to any channel.
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

    /// Returns one copy of `key` per [slot group](Self::slot_group). The copy is on the server that
    /// holds all keys of the group or, in a cluster, most of them.
    pub(crate) fn for_slot_groups(&self, key: &Key) -> Vec<Key> {
        match self {
            Self::One(_) | Self::Replicated(_) => vec![key.clone()],
            Self::Cluster(_) => key.of_slot_groups(),
            Self::Shards(shards) => shards.everywhere(key),
        }
    }

    /// Returns the slot group of `key`.
    pub(crate) fn slot_group(&self, key: &Key) -> usize {
        match self {
            Self::One(_) | Self::Replicated(_) => 0,
            Self::Cluster(_) => key.slot_group(),
            Self::Shards(shards) => shards.place(key),
        }
    }

    /// Keys with the same number may be used in one script.
    pub(crate) fn script_group(&self, key: &Key) -> usize {
        match self {
            Self::One(_) | Self::Replicated(_) => 0,
            Self::Cluster(_) => usize::from(key.slot()),
            Self::Shards(shards) => shards.place(key),
        }
    }

    /// Returns a number that all keys share which the server of `key` serves now, if that server is
    /// known.
    pub(crate) fn server_number(&self, key: &Key) -> Option<usize> {
        self.at_server_of(key, |link| Some(std::ptr::from_ref(link).addr()))
    }

    /// Returns why there is no connection to the server of `key`, if that is known.
    pub(crate) fn trouble(&self, key: &Key) -> Option<Error> {
        self.at_server_of(key, |link| link.last_error())
    }

    /// Returns the error of fail-fast calls for `key` while the breaker of its server is open.
    pub(crate) fn outage(&self, key: &Key) -> Option<Error> {
        let refusal = self.at_server_of(key, |link| link.breaker().outage())?;
        Some(self.located(refusal, Some(key)))
    }

    /// Returns how many connections to the server of `key` were made, if that server is known.
    pub(crate) fn made(&self, key: &Key) -> Option<Count> {
        self.at_server_of(key, |link| link.counted().map(ConnectionChanges::count))
    }

    /// As [`made`](Self::made), for a query about `key` that was sent at `sent`: see
    /// [`ConnectionChanges::before`].
    pub(crate) fn made_before(&self, key: &Key, sent: Instant) -> Option<Count> {
        self.at_server_of(key, |link| link.counted()?.before(sent))
    }

    /// Returns whether one server serves both keys, which are of one slot group. True also if the
    /// server of either is not known.
    pub(crate) fn share_server(&self, key: &Key, other: &Key) -> bool {
        match self {
            Self::One(_) | Self::Replicated(_) | Self::Shards(_) => true,
            Self::Cluster(cluster) => match (cluster.node(key), cluster.node(other)) {
                (Some(one), Some(other)) => Arc::ptr_eq(&one, &other),
                // Not known. The caller then asks the server of the other key, which is the strict
                // answer.
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

    /// Returns the connections to all servers that are written to, with their addresses.
    pub(crate) async fn nodes(&self, deadline: Deadline) -> Result<Vec<(String, Arc<Connection>)>> {
        match self {
            Self::One(node) => Ok(vec![(node.address().to_owned(), node.link.clone())]),
            Self::Replicated(replicated) => Ok(vec![replicated.node()]),
            Self::Cluster(cluster) => cluster.nodes(deadline).await,
            Self::Shards(shards) => Ok(shards.nodes()),
        }
    }

    /// Returns whether the servers should be parts of a cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Returns the addresses of the servers, without credentials.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::One(node) => node.address().to_owned(),
            Self::Replicated(replicated) => replicated.address().to_owned(),
            Self::Cluster(cluster) => cluster.address(),
            Self::Shards(shards) => shards.address(),
        }
    }

    /// Reads `keys` at a replica, if one may be asked. All values are of one moment, which is not
    /// before any write of this client that was announced by [`writing`](Self::writing).
    pub(crate) async fn read_replica(&self, keys: &[Key], deadline: Instant) -> Option<Values> {
        match self {
            Self::Replicated(replicated) => replicated.read_replica(keys, deadline).await,
            Self::One(_) | Self::Cluster(_) | Self::Shards(_) => None,
        }
    }

    /// Announces a write of `key`, if replicas are read. The write lasts until the value is
    /// dropped.
    pub(crate) fn writing(&self, key: &Key) -> Option<PendingWrite> {
        match self {
            Self::Replicated(replicated) => Some(replicated.writing(key)),
            Self::One(_) | Self::Cluster(_) | Self::Shards(_) => None,
        }
    }

    /// Sends `command` to the server that serves `key` and waits for the reply until `deadline`.
    /// Without a key it goes to the only server, or to every primary or shard; the first reply is
    /// returned. The fate of an error says whether the command was sent.
    pub(crate) async fn send(
        &self,
        command: &Cmd,
        key: Option<&Key>,
        deadline: Deadline,
    ) -> Result<Answer> {
        match (self, key) {
            (Self::One(node), _) => node.pipeline.send(command, deadline).await,
            (Self::Replicated(replicated), _) => replicated.send(command, deadline).await,
            // Boxed, so that the future of a call on one server need not have room for several
            // servers.
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

    /// Sends a write of `key` to its server. Returns the answer and the number of replicas that
    /// have acknowledged it: see [`Durable::send`](crate::net::durable::Durable::send).
    pub(crate) async fn send_durably(
        &self,
        command: &Cmd,
        key: Option<&Key>,
        replicas: usize,
        deadline: Deadline,
    ) -> Result<(Answer, usize)> {
        match (self, key) {
            (Self::One(node), _) => node.send_durably(one(command), replicas, deadline.at).await,
            (Self::Replicated(replicated), _) => {
                let node = replicated.primary();
                node.send_durably(one(command), replicas, deadline.at).await
            }
            (Self::Cluster(cluster), Some(key)) => {
                cluster.send_durably(command, key, replicas, deadline).await
            }
            (Self::Shards(shards), Some(key)) => {
                let node = shards.node(key);
                let sent = node.send_durably(one(command), replicas, deadline.at).await;
                sent.map_err(|error| shards.located(error, key))
            }
            (Self::Cluster(_) | Self::Shards(_), None) => Err(Error::invalid(
                "a write without a key reaches no one server",
            )),
        }
    }

    /// Returns the servers that are written to, also those of the other ring of shards. A cluster
    /// is asked which they are.
    pub(crate) async fn servers(&self, deadline: Deadline) -> Result<Vec<Server>> {
        Ok(match self {
            Self::One(_) | Self::Replicated(_) => vec![Server::Only],
            Self::Cluster(cluster) => {
                let primaries = cluster.primaries(deadline).await?;
                primaries.into_iter().map(Server::Primary).collect()
            }
            Self::Shards(shards) => (0..shards.len()).map(Server::Shard).collect(),
        })
    }

    /// Sends `command` to this server, whatever keys it names.
    pub(crate) async fn send_to(
        &self,
        server: &Server,
        command: &Cmd,
        deadline: Deadline,
    ) -> Result<Answer> {
        match (self, server) {
            (Self::Shards(shards), Server::Shard(place)) => {
                shards.send_to(*place, command, deadline).await
            }
            (_, Server::Primary(node)) => {
                let answer = node.pipeline.send(command, deadline).await;
                answer.map_err(|error| node.link.located(error))
            }
            _ => self.send(command, None, deadline).await,
        }
    }

    /// Returns the number of the last session with this server, if they are numbered.
    pub(crate) fn session_with(&self, server: &Server) -> Option<u64> {
        let link = match (self, server) {
            (Self::One(node), _) => &node.link,
            (Self::Replicated(replicated), _) => &replicated.primary().link,
            (Self::Shards(shards), Server::Shard(place)) => shards.link(*place),
            (_, Server::Primary(node)) => &node.link,
            _ => return None,
        };
        link.counted().map(|changes| changes.count().made)
    }

    /// Adds the address of the server of `key` to `error`, unless it has one.
    pub(crate) fn located(&self, error: Error, key: Option<&Key>) -> Error {
        match (self, key) {
            (Self::One(node), _) => node.link.located(error),
            (Self::Replicated(replicated), _) => replicated.primary().link.located(error),
            (Self::Shards(shards), Some(key)) => shards.located(error, key),
            // Each shard has named itself in the error.
            (Self::Shards(_), None) => error,
            (Self::Cluster(cluster), key) => match key.and_then(|key| cluster.node(key)) {
                Some(node) => node.link.located(error),
                None => error.at_address(&cluster.address().into()),
            },
        }
    }

    /// Returns once the servers have answered a `PING`: one of the primaries of a cluster, every
    /// shard, or the only server.
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

    /// Reads string keys. The values are in the order of the keys; a missing key, or a key of
    /// another type, gives `None`.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        match self {
            Self::One(node) => values(node.pipeline.read(keys, deadline).await?),
            // Boxed, so that the future of a read on one server need not be as large as that on
            // several.
            Self::Replicated(replicated) => Box::pin(replicated.read(keys, deadline)).await,
            Self::Cluster(cluster) => Box::pin(cluster.read(keys, deadline)).await,
            Self::Shards(shards) => Box::pin(shards.read(keys, deadline)).await,
        }
    }
}

/// One of the servers of a client that are written to.
#[derive(Debug, Clone)]
pub(crate) enum Server {
    Only,
    Shard(usize),
    Primary(Arc<Node>),
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Only, Self::Only) => true,
            (Self::Shard(one), Self::Shard(other)) => one == other,
            (Self::Primary(one), Self::Primary(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A write with nothing in front of it.
fn one(command: &Cmd) -> Vec<Cmd> {
    vec![command.clone()]
}

/// Returns the reply of the first of several servers.
fn said(answer: Option<Answer>) -> Result<Answer> {
    answer.ok_or_else(|| Error::new(ErrorKind::Unreachable, "no server is known"))
}
