//! `Replicated`: a primary, and replicas that a cache may read from.
//!
//! Invariant: every call goes to the primary, except for reads of a cache that allows replicas. The
//! addresses are given, or sentinels find them. `Topology` calls this.

use std::sync::Arc;

use redis::Cmd;
use tokio::time::Instant;

use super::replica::Replicas;
use super::sentinel::Sentinels;
use crate::error::Result;
use crate::key::Key;
use crate::net::connection::target::Target;
use crate::net::connection::{Answer, Connection};
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::net::pipeline::replies::{Values, values};
use crate::net::pubsub::PubSub;
use crate::time::Deadline;
use crate::topology::replica::recent_writes::{PendingWrite, RecentWrites};

#[derive(Debug)]
pub(crate) struct Replicated {
    primary: Node,
    replicas: Arc<Replicas>,
    /// Shared with the replicas, which must not answer with values from before these writes.
    writes: Arc<RecentWrites>,
}

impl Replicated {
    /// Makes it from the URLs of the servers.
    pub(crate) fn at(primary: &str, replicas: &[String], style: &NodeConfig) -> Result<Self> {
        let endpoint = Endpoint::parse(primary, &style.approach)?;
        let endpoints = Endpoint::parse_all(replicas, &style.approach)?;
        let replicated = Self::new(Node::new(&endpoint, style), style);
        replicated.replicas.set(&endpoints);
        Ok(replicated)
    }

    /// Makes it with servers that `sentinels` find.
    pub(crate) fn found_by(sentinels: &Arc<Sentinels>, style: &NodeConfig) -> Self {
        let source = Target::Located(sentinels.clone());
        let replicated = Self::new(Node::from(sentinels.to_string(), source, style), style);
        sentinels.lead(&replicated.primary, &replicated.replicas);
        replicated
    }

    /// Returns the connection to the primary, with the address or the sentinels that lead to it.
    pub(in crate::topology) fn node(&self) -> (String, Arc<Connection>) {
        (self.primary.address().to_owned(), self.primary.link.clone())
    }

    fn new(primary: Node, style: &NodeConfig) -> Self {
        let writes = Arc::new(RecentWrites::default());
        Self {
            replicas: Replicas::new(primary.link.clone(), writes.clone(), style),
            primary,
            writes,
        }
    }

    pub(crate) fn pubsub(&self) -> Option<Arc<PubSub>> {
        self.primary.pubsub.clone()
    }

    pub(crate) fn address(&self) -> &str {
        self.primary.address()
    }

    pub(crate) fn primary(&self) -> &Node {
        &self.primary
    }

    pub(crate) async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        self.primary.pipeline.send(command, deadline).await
    }

    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        values(self.primary.pipeline.read(keys, deadline).await?)
    }

    /// See [`Replicas::read`].
    pub(crate) async fn read_replica(&self, keys: &[Key], deadline: Instant) -> Option<Values> {
        self.replicas.read(keys, deadline).await
    }

    pub(crate) fn writing(&self, key: &Key) -> PendingWrite {
        self.writes.begin(key)
    }
}
