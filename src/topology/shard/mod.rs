//! `Shards`: several independent servers; the hash tag of a key decides which one has it.
//!
//! Invariant: the owner of a key depends on the names and weights of the shards alone ([`Ring`]).
//! The servers know nothing of each other. A server that is down affects its own keys only, and its
//! errors name it. `Topology` calls this.

pub(crate) mod ring;

use std::fmt;
use std::sync::Arc;

use futures::future::try_join_all;
use redis::{Cmd, Value};

use crate::error::{Error, Result};
use crate::key::{Key, Placement};
use crate::net::connection::{Answer, Connection};
use crate::net::endpoint::{Access, Endpoint};
use crate::net::node::{Node, NodeConfig};
use crate::net::pipeline::replies::Values;
use crate::net::pipeline::{PIPELINES_TO_EACH, Pipeline};
use crate::time::Deadline;
use crate::topology::placement::{Copies, ReadOther};
use crate::wire::fault::from_server;
use ring::Ring;

/// One shard, as the caller of the builder names it.
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) weight: u32,
}

/// The other set of shards during a migration, as the caller of the builder names it.
pub(crate) enum Migration {
    To(Vec<Shard>),
    From(Vec<Shard>),
}

/// Several independent servers.
pub(crate) struct Shards {
    /// The shards of this ring first, in its order.
    nodes: Vec<Named>,
    ring: Ring,
    /// The other ring, during a migration.
    other: Option<Other>,
}

/// The other ring, during a migration.
struct Other {
    ring: Ring,
    /// For each member of the ring, the index of its node.
    nodes: Vec<usize>,
    /// Whether keys move away from this ring.
    is_old: bool,
}

/// A server and the name of its shard, which its errors carry.
struct Named {
    name: Box<str>,
    node: Node,
}

impl Shards {
    pub(crate) fn new(
        shards: &[Shard],
        moving: Option<&Migration>,
        style: &NodeConfig,
    ) -> Result<Self> {
        let mut known: Vec<(&str, Endpoint)> = Vec::new();
        let (ring, _) = gathered(shards, &style.approach, &mut known)?;
        let other = match moving {
            None => None,
            Some(Migration::To(others) | Migration::From(others)) => {
                let (ring, nodes) = gathered(others, &style.approach, &mut known)?;
                let is_old = matches!(moving, Some(Migration::From(_)));
                Some(Other {
                    ring,
                    nodes,
                    is_old,
                })
            }
        };
        let style = NodeConfig {
            // One pipeline to each server is enough: the other servers work meanwhile.
            pipelines: PIPELINES_TO_EACH,
            ..style.clone()
        };
        let named = |(name, endpoint): (&str, Endpoint)| Named {
            name: name.into(),
            node: Node::new(&endpoint, &style),
        };
        Ok(Self {
            nodes: known.into_iter().map(named).collect(),
            ring,
            other,
        })
    }

    /// Returns the server of `key`.
    pub(crate) fn node(&self, key: &Key) -> &Node {
        &self.nodes[self.place(key)].node
    }

    /// Returns the index of the server of `key`.
    pub(crate) fn place(&self, key: &Key) -> usize {
        let tag = key.hash_tag();
        let other = match (key.placement(), &self.other) {
            (Placement::On(shard), _) => return shard as usize,
            (Placement::Elsewhere, Some(other)) => Some(other),
            // Locks and counters stay with the old ring until the migration ends: two rings in use
            // at once would let two holders in.
            (Placement::Kept, Some(other)) if other.is_old => Some(other),
            _ => None,
        };
        match other {
            Some(other) => other.nodes[other.ring.owner(tag)],
            None => self.ring.owner(tag),
        }
    }

    /// Returns one copy of `key` for each shard of both rings.
    pub(crate) fn everywhere(&self, key: &Key) -> Vec<Key> {
        (0..self.nodes.len()).map(|shard| key.on(shard)).collect()
    }

    /// Where a cached key lives, by both rings.
    pub(crate) fn copies(&self, key: &Key) -> Copies {
        let Some(other) = &self.other else {
            return Copies::none();
        };
        let there = key.on_other_ring();
        Copies {
            other: (self.place(&there) != self.place(key)).then_some(there),
            read: match other.is_old {
                true => ReadOther::WhenMissing,
                false => ReadOther::Never,
            },
        }
    }

