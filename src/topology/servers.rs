//! `Servers`: the servers as the caller of the builder names them, and the topology that is made of
//! them.
//!
//! Invariant: its `Debug` output holds no URL, since a URL may hold a password. `ClientBuilder`
//! fills it in and asks it for the topology.

use std::fmt;

use redis::aio::MultiplexedConnection;

use super::Topology;
use super::cluster::Cluster;
use super::replicated::Replicated;
use super::sentinel::Sentinels;
use super::shard::{Migration, Shard, Shards};
use crate::error::{Error, Result};
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};

/// The servers, as the caller of the builder names them.
pub(crate) enum Servers {
    Url(String),
    /// The URL in the environment variable `REDIS_URL`, read when the client is opened.
    Environment,
    Connection(MultiplexedConnection),
    Cluster(Vec<String>),
    Shards(Vec<Shard>),
    Replicas {
        primary: String,
        replicas: Vec<String>,
    },
    Sentinels {
        sentinels: Vec<String>,
        service: String,
    },
}

impl Servers {
    /// Builds the topology of these servers. Only shards use `migration`; the builder refuses one
    /// for any other servers.
    pub(crate) fn topology(
        &self,
        migration: Option<&Migration>,
        style: &NodeConfig,
    ) -> Result<Topology> {
        match self {
            Self::Url(url) => one(url, style),
            Self::Connection(connection) => {
                Ok(Topology::One(Node::brought(connection.clone(), style)))
            }
            Self::Environment => {
                // Read here and not by the builder's method, which cannot fail.
                let url = std::env::var("REDIS_URL").map_err(|_| {
                    Error::invalid("REDIS_URL is not set; set it to redis://host:port")
                })?;
                one(&url, style)
            }
            Self::Replicas { primary, replicas } => Ok(Topology::Replicated(Replicated::at(
                primary, replicas, style,
            )?)),
            Self::Sentinels { sentinels, service } => {
                let sentinels = Sentinels::new(sentinels, service, style)?;
                Ok(Topology::Replicated(Replicated::found_by(
                    &sentinels, style,
                )))
            }
            Self::Cluster(seeds) => Ok(Topology::Cluster(Cluster::new(seeds, style)?)),
            Self::Shards(shards) => Ok(Topology::Shards(Shards::new(shards, migration, style)?)),
        }
    }
}

fn one(url: &str, style: &NodeConfig) -> Result<Topology> {
    let endpoint = Endpoint::parse(url, &style.approach)?;
    Ok(Topology::One(Node::new(&endpoint, style)))
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(_) => f.write_str("Url(hidden)"),
            Self::Environment => f.write_str("Environment"),
            Self::Connection(_) => f.write_str("Connection"),
            Self::Cluster(_) => f.write_str("Cluster(hidden)"),
            Self::Shards(_) => f.write_str("Shards(hidden)"),
            Self::Replicas { .. } => f.write_str("Replicas(hidden)"),
            Self::Sentinels { service, .. } => write!(f, "Sentinels({service:?}, hidden)"),
        }
    }
}
