//! `Topology`: which server is asked about a key.
//!
//! Invariant: everything that shares a hash tag is asked of one server, so that a script finds all
//! of its keys there. The primitives know keys only; the executor asks here, once an attempt, so
//! that an attempt after a change of topology goes to the right server.

mod census;
mod cluster;
mod slots;

use std::sync::Arc;

pub(crate) use cluster::Cluster;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::lane::Cells;
use super::link::Link;
use super::node::Node;
use super::push::Hub;
use crate::error::Result;
use crate::key::Key;
use crate::script::{Found, Transport, from_server};

/// Where the servers are.
#[derive(Debug)]
pub(crate) enum Topology {
    /// One server, or whatever is the primary behind one name.
    One(Node),
    Cluster(Cluster),
}

impl Topology {
    /// The pushes of the server that serves `key`, as far as known without asking.
    pub(crate) fn hub(&self, key: &Key) -> Option<Arc<Hub>> {
        match self {
            Self::One(node) => node.hub.clone(),
            Self::Cluster(cluster) => cluster.node(key)?.hub.clone(),
        }
    }

    /// Which of `channels` a script on `key` may publish to.
    pub(crate) fn channel(
        &self,
        key: &Key,
        mut channels: impl Iterator<Item = Key>,
    ) -> Option<Key> {
        match self {
            Self::One(_) => channels.next(),
            Self::Cluster(cluster) => cluster.beside(key, channels),
        }
    }

    /// All servers that are written to, with their addresses.
    pub(crate) async fn nodes(&self, deadline: Instant) -> Result<Vec<(String, Arc<Link>)>> {
        match self {
            Self::One(node) => Ok(vec![(node.address().to_owned(), node.link.clone())]),
            Self::Cluster(cluster) => cluster.nodes(deadline).await,
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
            Self::Cluster(cluster) => cluster.address(),
        }
    }
}

impl Transport for Topology {
    async fn send(&self, command: &Cmd, key: Option<&Key>, deadline: Instant) -> Result<Value> {
        match (self, key) {
            (Self::One(node), _) => node.lane.send(command, deadline).await,
            (Self::Cluster(cluster), Some(key)) => cluster.send(command, key, deadline).await,
            (Self::Cluster(cluster), None) => cluster.send_to_all(command, deadline).await,
        }
    }

    async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Found> {
        match self {
            Self::One(node) => found(node.lane.read(keys, deadline).await?),
            Self::Cluster(cluster) => cluster.read(keys, deadline).await,
        }
    }
}

/// The values of cells, none of which may be a refusal.
fn found(cells: Cells) -> Result<Found> {
    let read = |cell: Result<_, redis::ServerError>| cell.map_err(|error| from_server(&error));
    cells.into_iter().map(read).collect()
}
