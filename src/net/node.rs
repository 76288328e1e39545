//! `Node`: one server as a client uses it, with a connection for commands and one for pushes.
//!
//! Invariant: all connections of a node have the same target. Their sockets are opened when they
//! are first needed, and again when they are lost.
//!
//! The topologies make nodes and choose one for each call.

use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::connection::{Answer, Connection, ConnectionConfig, Signal};
use super::durable::Durable;
use super::endpoint::{Access, Endpoint};
use super::pipeline::Pipeline;
use super::pubsub::PubSub;
#[cfg(feature = "near")]
use super::tracking::Tracking;
use crate::background::Spawner;
use crate::error::{Error, Result};
use crate::net::connection::backoff::{ConnectRate, ConnectRates};
use crate::net::connection::target::Target;
use crate::net::pipeline::large::Large;
use crate::net::pipeline::queue::Limits;
use crate::net::pipeline::replies::MultiGet;

/// How the nodes of one client are reached.
#[derive(Clone)]
pub(crate) struct NodeConfig {
    /// The name that `CLIENT LIST` shows for connections.
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) spawner: Spawner,
    pub(crate) approach: Access,
    pub(crate) reads: MultiGet,
    /// How many pipelines to one server may be under way at once.
    pub(crate) pipelines: usize,
    /// How much may wait for one server.
    pub(crate) limits: Limits,
    /// One connect rate for each address, shared by all connections to it.
    pub(crate) paces: ConnectRates,
    pub(crate) on_trouble: Option<Signal>,
}

/// One server, with its connections.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its address, without credentials.
    address: String,
    pub(crate) link: Arc<Connection>,
    pub(crate) pipeline: Pipeline,
    /// `None` for a node without pushes, such as a connection that the caller brought.
    pub(crate) pubsub: Option<Arc<PubSub>>,
    /// For writes that wait for replicas. `None` for a node without pushes.
    durable: Option<Arc<Durable>>,
    /// Which cached keys have changed. `None` for a node without pushes.
    #[cfg(feature = "near")]
    pub(crate) tracking: Option<Arc<Tracking>>,
}

impl Node {
    /// A server that is dialled as needed.
    pub(crate) fn new(endpoint: &Endpoint, style: &NodeConfig) -> Self {
        Self::from(
            endpoint.address.to_string(),
            Target::Server(endpoint.clone()),
            style,
        )
    }

    /// A server that is found and dialled as `source` says.
    pub(crate) fn from(address: String, source: Target, style: &NodeConfig) -> Self {
        let pace = style.paces.of(&address);
        let pushes = ConnectionConfig {
            source: source.clone(),
            name: format!("{}-push", style.name),
            connect_timeout: style.connect_timeout,
            pace: pace.clone(),
            spawner: style.spawner.clone(),
            on_push: None,
            made: None,
            on_trouble: style.on_trouble.clone(),
            after_demotion: None,
        };
        let pubsub = Arc::new(PubSub::new(pushes));
        let listens = Arc::downgrade(&pubsub);
        // The connection for commands notices a demotion, and the one for pushes must follow it to
        // the new primary.
        let after_demotion: Signal = Arc::new(move || {
            if let Some(pubsub) = listens.upgrade() {
                pubsub.reset();
            }
        });
        Self::asked(address, source, style, pace, Some((pubsub, after_demotion)))
    }

    /// The server behind a connection that the caller brought. It has no pushes.
    pub(crate) fn brought(connection: MultiplexedConnection, style: &NodeConfig) -> Self {
        let address = "a connection of the caller's".to_owned();
        let source = Target::Brought(connection);
        Self::asked(address, source, style, Arc::default(), None)
    }

    /// A server that is only asked, without pushes.
    pub(crate) fn mute(address: String, source: Target, style: &NodeConfig) -> Self {
        let pace = style.paces.of(&address);
        Self::asked(address, source, style, pace, None)
    }

    /// A node with a connection for commands, and with `pushes` if there are any.
    fn asked(
        address: String,
        source: Target,
        style: &NodeConfig,
        pace: Arc<ConnectRate>,
        pushes: Option<(Arc<PubSub>, Signal)>,
    ) -> Self {
        let (pubsub, after_demotion) = pushes.unzip();
        let link = Connection::new(ConnectionConfig {
            source,
            name: style.name.clone(),
            connect_timeout: style.connect_timeout,
            pace,
            spawner: style.spawner.clone(),
            on_push: None,
            // The format of a namespace is asked for again when the session to its server changes.
            made: Some(Arc::default()),
            on_trouble: style.on_trouble.clone(),
            after_demotion,
        });
        let (reads, pipelines, limits) = (style.reads, style.pipelines, style.limits);
        Self {
            address,
            pipeline: match pubsub {
                Some(_) => Pipeline::without_large_values(link.clone(), reads, pipelines, limits),
                // A replica serves only reads of caches, whose proofs belong to one connection. A
                // brought connection cannot be opened twice.
                None => Pipeline::new(link.clone(), reads, pipelines, limits),
            },
            #[cfg(feature = "near")]
            tracking: pubsub.as_ref().map(|pubsub| {
                let (pushes, tracked) = pubsub.tracked();
                Tracking::new(pushes, link.clone(), tracked)
            }),
            durable: pubsub.as_ref().map(|_| Durable::beside(&link)),
            link,
            pubsub,
        }
    }

    /// Sends a write, and waits for replicas: see [`Durable::send`].
    pub(crate) async fn send_durably(
        &self,
        commands: Vec<Cmd>,
        replicas: usize,
        deadline: Instant,
    ) -> Result<(Answer, usize)> {
        match &self.durable {
            Some(durable) => durable.send(commands, replicas, deadline).await,
            None => Err(Error::invalid(
                "waiting for replicas needs a connection of its own, and this client was given one; \
                 make the client by URL",
            )),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The connection for large values, if there is one.
    pub(crate) fn large(&self) -> Option<&Arc<Large>> {
        self.pipeline.large()
    }

    /// The connection for writes that wait for replicas, if there is one.
    pub(crate) fn durable(&self) -> Option<&Arc<Durable>> {
        self.durable.as_ref()
    }

    /// Opens no session any more; see [`Connection::retire`].
    pub(crate) fn retire(&self) {
        self.link.retire();
        if let Some(large) = self.large() {
            large.retire();
        }
        if let Some(durable) = &self.durable {
            durable.retire();
        }
        if let Some(pubsub) = &self.pubsub {
            pubsub.retire();
        }
    }
}