    pub(crate) async fn send(
        &self,
        command: &Cmd,
        key: &Key,
        deadline: Deadline,
    ) -> Result<Answer> {
        let shard = &self.nodes[self.place(key)];
        shard.send(command, deadline).await
    }

    /// Adds the name and the address of the shard of `key` to `error`.
    pub(crate) fn located(&self, error: Error, key: &Key) -> Error {
        self.nodes[self.place(key)].named(error)
    }

    /// The number of shards, with those of the other ring.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Sends `command` to the shard at `place`.
    pub(crate) async fn send_to(
        &self,
        place: usize,
        command: &Cmd,
        deadline: Deadline,
    ) -> Result<Answer> {
        self.nodes[place].send(command, deadline).await
    }

    pub(crate) fn link(&self, place: usize) -> &Arc<Connection> {
        &self.nodes[place].node.link
    }

    /// Sends `command` to every shard. Fails with the first error that any of them reports.
    pub(crate) async fn send_to_all(
        &self,
        command: &Cmd,
        deadline: Deadline,
    ) -> Result<Option<Answer>> {
        let deadline = deadline.keep_trying();
        let sent = self.nodes.iter();
        let sent = sent.map(|shard| shard.send(command, deadline));
        let replies = try_join_all(sent).await?;
        Ok(replies.into_iter().next())
    }

    /// Reads each of `keys` from its shard, in parallel. If one shard does not answer, the whole
    /// read fails.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        let shards: Vec<&Named> = keys
            .iter()
            .map(|key| &self.nodes[self.place(key)])
            .collect();
        let pipelines = shards.iter().map(|shard| &shard.node.pipeline);
        let cells = Pipeline::gather(keys, pipelines, deadline).await;
        let cells = cells.map_err(|(place, error)| shards[place].named(error))?;
        let cells = cells.into_iter().zip(shards);
        let values =
            cells.map(|(cell, shard)| cell.map_err(|error| shard.named(from_server(&error))));
        values.collect()
    }

    /// Returns the connections to all servers, with the names of the shards.
    pub(crate) fn nodes(&self) -> Vec<(String, Arc<Connection>)> {
        let named = |shard: &Named| (shard.name.to_string(), shard.node.link.clone());
        self.nodes.iter().map(named).collect()
    }

    /// Returns the names and addresses of the servers, without credentials.
    pub(crate) fn address(&self) -> String {
        let shown = |shard: &Named| format!("{}={}", shard.name, shard.node.address());
        let all: Vec<String> = self.nodes.iter().map(shown).collect();
        all.join(",")
    }
}

/// Returns the ring of `shards` and the index of each in `known`, to which new shards are added.
fn gathered<'s>(
    shards: &'s [Shard],
    approach: &Access,
    known: &mut Vec<(&'s str, Endpoint)>,
) -> Result<(Ring, Vec<usize>)> {
    let ring = Ring::new(shards.iter().map(|shard| (&*shard.name, shard.weight)))?;
    let mut nodes = Vec::with_capacity(shards.len());
    for Shard { name, url, .. } in shards {
        let endpoint = Endpoint::parse(url, approach).map_err(|error| error.at(name))?;
        let place = known.iter().position(|(known, _)| known == name);
        if let Some(place) = place {
            let (_, there) = &known[place];
            // Both rings share the node of a name, so its URL must lead to one place.
            if (&there.address, there.db) != (&endpoint.address, endpoint.db) {
                return Err(Error::invalid("two URLs of one name lead to two places").at(name));
            }
        }
        nodes.push(place.unwrap_or(known.len()));
        if place.is_none() {
            known.push((name, endpoint));
        }
    }
    Ok((ring, nodes))
}

impl Named {
    /// Sends by the pipeline, and adds the shard's name to any error. `NOSCRIPT` stays an answer:
    /// the retry follows it with the script's source.
    async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        match self.node.pipeline.send(command, deadline).await {
            Ok(Answer {
                value: Value::ServerError(error),
                ..
            }) if error.code() != "NOSCRIPT" => Err(self.named(from_server(&error))),
            outcome => outcome.map_err(|error| self.named(error)),
        }
    }

    /// Adds the name and the address of the shard to `error`.
    fn named(&self, error: Error) -> Error {
        self.node.link.located(error).at(&self.name)
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shards").field(&self.address()).finish()
    }
}
