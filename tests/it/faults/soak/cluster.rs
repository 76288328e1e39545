//! A cluster whose servers crash, freeze, change roles and hand slots to each other.

use std::time::Duration;

use futures::future::try_join_all;
use hedgerow::{Client, Lock};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use redis::Value;

use super::{Ground, soak};
use crate::faults::{Loss, Traffic};
use crate::support::topology::Cluster;
use crate::support::wait::until;

/// What happens to a cluster while it is in use.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Crashed,
    Frozen,
    Demoted,
    SlotsMoved,
    ConnectionsKilled,
    ScriptsFlushed,
}

const FAULTS: [Fault; 6] = [
    Fault::Crashed,
    Fault::Frozen,
    Fault::Demoted,
    Fault::SlotsMoved,
    Fault::ConnectionsKilled,
    Fault::ScriptsFlushed,
];

/// Shards, each of a primary and a replica, which change places.
const SHARDS: usize = 3;

/// Enough to have some on each primary.
const LOCKS: usize = 32;

struct Shards {
    cluster: Cluster,
    client: Client,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for a quarter of an hour: make soak"]
async fn nothing_is_counted_twice_and_nothing_grows_while_a_cluster_changes() {
    soak(Shards::new().await).await;
}

impl Shards {
    async fn new() -> Self {
        let cluster = Cluster::start_hasty(SHARDS, 1).await;
        let seeds = cluster.nodes().iter().map(|node| node.url());
        let builder = Client::builder().cluster(seeds);
        let builder = builder.deadline(Duration::from_secs(2));
        Self {
            client: builder.open().expect("good URLs"),
            cluster,
        }
    }

    async fn bring(&mut self, fault: Fault, random: &mut StdRng) {
        let (primary, replica) = self.roles(random.random_range(0..SHARDS)).await;
        let node = &self.cluster.nodes()[primary];
        match fault {
            Fault::Crashed => {
                node.kill().await;
                self.cluster.is_primary(replica).await;
                node.start_again().await;
                self.cluster.agrees().await;
            }
            Fault::Frozen => {
                node.stop();
                self.cluster.is_primary(replica).await;
                node.resume();
                self.cluster.agrees().await;
            }
            Fault::Demoted => self.cluster.failover(replica).await,
            Fault::SlotsMoved => {
                let keys = self.keys("hr:*").await;
                for key in keys.iter().sample(random, 4) {
                    let slot = hedgerow::key::slot(key.as_bytes());
                    let (to, _) = self.roles(random.random_range(0..SHARDS)).await;
                    let from = self.cluster.owner_of(slot).await;
                    if from != to {
                        let migration = self.cluster.migrate(slot, to).await;
                        migration.carry_all().await;
                        migration.finish().await;
                        // A replica that takes over before it hears that keys have left keeps them,
                        // and refuses them when they come back.
                        let from = &self.cluster.nodes()[from];
                        let _: i64 = from.run(&["WAIT", "1", "0"]).await;
                    }
                }
                self.cluster.agrees().await;
            }
            Fault::ConnectionsKilled => {
                let kind = ["normal", "pubsub"].choose(random).expect("two");
                let _: Vec<Value> = self
                    .cluster
                    .run_all(&["CLIENT", "KILL", "TYPE", kind])
                    .await;
            }
            Fault::ScriptsFlushed => {
                let _: Vec<Value> = self.cluster.run_all(&["SCRIPT", "FLUSH"]).await;
            }
        }
    }

    /// The primary of a shard, and its replica.
    async fn roles(&self, shard: usize) -> (usize, usize) {
        let (one, other) = (shard, self.cluster.replica_of(shard, 0));
        let role = self.cluster.nodes()[one].info("replication", "role").await;
        match role.as_str() {
            "master" => (one, other),
            _ => (other, one),
        }
    }
}

impl Ground for Shards {
    const LOSS: Loss = Loss::Data;

    async fn bring_any(&mut self, random: &mut StdRng, _: &Traffic) -> String {
        let fault = *FAULTS.choose(random).expect("there are some");
        self.bring(fault, random).await;
        format!("{fault:?}")
    }

    async fn mend(&mut self) {
        self.cluster.agrees().await;
        // A second connection is made to a primary when something there is first listened for.
        let locks: Vec<_> = (0..LOCKS)
            .map(|number| self.client.lock(&format!("held:{number}")))
            .collect();
        let guards = try_join_all(locks.iter().map(Lock::acquire)).await;
        let guards = guards.expect("free");
        until("each of them is listened for", async || {
            let words = ["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"];
            let channels: Vec<Vec<String>> = self.cluster.run_all(&words).await;
            channels.iter().all(|channels| !channels.is_empty())
        })
        .await;
        for guard in guards {
            guard.release().await.expect("released");
        }
    }

    fn client(&self) -> &Client {
        &self.client
    }

    async fn keys(&self, pattern: &str) -> Vec<String> {
        let keys: Vec<Vec<String>> = self.cluster.run_all(&["KEYS", pattern]).await;
        keys.concat()
    }

    async fn delete(&self, key: &str) {
        let _: i64 = self.cluster.run(&["DEL", key]).await;
    }
}
