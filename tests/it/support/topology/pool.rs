//! Running topologies, lent to one test at a time.
//!
//! Invariant: whoever gets a lease finds the servers as if they had just been started: no data, no
//! scripts, the settings and users of the beginning, no clients. What cannot be brought back to
//! that is thrown away, and so is what a panicking test had. There are as many as there were tests
//! at once; they end when this process does.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisResult;

use super::{Cluster, Node, Sentinels, Shards};

/// A cluster of three primaries, whose nodes are believed dead only after a long silence.
pub async fn lease_cluster() -> Lease<Cluster> {
    CLUSTERS.lease().await
}

/// A primary, two replicas, three sentinels.
pub async fn lease_sentinels() -> Lease<Sentinels> {
    SENTINELS.lease().await
}

/// Two servers that do not know each other.
pub async fn lease_shards() -> Lease<Shards> {
    SHARDS.lease().await
}

static CLUSTERS: Pool<Cluster> = Pool::new();
static SENTINELS: Pool<Sentinels> = Pool::new();
static SHARDS: Pool<Shards> = Pool::new();

/// What a pool can hold.
pub trait Pooled: Sized + 'static {
    fn born() -> impl Future<Output = Self>;

    /// All servers that hold data.
    fn data(&self) -> Vec<&Node>;

    /// Whether the servers stand to each other as at the start. Their data is gone already.
    fn is_intact(&self) -> impl Future<Output = RedisResult<bool>>;
}

struct Pool<T>(Mutex<Vec<Entry<T>>>);

struct Entry<T> {
    topology: T,
    /// What each data node was set to at the start.
    settings: Vec<Settings>,
}

impl<T: Pooled> Pool<T> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    async fn lease(&'static self) -> Lease<T> {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(entry) = idle() {
            // A test may have left a node paused, or stopped; nothing waits for that.
            let fresh = tokio::time::timeout(Duration::from_secs(10), entry.is_fresh()).await;
            if let Ok(Ok(true)) = fresh {
                return Lease {
                    entry: Some(entry),
                    pool: self,
                };
            }
        }
        let topology = T::born().await;
        let mut settings = Vec::new();
        for node in topology.data() {
            settings.push(Settings::of(node).await.expect("the node answers"));
        }
        Lease {
            entry: Some(Entry { topology, settings }),
            pool: self,
        }
    }
}

impl<T: Pooled> Entry<T> {
    /// Brings all servers back to the start; whether that was possible.
    async fn is_fresh(&self) -> RedisResult<bool> {
        let nodes = self.topology.data();
        for (node, settings) in nodes.iter().zip(&self.settings) {
            // The connection may be of a runtime that has gone.
            node.forget_connections();
            settings.restore(node).await?;
        }
        for node in &nodes {
            wipe(node).await?;
        }
        self.topology.is_intact().await
    }
}

/// The right to a topology; goes back to the pool when it is dropped.
pub struct Lease<T: Pooled> {
    entry: Option<Entry<T>>,
    pool: &'static Pool<T>,
}

impl<T: Pooled> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.entry.as_ref().expect("there until dropped").topology
    }
}

impl<T: Pooled> Drop for Lease<T> {
    fn drop(&mut self) {
        let entry = self.entry.take();
        if !std::thread::panicking() {
            let mut idle = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            idle.extend(entry);
        }
    }
}

/// What a test may have set on a node.
struct Settings {
    config: BTreeMap<String, String>,
    users: Vec<String>,
}

impl Settings {
    async fn of(node: &Node) -> RedisResult<Self> {
        Ok(Self {
            config: node.try_run(&["CONFIG", "GET", "*"]).await?,
            users: node.try_run(&["ACL", "LIST"]).await?,
        })
    }

