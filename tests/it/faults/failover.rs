//! Servers that go, and others that take over, while everything is in use.

use std::time::Duration;

use hedgerow::Client;

use super::{Loss, Traffic};
use crate::topology::Cluster;

const CLUSTER: &str = "cluster 3+3";

async fn client(cluster: &Cluster) -> Client {
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let builder = Client::builder().cluster(seeds);
    let builder = builder.deadline(Duration::from_secs(2));
    builder.connect().await.expect("good seeds")
}

/// The primary that serves the lock of the traffic.
async fn victim(cluster: &Cluster) -> usize {
    let fences: Vec<Vec<String>> = cluster.run_all(&["KEYS", "hr:*:fence"]).await;
    let fence = fences.concat().pop().expect("a lock was granted");
    cluster.owner_of(hedgerow::slot(fence.as_bytes())).await
}

#[tokio::test]
async fn fault_26_a_clusters_primary_crashes() {
    let cluster = Cluster::start(3, 1).await;
    let client = client(&cluster).await;
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let victim = victim(&cluster).await;
    traffic.strike().await;
    cluster.nodes()[victim].kill().await;
    cluster.is_primary(cluster.replica_of(victim, 0)).await;
    traffic.flows(200).await;
    traffic
        .settle(26, "a primary crashes", CLUSTER, "recovers")
        .await;
}
