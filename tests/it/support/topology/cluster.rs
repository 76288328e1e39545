//! A cluster of the test's own.
//!
//! It is born whole: every node finds a `nodes.conf` that names all of them, so nobody has to meet.
//! What remains is the two seconds for which a new primary refuses to write.

use std::ops::Range;
use std::time::Duration;

use redis::{FromRedisValue, RedisResult, Value};

use super::{Migration, Node, Port, Recipe, knows_shards};
use crate::support::wait::{bounded, until};

/// Primaries, then their replicas: node `p + n·k` follows node `p` of `n` primaries at the start.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    ids: Vec<String>,
    /// The ports that the nodes tell clients.
    told: Vec<u16>,
    primaries: usize,
    /// Claimed for as long as a killed node may come back to its own.
    _buses: Vec<Port>,
}

impl Cluster {
    /// Starts a cluster and waits until all nodes agree on it. A node is believed dead only after a
    /// long silence, so that no standstill of the machine makes another primary.
    pub async fn start(primaries: usize, replicas: usize) -> Self {
        Self::born(primaries, replicas, LONG_MS).await
    }

    /// As [`start`](Self::start), but a node that is silent for a second is believed dead.
    pub async fn start_hasty(primaries: usize, replicas: usize) -> Self {
        Self::born(primaries, replicas, "1000").await
    }

    async fn born(primaries: usize, replicas: usize, silence_ms: &str) -> Self {
        let nodes = primaries * (1 + replicas);
        let mut why = String::new();
        for _ in 0..3 {
            let announced = vec![None; nodes];
            match Self::try_start(primaries, &announced, silence_ms).await {
                Ok(cluster) => {
                    cluster.agrees().await;
                    return cluster;
                }
                Err(said) => why = said,
            }
        }
        panic!("no cluster: {why}");
    }

    /// Primaries each of which tells clients to come to the port given for it: a proxy's.
    pub async fn start_announcing(ports: &[u16]) -> Self {
        let announced: Vec<_> = ports.iter().copied().map(Some).collect();
        let cluster = Self::try_start(ports.len(), &announced, LONG_MS).await;
        let cluster = cluster.unwrap_or_else(|why| panic!("no cluster: {why}"));
        cluster.agrees().await;
        cluster
    }

    async fn try_start(
        primaries: usize,
        announced: &[Option<u16>],
        silence_ms: &str,
    ) -> Result<Self, String> {
        let ports: Vec<_> = announced.iter().map(|_| Port::free()).collect();
        let buses: Vec<_> = announced.iter().map(|_| Port::free()).collect();
        let ids: Vec<String> = announced
            .iter()
            .map(|_| {
                format!(
                    "{:032x}{:08x}",
                    rand::random::<u128>(),
                    rand::random::<u32>()
                )
            })
            .collect();
        let told: Vec<u16> = announced
            .iter()
            .zip(&ports)
            .map(|(announced, port)| announced.unwrap_or(port.number()))
            .collect();
        let places: Vec<String> = told
            .iter()
            .zip(&buses)
            .enumerate()
            .map(|(index, (port, bus))| {
                let place = format!("127.0.0.1:{port}@{}", bus.number());
                // A shard is called as its first primary is; older nodes take this for a host name.
                match &ids[index % primaries] {
                    shard if knows_shards() => format!("{place},,shard-id={shard}"),
                    _ => place,
                }
            })
            .collect();
        let mut starting = Vec::new();
        for (index, (port, bus)) in ports.into_iter().zip(&buses).enumerate() {
            let (told, bus) = (told[index].to_string(), bus.number().to_string());
            let recipe = Recipe::new()
                .on(port)
                .with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
                .with(&["--cluster-announce-ip", "127.0.0.1"])
                .with(&["--cluster-announce-port", &told])
                .with(&["--cluster-replica-validity-factor", "0"])
                .with(&["--repl-diskless-sync-delay", "0"])
                .with(&["--cluster-node-timeout", silence_ms])
                .file("nodes.conf", born_as(index, primaries, &ids, &places));
            starting.push(recipe.try_start());
        }
        let nodes = futures::future::join_all(starting).await;
        let nodes = nodes.into_iter().collect::<Result<_, _>>()?;
        Ok(Self {
            nodes,
            ids,
            told,
            primaries,
            _buses: buses,
        })
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes that were primaries at the start.
    pub fn primaries(&self) -> &[Node] {
        &self.nodes[..self.primaries]
    }

    /// A replica, at the start, of the primary with this index.
    pub fn replica_of(&self, primary: usize, index: usize) -> usize {
        self.primaries * (1 + index) + primary
    }

    /// The id under which the others know a node.
    pub fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    /// The index of the node that serves a slot, as the first node that answers sees it.
    pub async fn owner_of(&self, slot: u16) -> usize {
        let view = self.view(self.witness().await).await;
        let id = view.owner_of(slot).expect("the slot is served");
        self.ids.iter().position(|known| known == id).expect("ours")
    }

    /// The node that serves a key.
    pub async fn node_of(&self, key: &str) -> &Node {
        &self.nodes[self.owner_of(hedgerow::key::slot(key.as_bytes())).await]
    }

    /// Runs a command where its keys live, or on some primary if it has none.
    pub async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut node = self.witness().await;
        let mut asking = false;
        loop {
            let reply: RedisResult<Value> = match asking {
                true => node.try_ask(words).await,
                false => node.try_run(words).await,
            };
            let error = match reply {
                Ok(value) => return redis::from_redis_value(value).map_err(Into::into),
                Err(error) => error,
            };
            let Some((address, _)) = error.redirect_node() else {
                return Err(error);
            };
            asking = error.code() == Some("ASK");
            node = self.node_at(address);
        }
    }

