//! `Shards`: independent servers, each key asked of the one that its hash tag falls to.
//!
//! Invariant: who has a key follows from the names and weights alone ([`Ring`]). The servers know
//! nothing of each other, so one that is down harms nobody but its own keys, and its errors name
//! it.

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

/// One server of several, as the caller says it.
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) weight: u32,
}

/// The other set of shards, as the caller says it, while keys move.
pub(crate) enum Migration {
    To(Vec<Shard>),
    From(Vec<Shard>),
}

/// Several independent servers.
pub(crate) struct Shards {
    /// Those of this ring first, in its order.
    nodes: Vec<Named>,
    ring: Ring,
    other: Option<Other>,
}

/// The other ring, while keys move.
struct Other {
    ring: Ring,
    /// Which node each member of the ring is.
    nodes: Vec<usize>,
    /// This is the ring from which keys move.
    is_old: bool,
}

/// A server, and what its errors call it.
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

    /// The server of `key`.
    pub(crate) fn node(&self, key: &Key) -> &Node {
        &self.nodes[self.place(key)].node
    }

    /// The number of the server of `key`.
    pub(crate) fn place(&self, key: &Key) -> usize {
        let tag = key.hash_tag();
        let other = match (key.placement(), &self.other) {
            (Placement::On(shard), _) => return shard as usize,
            (Placement::Elsewhere, Some(other)) => Some(other),
            (Placement::Kept, Some(other)) if other.is_old => Some(other),
            _ => None,
        };
        match other {
            Some(other) => other.nodes[other.ring.owner(tag)],
            None => self.ring.owner(tag),
        }
    }

    /// The `key` of each shard, of both rings.
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

    /// Sends `command` to every shard; the first error of one is the answer.
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

    /// Reads each of `keys` where it is, in parallel. What one shard does not answer is an error of
    /// the whole.
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

    /// All servers, by their names.
    pub(crate) fn nodes(&self) -> Vec<(String, Arc<Connection>)> {
        let named = |shard: &Named| (shard.name.to_string(), shard.node.link.clone());
        self.nodes.iter().map(named).collect()
    }

    /// Where the servers are, without credentials.
    pub(crate) fn address(&self) -> String {
        let shown = |shard: &Named| format!("{}={}", shard.name, shard.node.address());
        let all: Vec<String> = self.nodes.iter().map(shown).collect();
        all.join(",")
    }
}

/// The ring of `shards`, and which of `known` each is; those that were not known are added.
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
    /// As the lane does, but with the shard's name on whatever goes wrong. `NOSCRIPT` does not: it
    /// is answered by sending the script.
    async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        match self.node.pipeline.send(command, deadline).await {
            Ok(Answer {
                value: Value::ServerError(error),
                ..
            }) if error.code() != "NOSCRIPT" => Err(self.named(from_server(&error))),
            outcome => outcome.map_err(|error| self.named(error)),
        }
    }

    /// Says in `error` which shard it is about, and where that is.
    fn named(&self, error: Error) -> Error {
        self.node.link.located(error).at(&self.name)
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shards").field(&self.address()).finish()
    }
}