    async fn restore(&self, node: &Node) -> RedisResult<()> {
        let _: () = node.try_run(&["CLIENT", "UNPAUSE"]).await?;
        let now = Self::of(node).await?;
        let name = |user: &str| user.split(' ').nth(1).unwrap_or_default().to_owned();
        for user in &now.users {
            if !self.users.iter().any(|known| name(known) == name(user)) {
                let _: () = node.try_run(&["ACL", "DELUSER", &name(user)]).await?;
            }
        }
        for user in self.users.iter().filter(|user| !now.users.contains(user)) {
            let name = name(user);
            let mut words = vec!["ACL", "SETUSER", &name, "reset"];
            words.extend(user.split(' ').skip(2));
            let _: () = node.try_run(&words).await?;
        }
        for (setting, value) in &self.config {
            // Roles are the topology's affair; what else cannot be set cannot have changed.
            let changed = now.config.get(setting) != Some(value);
            if changed && setting != "replicaof" && setting != "slaveof" {
                let _: () = node.try_run(&["CONFIG", "SET", setting, value]).await?;
            }
        }
        Ok(())
    }
}

/// Removes data, scripts, clients and figures. Replicas follow their primary.
async fn wipe(node: &Node) -> RedisResult<()> {
    let info: String = node.try_run(&["INFO", "replication"]).await?;
    let mut all: Vec<&[&str]> = vec![
        &["SCRIPT", "FLUSH"],
        &["CONFIG", "RESETSTAT"],
        &["ACL", "LOG", "RESET"],
        &["SLOWLOG", "RESET"],
    ];
    if info.contains("role:master") {
        all.extend([&["FLUSHALL"][..], &["FUNCTION", "FLUSH"]]);
    }
    for words in all {
        let _: redis::Value = node.try_run(words).await?;
    }
    kill_clients(node).await
}

/// Cuts all clients off, but neither this administrator nor those who watch the node.
async fn kill_clients(node: &Node) -> RedisResult<()> {
    let own: String = node.try_run(&["CLIENT", "ID"]).await?;
    for kind in ["normal", "pubsub"] {
        let list: String = node.try_run(&["CLIENT", "LIST", "TYPE", kind]).await?;
        for line in list
            .lines()
            .filter(|line| !line.contains(" name=sentinel-"))
        {
            let id = line.split(' ').next().and_then(|id| id.strip_prefix("id="));
            let id = id.unwrap_or_default();
            if id != own {
                // It may have left by now.
                let _ = node.try_run::<usize>(&["CLIENT", "KILL", "ID", id]).await?;
            }
        }
    }
    Ok(())
}

impl Pooled for Cluster {
    async fn born() -> Self {
        Self::start(3, 0).await
    }

    fn data(&self) -> Vec<&Node> {
        self.nodes().iter().collect()
    }

    async fn is_intact(&self) -> RedisResult<bool> {
        self.is_as_born().await
    }
}

impl Pooled for Sentinels {
    async fn born() -> Self {
        let servers = Self::start().await;
        // On a machine that is busy, a server that is slow is not to be taken for dead.
        let after = "down-after-milliseconds";
        for sentinel in servers.sentinels() {
            let words = ["SENTINEL", "SET", Self::NAME, after, "60000"];
            let _: String = sentinel.run(&words).await;
        }
        servers
    }

    fn data(&self) -> Vec<&Node> {
        self.data().nodes().iter().collect()
    }

    async fn is_intact(&self) -> RedisResult<bool> {
        for sentinel in self.sentinels() {
            sentinel.forget_connections();
        }
        // Sentinels look at new replicas every ten seconds only: new ones are sooner ready.
        let primary = self.data().primary();
        let same = self.master_addr().await.1 == primary.port();
        Ok(same && primary.info("replication", "role").await == "master" && self.are_ready().await)
    }
}

impl Pooled for Shards {
    async fn born() -> Self {
        Self::start(2).await
    }

    fn data(&self) -> Vec<&Node> {
        self.nodes().iter().collect()
    }

    async fn is_intact(&self) -> RedisResult<bool> {
        let mut intact = true;
        for node in self.nodes() {
            intact &= node.info("replication", "role").await == "master";
        }
        Ok(intact)
    }
}