    /// Runs a command on every primary of now, in the order of the nodes.
    pub async fn run_all<T: FromRedisValue>(&self, words: &[&str]) -> Vec<T> {
        let mut replies = Vec::new();
        for node in self.primaries_now().await {
            replies.push(node.run(words).await);
        }
        replies
    }

    /// The nodes that call themselves primaries of some slots; dead ones say nothing.
    pub async fn primaries_now(&self) -> Vec<&Node> {
        let view = self.view(self.witness().await).await;
        let serves = |id: &String| view.slots.iter().any(|(_, owner)| owner == id);
        let all = self.nodes.iter().zip(&self.ids);
        all.filter(|(_, id)| serves(id))
            .map(|(node, _)| node)
            .collect()
    }

    /// Begins to move a slot to the node with this index.
    pub async fn migrate(&self, slot: u16, to: usize) -> Migration<'_> {
        let from = self.owner_of(slot).await;
        Migration::begin(self, slot, from, to).await
    }

    /// Gives slots of a primary to another, by `CLUSTER MIGRATESLOTS`: all but one, so that it
    /// stays a primary.
    pub async fn hand_over(&self, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let slots = slots_of(from, self.primaries);
        let (first, last) = (slots.start.to_string(), (slots.end - 2).to_string());
        let words = ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &first, &last];
        let words = [&words, &["NODE", &self.ids[to]][..]].concat();
        let _: String = source.run(&words).await;
        until("the slots are handed over", async || {
            let view = self.view(target).await;
            view.owner_of(slots.start) == Some(self.ids[to].as_str())
        })
        .await;
        self.agrees().await;
    }

    /// Lets the replica with this index take over from its living primary, without loss.
    pub async fn failover(&self, replica: usize) {
        // The servers give one up after five seconds, as when the others have just voted.
        let tries = async {
            loop {
                let _: String = self.nodes[replica].run(&["CLUSTER", "FAILOVER"]).await;
                let one = tokio::time::timeout(Duration::from_secs(6), self.is_primary(replica));
                if one.await.is_ok() {
                    return;
                }
            }
        };
        bounded("the replica takes over", tries).await;
        self.agrees().await;
    }

    /// Waits until a node serves slots, as after its primary has crashed.
    pub async fn is_primary(&self, index: usize) {
        let id = &self.ids[index];
        until("the replica takes over", async || {
            let view = self.view(&self.nodes[index]).await;
            view.healthy && view.slots.iter().any(|(_, owner)| owner == id)
        })
        .await;
    }

    /// Waits until all nodes that answer are well, see the same owners, and replicas are in step.
    pub async fn agrees(&self) {
        until("the nodes agree", async || {
            let mut agreed = None;
            for node in &self.nodes {
                let Ok(view) = self.try_view(node).await else {
                    continue;
                };
                if !view.healthy || *agreed.get_or_insert_with(|| view.slots.clone()) != view.slots
                {
                    return false;
                }
                let link = node.info("replication", "master_link_status").await;
                if link == "down" {
                    return false;
                }
            }
            agreed.is_some()
        })
        .await;
    }

    /// Whether slots are where they were at the start, and none is on its way.
    pub async fn is_as_born(&self) -> RedisResult<bool> {
        let born: Vec<_> = (0..self.primaries)
            .map(|index| (slots_of(index, self.primaries), self.ids[index].clone()))
            .collect();
        for node in &self.nodes {
            let view = self.try_view(node).await?;
            let known: String = node.try_run(&["CLUSTER", "NODES"]).await?;
            if !view.healthy || view.slots != born || known.contains('[') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The node that tells clients to come to this address.
    pub fn node_at(&self, address: &str) -> &Node {
        let port = address.rsplit(':').next().unwrap_or_default();
        let told = self.told.iter().position(|told| told.to_string() == port);
        &self.nodes[told.expect("one of ours")]
    }

    /// The first node that answers.
    async fn witness(&self) -> &Node {
        for node in &self.nodes {
            if node.try_run::<()>(&["PING"]).await.is_ok() {
                return node;
            }
        }
        panic!("no node answers");
    }

    async fn view(&self, node: &Node) -> View {
        self.try_view(node).await.expect("the node answers")
    }

    async fn try_view(&self, node: &Node) -> RedisResult<View> {
        let info: String = node.try_run(&["CLUSTER", "INFO"]).await?;
        let slots: Vec<Vec<Value>> = node.try_run(&["CLUSTER", "SLOTS"]).await?;
        let slots = slots.into_iter().map(|row| {
            let [from, to, owner] = &row[..3] else {
                unreachable!()
            };
            let bound = |value: &Value| u16::from_redis_value(value.clone()).expect("a slot");
            let (_, _, id, _): (Value, Value, String, Value) =
                FromRedisValue::from_redis_value(owner.clone()).expect("a node");
            (bound(from)..bound(to) + 1, id)
        });
        let mut slots: Vec<_> = slots.collect();
        slots.sort_by_key(|(range, _)| range.start);
        let whole = slots.iter().map(|(range, _)| range.len()).sum::<usize>() == 16384;
        Ok(View {
            healthy: whole && info.contains("cluster_state:ok"),
            slots,
        })
    }
}

/// What one node believes.
struct View {
    healthy: bool,
    slots: Vec<(Range<u16>, String)>,
}

impl View {
    fn owner_of(&self, slot: u16) -> Option<&str> {
        let row = self.slots.iter().find(|(range, _)| range.contains(&slot));
        row.map(|(_, id)| id.as_str())
    }
}

/// The file from which a node knows itself and all others.
fn born_as(index: usize, primaries: usize, ids: &[String], places: &[String]) -> String {
    let mut text = String::new();
    for (other, (id, place)) in ids.iter().zip(places).enumerate() {
        let myself = if other == index { "myself," } else { "" };
        let primary = other % primaries;
        let epoch = primary + 1;
        if other < primaries {
            let slots = slots_of(other, primaries);
            let (from, to) = (slots.start, slots.end - 1);
            text += &format!("{id} {place} {myself}master - 0 0 {epoch} connected {from}-{to}\n");
        } else {
            let primary = &ids[primary];
            text += &format!("{id} {place} {myself}slave {primary} 0 0 {epoch} connected\n");
        }
    }
    text + &format!("vars currentEpoch {primaries} lastVoteEpoch 0\n")
}

/// A silence after which a node is believed dead that nothing but its death explains.
const LONG_MS: &str = "15000";

/// The slots of a primary at the start.
fn slots_of(index: usize, primaries: usize) -> Range<u16> {
    let bound = |index: usize| (index * 16384 / primaries) as u16;
    bound(index)..bound(index + 1)
}
