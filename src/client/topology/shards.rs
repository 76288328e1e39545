//! `Shards`: independent servers, each key asked of the one that its hash tag falls to.
//!
//! Invariant: who has a key follows from the names and weights alone ([`Ring`]). The servers know
//! nothing of each other, so one that is down harms nobody but its own keys, and its errors name it.

use std::fmt;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::found;
use super::rendezvous::Ring;
use crate::client::builder::{ClientBuilder, Place};
use crate::client::endpoint::Endpoint;
use crate::client::node::{Node, Style};
use crate::error::Result;
use crate::key::Key;
use crate::script::{Found, from_server};

impl ClientBuilder {
    /// Several independent servers, each with a name, a URL (see [`Client::connect`] for the forms)
    /// and a weight from 1 to 1,000: keys are spread over them in proportion to the weights.
    ///
    /// The name is what a shard is: clients that are given the same names and weights find the same
    /// keys at the same shards, whatever the order. Another host, password or order moves nothing;
    /// another name moves all that the shard has. One more shard of equal weight takes its share
    /// from all others, about 1/N; keys move to it only, and what a shard had that is left out goes
    /// to the others. **What is stored does not move along:** a moved counter starts again, a moved
    /// value is a miss, and processes that disagree on names or weights do not exclude each other
    /// with locks.
    ///
    /// A shard that is down fails the calls for its own keys only.
    ///
    /// ```no_run
    /// # async fn example() -> hedgerow::Result<()> {
    /// let client = hedgerow::Client::builder()
    ///     .shards([
    ///         ("a", "redis://10.0.0.1", 1),
    ///         ("b", "redis://10.0.0.2", 1),
    ///         ("big", "redis://10.0.0.3", 2),
    ///     ])
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Client::connect`]: crate::Client::connect
    pub fn shards<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        let shards = shards.into_iter().map(|(name, url, weight)| Shard {
            name: name.into(),
            url: url.into(),
            weight,
        });
        self.place = Some(Place::Shards(shards.collect()));
        self
    }
}

/// One server of several, as the caller says it.
pub(crate) struct Shard {
    name: String,
    url: String,
    weight: u32,
}

/// Several independent servers.
pub(crate) struct Shards {
    ring: Ring,
    /// In the order of the ring.
    nodes: Vec<Named>,
}

/// A server, and what its errors call it.
struct Named {
    name: Box<str>,
    node: Node,
}

impl Shards {
    pub(crate) fn new(shards: &[Shard], style: &Style) -> Result<Self> {
        let members = shards.iter().map(|shard| (&*shard.name, shard.weight));
        let ring = Ring::new(members)?;
        let named = shards.iter().map(|shard| {
            let endpoint = Endpoint::parse(&shard.url).map_err(|error| error.at(&shard.name))?;
            Ok(Named {
                name: shard.name.as_str().into(),
                node: Node::new(&endpoint, style),
            })
        });
        Ok(Self {
            nodes: named.collect::<Result<_>>()?,
            ring,
        })
    }

    /// The server of `key`.
    pub(crate) fn node(&self, key: &Key) -> &Node {
        &self.nodes[self.place(key)].node
    }

    fn place(&self, key: &Key) -> usize {
        self.ring.owner(key.hash_tag())
    }

    pub(crate) async fn send(&self, command: &Cmd, key: &Key, deadline: Instant) -> Result<Value> {
        self.nodes[self.place(key)].send(command, deadline).await
    }

    /// Sends `command` to every shard; the first error of one is the answer.
    pub(crate) async fn send_to_all(&self, command: &Cmd, deadline: Instant) -> Result<Value> {
        let sent = self.nodes.iter().map(|shard| shard.send(command, deadline));
        let replies = try_join_all(sent).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Nil))
    }

    /// Reads each of `keys` where it is, in parallel. What one shard does not answer is an error of
    /// the whole.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Found> {
        let Some((first, rest)) = keys.split_first() else {
            return Ok(Vec::new());
        };
        let home = self.place(first);
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for (number, key) in rest.iter().enumerate() {
            let place = self.place(key);
            if groups.is_empty() {
                if place == home {
                    continue;
                }
                groups.push((home, (0..=number).collect()));
            }
            match groups.iter_mut().find(|(of, _)| *of == place) {
                Some((_, group)) => group.push(number + 1),
                None => groups.push((place, vec![number + 1])),
            }
        }
        if groups.is_empty() {
            // All on one shard: nothing to take apart.
            return self.nodes[home].read(keys, deadline).await;
        }
        let answers = join_all(groups.iter().map(|(place, group)| async {
            let own: Vec<Key> = group.iter().map(|&number| keys[number].clone()).collect();
            self.nodes[*place].read(&own, deadline).await
        }));
        let mut all: Vec<Option<Bytes>> = vec![None; keys.len()];
        for (answer, (_, group)) in answers.await.into_iter().zip(groups) {
            for (value, number) in answer?.into_iter().zip(group) {
                all[number] = value;
            }
        }
        Ok(all)
    }

    /// Where the servers are, without credentials.
    pub(crate) fn address(&self) -> String {
        let shown = |shard: &Named| format!("{}={}", shard.name, shard.node.address());
        let all: Vec<String> = self.nodes.iter().map(shown).collect();
        all.join(",")
    }
}

impl Named {
    /// As the lane does, but with the shard's name on whatever goes wrong. `NOSCRIPT` does not: it
    /// is answered by sending the script.
    async fn send(&self, command: &Cmd, deadline: Instant) -> Result<Value> {
        match self.node.lane.send(command, deadline).await {
            Ok(Value::ServerError(error)) if error.code() != "NOSCRIPT" => {
                Err(from_server(&error).at(&self.name))
            }
            outcome => outcome.map_err(|error| error.at(&self.name)),
        }
    }

    async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Found> {
        let cells = self.node.lane.read(keys, deadline).await;
        cells.and_then(found).map_err(|error| error.at(&self.name))
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shards").field(&self.address()).finish()
    }
}
